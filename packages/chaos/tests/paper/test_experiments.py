"""Every registered run executes at smoke size and draws its figure; the registry resolves."""

from __future__ import annotations

import numpy as np
import pytest

from chaos.paper import PAPER
from chaos.paper.cli import COMMANDS
from gdyn_common.storage import read_arrays
from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.testing import check_killed_runs_resume, check_registry


def test_the_registry():
    check_registry("chaos")


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda f: f.id)
def test_smoke(figure, tmp_path):
    assert dispatch(PAPER, COMMANDS, ["run", figure.id, "preset=smoke", f"out={tmp_path}"]) == 0
    folder = next(tmp_path.glob(f"chaos/{figure.id}/smoke/*"))
    arrays = read_arrays(folder / "arrays.npz")
    assert (folder / "figure.svg").stat().st_size > 1000
    assert all(np.isfinite(a).all() for k, a in arrays.items() if a.dtype.kind == "f" and k != "last")
    claims = PAPER.claims_of(figure.id)
    metrics = {claim.metric for claim in claims if not claim.presets or "quick" in claim.presets}
    assert metrics <= set(_measurements(folder))


@pytest.mark.parametrize("figure", ["fig2b", "fig3a", "fig3b"])  # those with a tangent matrix
def test_figures_run_in_single_precision(figure, tmp_path):
    command = ["run", figure, "preset=smoke", "dtype=float32", f"out={tmp_path}"]
    assert dispatch(PAPER, COMMANDS, command) == 0


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda f: f.id)
def test_an_absent_device_is_refused_in_one_line(figure, tmp_path, capsys):
    command = ["run", figure.id, "preset=smoke", "device=cuda:7", f"out={tmp_path}"]
    assert dispatch(PAPER, COMMANDS, command) == 2
    assert "device=cuda:7 was asked for, but no such device is there" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["fig1", "fig2a", "fig2b", "fig3a", "fig3b"])
def test_killed_anywhere_runs_resume(figure, tmp_path):
    arguments = ["run", figure, "preset=smoke"]
    check_killed_runs_resume("chaos", arguments, tmp_path, after_files=[0, 1, 2])


def _measurements(folder):
    from gdyn_reproduce.records import read_record

    return read_record(folder).measurements


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "fig3"], "Unknown figure 'fig3'"),
        (["run", "fig1", "dataset=mnist"], "dataset=mnist is unknown. Allowed: usps, fmnist, digits"),
        (["run", "fig1", "arms=[sgd,up]"], "arms holds 'up'"),
        (["run", "fig1", "normalize=max"], "normalize=max is unknown"),
        (["run", "fig1", "learning_rate=0"], "learning_rate=0.0 must be positive"),
        (["run", "fig1", "num_steps=0"], "num_steps=0 must be at least 1"),
        (["run", "fig1", "arms=[]"], "arms is empty; pass at least one value"),
        (["train", "num_steps=0"], "num_steps=0 must be at least 1"),
        (["train", "model.inter_dim=0"], "model.inter_dim=0 must be at least 1"),
        (["run", "fig1", "seeds=[]"], "seeds is empty"),
        (["run", "fig1", "dtype=float16"], "dtype=float16 is unknown"),
        (["run", "fig2a", "starts=[5,2]"], "ascending order"),
        (["run", "fig2b", "at=[900]", "num_steps=800"], "between 1 and num_steps=800"),
        (["run", "fig3a", "distance=0"], "distance=0.0 must be positive"),
        (["run", "fig1", "learning_rat=0.1"], "Did you mean 'learning_rate'?"),
    ],
)
def test_bad_input_exits_2_in_one_line(arguments, message, capsys, tmp_path):
    assert dispatch(PAPER, COMMANDS, [*arguments, f"out={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
