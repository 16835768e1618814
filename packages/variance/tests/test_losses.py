"""Losses that only some networks need, against values worked out by hand."""

import pytest
import torch

from variance.losses import half_squared_error, smoothed_cross_entropy


def test_smoothing_changes_the_loss_and_half_squares_are_half() -> None:
    logits, targets = torch.tensor([[5.0, 0.0]]), torch.tensor([0])
    assert float(smoothed_cross_entropy(logits, targets, smoothing=0.2)) == pytest.approx(
        0.0067 + 0.1 * 5, abs=1e-3
    )
    assert half_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).tolist() == [2.5]
