"""Normalisation, modes and randomness."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gauntlet.case import CE, Case, Net, case, classes, draw, mlp


@case
def batch_norm_first_in_training_mode():
    model = nn.Sequential(nn.BatchNorm1d(12, affine=False), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 12) + 3, classes(4))


@case
def batch_norm_in_training_mode():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(6, 5), classes(6))


@case
def batch_norm_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    model(draw(9, 5))
    return Case(model.eval(), CE, draw(6, 5), classes(6))


@case
def instance_norm_that_tracks():
    model = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 3)
    )
    return Case(model.double(), CE, draw(4, 1, 5), classes(4))


@case
def group_and_layer_norm():
    model = nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.SiLU(), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4))


@case
def rms_norm():
    model = nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4), nn.GELU(), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4))


@case
def dropout_in_training_mode():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return Case(model, CE, draw(4, 12), classes(4), refused="Dropout is active in layer '0'")


@case
def dropout_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3)).double()
    return Case(model.eval(), CE, draw(4, 5), classes(4))


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(F.dropout(torch.tanh(self.inner(x)), 0.5, self.training))


@case
def functional_dropout():
    model = nn.Sequential(FunctionalDropout()).double()
    return Case(model, CE, draw(4, 5), classes(4), refused="loss is random .layer '0'")


@case
def functional_dropout_on_a_small_budget():
    kwargs = {"memory_budget": 60_000}
    return Case(FunctionalDropout().double(), CE, draw(4, 5), classes(4), "loss is random", kwargs=kwargs)


@case
def random_activation():
    model = nn.Sequential(nn.Linear(5, 4), nn.RReLU(), nn.Linear(4, 3)).double()
    return Case(model, CE, draw(4, 5), classes(4), refused="loss is random .layer '1'")


@case
def stochastic_depth_by_numpy():
    import numpy as np

    class Depth(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, 5)

        def forward(self, x):
            return x + self.body(x) if np.random.random() < 0.5 else x  # noqa: NPY002

    model = nn.Sequential(nn.Linear(5, 5), Depth(), nn.Linear(5, 3)).double()
    return Case(model, CE, draw(4, 5), classes(4), refused="loss is random .layer '1'")


@case
def a_random_stream_of_its_own():
    model = Net(
        lambda net, x: net.linear(x) + torch.randn(3, generator=net.stream, dtype=x.dtype),
        linear=nn.Linear(5, 3),
        stream=torch.Generator().manual_seed(0),
    )
    return Case(model.double(), CE, draw(4, 5), classes(4), refused="disagree|no second derivative")


@case
def random_loss():
    def loss(output, y):
        return F.cross_entropy(output * torch.rand(3, dtype=output.dtype), y)

    return Case(mlp(), loss, draw(4, 5), classes(4), refused="loss is random .the loss")
