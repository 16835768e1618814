"""Training as a map. Oracles: runs of ``torch.optim`` itself and their differences, dense linear algebra."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from chaos import (
    AdamRule,
    AveragedRule,
    LossSurface,
    LyapunovTracker,
    SGDRule,
    TrainingMap,
    asymptotic_exponents,
    finite_time_exponents,
    rule_of,
)

CE = nn.CrossEntropyLoss()
SETTINGS = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}),
    "momentum": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    "dampening": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.5, "dampening": 0.4}),
    "maximize": (torch.optim.SGD, {"lr": 0.1, "maximize": True, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3}),
    "adam-decay": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "adamw": (torch.optim.AdamW, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.2}),
    "adam-maximize": (torch.optim.Adam, {"lr": 0.02, "eps": 1e-3, "maximize": True}),
}


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def batches(num_steps):
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randn(6, 5, dtype=torch.float64, generator=generator),
            torch.randint(3, (6,), generator=generator),
        )
        for _ in range(num_steps)
    ]


def trained(kind, options, data, start, *, schedule=None, groups=None):
    """Parameters after training with PyTorch's own optimiser."""
    model = network()
    nn.utils.vector_to_parameters(start.clone(), model.parameters())
    optimizer = kind(model.parameters() if groups is None else groups(model), **options)
    scheduler = None if schedule is None else torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for x, y in data:
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def differences(run, start, epsilon=1e-5):
    columns = [
        (run(start + epsilon * e) - run(start - epsilon * e)) / (2 * epsilon)
        for e in torch.eye(len(start), dtype=torch.float64)
    ]
    return torch.stack(columns, 1)


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


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


def test_groups_and_schedules():
    def groups(model):
        return [
            {"params": model[2].parameters(), "lr": 0.05},
            {"params": model[0].parameters(), "weight_decay": 0.1},
        ]

    def schedule(t):
        return 0.5**t

    model, data = network(), batches(4)
    options = {"lr": 0.3, "momentum": 0.9}
    run = TrainingMap(
        LossSurface(model, CE), torch.optim.SGD(groups(model), **options), data, schedule=schedule
    )
    start = flat(model)

    def reference(point):
        return trained(torch.optim.SGD, options, data, point, schedule=schedule, groups=groups)

    assert (run.end - reference(start)).abs().max() < 1e-12
    oracle = differences(reference, start)
    assert (run.dense() - oracle).abs().max() < 1e-7 * oracle.abs().max()


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_an_optimiser_that_has_begun_goes_on_and_is_left_alone(name):
    kind, options = SETTINGS[name]
    model, data = network(), batches(5)
    optimizer = kind(model.parameters(), **options)
    start = flat(model)
    for x, y in data[:2]:
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    run = TrainingMap(LossSurface(model, CE), optimizer, iter(data[2:]))
    finite_time_exponents(run, 2)
    assert (run.end - trained(kind, options, data, start)).abs().max() < 1e-12
    after = (model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()])
    assert torch.equal(torch.cat([t.reshape(-1) for t in before[0].values()]), flat(model))
    assert str(before) == str(after)


@dataclass(frozen=True)
class RMSpropRule:
    """A rule of a user."""

    lr: float
    slots: int = 1

    def start(self, theta):
        return theta.new_zeros(1, len(theta))

    def step(self, theta, gradient, state, t):
        v = 0.99 * state[0] + 0.01 * gradient**2
        return theta - self.lr * gradient / (v.sqrt() + 1e-2), v[None]


