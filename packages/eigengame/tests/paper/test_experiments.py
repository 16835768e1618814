from functools import lru_cache

import numpy as np
import pytest

from eigengame.paper import PAPER
from gdyn_common.storage import read_arrays
from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.registry import resolve
from gdyn_reproduce.runs import execute
from gdyn_reproduce.testing import check_killed_runs_resume, check_unread, every_option_counts

FIGURES = [figure for figure in PAPER.figures if figure.id != "images-fashion-mnist"]  # the same module


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Return the record of a figure at smoke size in a floating type, computed once."""

    @lru_cache
    def record(figure_id, dtype):
        figure = PAPER.figure(figure_id)
        options = figure.presets["smoke"].overrides | {"device": "cpu:0", "dtype": dtype}
        out = str(tmp_path_factory.mktemp("smoke"))
        with every_option_counts(figure):
            return execute(PAPER, figure, resolve(figure.config)(**options, out=out), "smoke")

    return record


@pytest.mark.parametrize("figure", [figure.id for figure in FIGURES])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_smoke_run_measures_every_claim_and_draws(figure, dtype, smoke):
    record = smoke(figure, dtype)
    assert record.measurements
    assert (record.folder / "figure.png").stat().st_size > 1000
    for value in record.measurements.values():
        assert np.all(np.isfinite(np.asarray(value, float)))


def test_options_that_are_declared_unread_change_no_number(smoke, tmp_path):
    check_unread(PAPER.figure("passes"), smoke("passes", "float32"), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("images", "dataset=digits", "download=true"), "download=True has no effect on a dataset that is"),
        (("passes", "data_root=/data"), "data_root=/data has no effect on datasets that are always there"),
        (("passes", "datasets=[digits]", "num_samples=99"), "num_samples=99 has no effect without gap5 or"),
    ],
)
def test_an_option_without_effect_is_refused(arguments, told, tmp_path, capsys):
    assert dispatch(PAPER, (), ["run", *arguments, f"out={tmp_path}"]) == 2
    assert told in capsys.readouterr().err


COUNTS = ("synthetic", "clustering", "passes")  # streaks, accuracies and passes may agree in both types


@pytest.mark.parametrize("figure", [figure.id for figure in FIGURES if figure.id not in COUNTS])
def test_dtype_reaches_the_numbers(figure, smoke):
    single, double = (read_arrays(smoke(figure, f"float{bits}").folder / "arrays.npz") for bits in (32, 64))
    assert any(not np.array_equal(array, double[name]) for name, array in single.items())


def test_rounding_of_averaged_directions_tells_their_type(smoke):
    assert 1e-8 < smoke("bias", "float32").measurements["mu_worst_error"][0] < 1e-4
    assert smoke("bias", "float64").measurements["mu_worst_error"][0] < 1e-12


@pytest.mark.kill
def test_a_killed_run_resumes(tmp_path):
    check_killed_runs_resume(
        "eigengame", ["run", "clustering", "preset=smoke", "seeds=[0,1]"], tmp_path, after_files=(0, 1)
    )


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda figure: figure.id)
def test_every_figure_reads_device_and_dtype(figure, capsys):
    assert dispatch(PAPER, (), ["run", figure.id, "preset=smoke", "device=tpu:7"]) == 2
    assert capsys.readouterr().err.count("device=tpu:7 is not present here; JAX sees") == 1
    assert dispatch(PAPER, (), ["run", figure.id, "preset=smoke", "dtype=float16"]) == 2
    assert "dtype=float16 is unknown. Allowed: float32, float64." in capsys.readouterr().err
