"""Training as a map. Oracles: runs of ``torch.optim`` itself and their differences, dense linear algebra."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from trainings import CE, SETTINGS, batches, differences, flat, network, trained, trained_as

from chaos import (
    AveragedRule,
    LossSurface,
    LyapunovTracker,
    SGDRule,
    TrainingMap,
    asymptotic_exponents,
    finite_time_exponents,
    rule_of,
)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_map_and_its_tangent_are_those_of_the_optimiser(name):
    kind, options = SETTINGS[name]
    model, data = network(), batches(6)
    optimizer = kind(model.parameters(), **options)
    run = TrainingMap(LossSurface(model, CE), optimizer, data)
    start = flat(model)
    assert (run.end - trained(kind, options, data, start)).abs().max() < 1e-12
    oracle = differences(lambda point: trained(kind, options, data, point), start)
    Y = run.dense()
    assert (Y - oracle).abs().max() < 1e-6 * oracle.abs().max()
    U = torch.randn(run.n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (run.transposed_product(U) - Y.T @ U).abs().max() < 1e-12 * Y.abs().max() * run.n
    assert (run.linear_operator().rmatvec(U[:, 0].numpy()) - (Y.T @ U[:, 0]).numpy()).max() < 1e-12 * run.n


def test_the_tangent_of_a_centred_mean_square_to_many_digits():
    """Which PyTorch cannot differentiate; differences over two lengths, extrapolated."""
    kind, options = SETTINGS["rmsprop-centered"]
    model, data = network(), batches(4)
    near, far = (
        differences(lambda point: trained(kind, options, data, point), flat(model), h) for h in (1e-4, 2e-4)
    )
    Y = TrainingMap(LossSurface(model, CE), kind(model.parameters(), **options), data).dense()
    assert (Y - (4 * near - far) / 3).abs().max() < 1e-9 * Y.abs().max()


@pytest.mark.parametrize(
    "name", ["sgd", "maximize", "rmsprop", "rmsprop-momentum", "adagrad", "adagrad-started"]
)
def test_the_tangent_is_what_autograd_finds_in_the_optimiser_itself(name):
    """PyTorch's own steps with ``differentiable``, on clones, since they write in place.

    Not of momentum in SGD, which PyTorch detaches, nor of Adam, which counts steps in float32.
    """
    kind, options = SETTINGS[name]
    model, data = network(), batches(4)
    start = flat(model).requires_grad_()
    names, sizes = zip(*((name, p.numel()) for name, p in model.named_parameters()), strict=True)
    parts = [part.view_as(p).clone() for part, p in zip(start.split(sizes), model.parameters(), strict=True)]
    optimizer = kind(parts, differentiable=True, **options)
    for x, y in data:
        now = {name: part.clone() for name, part in zip(names, parts, strict=True)}
        loss = CE(torch.func.functional_call(model, now, (x,)), y)
        for part, gradient in zip(parts, torch.autograd.grad(loss, parts, create_graph=True), strict=True):
            part.grad = gradient
        optimizer.step()
    end = torch.cat([part.reshape(-1) for part in parts])
    expected = torch.stack([torch.autograd.grad(entry, start, retain_graph=True)[0] for entry in end])
    Y = TrainingMap(LossSurface(model, CE), kind(model.parameters(), **options), data).dense()
    assert (Y - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "rmsprop", "adagrad"])
def test_finite_time_exponents_are_the_dense_singular_values(name):
    kind, options = SETTINGS[name]
    model = network()
    run = TrainingMap(LossSurface(model, CE), kind(model.parameters(), **options), batches(8))
    U, sigma, Vt = torch.linalg.svd(run.dense())
    found = finite_time_exponents(run, 3)
    assert (found.values - sigma[:3].log() / 8).abs().max() < 1e-10
    assert ((found.start * Vt[:3].T).sum(0).abs() - 1).abs().max() < 1e-8
    assert ((found.end * U[:, :3]).sum(0).abs() - 1).abs().max() < 1e-8
    assert found.residuals.max() < 1e-8
    everything = finite_time_exponents(run, run.n)
    assert (everything.values[:20] - sigma[:20].log() / 8).abs().max() < 1e-8
    assert "finite-time exponents of 8 steps" in repr(found)
    assert found.to_dict()["kind"] == "finite-time"


class Quadratic(nn.Module):
    def __init__(self, curvatures):
        super().__init__()
        self.curvatures = curvatures
        self.theta = nn.Parameter(torch.zeros_like(curvatures))

    def forward(self, x):
        return (self.curvatures * self.theta**2).sum() / 2


@pytest.mark.parametrize(
    "settings", [{"num_exponents": 0}, {"num_exponents": 1.5}, {"num_windows": 2.5}, {"warm_up": -1}]
)
def test_counts_are_whole(settings):
    ((name, value),) = settings.items()
    surface = LossSurface(Quadratic(torch.ones(3)), lambda output, y: output)
    with pytest.raises(ValueError, match=f"{name} is {value}; pass a whole number"):
        asymptotic_exponents(surface, SGDRule(0.1), [], **{"num_exponents": 1} | settings)


@pytest.mark.parametrize("num_steps", [10, 25])
def test_the_leading_exponents_of_few_steps(num_steps):
    """Where re-orthonormalised random vectors find a third of it: curvatures from -1 to 1, rate 0.1."""
    curvatures = torch.linspace(-1, 1, 200, dtype=torch.float64)
    surface = LossSurface(Quadratic(curvatures), lambda output, y: output)
    batch = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    rule = SGDRule(0.1)
    found = finite_time_exponents(TrainingMap(surface, rule, [batch] * num_steps), 3)
    expected = (1 - 0.1 * curvatures[:3]).log()
    assert (found.values - expected).abs().max() < 1e-10
    rates = asymptotic_exponents(surface, rule, [batch] * num_steps, 3, num_windows=2).values
    assert rates[0] < expected[0] - 0.01  # what it is not


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rates_of_all_directions_sum_to_the_log_determinant(name):
    kind, options = SETTINGS[name]
    model, data = network(), batches(6)
    surface = LossSurface(model, CE)
    rule, _ = rule_of(kind(model.parameters(), **options), list(model.parameters()))
    found = asymptotic_exponents(surface, rule, data, surface.n, num_windows=3)
    if name == "sgd":
        Y = TrainingMap(surface, rule, data).dense()
        assert abs(found.values.sum() * 6 - torch.linalg.slogdet(Y).logabsdet) < 1e-9
    assert found.windows.shape == (3, surface.n)
    expected = found.windows.std(0) / math.sqrt(3)
    assert torch.allclose(found.standard_errors, expected)
    assert found.to_dict()["num_steps"] == 6
    assert "asymptotic exponents over 6 steps" in found.summary()


def test_the_rate_of_adam_is_that_of_two_copies():
    """Two runs of ``torch.optim.Adam`` at a distance of 1e-7, set back to it after each window."""
    kind, options = SETTINGS["adam"]
    model, data = network(), batches(60)
    surface = LossSurface(model, CE)
    found = asymptotic_exponents(surface, kind(model.parameters(), **options), data, 1, num_windows=6)
    copies = [network(), network()]
    direction = torch.randn(surface.n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.linalg.qr(direction).Q[:, 0]
    nn.utils.vector_to_parameters(flat(model) + 1e-7 * direction, copies[1].parameters())
    optimizers = [kind(c.parameters(), **options) for c in copies]

    def joint(i):
        slots = [
            torch.cat([optimizers[i].state[p][s].reshape(-1) for p in copies[i].parameters()])
            for s in ("exp_avg", "exp_avg_sq")
        ]
        return torch.cat([flat(copies[i]), *slots])

    for x, y in data:
        for optimizer, c in zip(optimizers, copies, strict=True):
            optimizer.zero_grad()
            CE(c(x), y).backward()
            optimizer.step()
    growth = float((joint(1) - joint(0)).norm() / 1e-7)
    assert float(found.values[0]) == pytest.approx(math.log(growth) / 60, abs=1e-5)


def test_an_average_adds_its_own_rate():
    """Its tangent is a state of its own, which forgets at the rate of its decay."""
    model, data = network(), batches(5)
    surface = LossSurface(model, CE)
    rule = AveragedRule(SGDRule(0.3), 0.9)
    run, plain = (TrainingMap(surface, r, data) for r in (rule, SGDRule(0.3)))
    assert torch.equal(run.end, plain.end)
    assert torch.equal(run.dense(), plain.dense())
    theta, average = flat(model), flat(model)
    state = rule.start(theta)
    for t, (x, y) in enumerate(data):
        gradient = surface.value_and_gradient(theta, x, y)[1]
        theta, state = rule.step(theta, gradient, state, t)
        average = 0.9 * average + 0.1 * theta
    assert torch.allclose(state[-1], average, rtol=1e-14, atol=0)


def test_dead_units_give_adam_no_infinite_tangent():
    """Gradients that are exactly 0 at every step: the root of the second moment has no derivative there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias[0] = -100.0
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0])
    run = TrainingMap(LossSurface(model, CE), torch.optim.Adam(model.parameters(), lr=0.01), [(x, y)] * 3)
    Y = run.dense()
    assert torch.isfinite(Y).all()
    dead = [0, 1, 2, 12]  # weights and bias of the unit stay where they are
    assert torch.equal(Y[dead][:, dead], torch.eye(4, dtype=torch.float64))