def test_a_rule_of_a_user():
    model, data = network(), batches(5)
    run = TrainingMap(LossSurface(model, CE), RMSpropRule(0.01), data)
    options = {"lr": 0.01, "eps": 1e-2}
    start = flat(model)
    assert (run.end - trained(torch.optim.RMSprop, options, data, start)).abs().max() < 1e-12
    oracle = differences(lambda point: trained(torch.optim.RMSprop, options, data, point), start)
    assert (run.dense() - oracle).abs().max() < 1e-5 * oracle.abs().max()


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s, m: TrainingMap(s, SGDRule(0.1), []), ValueError, "batches is empty"),
        (
            lambda s, m: TrainingMap(s, SGDRule(0.1), batches(9), memory_budget=1000),
            ValueError,
            "18 x 39 matrix",
        ),
        (
            lambda s, m: TrainingMap(s, torch.optim.RMSprop(m.parameters()), batches(1)),
            TypeError,
            "RMSprop has no rule here",
        ),
        (
            lambda s, m: TrainingMap(s, torch.optim.SGD(m[0].parameters(), lr=0.1), batches(1)),
            ValueError,
            "lacks 2 of the 4 parameters",
        ),
        (
            lambda s, m: TrainingMap(s, torch.optim.Adam(m.parameters(), amsgrad=True), batches(1)),
            ValueError,
            "amsgrad=True has no rule",
        ),
        (
            lambda s, m: TrainingMap(s, SGDRule(0.1), batches(1), schedule=lambda t: 1.0),
            ValueError,
            "schedule goes with an optimiser of PyTorch",
        ),
        (
            lambda s, m: TrainingMap(s, SGDRule(1e200, weight_decay=1e9), batches(9)),
            FloatingPointError,
            "diverged.*step 2",
        ),
        (
            lambda s, m: finite_time_exponents(TrainingMap(s, SGDRule(0.1), batches(1)), 40),
            ValueError,
            "between 1 and n = 39",
        ),
        (
            lambda s, m: asymptotic_exponents(s, SGDRule(0.1), batches(5), 2),
            ValueError,
            "do not fill 10 windows",
        ),
        (lambda s, m: asymptotic_exponents(s, SGDRule(0.1), batches(5), 0), ValueError, "num_exponents is 0"),
        (
            lambda s, m: TrainingMap(s, SGDRule(0.1), batches(1)).product(torch.ones(3)),
            ValueError,
            "the model has 39 parameters",
        ),
    ],
    ids=range(11),
)
def test_bad_input(make, error, message):
    model = network()
    with pytest.raises(error, match=message):
        make(LossSurface(model, CE), model)


def test_settings_of_groups_that_cannot_differ():
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "momentum": 0.5}]
    with pytest.raises(ValueError, match="groups differ in momentum"):
        rule_of(torch.optim.SGD(groups, lr=0.1), list(model.parameters()))


def test_adam_rule_needs_no_optimiser():
    model, data = network(), batches(3)
    run = TrainingMap(LossSurface(model, CE), AdamRule(lambda t: 0.1 / (t + 1)), data)
    options = {"lr": 0.1}
    expected = trained(torch.optim.Adam, options, data, flat(model), schedule=lambda t: 1 / (t + 1))
    assert np.abs((run.end - expected).numpy()).max() < 1e-9


