"""Loops, optimisers and outputs out of the ordinary: the copies follow them, or one line refuses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from instability import (
    Copies,
    PerturbedSGD,
    SensitivityProbe,
    certify,
    lyapunov_estimate,
    lyapunov_exponents,
    numerical_sensitivity,
    relative_l2,
    sharpness,
    training_map,
)
from instability.copies import equal_bits
from instability.sensitivity.report import SensitivityReport

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Net(nn.Module):
    """A small network with room for something unusual."""

    def __init__(self, **more: nn.Parameter) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        for name, parameter in more.items():
            self.register_parameter(name, parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def loss_of(model: nn.Module) -> torch.Tensor:
    return functional.cross_entropy(model(X), Y)


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    optimizer.step()
    return loss


def ride(model, optimizer, num_steps=6, afterwards=lambda step: None, **settings) -> SensitivityReport:
    probe = SensitivityProbe(model, optimizer, (1, 1, 2, 3), **settings)
    for number in range(num_steps):
        probe.advance(update)
        update(model, optimizer)
        afterwards(number)
    return probe.report()


# what the copies follow ---------------------------------------------------------------------------


def test_only_what_the_optimiser_trains_is_compared():
    """A backbone that requires gradients, but that nobody trains, would dilute the answer."""
    model = Net()
    report = ride(model, torch.optim.SGD(model.body[2].parameters(), lr=0.5))
    assert list(report.by_layer) == ["body.2.weight", "body.2.bias"]
    copies = Copies(Net(), lambda p: torch.optim.SGD(list(p)[-1:], lr=0.5), (1, 3))
    with torch.no_grad():
        copies.models[1].body[2].bias.neg_()
    assert copies.divergence() == [0.0, 2.0]


def test_an_empty_parameter_is_no_weight():
    model = Net(empty=nn.Parameter(torch.empty(0)))
    assert ride(model, torch.optim.SGD(model.parameters(), lr=0.5)).controls_hold


def test_a_loop_that_does_more_than_the_copies_saw_is_reported():
    model = Net()

    def clip(number: int) -> None:
        with torch.no_grad():
            for p in model.parameters() if number == 2 else ():
                p.clamp_(-0.1, 0.1)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    report = ride(model, optimizer, afterwards=clip)
    assert report.left_at == 3
    assert "left your model after step 3" in report.summary()


def test_schedules_and_attributes_of_the_optimiser_are_followed():
    class Lookahead(torch.optim.SGD):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr)
            self.count = 0

        def step(self, closure=None):
            self.count += 1
            super().step(closure)
            if self.count % 2 == 0:
                for p in self.param_groups[0]["params"]:
                    p.data.mul_(0.9)

    model = Net()
    optimizer = Lookahead(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    update(model, optimizer)  # the copies take over in mid-run, at an odd count
    assert ride(model, optimizer, afterwards=lambda _: scheduler.step()).left_at == -1


def test_what_an_optimiser_writes_into_its_groups_stays_each_copys_own():
    class Adaptive(torch.optim.Optimizer):
        """Keeps a chaotic number of its own, as optimisers that estimate their rate keep a number."""

        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.5, "d": 0.3})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                norm = sum(float(p.grad.square().sum()) for p in group["params"])
                group["d"] = 3.9 * group["d"] * (1 - group["d"]) + 1e-6 * norm
                for p in group["params"]:
                    p.sub_(p.grad, alpha=group["lr"] * group["d"])

    model = Net()
    optimizer = Adaptive(model.parameters())
    probe = SensitivityProbe(model, optimizer, (1, 3))
    for _ in range(60):
        probe.advance(update)
        update(model, optimizer)
    own = [one.param_groups[0]["d"] for one in probe.copies.optimizers]
    assert own[0] == optimizer.param_groups[0]["d"]
    assert abs(own[0] - own[1]) > 1e-9  # a number that is reset in each step stays within 1e-12


@pytest.mark.parametrize("kind", ["gradient", "accumulated", "step"])
def test_hooks_that_a_copy_would_lose_are_refused(kind):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    if kind == "gradient":
        model.body[0].weight.register_hook(lambda g: 0.1 * g)
    elif kind == "accumulated":
        model.body[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    else:
        optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"hook.*which a copy would lose"):
        SensitivityProbe(model, optimizer)
    with pytest.raises(TypeError, match=r"hook.*which a copy would lose"):
        training_map(model, optimizer, lambda m, _: loss_of(m))


def test_parameters_added_in_mid_run_are_refused():
    model = Net()
    optimizer = torch.optim.SGD(model.body[0].parameters(), lr=0.5)
    probe = SensitivityProbe(model, optimizer)
    optimizer.add_param_group({"params": list(model.body[2].parameters())})
    with pytest.raises(ValueError, match=r"hold \[2, 2\] parameters"):
        probe.advance(update)


@pytest.mark.parametrize("kind", ["trains", "clips"])
def test_a_step_that_reaches_for_the_users_own_model_is_refused(kind):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    update(model, optimizer)

    def step(copied, inner):
        if kind == "trains":
            return update(model, optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        return update(copied, inner)

    with pytest.raises(RuntimeError, match=r"changed your own model \(body\.0\.weight"):
        SensitivityProbe(model, optimizer).advance(step)
    with pytest.raises(RuntimeError, match="changed your own model"):
        SensitivityProbe(model, lambda p: torch.optim.SGD(p, lr=0.5)).step(lambda _: loss_of(model))


def test_after_an_exception_in_a_step_the_copies_are_not_trusted():
    calls = 0

    def step(model, optimizer):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return update(model, optimizer)

    model = Net()
    probe = SensitivityProbe(model, torch.optim.SGD(model.parameters(), lr=0.5))
    with pytest.raises(KeyboardInterrupt):
        probe.advance(step)
    with pytest.raises(RuntimeError, match="ended in an exception"):
        probe.advance(step)


def test_a_run_that_ends_between_two_measurements_is_not_called_finite():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def explode(number: int) -> None:
        optimizer.param_groups[0]["lr"] = math.inf if number == 4 else 0.5

    assert ride(model, optimizer, afterwards=explode, every=4).nonfinite_at == 6


def test_gradients_accumulated_before_the_start_are_taken_over():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss_of(model).backward()

    def accumulate(model, optimizer):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    probe = SensitivityProbe(model, optimizer, (1, 1, 3))
    for _ in range(3):
        probe.advance(accumulate)
        accumulate(model, optimizer)
    assert probe.report().left_at == -1
    baseline = probe.copies.models[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), baseline.parameters(), strict=True))


def test_what_a_model_keeps_with_a_graph_is_copied_and_what_it_counts_is_not_changed_by_measuring():
    class Keeps(Net):
        def __init__(self):
            super().__init__()
            self.hidden, self.calls = [], []

        def forward(self, x):
            out = self.body(x) * (1 + 0.01 * len(self.calls))
            self.hidden.append(out)
            self.calls.append(1)
            return out

    model = Keeps()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    update(model, optimizer)
    report = ride(model, optimizer, outputs=lambda m: m(X))
    assert report.left_at == -1
    assert len(model.calls) == len(model.hidden) == 7


def test_arrays_and_tensors_in_a_group_are_followed_and_not_shared():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    probe = SensitivityProbe(model, optimizer, (1, 3))
    for scale in (1.0, 2.0):
        optimizer.param_groups[0] |= {"array": np.full(3, scale), "tensor": torch.full((3,), scale)}
        probe.advance(update)
    for copied in probe.copies.optimizers:
        (group,) = copied.param_groups
        assert group["array"].tolist() == group["tensor"].tolist() == [2.0] * 3
        assert group["tensor"] is not optimizer.param_groups[0]["tensor"]


def test_a_layer_taken_out_in_mid_run_is_reported():
    model = Net()

    def take_out(number: int) -> None:
        if number == 2:
            model.body[2] = nn.Identity()

    def step(model, optimizer):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()

    probe = SensitivityProbe(model, torch.optim.SGD(model.parameters(), lr=0.5), (1, 3))
    for number in range(5):
        probe.advance(step)
        step(model, probe._optimizer)
        take_out(number)
    assert probe.report().left_at == 3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda m: torch.optim.SGD([*m.parameters(), nn.Parameter(X)], lr=0.1),
            ValueError,
            "not the model's",
        ),
        (lambda m: lambda p: torch.optim.SGD([*p, nn.Parameter(X)], lr=0.1), ValueError, "not the model's"),
        (lambda m: lambda p: {}["missing"], KeyError, "missing"),  # the user's own mistake, as it is
    ],
)
def test_what_is_not_one_optimiser_of_the_model_is_refused(make, error, message):
    model = Net()
    with pytest.raises(error, match=message):
        SensitivityProbe(model, make(model))


@pytest.mark.parametrize("tool", ["probe", "study", "map", "sharpness"])
def test_a_model_whose_weights_have_no_shape_yet_is_refused(tool):
    model, optimizer = nn.Sequential(nn.LazyLinear(3)), torch.optim.SGD([nn.Parameter(X)], lr=0.1)
    call = {
        "probe": lambda: SensitivityProbe(model, optimizer),
        "study": lambda: numerical_sensitivity(lambda: model, [(X, Y)], lambda p: optimizer, 1),
        "map": lambda: training_map(model, optimizer, lambda m, _: loss_of(m)),
        "sharpness": lambda: sharpness(model, loss_of),
    }
    with pytest.raises(ValueError, match="run it on a batch first"):
        call[tool]()


@pytest.mark.parametrize("loss", [lambda m: {"loss": loss_of(m)}, lambda m: loss_of(m).item()])
def test_a_loss_that_is_no_tensor_is_refused(loss):
    def certified(model):
        make = (Net, lambda p: torch.optim.SGD(p, lr=0.1), [X])
        return certify(lambda m, _: loss(m), *make, evaluate=lambda m: 0.0)

    for use in (
        lambda model: Copies(model, lambda p: torch.optim.SGD(p, lr=0.1)).step(loss),
        lambda model: training_map(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, _: loss(m)),
        certified,
    ):
        with pytest.raises(TypeError, match="return the scalar tensor itself"):
            use(Net())


def test_equal_bits_of_complex_numbers_and_of_different_types():
    z = torch.tensor([complex(math.nan, 1.0), 2.0])
    assert equal_bits(z, z.clone())
    assert not equal_bits(z, z + 1j)
    assert not equal_bits(torch.ones(2), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_studies_make_their_own_gradients(around):
    def study():
        report = numerical_sensitivity(Net, [(X, Y)], lambda p: torch.optim.SGD(p, lr=0.5), 3)
        found = certify(
            lambda m, _: loss_of(m),
            *(Net, lambda p: torch.optim.SGD(p, lr=0.5), [X] * 2),
            evaluate=lambda m: float(loss_of(m)),
            conditions=["repeat"],
        )
        return report.divergence.tolist(), found.score

    free = study()
    with around():
        assert study() == free


# outputs ------------------------------------------------------------------------------------------


def test_outputs_of_a_copy_that_blew_up_are_not_zero_apart():
    model = Net()
    probe = SensitivityProbe(
        model, torch.optim.SGD(model.parameters(), lr=0.5), (1, 3), outputs=lambda m: m(X)
    )
    with torch.no_grad():
        probe.copies.models[1].body[0].weight.fill_(math.nan)
    probe.advance(update)
    assert "outputs on the probe batch: nan apart" in probe.report().summary()


def test_imaginary_parts_of_outputs_count():
    assert relative_l2(np.array([3j, 4.0]), np.array([0.0, 4.0])) == pytest.approx(2 * 3 / 9)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    probe = SensitivityProbe(model, optimizer, (1, 3), outputs=lambda m: 1j * m(X))
    with torch.no_grad():
        probe.copies.models[1].body[2].bias.add_(1.0)
    probe.advance(update)
    assert probe.report().outputs[1, 0] > 0.1


def test_outputs_that_are_no_tensor_are_refused():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    probe = SensitivityProbe(model, optimizer, (1, 3), outputs=lambda m: (m(X),))
    with pytest.raises(TypeError, match="outputs returned a tuple"):
        probe.advance(update)


# curvature ----------------------------------------------------------------------------------------


class Bag(nn.Module):
    """Word vectors that the forward pass shortens, and a count that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.calls = nn.Embedding(5, 3, max_norm=0.5), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.words(torch.arange(len(x)) % 5)


