"""Batches of one, of several inputs, and dictionaries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from gauntlet.case import CE, Case, Net, case, classes, draw, mlp


@case
def one_sample():
    return Case(mlp(), CE, draw(1, 5), classes(1))


@case
def one_number_per_sample():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    return Case(model, nn.MSELoss(), draw(4, 5), draw(4))


@case
def an_image_without_a_batch():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(0), nn.Linear(8, 3)).double()
    return Case(model, CE, draw(1, 4, 4), torch.tensor(1))


@case
def a_derivative_by_the_input():
    def forward(net, x):
        with torch.enable_grad():
            return torch.autograd.grad(net.net(x).sum(), x, create_graph=True)[0]

    model = Net(forward, net=nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)))
    return Case(model.double(), nn.MSELoss(), draw(4, 1).requires_grad_(), draw(4, 1))


class Named(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor


@case
def named_inputs_and_targets():
    def loss(output, y):
        return F.mse_loss(output, y.low) + F.mse_loss(output, y.high)

    model = Net(lambda net, batch: net.linear(batch.low * batch.high).tanh(), linear=nn.Linear(5, 3))
    return Case(model.double(), loss, (Named(draw(4, 5), draw(4, 5)),), Named(draw(4, 3), draw(4, 3)))


@case
def two_inputs():
    model = Net(lambda net, x, z: torch.tanh(net.a(x)) * net.b(z), a=nn.Linear(5, 3), b=nn.Linear(2, 3))
    return Case(model.double(), CE, (draw(4, 5), draw(4, 2)), classes(4))


class Answer(dict):
    @property
    def loss(self):
        return self["loss"]


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(torch.tanh(self.embedding(input_ids) * attention_mask[..., None]))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return Answer(loss=loss, logits=logits)


@case
def a_model_that_returns_its_loss():
    ids = torch.randint(7, (3, 4))
    batch = {"input_ids": ids, "attention_mask": torch.ones(3, 4, dtype=torch.float64), "labels": ids.clone()}
    batch["labels"][0, 2:] = -100
    return Case(LanguageModel().double(), lambda output: output.loss, batch, None)


@case
def dictionary_of_targets():
    def loss(output, y):
        return F.cross_entropy(output, y["class"]) + F.mse_loss(output[:, 0], y["value"])

    return Case(mlp(), loss, draw(4, 5), {"class": classes(4), "value": draw(4)})


@case
def an_input_written_in_place():
    model = nn.Sequential(nn.ELU(inplace=True), nn.Linear(12, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 12), classes(4))


@case
def a_target_written_in_place():
    return Case(mlp(), lambda o, t: F.mse_loss(o.tanh(), t.mul_(2)), draw(4, 5), draw(4, 3))


@case
def an_entry_taken_out_of_the_batch():
    model = Net(lambda net, batch: net.linear(batch.pop("x")).tanh(), linear=nn.Linear(5, 3))
    return Case(model.double(), CE, ({"x": draw(4, 5)},), classes(4))