class Partly(nn.Module):
    """Reaches `b` only in batches whose first entry is positive; `c` never."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(1, 2)

    def forward(self, x):
        return torch.tanh(self.a(x)) + self.b(x) if x[0, 0] > 0 else torch.tanh(self.a(x))


def trained_as(model, optimizer, data, start):
    nn.utils.vector_to_parameters(start.clone(), model.parameters())
    for x, y in data:
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    return flat(model)


@pytest.mark.parametrize(
    ("kind", "options", "sign"),
    [
        (torch.optim.SGD, {"lr": 0.3, "weight_decay": 0.1}, 0),
        (torch.optim.SGD, {"lr": 0.3, "weight_decay": 0.1, "momentum": 0.9}, -1),
        (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-2}, 1),
    ],
)
def test_parameters_without_a_gradient_are_passed_over(kind, options, sign):
    """PyTorch neither decays nor moves them; without a state they may be reached in some steps only."""
    torch.manual_seed(0)
    model, data = Partly().double(), batches(4)
    for x, _ in data:
        x[0, 0] = sign * x[0, 0].abs() if sign else x[0, 0]
    start = flat(model)
    run = TrainingMap(LossSurface(model, CE), kind(model.parameters(), **options), data)

    def real(theta):
        copied = copy.deepcopy(model)
        return trained_as(copied, kind(copied.parameters(), **options), data, theta)

    assert (run.end - real(start)).abs().max() < 1e-14
    tangent = differences(real, start)
    assert (run.dense() - tangent).abs().max() < 1e-7
    V = torch.eye(len(start), dtype=torch.float64)
    assert (run.transposed_product(V) - run.dense().T).abs().max() < 1e-12
    assert torch.equal(tangent[-4:, -4:].round(decimals=9), V[-4:, -4:])


def test_parameters_that_are_reached_now_and_then_have_no_rule_with_a_state():
    torch.manual_seed(0)
    model, data = Partly().double(), batches(2)
    data[0][0][0, 0], data[1][0][0, 0] = 1.0, -1.0
    surface = LossSurface(model, CE)
    for rule in (torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), 0.1, 0.9)):
        with pytest.raises(ValueError, match="Step 1 reaches other parameters than step 0"):
            TrainingMap(surface, rule, data)
        with pytest.raises(ValueError, match="Step 1 reaches other parameters than step 0"):
            asymptotic_exponents(surface, rule, data, 1, num_windows=1)
    assert TrainingMap(surface, SGDRule(0.1, 0.9), data).num_steps == 2  # a rule of one's own is followed


def test_hooks_that_change_what_is_trained_are_refused_and_others_are_not():
    data = batches(2)

    def of(prepare):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        prepare(model, optimizer)
        return TrainingMap(LossSurface(model, CE), optimizer, data)

    plain, seen = of(lambda model, optimizer: None), []
    logging = of(lambda model, optimizer: model[0].weight.register_hook(lambda g: seen.append(g.shape)))
    assert torch.equal(logging.dense(), plain.dense())
    assert seen
    with pytest.raises(ValueError, match="Hooks on parameters or modules change the gradient"):
        of(lambda model, optimizer: model[0].weight.register_hook(lambda g: g.clamp(-0.01, 0.01)))
    for prepare in (
        lambda model, optimizer: optimizer.register_step_pre_hook(lambda *_: None),
        lambda model, optimizer: optimizer.register_step_post_hook(lambda *_: None),
        lambda model, optimizer: model[2].bias.register_post_accumulate_grad_hook(lambda p: None),
    ):
        with pytest.raises(ValueError, match="Hooks act on the optimiser's steps or on gradients"):
            of(prepare)


def test_a_loader_may_fill_the_same_memory_again():
    model, data = network(), batches(3)

    def loader():
        x, y = torch.zeros(6, 5, dtype=torch.float64), torch.zeros(6, dtype=torch.long)
        for inputs, targets in data:
            yield x.copy_(inputs), y.copy_(targets)

    surface, optimizer = LossSurface(model, CE), torch.optim.SGD(model.parameters(), lr=0.3)
    expected = TrainingMap(surface, optimizer, data)
    assert torch.equal(TrainingMap(surface, optimizer, loader()).dense(), expected.dense())


def test_what_is_no_schedule_and_no_optimiser():
    model = network()
    surface, sgd = LossSurface(model, CE), torch.optim.SGD(model.parameters(), lr=0.3)
    with pytest.raises(TypeError, match="schedule is a StepLR; pass a function of the step"):
        TrainingMap(surface, sgd, batches(1), schedule=torch.optim.lr_scheduler.StepLR(sgd, 2))
    with pytest.raises(TypeError, match="optimizer is a NoneType; pass an optimiser of PyTorch"):
        TrainingMap(surface, None, batches(1))
    with pytest.raises(ValueError, match="-1 of them warm-up"):
        asymptotic_exponents(surface, sgd, batches(3), 1, warm_up=-1, num_windows=2)


@pytest.mark.parametrize("seed", range(6))
def test_equal_exponents_are_all_found(seed):
    """ARPACK misses a copy of a multiple singular value, with a tiny residual, from some starting vectors."""
    curvatures = torch.cat([-torch.ones(2), torch.linspace(-0.9, 2, 60)]).double()
    surface = LossSurface(Quadratic(curvatures), lambda output, y: output)
    batch = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    run = TrainingMap(surface, SGDRule(0.1), [batch] * 3)
    found = finite_time_exponents(run, 2, seed=seed, tol=1e-6)
    assert found.values.tolist() == pytest.approx([math.log(1.1)] * 2, abs=1e-6)


def test_hooks_of_modules_that_change_the_gradient_are_refused_and_others_are_not():
    def of(hook):
        model = network()
        model[2].register_full_backward_hook(hook)
        return TrainingMap(LossSurface(model, CE), torch.optim.SGD(model.parameters(), lr=0.3), batches(2))

    plain = TrainingMap(LossSurface(network(), CE), SGDRule(0.3), batches(2))
    assert (of(lambda *_: None).dense() - plain.dense()).abs().max() < 1e-14
    with pytest.raises(ValueError, match="Hooks on parameters or modules"):
        of(lambda module, inputs, outputs: tuple(2 * g for g in inputs))


class Branches(nn.Module):
    """The second branch takes part for even numbers of samples."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.a(x) if len(x) % 2 else self.a(x) + self.b(x).tanh()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.3, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
        (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1, "foreach": True}),
        (
            torch.optim.AdamW,
            {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1},
        ),
    ],
)
@pytest.mark.parametrize(("before", "after"), [("55", "55"), ("55", "66"), ("556", "66")])
def test_parameters_that_an_optimiser_has_reached_never_or_less_often(kind, options, before, after):
    torch.manual_seed(0)
    data = {n: (torch.randn(int(n), 4).double(), torch.randint(3, (int(n),))) for n in "56"}

    def train(start, sizes, state=None):
        model = Branches().double()
        nn.utils.vector_to_parameters(start.clone(), model.parameters())
        optimizer = kind(model.parameters(), **options)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        for n in sizes:
            optimizer.zero_grad()
            CE(model(data[n][0]), data[n][1]).backward()
            optimizer.step()
        return model, optimizer

    model, optimizer = train(flat(Branches().double()), before)
    state, start = copy.deepcopy(optimizer.state_dict()), flat(model)
    run = TrainingMap(LossSurface(model, CE), optimizer, [data[n] for n in after])
    assert (run.end - flat(train(start, after, state)[0])).abs().max() < 1e-12
    oracle = differences(lambda point: flat(train(point, after, state)[0]), start)
    assert (run.dense() - oracle).abs().max() < 1e-7 * oracle.abs().max()


