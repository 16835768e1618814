import numpy as np
import pytest

from eigengame.paper import PAPER
from gdyn_reproduce.registry import resolve
from gdyn_reproduce.runs import execute
from gdyn_reproduce.testing import check_killed_runs_resume

FIGURES = [figure for figure in PAPER.figures if figure.id != "images-fashion-mnist"]  # the same module


@pytest.mark.parametrize("figure", FIGURES, ids=[figure.id for figure in FIGURES])
def test_smoke_run_measures_every_claim_and_draws(figure, tmp_path):
    config = resolve(figure.config)(**figure.presets["smoke"].overrides, out=str(tmp_path))
    record = execute(PAPER, figure, config, "smoke")
    assert record.measurements
    assert (record.folder / "figure.png").stat().st_size > 1000
    for value in record.measurements.values():
        assert np.all(np.isfinite(np.asarray(value, float)))


@pytest.mark.kill
def test_a_killed_run_resumes(tmp_path):
    check_killed_runs_resume(
        "eigengame", ["run", "clustering", "preset=smoke", "seeds=[0,1,2]"], tmp_path, after_files=(0, 1, 2)
    )
