"""Copies trained together equal copies trained one by one; runs that need curvature are left alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chaos.paper.train.config import LoggingConfig, ModelConfig, OptimConfig, TrainConfig
from chaos.paper.train.engine import run_training
from chaos.paper.train.ensemble import Ensemble

PLAIN = {"log_eigenthings": False, "log_lyapunov": False, "logger_type": "jsonl"}


def config(out, *, logging=None, optim=None, model=None, **changes):
    top = {
        "dataset": "digits",
        "seed": 3,
        "num_steps": 25,
        "parallel": 4,
        "perturb_strat": "randn",
        "checkpoint_every": 10,
        "out": str(out),
    }
    return TrainConfig(
        **top | changes,
        logging=LoggingConfig(**PLAIN | (logging or {})),
        optim=OptimConfig(**{"lr": 0.05} | (optim or {})),
        model=ModelConfig(**(model or {"inter_dim": 4})),
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optim": {"momentum": 0.9}},
        {"dataset": "digits16", "model": {"name": "cnn", "base_channels": 2, "activation": "sigmoid"}},
        {"logging": {"signal_noise_window": 3, "log_freq": 2, "save_trajectories": True}},
    ],
)
def test_together_equals_one_by_one(tmp_path, monkeypatch, changes):
    """Up to the rounding of batched products, which 25 steps at this rate do not amplify."""
    together = run_training(config(tmp_path / "a", **changes))
    monkeypatch.setattr(Ensemble, "applies", staticmethod(lambda config: False))
    single = run_training(config(tmp_path / "b", **changes))
    for a, b in zip(lines(together), lines(single), strict=True):
        assert set(a) == set(b)
        assert a == pytest.approx(b, rel=1e-9, abs=1e-10)
    for path in together.glob("trajectories.npz"):
        a, b = (np.load(folder / path.name)["distances"] for folder in (together, single))
        assert np.abs(a - b).max() < 1e-12


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_resume_is_bit_identical(tmp_path, monkeypatch, momentum):
    changes = {"optim": {"momentum": momentum}, "logging": {"save_trajectories": True}}
    whole = run_training(config(tmp_path / "a", **changes))
    advance = Ensemble.advance

    def stop(self, step, x, y):
        if step == 14:
            raise KeyboardInterrupt
        return advance(self, step, x, y)

    monkeypatch.setattr(Ensemble, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        run_training(config(tmp_path / "b", **changes))
    monkeypatch.setattr(Ensemble, "advance", advance)
    resumed = run_training(config(tmp_path / "b", **changes))
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    a, b = (np.load(folder / "trajectories.npz")["distances"] for folder in (whole, resumed))
    assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "together"),
    [
        ({}, True),
        ({"parallel": 1, "perturb_strat": None}, False),
        ({"optim": {"name": "cgd"}}, False),
        ({"model": {"batch_norm": True}}, False),
        ({"logging": {"log_eigenthings": True}}, False),
        ({"logging": {"log_lyapunov": True}}, False),
        ({"logging": {"save_lyapunov_at": 0}}, False),
        ({"logging": {"plot_mats_every": 5}}, False),
    ],
)
def test_when_it_applies(tmp_path, changes, together):
    assert Ensemble.applies(config(tmp_path, **changes)) == together


def test_divergence_names_the_model(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss of model \d is not finite at step \d+"):
        run_training(config(tmp_path, optim={"lr": 1e300}))
