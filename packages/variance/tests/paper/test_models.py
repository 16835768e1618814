"""Networks: published sizes and seeds."""

import pytest
import torch

from variance.losses import negative_elbo
from variance.objective import Batch, Objective, Point
from variance.paper import models


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_published_sizes() -> None:
    assert count(models.mlp(784, 1024, 1024, 10)) == 1_863_690
    assert count(models.ResNet(8)) == 74_810
    assert 60_000 < count(models.small_cnn()) < 72_000
    assert models.mnist_cnn()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert models.ResNet(8, 10, "group")(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_seed_gives_the_same_weights_and_leaves_global_randomness() -> None:
    before = torch.get_rng_state()
    one, two, three = (models.build("digits-mlp", 10, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[1].weight, two[1].weight)  # type: ignore[index]
    assert not torch.equal(one[1].weight, three[1].weight)  # type: ignore[index]


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="Unknown model 'resnet9'"):
        models.build("resnet9", 10, 0)
    with pytest.raises(ValueError, match="depth is 9; it must be 6 b"):
        models.ResNet(9)
    with pytest.raises(ValueError, match="Unknown norm 'layer'"):
        models.ResNet(8, norm="layer")


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