@pytest.mark.slow
def test_the_tangent_of_the_papers_network():
    from chaos.models import mlp

    torch.manual_seed(0)
    model = mlp().double()
    surface = LossSurface(model, CE)
    data = [(torch.randn(8, 256, dtype=torch.float64), torch.randint(10, (8,))) for _ in range(3)]
    tracker, theta = LyapunovTracker(surface.n, h=0.1), None
    run = TrainingMap(surface, torch.optim.SGD(model.parameters(), lr=0.1), data)
    for t, (x, y) in enumerate(data):
        theta = run._run[t][0]
        tracker.update(surface.hessian(theta, x, y))
    V = torch.randn(surface.n, 3, dtype=torch.float64)
    assert (run.product(V) - tracker.Y @ V).abs().max() < 1e-12
    values = tracker.exponents().flip(0)[:4]
    assert (finite_time_exponents(run, 4).values - values).abs().max() < 1e-8


def test_a_loader_may_fill_the_same_memory_again():
    model, data = network(), batches(3)

    def loader():
        x, y = torch.zeros(6, 5, dtype=torch.float64), torch.zeros(6, dtype=torch.long)
        for inputs, targets in data:
            yield x.copy_(inputs), y.copy_(targets)

    surface, optimizer = LossSurface(model, CE), torch.optim.SGD(model.parameters(), lr=0.3)
    expected = TrainingMap(surface, optimizer, data)
    assert torch.equal(TrainingMap(surface, optimizer, loader()).dense(), expected.dense())