class Rounded(torch.autograd.Function):
    """A straight-through estimator: its backward pass is not its derivative."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


CUT = {  # what is between two layers, what is behind them, and whether that is refused
    "a factor cut off": (lambda h: h * h.detach().sum(1, keepdim=True), nn.Identity(), True),
    "rounded": (Rounded.apply, nn.Identity(), True),
    "maximum taken off": (torch.tanh, lambda h: h - h.max(1, keepdim=True)[0].detach(), False),
    "smooth": (torch.tanh, nn.Identity(), False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("between", "behind", "refused"), CUT.values(), ids=CUT)
def test_a_gradient_whose_change_autograd_does_not_see_is_refused(between, behind, refused, dtype):
    """A softmax does not see the maximum, so that one may be cut off."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            return behind(self.last(between(self.first(x))))

    torch.manual_seed(0)
    model = Net().to(dtype)
    batch = torch.randn(16, 5).to(dtype), torch.randint(3, (16,))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    surface = LossSurface(model, nn.CrossEntropyLoss())
    if refused:
        with pytest.raises(ValueError, match="cut off from the graph"):
            TrainingMap(surface, sgd, [batch])
        with pytest.raises(ValueError, match="cut off from the graph"):
            asymptotic_exponents(surface, sgd, [batch], 1, num_windows=1)
    else:
        TrainingMap(surface, sgd, [batch])
