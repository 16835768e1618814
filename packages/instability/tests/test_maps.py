"""Maps out of the ordinary: their exponents by another route, or one line that refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from instability import (
    Copies,
    lyapunov_estimate,
    lyapunov_exponents,
)

START = torch.tensor([0.3, 0.6], dtype=torch.float64)


def logistic_exponents(steps: int) -> np.ndarray:
    """Two logistic maps side by side: the mean of log |f'| along each orbit, by NumPy."""
    x, sums = START.numpy().copy(), np.zeros(2)
    for _ in range(steps):
        sums += np.log(np.abs(3.9 * (1 - 2 * x)))
        x = 3.9 * x * (1 - x)
    return np.sort(sums / steps)[::-1]


def in_place(s, _):
    x = s["x"]
    other = 1 - x
    return {"x": x.mul_(3.9).mul_(other)}


def through_numpy(s, _):
    x = s["x"].detach().numpy()
    return {"x": torch.from_numpy(3.9 * x * (1 - x))}


@pytest.mark.parametrize(
    "step",
    [
        in_place,
        through_numpy,
        lambda s, _: {"x": 3.9 * s["x"] * (1 - s["x"].detach())},
        lambda s, _: {"x": torch.stack([3.9 * float(v) * (1 - v) for v in s["x"]])},
    ],
    ids=["in place", "numpy", "detached", "item"],
)
def test_steps_that_lose_the_tangent_or_work_in_place(step):
    found = lyapunov_exponents(step, START, num_steps=200, k=2)
    assert found.exponents == pytest.approx(logistic_exponents(200), abs=0.05)
    assert torch.equal(START, torch.tensor([0.3, 0.6], dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [lambda x: x * 2, lambda x: {"y": x}, lambda x: {"x": x.repeat(2)}, lambda x: {"x": x.float() * 2}],
)
def test_a_step_that_returns_another_state_is_refused(change):
    with pytest.raises(ValueError, match="names, shapes and types of its state: x"):
        lyapunov_exponents(lambda s, _: change(s["x"]), torch.ones(2, dtype=torch.float64), num_steps=3)


def test_a_state_that_is_not_finite_is_said_to_be_so():
    def unseen(state, _):  # by torch, so that differences take over
        return {"x": state["x"].detach() ** 2}

    with pytest.raises(FloatingPointError, match="step 9: state or tangent is not finite"):
        lyapunov_exponents(unseen, torch.tensor([10.0], dtype=torch.float64), num_steps=30)


def test_a_step_that_keeps_something_is_refused():
    calls = 0

    def step(s, _):
        nonlocal calls
        calls += 1
        return {"x": s["x"] / calls}

    with pytest.raises(ValueError, match="two results of one state"):
        lyapunov_exponents(step, START, num_steps=5, k=2)


def test_weights_that_nobody_trains_do_not_enter_the_exponent():
    model = nn.Linear(3, 1).double()
    copies = Copies(model, lambda p: torch.optim.SGD(list(p)[:1], lr=0.1), (1, 1))
    growth = lyapunov_estimate(copies, [lambda m: 2.5 * m.weight.square().sum()] * 10)
    assert growth == pytest.approx(math.log(0.5))
