"""The optimisers of PyTorch as rules: groups, schedules, begun runs, parameters without a gradient."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from trainings import CE, SETTINGS, batches, differences, flat, network, trained, trained_as

from chaos import (
    AdamRule,
    LossSurface,
    SGDRule,
    TrainingMap,
    asymptotic_exponents,
    finite_time_exponents,
    rule_of,
)


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


@pytest.mark.parametrize(
    "name", ["momentum", "adamw", "amsgrad", "rmsprop", "rmsprop-centered", "adagrad", "adagrad-started"]
)
def test_an_optimiser_that_has_begun_goes_on_and_is_left_alone(name):
    kind, options = SETTINGS[name]
    model, data = network(), batches(5)
    optimizer = kind(model.parameters(), **options)
    start = flat(model)
    trained_as(model, optimizer, data[:2], start)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    run = TrainingMap(LossSurface(model, CE), optimizer, iter(data[2:]))
    finite_time_exponents(run, 2)
    assert (run.end - trained(kind, options, data, start)).abs().max() < 1e-12
    after = (model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()])
    assert torch.equal(torch.cat([t.reshape(-1) for t in before[0].values()]), flat(model))
    assert str(before) == str(after)


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


@dataclass(frozen=True)
class OwnRule:
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
    run = TrainingMap(LossSurface(model, CE), OwnRule(0.01), data)
    options = {"lr": 0.01, "eps": 1e-2}
    start = flat(model)
    assert (run.end - trained(torch.optim.RMSprop, options, data, start)).abs().max() < 1e-12
    oracle = differences(lambda point: trained(torch.optim.RMSprop, options, data, point), start)
    assert (run.dense() - oracle).abs().max() < 1e-5 * oracle.abs().max()


class Partly(nn.Module):
    """Reaches `b` only in batches whose first entry is positive; `c` never."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(1, 2)

    def forward(self, x):
        return torch.tanh(self.a(x)) + self.b(x) if x[0, 0] > 0 else torch.tanh(self.a(x))


@pytest.mark.parametrize(
    ("kind", "options", "sign"),
    [
        (torch.optim.SGD, {"lr": 0.3, "weight_decay": 0.1}, 0),
        (torch.optim.SGD, {"lr": 0.3, "weight_decay": 0.1, "momentum": 0.9}, -1),
        (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-2}, 1),
        (torch.optim.RMSprop, {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-2, "momentum": 0.5}, -1),
        (torch.optim.Adagrad, {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-2}, 1),
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
        (torch.optim.AdamW, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1}),
        (torch.optim.RMSprop, {"lr": 0.05, "eps": 1e-2, "alpha": 0.9, "centered": True}),
        (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-2, "lr_decay": 0.3}),
    ],
)
@pytest.mark.parametrize(("before", "after"), [("55", "55"), ("55", "66"), ("556", "66")])
def test_parameters_that_an_optimiser_has_reached_never_or_less_often(kind, options, before, after):
    torch.manual_seed(0)
    data = {n: (torch.randn(int(n), 4).double(), torch.randint(3, (int(n),))) for n in "56"}

    def train(start, sizes, state=None):
        model = Branches().double()
        optimizer = kind(model.parameters(), **options)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        trained_as(model, optimizer, [data[n] for n in sizes], start)
        return model, optimizer

    model, optimizer = train(flat(Branches().double()), before)
    state, start = copy.deepcopy(optimizer.state_dict()), flat(model)
    run = TrainingMap(LossSurface(model, CE), optimizer, [data[n] for n in after])
    assert (run.end - flat(train(start, after, state)[0])).abs().max() < 1e-12
    oracle = differences(lambda point: flat(train(point, after, state)[0]), start)
    assert (run.dense() - oracle).abs().max() < 1e-7 * oracle.abs().max()


def warm_up(t):
    return min(1.0, (t + 1) / 10)