@pytest.mark.parametrize("seed", range(6))
def test_equal_exponents_are_all_found(seed):
    """ARPACK misses a copy of a multiple singular value, with a tiny residual, from some starting vectors."""
    curvatures = torch.cat([-torch.ones(2), torch.linspace(-0.9, 2, 60)]).double()
    surface = LossSurface(Quadratic(curvatures), lambda output, y: output)
    batch = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    run = TrainingMap(surface, SGDRule(0.1), [batch] * 3)
    found = finite_time_exponents(run, 2, seed=seed, tol=1e-6)
    assert found.values.tolist() == pytest.approx([math.log(1.1)] * 2, abs=1e-6)


class Rule:
    """Momentum as a user may write it, with a fault or without."""

    slots = 1

    def __init__(self, velocity):
        self.velocity, self.kept = velocity, 0.0

    def start(self, theta):
        return theta.new_zeros(1, len(theta))

    def step(self, theta, gradient, state, t):
        velocity = self.velocity(self, gradient, state)
        return theta - 0.1 * velocity[0], velocity


def _keep(rule, gradient, state):
    rule.kept = 0.9 * rule.kept + gradient
    return rule.kept[None]


FAULTS = {
    "detaches the gradient": (lambda _, gradient, state: 0.9 * state + gradient.detach(), "gradient"),
    "detaches the state": (lambda _, gradient, state: 0.9 * state.detach() + gradient, "state"),
    "works in place": (lambda _, gradient, state: state.mul_(0.9).add_(gradient), "theta"),
    "rounds": (lambda _, gradient, state: 0.9 * state + gradient.bfloat16().double(), "gradient"),
    "keeps something": (_keep, "theta"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_rule_whose_derivative_is_not_that_of_its_step_is_refused(name):
    velocity, argument = FAULTS[name]
    with pytest.raises(ValueError, match=f"The rule does not change with {argument} as its derivative says"):
        TrainingMap(LossSurface(network(), CE), Rule(velocity), batches(4))
    with pytest.raises(ValueError, match="The rule does not change"):
        asymptotic_exponents(LossSurface(network(), CE), Rule(velocity), batches(10), 1)


@pytest.mark.parametrize(
    "change",
    [lambda g: g, lambda g: g.clamp(-0.01, 0.01), lambda g: g / (g.norm() / 0.1).clamp(min=1), torch.sign],
    ids=["plain", "clipped", "clipped by norm", "sign"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_rule_with_kinks_is_taken(change, dtype):
    """Oracle: the optimiser of torch, whose gradients are changed before its step."""
    model, data = network().to(dtype), [(x.to(dtype), y) for x, y in batches(4)]
    rule = Rule(lambda _, gradient, state: 0.9 * state + change(gradient))
    run = TrainingMap(LossSurface(model, CE), rule, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in data:
        optimizer.zero_grad()
        CE(model(x), y).backward()
        changed = change(torch.cat([p.grad.flatten() for p in model.parameters()]))
        for p, g in zip(
            model.parameters(), changed.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p.grad.copy_(g.view_as(p))
        optimizer.step()
    assert (run.end - flat(model)).abs().max() < 100 * torch.finfo(dtype).eps


def test_an_optimiser_that_also_trains_what_the_surface_leaves_out_is_refused():
    model, data = network(), batches(3)
    part, others = list(model[0].parameters()), list(model.parameters())
    surface = LossSurface(model, CE, layers=["0"])
    with pytest.raises(ValueError, match=r"also trains \d\.weight, which layers= leaves out"):
        TrainingMap(surface, torch.optim.SGD(others, lr=0.1), data)
    assert TrainingMap(surface, torch.optim.SGD(part, lr=0.1), data).n == sum(p.numel() for p in part)


class Weighted(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self, *, used):
        super().__init__()
        self.log_weight, self.used = nn.Parameter(torch.tensor(0.2).double()), used

    def forward(self, output, y):
        return CE(output, y) * (self.log_weight.exp() if self.used else 1.0)


@pytest.mark.parametrize("tool", [TrainingMap, lambda *a: asymptotic_exponents(*a, 1, num_windows=2)])
def test_an_optimiser_that_trains_a_parameter_of_the_loss_is_refused(tool):
    model, data, scale = network(), batches(3), torch.tensor(1.5).double().requires_grad_()
    loss = Weighted(used=True)
    sgd = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"also trains parameter 'log_weight' of the loss"):
        tool(LossSurface(model, loss), sgd, data)
    sgd = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
    with pytest.raises(ValueError, match=r"also trains parameter of shape \(\) \(number 0\)"):
        tool(LossSurface(model, lambda output, y: CE(scale * output, y)), sgd, data)
    assert loss.log_weight.grad is None
    assert scale.grad is None


def test_an_optimiser_may_train_what_does_not_move_the_loss():
    model, data, loss = network(), batches(3), Weighted(used=False)
    sgd = torch.optim.SGD([*model.parameters(), *loss.parameters(), nn.Parameter(torch.ones(2))], lr=0.1)
    Y = TrainingMap(LossSurface(model, loss), sgd, data).dense()
    oracle = differences(lambda point: trained(torch.optim.SGD, {"lr": 0.1}, data, point), flat(model))
    assert (Y - oracle).abs().max() < 1e-6


def test_the_padding_of_an_embedding_is_a_constant():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 3)).double()
    data = [(torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]]), torch.arange(4) % 3)] * 3
    sgd, start = torch.optim.SGD(model.parameters(), lr=0.3), flat(model)
    Y = TrainingMap(LossSurface(model, CE), sgd, data).dense()
    oracle = differences(lambda point: trained_as(model, sgd, data, point), start)
    assert (Y - oracle)[:, 3:].abs().max() < 1e-8
    assert torch.equal(Y[:, :3], torch.eye(len(start), 3).double())
