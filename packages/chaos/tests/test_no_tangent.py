"""Trainings whose tangent does not follow from the loss, and other input that is refused."""

from __future__ import annotations

import pytest
import torch
from gauntlet import Net
from torch import nn
from trainings import CE, batches, network

from chaos import (
    LossSurface,
    SGDRule,
    TrainingMap,
    asymptotic_exponents,
    finite_time_exponents,
)


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
            lambda s, m: TrainingMap(s, torch.optim.Adadelta(m.parameters()), batches(1)),
            TypeError,
            "Adadelta has no rule here .SGD, Adam, AdamW, RMSprop, Adagrad have.",
        ),
        (
            lambda s, m: TrainingMap(s, torch.optim.SGD(m[0].parameters(), lr=0.1), batches(1)),
            ValueError,
            "lacks 2 of the 4 parameters",
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
            "num_exponents is 40; pass a whole number from 1 to 39",
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
            "this model has 39 parameters",
        ),
    ],
    ids=range(10),
)
def test_bad_input(make, error, message):
    model = network()
    with pytest.raises(error, match=message):
        make(LossSurface(model, CE), model)


def test_hooks_that_change_what_is_trained_are_refused_and_others_are_not():
    data = batches(2)

    def of(prepare):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        prepare(model, optimizer)
        return TrainingMap(LossSurface(model, CE), optimizer, data)

    plain, seen = of(lambda model, optimizer: None), []
    for logging in (
        lambda model, optimizer: model[0].weight.register_hook(lambda g: seen.append(g.shape)),
        lambda model, optimizer: model[2].register_full_backward_hook(lambda *_: seen.append("module")),
    ):
        assert (of(logging).dense() - plain.dense()).abs().max() < 1e-14
        assert seen
        seen.clear()
    for scaling in (
        lambda model, optimizer: model[0].weight.register_hook(lambda g: g.clamp(-0.01, 0.01)),
        lambda model, optimizer: model[2].register_full_backward_hook(lambda m, g, _: (2 * g[0],)),
    ):
        with pytest.raises(ValueError, match="Hooks on parameters or modules change the gradient"):
            of(scaling)
    for prepare in (
        lambda model, optimizer: optimizer.register_step_pre_hook(lambda *_: None),
        lambda model, optimizer: optimizer.register_step_post_hook(lambda *_: None),
        lambda model, optimizer: model[2].bias.register_post_accumulate_grad_hook(lambda p: None),
    ):
        with pytest.raises(ValueError, match="Hooks act on the optimiser's steps or on gradients"):
            of(prepare)


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
    torch.manual_seed(0)
    layers = {"first": nn.Linear(5, 6), "last": nn.Linear(6, 3)}
    model = Net(lambda net, x: behind(net.last(between(net.first(x)))), **layers).to(dtype)
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


def test_a_model_that_computes_in_one_type_only():
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.last(net.cells(x, torch.zeros(1, len(x), 4))[0][:, -1]),
        cells=nn.GRU(5, 4, batch_first=True),
        last=nn.Linear(4, 3),
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(6, 7, 5), torch.randint(3, (6,))
    assert TrainingMap(LossSurface(model, nn.CrossEntropyLoss()), sgd, [batch]).num_steps == 1