@pytest.mark.parametrize("before", [0, 3])
def test_a_schedule_is_that_of_the_scheduler_attached(before):
    """The factor multiplies the rate before the scheduler first moved it, and is asked for from now on."""
    model, data = network(), batches(before + 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)

    def train(some):
        for x, y in some:
            optimizer.zero_grad()
            CE(model(x), y).backward()
            optimizer.step()
            scheduler.step()

    train(data[:before])
    maps = [
        TrainingMap(LossSurface(model, CE), optimizer, data[before:], schedule=schedule)
        for schedule in (
            lambda t: warm_up(before + t),
            lambda t: warm_up(before + t) / warm_up(before),
        )
    ]
    train(data[before:])
    for run in maps:
        assert (run.end - flat(model)).abs().max() < 1e-12


def test_a_scheduler_whose_steps_are_not_said_is_refused():
    model = network()
    surface = LossSurface(model, CE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)
    with pytest.raises(ValueError, match="A scheduler moves the learning rate of the optimiser"):
        TrainingMap(surface, optimizer, batches(2))
    with pytest.raises(ValueError, match=r"schedule\(0\) is 0.5: let it be 0.1 at the present step"):
        TrainingMap(surface, optimizer, batches(2), schedule=lambda t: 0.5)
    held = TrainingMap(surface, optimizer, batches(2), schedule=lambda t: 1.0)
    plain = TrainingMap(surface, torch.optim.SGD(model.parameters(), lr=0.3 * warm_up(0)), batches(2))
    assert (held.end - plain.end).abs().max() < 1e-14
    cycled = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(cycled, 1.0, total_steps=9)
    with pytest.raises(ValueError, match="A scheduler moves the momentum of the optimiser"):
        TrainingMap(surface, cycled, batches(2), schedule=lambda t: 1.0)


def test_what_is_no_schedule_and_no_optimiser():
    model = network()
    surface, sgd = LossSurface(model, CE), torch.optim.SGD(model.parameters(), lr=0.3)
    other = torch.optim.SGD(model.parameters(), lr=0.3)
    with pytest.raises(TypeError, match="schedule is a StepLR; pass a function of the step"):
        TrainingMap(surface, sgd, batches(1), schedule=torch.optim.lr_scheduler.StepLR(other, 2))
    with pytest.raises(TypeError, match="optimizer is a NoneType; pass an optimiser of PyTorch"):
        TrainingMap(surface, None, batches(1))
    with pytest.raises(ValueError, match="warm_up is -1; pass a whole number of at least 0"):
        asymptotic_exponents(surface, sgd, batches(3), 1, warm_up=-1, num_windows=2)


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad], ids=lambda kind: kind.__name__
)
def test_a_gradient_of_exactly_zero(kind):
    """A step divides by a root, which has a corner there: what remains is the rate over eps."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    batch = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)  # of curvature 2
    run = TrainingMap(LossSurface(model, nn.MSELoss()), kind(model.parameters(), lr=0.1, eps=0.01), [batch])
    assert abs(run.dense().item() - (1 - 0.1 * 2 / 0.01)) < 1e-12


@pytest.mark.parametrize("model_type", [torch.bfloat16, torch.float32])
def test_rates_of_groups_are_not_rounded_to_the_type_of_the_parameters(model_type):
    """The map is that of the same training in the type of the computation."""
    model, data = network().to(model_type), batches(4)
    surface = LossSurface(model, CE, dtype=torch.float64)
    groups = [
        {"params": model[0].parameters(), "lr": 0.3, "weight_decay": 0.1},
        {"params": model[2].parameters(), "lr": 0.07},
    ]
    run = TrainingMap(surface, torch.optim.SGD(groups, lr=0.1), data)
    twin = copy.deepcopy(model).double()
    groups[0]["params"], groups[1]["params"] = twin[0].parameters(), twin[2].parameters()
    expected = trained_as(twin, torch.optim.SGD(groups, lr=0.1), data, surface.point(None))
    assert (run.end - expected).abs().max() < 1e-14
