"""Losses that only some networks need, against values worked out by hand."""

import pytest
import torch

from variance import models
from variance.losses import half_squared_error, negative_elbo, smoothed_cross_entropy
from variance.objective import Batch, Objective, Point


def test_a_vae_has_gradients_and_its_bound_is_above_the_likelihood() -> None:
    torch.manual_seed(0)
    model, x = models.VAE(9, 5, 2), torch.rand(4, 9)
    objective = Objective(model, negative_elbo)
    batch = Batch(x, x, torch.arange(4), torch.ones(4))
    one, two = (
        objective.gradient(Point.of(model), batch, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one[0], two[0])
    assert one[1] > 0


def test_smoothing_changes_the_loss_and_half_squares_are_half() -> None:
    logits, targets = torch.tensor([[5.0, 0.0]]), torch.tensor([0])
    assert float(smoothed_cross_entropy(logits, targets, smoothing=0.2)) == pytest.approx(
        0.0067 + 0.1 * 5, abs=1e-3
    )
    assert half_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).tolist() == [2.5]
