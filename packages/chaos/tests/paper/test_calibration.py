"""Expected cost: of the right size, announced before long runs, without a trace in them."""

from __future__ import annotations

import re

import pytest
import torch
from test_ensemble import config

from chaos.paper.calibration import announce, decomposition_seconds, train_estimate
from chaos.paper.data import load_data
from chaos.paper.train.engine import build_model, run_training
from gdyn_reproduce.runs import Estimate


def expected(tmp_path, **changes):
    c = config(tmp_path, parallel=1, perturb_strat=None, **changes)
    data = load_data("digits", dtype=torch.float64)
    return train_estimate(c, data, build_model(c, data, 3), None, 1000, 100)


def test_pruned_steps_cost_more_and_a_tangent_matrix_more_memory(tmp_path):
    plain, late, early = (
        expected(tmp_path, **changes)
        for changes in (
            {},
            {"optim": {"name": "cgd", "prune_start": 990}},
            {"optim": {"name": "cgd"}},
        )
    )
    assert plain.seconds < early.seconds
    assert late.seconds < early.seconds
    tracked = expected(tmp_path, logging={"log_lyapunov": True})
    assert tracked.memory_bytes - plain.memory_bytes == 3 * 310**2 * 8


def test_decompositions_grow_with_the_cube():
    def ratio():
        return decomposition_seconds(1600, torch.float64) / decomposition_seconds(160, torch.float64)

    assert any(1000 / 4 < ratio() < 1000 * 4 for _ in range(5))  # two clocks on a busy machine


def test_announced_before_the_first_step_and_not_for_short_runs(tmp_path, capsys):
    run_training(config(tmp_path, num_steps=250, parallel=1, perturb_strat=None))
    out = capsys.readouterr().out
    assert re.search(r"expected on this machine: about \d+ (s|min), [\d.e-]+ GB of arrays", out)
    run_training(config(tmp_path, num_steps=30))
    assert "expected" not in capsys.readouterr().out


def test_it_leaves_no_trace_in_the_run(tmp_path, monkeypatch):
    changes = {"num_steps": 210, "parallel": 1, "perturb_strat": None}
    changes["optim"] = {"name": "cgd", "noise": True, "prune_start": 200}
    a = run_training(config(tmp_path / "a", **changes))
    monkeypatch.setattr("chaos.paper.train.engine._CALIBRATED_ABOVE", 1000)
    b = run_training(config(tmp_path / "b", **changes))
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("seconds", "text"), [(30, "about 30 s"), (3600, "about 60 min")])
def test_the_line(seconds, text, capsys):
    announce(Estimate(seconds, 2e9))
    assert f"{text}, 2 GB" in capsys.readouterr().out
