"""Losses of every reduction, and losses that see more than outputs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gauntlet.case import CE, Case, Net, case, classes, draw, mlp


@case
def subclass_of_mse():
    class Weighted(nn.MSELoss):
        def forward(self, output, target):
            return 3 * super().forward(output**2, target)

    return Case(mlp(), Weighted(), draw(4, 5), draw(4, 3))


@case
def hook_on_the_loss():
    loss = nn.MSELoss()
    loss.register_forward_hook(lambda module, args, out: out**2)
    return Case(mlp(), loss, draw(4, 5), draw(4, 3))


@case
def broadcasting_target():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return Case(model, nn.MSELoss(reduction="sum"), draw(4, 5), draw(4))


@case
def broadcasting_target_mean():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return Case(model, nn.MSELoss(), draw(4, 5), draw(4))


@case
def class_weights():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 25.0], dtype=torch.float64))
    return Case(mlp(), loss, draw(6, 5), classes(6))


@case
def ignored_targets():
    return Case(mlp(), nn.CrossEntropyLoss(ignore_index=0), draw(6, 5), classes(6))


@case
def label_smoothing():
    return Case(mlp(), nn.CrossEntropyLoss(label_smoothing=0.1), draw(6, 5), classes(6))


@case
def soft_targets():
    return Case(mlp(), CE, draw(4, 5), torch.rand(4, 3, dtype=torch.float64) * 2)


@case
def summed_cross_entropy():
    return Case(mlp(), nn.CrossEntropyLoss(reduction="sum"), draw(6, 5), classes(6))


@case
def nll():
    model = nn.Sequential(nn.Linear(5, 3), nn.LogSoftmax(1)).double()
    return Case(model, nn.NLLLoss(), draw(4, 5), classes(4))


@case
def huber():
    return Case(mlp(), nn.HuberLoss(delta=0.5), draw(4, 5), draw(4, 3))


@case
def coupled_loss():
    return Case(mlp(), lambda o, t: (o.std(0) * t.mean(0)).sum() ** 2, draw(4, 5), draw(4, 3))


@case
def penalty_inside_the_model():
    def loss(output, y):
        return F.cross_entropy(output[0], y) + 0.1 * output[1] ** 2

    model = Net(lambda net, x: (net.linear(x), net.linear.weight.square().sum()), linear=nn.Linear(5, 3))
    return Case(model.double(), loss, draw(4, 5), classes(4))


@case
def penalty_of_the_loss_on_the_live_model():
    model = mlp()

    def loss(output, y):
        return CE(output, y) + sum(p.pow(4).sum() for p in model.parameters())

    return Case(model, loss, draw(4, 5), classes(4))


@case
def penalty_on_a_captured_parameter():
    model = mlp()
    weight = model[0].weight

    def loss(output, y):
        return CE(output, y) + weight.square().sum() ** 2

    return Case(model, loss, draw(4, 5), classes(4), refused="reaches parameter '0.weight' by a reference")


@case
def a_cache_of_an_earlier_call():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.cache = nn.Linear(5, 3), {}

        def forward(self, x):
            if "square" not in self.cache:
                self.cache["square"] = self.linear.weight @ self.linear.weight.T
            return self.linear(x) @ self.cache["square"]

    model = Caching().double()
    model(draw(2, 5))
    return Case(model, CE, draw(4, 5), classes(4), refused="reaches parameter 'linear.weight' by a reference")
