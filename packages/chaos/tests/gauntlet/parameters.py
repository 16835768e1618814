"""Kinds of parameters: frozen, tied, scalar, embedded."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gauntlet.case import CE, Case, Net, case, classes, draw, mlp


@case
def frozen_layer():
    model = mlp()
    model[0].requires_grad_(False)
    return Case(model, CE, draw(4, 5), classes(4))


@case
def scalar_parameter():
    model = Net(
        lambda net, x: net.linear(x) * net.scale.exp(),
        linear=nn.Linear(5, 3),
        scale=nn.Parameter(torch.tensor(0.7)),
    )
    return Case(model.double(), CE, draw(4, 5), classes(4))


@case
def tied_and_used_functionally():
    def forward(net, x):
        h = torch.tanh(net.body(net.embedding(x)))
        return F.linear(h, net.embedding.weight).transpose(1, 2)

    model = Net(forward, embedding=nn.Embedding(7, 4), body=nn.Linear(4, 4))
    return Case(model.double(), CE, torch.randint(7, (3, 4)), torch.randint(7, (3, 4)))


@case
def a_weight_transposed():
    model = Net(
        lambda net, x: net.head(torch.tanh(net.linear(x)) @ net.linear.weight),
        linear=nn.Linear(5, 4),
        head=nn.Linear(5, 3),
    )
    return Case(model.double(), CE, draw(4, 5), classes(4))


@case
def embedding_with_padding():
    model = nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 3)).double()
    return Case(model, CE, torch.tensor([[0, 1], [2, 3], [0, 0]]), classes(3))


@case
def embedding_with_padding_by_function():
    model = Net(
        lambda net, x: net.head(F.embedding(x, net.table, padding_idx=0).mean(1).tanh()),
        table=nn.Parameter(torch.randn(7, 3)),
        head=nn.Linear(3, 3),
    )
    return Case(model.double(), CE, torch.tensor([[0, 1], [2, 3], [0, 0]]), classes(3))


@case
def embedding_with_gradients_by_frequency():
    model = nn.Sequential(nn.Embedding(7, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(6, 3))
    x = torch.tensor([[0, 1], [2, 3], [0, 0]])
    return Case(model.double(), CE, x, classes(3), refused="scale_grad_by_freq")


@case
def embedding_bag():
    model = nn.Sequential(nn.EmbeddingBag(7, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x = torch.tensor([[0, 1], [2, 3], [0, 0]])
    return Case(model, CE, x, classes(3), refused="no second derivative that PyTorch can compute")


@case
def sparse_embedding():
    model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 3)).double()
    return Case(model, CE, torch.tensor([[0, 1], [2, 3], [0, 0]]), classes(3))


@case
def embedding_with_a_largest_norm():
    model = nn.Sequential(nn.Embedding(7, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 3)).double()
    x = torch.tensor([[0, 1], [2, 3], [0, 0]])
    return Case(model, CE, x, classes(3), refused="Embedding '0' has max_norm")
