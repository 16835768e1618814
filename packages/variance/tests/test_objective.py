"""Objectives: gradients against autograd, weights, generators, buffers; points as vectors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from variance import per_example
from variance.errors import NonFiniteGradient
from variance.losses import cross_entropy, half_squared_error
from variance.objective import Batch, Objective, Point, mean_point

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # float64, the same sums


def batch(n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    weights = torch.rand(n, generator=generator, dtype=torch.float64)
    return Batch(x, torch.arange(n) % 3, torch.arange(n) + 10, weights)


def network(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *extra, nn.Tanh(), nn.Linear(8, 3)).double()


def test_the_gradient_is_that_of_the_weighted_mean_loss() -> None:
    model, b = network(), batch()
    (b.weights * F.cross_entropy(model(b.inputs), b.targets, reduction="none")).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    found, loss = Objective(model, cross_entropy).gradient(Point.of(model), b)
    torch.testing.assert_close(found, expected, **EXACT)
    with torch.no_grad():
        value = float((b.weights * cross_entropy(model(b.inputs), b.targets)).mean())
    assert loss == pytest.approx(value, rel=1e-12)


def test_the_gradient_of_least_squares_in_closed_form() -> None:
    """(1/n) X^T (X w - y) at any point, also one the model never was at."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(7, k, generator=generator, dtype=torch.float64) for k in (3, 1))
    model = nn.Linear(3, 1, bias=False).double()
    w = torch.randn(3, generator=generator, dtype=torch.float64)
    point = Point({"weight": w.unsqueeze(0)}, {})
    b = Batch(x, y, torch.arange(7), torch.ones(7))
    found, loss = Objective(model, half_squared_error).gradient(point, b)
    torch.testing.assert_close(found, x.T @ (x @ w - y[:, 0]) / 7, **EXACT)
    assert loss == pytest.approx(float(0.5 * (x @ w - y[:, 0]).square().mean()), rel=1e-12)


def test_captured_gradients_average_to_the_gradient() -> None:
    model, b = network(), batch()
    objective, point = Objective(model, cross_entropy), Point.of(model).moved(torch.full((67,), 0.01))
    g = per_example.quantities.materialised(objective.capture(point, b))
    flat = torch.cat([value.flatten(1) for value in g.values()], 1)
    expected, _ = objective.gradient(point, b)
    torch.testing.assert_close((b.weights.unsqueeze(1) * flat).mean(0), expected, **EXACT)


def test_the_generator_decides_the_dropout_and_the_global_state_is_left_alone() -> None:
    model, b = network(nn.Dropout(0.5)), batch()
    objective, point = Objective(model, cross_entropy), Point.of(model)
    before = torch.get_rng_state()

    def loss(seed: int, **options: bool) -> Tensor:
        return objective.losses(point, b, torch.Generator().manual_seed(seed), **options).detach()

    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))
    assert torch.equal(loss(1, training=False), loss(2, training=False))
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(1)
    first, second = (objective.losses(point, b, generator).detach() for _ in range(2))
    assert not torch.equal(first, second)  # the generator moves on


def test_batch_norm_updates_the_buffers_of_the_point_and_of_nothing_else() -> None:
    model, b = network(nn.BatchNorm1d(8)), batch()
    objective, point = Objective(model, cross_entropy), Point.of(model).copy()
    before = {name: value.clone() for name, value in point.buffers.items()}
    objective.losses(point, b, freeze_norms=True)
    objective.losses(point, b, training=False)
    objective.capture(point, b, training=True)
    assert all(torch.equal(point.buffers[name], value) for name, value in before.items())
    objective.losses(point, b)
    hidden = F.linear(b.inputs, point.parameters["0.weight"], point.parameters["0.bias"])
    torch.testing.assert_close(point.buffers["1.running_mean"], 0.1 * hidden.mean(0), **EXACT)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_an_objective_keeps_no_reference_to_the_model() -> None:
    model, b = network(), batch()
    objective, point = Objective(model, cross_entropy), Point.of(model).copy()
    before = objective.losses(point, b)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    model.eval()
    assert torch.equal(objective.losses(point, b), before)
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_are_buffers() -> None:
    model, b = network(), batch()
    model[0].requires_grad_(False)
    point = Point.of(model)
    assert set(point.buffers) == {"0.weight", "0.bias"}
    found, _ = Objective(model, cross_entropy).gradient(point, b)
    assert len(found) == len(point.flat()) == 27


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_names_population_indices(value: float) -> None:
    model, b = network(), batch()
    b.inputs[4] = value
    with pytest.raises(NonFiniteGradient, match=r"the loss of 1 of 6 examples.*\(examples 14\)"):
        Objective(model, cross_entropy).gradient(Point.of(model), b)


