"""Networks: published sizes, seeds, and losses that only they need."""

import pytest
import torch

from variance import models, problems
from variance.losses import half_squared_error, negative_elbo, smoothed_cross_entropy
from variance.objective import Batch, Objective, Point


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


def test_smoothing_changes_the_loss_and_half_squares_are_half() -> None:
    logits, targets = torch.tensor([[5.0, 0.0]]), torch.tensor([0])
    assert float(smoothed_cross_entropy(logits, targets, smoothing=0.2)) == pytest.approx(
        0.0067 + 0.1 * 5, abs=1e-3
    )
    assert half_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).tolist() == [2.5]


def test_random_features_have_unit_or_default_rows_and_duplicates() -> None:
    plain = problems.random_features(50, hidden=40, input_dim=10)
    assert plain.inputs.shape == (50, 40)
    assert 0.2 < plain.targets.float().mean() < 0.8
    scaled = problems.random_features(50, hidden=40, input_dim=10, unit_rows=False)
    assert 0.4 < float(scaled.inputs.norm() / plain.inputs.norm()) < 0.75
    copied = problems.random_features(50, hidden=40, input_dim=10, duplicates=(5, 0.9))
    assert len(torch.unique(copied.inputs, dim=0)) <= 10


def test_linear_regression_has_the_stated_noise() -> None:
    population = problems.linear_regression(4000, 3, signal_to_noise=10.0)
    solution = torch.linalg.lstsq(population.inputs, population.targets).solution
    residual = (population.inputs @ solution - population.targets).std()
    assert float(residual) == pytest.approx(0.1, rel=0.05)
    assert float(solution.norm()) == pytest.approx(1.0, rel=0.02)
