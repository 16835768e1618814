"""Attention, recurrence and sequences."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gauntlet.case import CE, Case, Net, case, classes, draw


@case
def causal_attention():
    def forward(net, x):
        q, k, v = net.qkv(x)[:, None].chunk(3, -1)
        return net.head(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].mean(1))

    model = Net(forward, qkv=nn.Linear(4, 12), head=nn.Linear(4, 3))
    return Case(model.double(), CE, draw(3, 4, 4), classes(3))


@case
def transformer_layer_with_a_mask():
    padding = torch.zeros(3, 4, dtype=torch.bool)
    padding[0, 3] = True
    model = Net(
        lambda net, x, padding: net.head(net.layer(x, src_key_padding_mask=padding).mean(1)),
        layer=nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        head=nn.Linear(4, 3),
    )
    return Case(model.double(), CE, (draw(3, 4, 4), padding), classes(3))


@case
def lstm():
    model = Net(
        lambda net, x: net.head(net.cell(x)[0][:, -1]),
        cell=nn.LSTM(3, 3, batch_first=True),
        head=nn.Linear(3, 3),
    )
    return Case(model.double(), CE, draw(3, 3, 3), classes(3))


@case
def gru_with_time_first():
    model = Net(lambda net, x: net.head(net.cell(x)[0][-1]), cell=nn.GRU(3, 3), head=nn.Linear(3, 3))
    return Case(model.double(), CE, draw(3, 3, 3), classes(3))


@case
def tokens_with_time_first():
    model = Net(
        lambda net, x: net.head(net.cell(x)[0]).permute(1, 2, 0), cell=nn.GRU(3, 3), head=nn.Linear(3, 3)
    )
    return Case(model.double(), CE, draw(5, 2, 3), torch.randint(3, (2, 5)))


@case
def keyword_calls():
    model = Net(lambda net, x: net.form(input1=x[:, :3], input2=x[:, 3:]), form=nn.Bilinear(3, 2, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4))


@case
def a_counter_in_the_module():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(5, 3), 0
            self.register_buffer("mean", torch.zeros(5))

        def forward(self, x):
            self.calls += 1
            if self.training:
                self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            return self.linear(x - self.mean)

    return Case(Counting().double(), CE, draw(4, 5), classes(4))