def test_points_are_vectors() -> None:
    point = Point.of(network())
    flat = point.flat()
    pieces = point.unflatten(flat)
    assert all(torch.equal(pieces[name], value) for name, value in point.parameters.items())
    step = torch.randn(len(flat), dtype=torch.float64)
    torch.testing.assert_close(point.moved(step).flat(), flat + step, **EXACT)
    middle = mean_point([point.moved(step), point.moved(-3 * step)])
    torch.testing.assert_close(middle.flat(), flat - step, **EXACT)
    restored = Point.from_state_dict(point.copy().state_dict())
    assert torch.equal(restored.flat(), flat)
    with pytest.raises(ValueError, match=r"shape \(66,\) does not fit 67"):
        point.unflatten(flat[:-1])


def test_a_live_point_moves_with_the_model_and_a_copy_does_not() -> None:
    model = network()
    live, copy = Point.of(model), Point.of(model).copy()
    before = live.flat().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert not torch.equal(live.flat(), before)
    assert torch.equal(copy.flat(), before)


class Again(torch.autograd.Function):
    """Runs a module again in the backward pass, and differentiates by the parameters given at first.

    So do the adjoint method of differential equations, and reversible layers.
    """

    @staticmethod
    def forward(ctx, module, x, *parameters):
        ctx.module = module
        ctx.save_for_backward(x, *parameters)
        return module(x)

    @staticmethod
    def backward(ctx, gradient):
        x, *parameters = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.module(x)
        return None, *torch.autograd.grad(output, (x, *parameters), gradient, allow_unused=True)


class Body(nn.Module):
    """A network whose first half runs again in the backward pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.head, self.kind = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "plain":
            return self.head(self.inner(x))
        if self.kind == "checkpoint":
            return self.head(checkpoint(self.inner, x, use_reentrant=False))
        return self.head(Again.apply(self.inner, x, *self.inner.parameters()))


@pytest.mark.filterwarnings("ignore::variance.errors.SlowPath")
@pytest.mark.parametrize("kind", ["checkpoint", "again"])
@pytest.mark.parametrize("is_moved", [False, True])
def test_a_backward_pass_that_runs_the_model_again_finds_the_values_of_the_point(
    kind: str, is_moved: bool
) -> None:
    torch.manual_seed(0)
    models = {name: Body(name).double() for name in (kind, "plain")}
    point = Point.of(models[kind])
    point = point.moved(torch.full_like(point.flat(), 0.5 * is_moved))
    models["plain"].load_state_dict(point.parameters)
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 3
    examples = Batch(x, y, torch.arange(6), torch.ones(6))
    objective = Objective(models[kind], F.cross_entropy)
    F.cross_entropy(models["plain"](x), y).backward()
    expected = torch.cat([p.grad.flatten() for p in models["plain"].parameters()])
    assert torch.allclose(objective.gradient(point, examples)[0], expected)
    rows = per_example.gradients(models["plain"], F.cross_entropy, x, y)
    captured = objective.capture(point, examples)
    assert torch.allclose(per_example.quantities.flat_gradients(captured), rows)
    assert torch.allclose(per_example.quantities.gram(captured), rows @ rows.T)
