"""Losses that are no mean over examples, which a certificate must not split or turn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from instability import (
    certify,
)

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def recurrent_loss(model, batch):
    return functional.cross_entropy(model[1](model[0](batch[0][:, None])[0][:, 0]), batch[1])


CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 0.1])


@pytest.mark.parametrize(
    ("loss", "condition"),
    [
        (lambda m, b: functional.cross_entropy(m(b[0]), b[1], reduction="sum") / 16, "split"),
        (lambda m, b: functional.cross_entropy(m(b[0]), b[1], weight=CLASS_WEIGHTS), "split"),
        (lambda m, b: functional.cross_entropy(m(b[0]), b[1].where(b[1] > 1, -100)), "split"),
        (
            lambda m, b: functional.cross_entropy(
                functional.batch_norm(m(b[0]), None, None, training=True), b[1]
            ),
            "split",
        ),
        (recurrent_loss, "order"),
    ],
    ids=["sum", "class weights", "ignore_index", "functional batch norm", "time first"],
)
def test_a_loss_that_is_no_mean_over_examples_is_not_split_or_turned(loss, condition):
    def make():
        return (
            nn.Sequential(nn.RNN(4, 6), nn.Linear(6, 3))
            if loss is recurrent_loss
            else nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        )

    batches = [(X, Y)] * 2
    found = certify(
        loss,
        make,
        lambda p: torch.optim.SGD(p, lr=0.1),
        batches,
        evaluate=lambda m: float(loss(m, batches[0])),
        conditions=["repeat", condition],
    )
    assert "more than rounding" in next(e.skipped for e in found.effects if e.condition == condition)
    assert found.digits == math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("condition", ["split", "order"])
@pytest.mark.parametrize(
    ("loss", "is_mean"),
    [
        (lambda m, b: functional.cross_entropy(m(b[0]), b[1]), True),
        (lambda m, b: functional.cross_entropy(m(b[0]).float(), b[1]), True),
        (lambda m, b: functional.cross_entropy(m(b[0].bfloat16()).bfloat16(), b[1]), True),
        (lambda m, b: functional.cross_entropy(m(b[0]), b[1]) + 1e-3 * b[0][0].abs().sum(), False),
        (lambda m, b: functional.cross_entropy(m(b[0]).float(), b[1]) * (1 + 0.02 * (b[1][1] == 1)), False),
    ],
    ids=["mean", "upcast mean", "mean in bfloat16", "first example", "factor"],
)
def test_half_precision_hides_no_loss_that_is_no_mean(loss, is_mean, condition, dtype):
    """What is wrong is less than half of the digits of the type."""
    if dtype == torch.float16 and is_mean and "bfloat16" in str(loss.__code__.co_names):
        pytest.skip("it gives the layer another type")
    batches = [(X.to(dtype), Y)]
    found = certify(
        loss,
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype),
        lambda p: torch.optim.SGD(p, lr=0.1),
        batches,
        evaluate=lambda m: float(loss(m, batches[0])),
        conditions=[condition],
    )
    assert ("more than rounding" in found.effects[0].skipped) is not is_mean
