"""Losses, steps and models that reach for something other than what they are given."""

from __future__ import annotations

import copy
import weakref
from functools import lru_cache, partial, wraps
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from instability import (
    Copies,
    SensitivityProbe,
    certify,
    hessian_vector_product,
    lyapunov_estimate,
    lyapunov_exponents,
    numerical_sensitivity,
    sharpness,
    training_map,
)

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(16) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def loss_of(model: nn.Module, *_) -> torch.Tensor:
    return functional.cross_entropy(model(X), Y)


def update(model, optimizer):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


OTHER = net()


def of_another(*_) -> torch.Tensor:
    return loss_of(OTHER)


TOOLS = {
    "training_map": lambda model: training_map(model, sgd(model.parameters()), of_another),
    "lyapunov_estimate": lambda model: lyapunov_estimate(Copies(model, sgd, (1, 1)), [of_another]),
    "sharpness": lambda model: sharpness(model, of_another),
    "hessian_vector_product": lambda model: hessian_vector_product(model, of_another),
    "certify": lambda model: certify(
        of_another, lambda: model, sgd, [X], evaluate=lambda m: float(loss_of(m))
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_loss_of_another_model_says_nothing_about_this_one(tool):
    """Exponent 0, sharpness 0 and a score that nothing moves: answers for a model that stands still."""
    with pytest.raises(ValueError, match="depends on no trained weight of the model that it was given"):
        TOOLS[tool](net())


class Clears(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.zero_grad()


def sometimes(model: nn.Module) -> torch.Tensor:
    return 2.5 * model.weight.square().sum()


def nothing(_: nn.Module) -> torch.Tensor:
    return torch.zeros((), requires_grad=True)


@pytest.mark.parametrize("make", [torch.optim.SGD, Clears])
@pytest.mark.parametrize("first", [0, 1])
def test_a_step_may_have_nothing_to_learn(make, first):
    """A batch without positives; the others multiply by 1 - 0.1 * 5."""
    model = nn.Linear(1, 1, bias=False).double()
    losses = [nothing if number % 2 == first else sometimes for number in range(4)]
    growth = lyapunov_estimate(Copies(model, lambda p: make(p, lr=0.1), (1, 1)), losses)
    np.testing.assert_allclose(np.exp(growth), [1, 0.5, 1, 0.5] if first == 0 else [0.5, 1, 0.5, 1])
    step, state = training_map(model, make(model.parameters(), lr=0.1), lambda m, n: losses[n % 4](m))
    exponent = lyapunov_exponents(step, state, num_steps=4).exponents[0]
    np.testing.assert_allclose(exponent, np.log(0.5) / 2)


def test_what_an_optimiser_keeps_is_there_from_step_0_on():
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"step 1 makes what the optimiser keeps \(weight/momentum_buffer\)"):
        training_map(model, optimizer, lambda m, number: sometimes(m) if number else nothing(m))


# models whose copies would compute with the first one's layers --------------------------------------


class Remembers(nn.Module):
    """Keeps what a layer gives by a hook, which is a closure, a method, or a partial object."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.kept = nn.Linear(4, 6).double(), nn.Linear(6, 3).double(), None
        hooks = {
            "closure": lambda module, given, output: setattr(self, "kept", output),
            "method": self.keep,
            "partial": partial(Remembers.keep, self),
        }
        self.first.register_forward_hook(hooks[kind])

    def keep(self, module, given, output) -> None:
        self.kept = output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.first(x)
        return self.last(torch.tanh(self.kept))


def with_forward_of_its_own() -> nn.Module:
    model = net()
    model.forward = lambda x: model[2](torch.tanh(model[0](x)))
    return model


def with_a_function_of_this_file() -> nn.Module:
    OTHER.forward = lambda x: OTHER[2](x[:, :1].expand(-1, 6))
    return OTHER


@pytest.mark.parametrize("tool", ["probe", "map"])
@pytest.mark.parametrize(
    "make", [lambda: Remembers("closure"), with_forward_of_its_own, with_a_function_of_this_file]
)
def test_a_function_that_holds_a_layer_would_share_it_with_the_copies(make, tool):
    model = make()
    attach = {
        "probe": lambda: SensitivityProbe(model, sgd(model.parameters())),
        "map": lambda: training_map(model, sgd(model.parameters()), loss_of),
    }
    try:
        with pytest.raises(
            TypeError, match=r"keeps the function .*<lambda>, which holds one of its own layers"
        ):
            attach[tool]()
    finally:
        vars(OTHER).pop("forward", None)


class Energy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
        square = lambda *_: self.a.weight.square().sum()  # noqa: E731 - the fault is a function without a name
        self.energy = {
            "function": square,
            "object": SimpleNamespace(of=square),
            "partial": partial(square, 0),
            "cached": lru_cache(0)(square),
        }[kind]


@pytest.mark.parametrize("tool", ["copies", "probe", "map", "estimate"])
@pytest.mark.parametrize("kind", ["function", "object", "partial", "cached"])
def test_a_layer_is_found_wherever_a_function_holds_it(kind, tool):
    model = Energy(kind)
    attach = {
        "copies": lambda: Copies(model, sgd),
        "probe": lambda: SensitivityProbe(model, sgd(model.parameters())),
        "map": lambda: training_map(model, sgd(model.parameters()), loss_of),
        "estimate": lambda: lyapunov_estimate(Copies(model, sgd, (1, 1)), []),
    }
    with pytest.raises(TypeError, match=r"keeps the function .*<lambda>, which holds one of its own layers"):
        attach[tool]()


def test_a_function_with_another_layer_of_the_same_values_is_no_layer_of_the_model():
    """A frozen teacher that began as a copy."""
    model = nn.Linear(1, 1, bias=False).double()
    teacher = copy.deepcopy(model)
    model.aim = lambda x, t=teacher: t(x).detach()
    growth = lyapunov_estimate(Copies(model, lambda p: torch.optim.SGD(p, lr=0.1), (1, 1)), [sometimes] * 2)
    np.testing.assert_allclose(np.exp(growth), 0.5)


def with_a_logger() -> nn.Module:
    model = net()
    logger = SimpleNamespace(model=model, log=lambda output: None)
    model[0].register_forward_hook(lambda module, given, output: logger.log(output))
    return model


def with_its_own_method() -> nn.Module:
    model = net()
    model.forward = MethodType(lambda self, x: self[2](torch.tanh(self[0](x))), model)
    return model


class Recurrent(nn.Module):
    def __init__(self) -> None:  # torch keeps weak references to its weights
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.last = nn.LSTM(1, 6, batch_first=True).double(), nn.Linear(6, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.cell(x[:, :, None])[0][:, -1])


encode, decode = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()


class KeepsItsMethod(nn.Module):
    """Built of layers that are globals of the names that its attributes have."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = encode, decode
        self.way = self.plain

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.tanh(self.encode(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.way(x)


@pytest.mark.parametrize(
    "make",
    [
        KeepsItsMethod,
        with_a_logger,
        lambda: Remembers("method"),
        lambda: Remembers("partial"),
        with_its_own_method,
        Recurrent,
        lambda: torch.compile(net(), backend="eager"),
    ],
)
def test_what_is_copied_with_its_layers_is_followed_bit_for_bit(make):
    model = make()
    optimizer = sgd(model.parameters())
    start = copy.deepcopy(list(model.parameters()))
    probe = SensitivityProbe(model, optimizer, (1, 1))
    for _ in range(3):
        probe.advance(update)
        update(model, optimizer)
    for p, q, before in zip(model.parameters(), probe.copies.models[0].parameters(), start, strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, before)


# what else the user has -----------------------------------------------------------------------------


def discriminator() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).double()


class Trainer:
    def __init__(self, judge: nn.Module) -> None:
        self.judge = judge

    def loss(self, model: nn.Module) -> torch.Tensor:
        return self.judge(model(X)).mean()

    __call__ = loss


JUDGES: list[nn.Module] = []


def of_the_judge(outputs: torch.Tensor) -> torch.Tensor:
    return JUDGES[0](outputs).mean()


@pytest.mark.parametrize(
    "kind",
    [
        *("closure", "bound", "attribute", "partial", "object", "partial object", "list", "nested"),
        *("helper", "wrapped", "torch"),
    ],
)
def test_a_discriminator_keeps_gradients_and_averages_of_its_own(kind):
    judge, generator = discriminator(), net()
    judge(torch.ones(8, 3).double()).sum().backward()
    before = copy.deepcopy([(p.grad, p.grad.clone()) for p in judge.parameters()])
    gradients = [p.grad for p in judge.parameters()]
    buffers = copy.deepcopy(dict(judge.named_buffers()))
    trainer = Trainer(judge)
    losses = {
        "closure": lambda m: judge(m(X)).mean(),
        "bound": trainer.loss,
        "attribute": lambda m: trainer.judge(m(X)).mean(),
        "partial": partial(lambda other, m: other(m(X)).mean(), judge),
        "object": trainer,
        "partial object": partial(trainer),
        "list": lambda m, judges=(judge,): judges[0](m(X)).mean(),
        "nested": lambda m: nested.gan["judge"](m(X)).mean(),
        "helper": partial(lambda helper, m: helper(m(X)), of_the_judge),
        "wrapped": wraps(trainer.loss)(lambda m: trainer.loss(m)),
        "torch": torch.enable_grad()(lambda m: judge(m(X)).mean()),
    }
    nested = SimpleNamespace(gan={"judge": judge})
    JUDGES[:] = [judge]
    probe = SensitivityProbe(generator, sgd(generator.parameters()), (1, 1, 3))
    probe.step(losses[kind])
    assert probe.copies.same_bits(1)
    assert (probe.copies.weights(0) != Copies(generator, sgd, (1,)).weights(0)).any()
    for p, gradient, (_, values) in zip(judge.parameters(), gradients, before, strict=True):
        assert p.grad is gradient
        assert torch.equal(gradient, values)
    assert all(torch.equal(b, buffers[name]) for name, b in judge.named_buffers())


class Centred(nn.Module):
    """A loss with a moving centre, in place or assigned anew, and a counter."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(3, dtype=torch.float64))
        self.in_place, self.calls = in_place, 0

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        loss = functional.cross_entropy(outputs, ((outputs.detach() - self.centre) / 0.1).softmax(1))
        mean = outputs.detach().mean(0)
        if self.in_place:
            self.centre.mul_(0.9).add_(mean, alpha=0.1)
        else:
            self.centre = self.centre * 0.9 + mean * 0.1
        self.calls = self.calls + 1
        return loss


def spectral() -> nn.Module:
    judge, spectral_norm = discriminator(), nn.utils.parametrizations.spectral_norm
    return nn.Sequential(spectral_norm(judge[0]), judge[2], spectral_norm(judge[3]))


@pytest.mark.parametrize("make", [lambda: Centred(True), lambda: Centred(False), spectral])
@pytest.mark.parametrize("make_optimizer", [sgd, partial(torch.optim.LBFGS, max_iter=3)])
def test_every_copy_meets_a_network_in_the_loss_in_the_same_state(make, make_optimizer):
    def run(with_probe: bool):
        model, other = net(), make()
        optimizer = make_optimizer(model.parameters())
        probe = SensitivityProbe(model, optimizer, (1, 1, 2)) if with_probe else None

        def closure():
            optimizer.zero_grad()
            loss = other(model(X)).mean()
            loss.backward()
            return loss

        for _ in range(4):
            if probe:
                probe.step(lambda m: other(m(X)).mean())
            optimizer.step(closure)
        return model, other, probe

    (alone, kept, _), (model, other, probe) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(kept.buffers(), other.buffers(), strict=True))
    assert getattr(kept, "calls", 0) == getattr(other, "calls", 0)
    for one in probe.copies.models:
        for a, b, c in zip(alone.parameters(), model.parameters(), one.parameters(), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def test_a_lazy_network_and_a_proxy_of_something_gone_are_no_hindrance():
    lazy, gone = nn.LazyBatchNorm1d(dtype=torch.float64), weakref.proxy(type("Thing", (), {})())
    probe = SensitivityProbe(net(), sgd, (1, 1))
    probe.step(lambda m: (gone, functional.cross_entropy(lazy(m(X)), Y))[1])
    assert probe.copies.same_bits(1)


def test_a_network_in_the_loss_of_a_study_keeps_its_averages():
    judge = discriminator()
    buffers = copy.deepcopy(dict(judge.named_buffers()))
    numerical_sensitivity(net, [(X, Y)], sgd, 2, (1, 3), loss_fn=lambda outputs, _: judge(outputs).mean())
    assert all(torch.equal(b, buffers[name]) for name, b in judge.named_buffers())
    assert all(p.grad is None for p in judge.parameters())


def test_a_scheduler_that_counts_the_steps_of_all_copies_is_refused():
    model = net()
    optimizer = sgd(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    update(model, optimizer)

    def scheduled(one, its):
        update(one, its)
        scheduler.step()

    with pytest.raises(RuntimeError, match="changed your own StepLR, which moves on with every copy"):
        SensitivityProbe(model, optimizer).advance(scheduled)


@pytest.mark.parametrize("in_place", [True, False])
def test_averages_that_move_on_with_every_copy_are_refused(in_place):
    model = net()
    optimizer = sgd(model.parameters())
    average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def averaged(one, its):
        update(one, its)
        for name, p in one.named_parameters():
            if in_place:
                average[name].lerp_(p.detach(), 0.1)
            else:
                average[name] = 0.9 * average[name] + 0.1 * p.detach()

    with pytest.raises(RuntimeError, match="changed a tensor of your own, which moves on with every copy"):
        SensitivityProbe(model, optimizer).advance(averaged)


def test_averages_by_model_and_logs_are_no_hindrance():
    model = net()
    probe = SensitivityProbe(model, sgd(model.parameters()))
    averages, log, losses = {}, {"loss": torch.tensor(0.0)}, []

    def averaged(one, its):
        loss = functional.cross_entropy(one(X), Y)
        its.zero_grad()
        loss.backward()
        its.step()
        for name, p in one.named_parameters():
            averages[one, name] = averages.get((one, name), 0.0) * 0.9 + 0.1 * p.detach()
        log["loss"] = loss.detach()
        losses.append(loss.detach())

    for _ in range(3):
        probe.advance(averaged)
    assert len(losses) == 3 * len(probe.copies.models)


def scaled_by(scaler):
    def step(one, its):
        its.zero_grad()
        scaler.scale(16 * functional.cross_entropy(one(X.float()), Y)).backward()
        scaler.step(its)
        scaler.update()

    return step


def test_a_gradient_scaler_may_be_shared():
    """All copies make the steps of a run without a probe, and the scaler too, some of which overflow."""
    ends = []
    for is_probed in (False, True):
        model = net().float()
        optimizer = sgd(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124, growth_interval=1)
        step = scaled_by(scaler)
        probe = SensitivityProbe(model, optimizer, (1, 1, 2))
        scales = []
        for _ in range(6):
            if is_probed:
                probe.advance(step)
            step(model, optimizer)
            scales.append(scaler.get_scale())
        ends.append((scales, [p.tolist() for p in model.parameters()]))
    assert ends[0] == ends[1]
    assert len(set(ends[0][0])) > 1
    for copied in probe.copies.models:
        assert [p.tolist() for p in copied.parameters()] == ends[0][1]


def test_a_gradient_scaler_of_the_copies_alone_is_refused():
    model = net().float()
    probe = SensitivityProbe(model, sgd(model.parameters()))
    step = scaled_by(torch.amp.GradScaler("cpu"))
    probe.advance(step)
    with pytest.raises(RuntimeError, match="a gradient scaler has not moved since the copies did"):
        probe.advance(step)


def test_a_network_that_moves_on_with_every_copy_is_refused():
    model, judge = net(), discriminator()
    optimizer, theirs = sgd(model.parameters()), sgd(judge.parameters())
    average = torch.optim.swa_utils.AveragedModel(model)

    def averaged(one, its):
        update(one, its)
        average.update_parameters(one)

    def against(one, its):
        judge(one(X).detach()).sum().backward()
        theirs.step()
        update(one, its)

    average.update_parameters(model)

    def by_data(one, its):
        update(one, its)
        for p, q in zip(average.module.parameters(), one.parameters(), strict=True):
            p.data.lerp_(q.data, 0.1)

    for step, name in ((averaged, "AveragedModel"), (against, "Sequential"), (by_data, "AveragedModel")):
        with pytest.raises(RuntimeError, match=f"changed your own {name} .*, which moves on with every copy"):
            SensitivityProbe(model, optimizer).advance(step)


def test_what_is_kept_for_each_copy_may_move_on():
    """A scaler by model, and a trainer that knows its probe."""
    model, scalers, trainer = net(), {}, SimpleNamespace()
    optimizer = sgd(model.parameters())
    trainer.probe = SensitivityProbe(model, optimizer, (1, 1))

    def scaled(one, its):
        trainer.last = one
        scaler = scalers.setdefault(id(one), torch.amp.GradScaler("cpu", growth_interval=1))
        its.zero_grad()
        scaler.scale(loss_of(one)).backward()
        scaler.step(its)
        scaler.update()

    for _ in range(3):
        trainer.probe.advance(scaled)
        scaled(model, optimizer)
    for p, q in zip(model.parameters(), trainer.probe.copies.models[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_averages_of_the_users_own_model_are_no_business_of_the_copies():
    model = discriminator()
    probe = SensitivityProbe(model, sgd(model.parameters()))

    def distil(one):
        with torch.no_grad():
            aim = model(X[:, :3])
        return (one(X[:, :3]) - aim - 1).square().sum()

    with pytest.raises(RuntimeError, match="the step changed your own model"):
        probe.step(distil)


def test_a_layer_set_free_in_mid_run_is_told_at_its_first_step():
    model = net()
    model[0].requires_grad_(False)
    optimizer = sgd(model.parameters())
    probe = SensitivityProbe(model, optimizer)
    for number in range(4):
        model[0].requires_grad_(number > 1)
        probe.step(loss_of)
        update(model, optimizer)
    assert probe.report().left_at == 3


# what a study is given ------------------------------------------------------------------------------


class Answers(nn.Module):
    """Returns its scores inside something."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x, labels=None):
        scores = self.net(x)
        return self.wrap(scores, None if labels is None else functional.cross_entropy(scores, labels))


def test_a_mapping_with_the_loss_is_as_good_as_an_object_with_it():
    batch = {"x": X, "labels": Y}
    reports = [
        numerical_sensitivity(partial(Answers, wrap), [batch], sgd, 5, (1, 3))
        for wrap in (lambda scores, loss: {"loss": loss}, lambda scores, loss: Loss(loss))
    ]
    plain = numerical_sensitivity(net, [(X, Y)], sgd, 5, (1, 3))
    for report in reports:
        assert (report.divergence == plain.divergence).all()
        assert report.injected


class Loss:
    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss


FLOATS = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "batch", "error", "message"),
    [
        (lambda: Answers(lambda s, _: {"logits": s}), (X, Y), TypeError, r"returned a dict .* pass loss_fn"),
        (lambda: Answers(lambda s, _: (s, 1)), (X, Y), TypeError, r"returned a tuple .* pass loss_fn"),
        (lambda: Answers(lambda s, _: s), {"x": X}, TypeError, r"a Tensor without a loss .* put the labels"),
        (lambda: nn.Linear(4, 1).double(), (X, FLOATS[:, None]), ValueError, "of one class, cross-entropy"),
        (lambda: nn.Linear(4, 1).double(), (X, Y), ValueError, "of one class, cross-entropy is always 0"),
        (net, (X, FLOATS), ValueError, r"targets are torch.float64 of shape \(16,\)"),
        (net, (X, Y.tolist()), TypeError, "the targets are a list"),
        (net(), (X, Y), TypeError, "model_fn is a Sequential; pass a function that makes a new one"),
    ],
)
def test_what_cross_entropy_does_not_take_is_named(make, batch, error, message):
    with pytest.raises(error, match=message):
        numerical_sensitivity(make, [batch], sgd, 2)


def test_probabilities_are_targets():
    soft = torch.softmax(X[:, :3], 1)
    assert numerical_sensitivity(net, [(X, soft)], sgd, 2, (1, 3)).injected


@pytest.mark.parametrize("score", [None, [0.5, 0.5], torch.ones(2)])
def test_a_score_is_one_number(score):
    with pytest.raises(TypeError, match=r"evaluate returned a .*; let it return one number"):
        numerical_sensitivity(net, [(X, Y)], sgd, 1, evaluate=lambda model: score)
    with pytest.raises(TypeError, match=r"evaluate returned a .*; let it return one number"):
        certify(loss_of, net, sgd, [X], evaluate=lambda model: score)


@pytest.mark.parametrize(
    ("model", "optimizer", "name"),
    [(net(), sgd, "model_fn is a Sequential"), (net, sgd(net().parameters()), "optimizer_fn is a SGD")],
)
def test_a_certificate_makes_every_run_anew(model, optimizer, name):
    with pytest.raises(TypeError, match=name):
        certify(loss_of, model, optimizer, [X], evaluate=lambda m: 0.0)