def test_a_forward_pass_that_changes_weights_has_no_hessian_and_the_weights_stay():
    model = Bag()
    before = model.words.weight.detach().clone()
    with pytest.raises(ValueError, match="changes parameters in place"):
        sharpness(model, loss_of)
    assert torch.equal(before, model.words.weight)
    assert model.calls == 0


# maps ---------------------------------------------------------------------------------------------


def test_checkpointed_layers_have_the_exponents_of_plain_ones():
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, growth = X.double(), []
    for call in (lambda m: m(x), lambda m: checkpoint(m, x, use_reentrant=False)):
        step, state = training_map(model, optimizer, lambda m, _, f=call: functional.cross_entropy(f(m), Y))
        growth.append(lyapunov_exponents(step, state, num_steps=4).growth)
    np.testing.assert_allclose(growth[1], growth[0], atol=1e-7)


def test_the_memory_of_lbfgs_cannot_be_scaled_back():
    copies = Copies(Net().double(), torch.optim.LBFGS, (1, 1))
    with pytest.raises(TypeError, match="use SensitivityProbe"):
        lyapunov_estimate(copies, [loss_of])


# checkpoints of torch's SGD -----------------------------------------------------------------------


def test_a_checkpoint_of_torchs_sgd_continues_bit_for_bit():
    model, twin = Net(), Net()
    plain = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    ours = PerturbedSGD(twin.parameters(), lr=0.5, momentum=0.9)
    update(model, plain)
    twin.load_state_dict(model.state_dict())
    ours.load_state_dict(copy.deepcopy(plain.state_dict()))
    update(model, plain)
    update(twin, ours)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_ascent_is_refused_instead_of_ignored():
    parameters = list(Net().parameters())
    with pytest.raises(ValueError, match="maximize"):
        PerturbedSGD([{"params": parameters, "maximize": True}], lr=0.1)
    plain = torch.optim.SGD(parameters, lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="maximize"):
        PerturbedSGD(parameters, lr=0.1).load_state_dict(plain.state_dict())


def test_a_score_may_take_gradients_and_freeze_layers():
    def evaluate(model: nn.Module) -> float:
        model.zero_grad()
        loss_of(model).backward()
        model.body[0].requires_grad_(False)
        return float(model.body[0].weight.grad.norm())

    model = Net()
    probe = SensitivityProbe(model, torch.optim.SGD(model.parameters(), lr=0.5), (1, 3))
    probe.advance(update)
    copied = probe.copies.models[0]
    before = [(p.grad, p.grad.clone(), p.requires_grad) for p in copied.parameters()]
    probe.report(evaluate)
    for p, (grad, values, requires_grad) in zip(copied.parameters(), before, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, values)
        assert p.requires_grad is requires_grad
