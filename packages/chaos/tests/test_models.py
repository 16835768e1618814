"""The paper's networks: sizes, order of layers, seeds."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from chaos.models import ACTIVATIONS, cnn, mlp, seeded


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("inputs", "hidden"), [(256, 20), (64, 8), (5, 1)])
def test_mlp_size(inputs, hidden):
    assert size(mlp(inputs, hidden)) == inputs * hidden + hidden + hidden * 10 + 10


@pytest.mark.parametrize(("channels", "blocks"), [(4, 1), (4, 2), (4, 5), (2, 1), (8, 3)])
def test_cnn_size(channels, blocks):
    c = channels
    conv = lambda a, b: 9 * a * b + b  # noqa: E731
    expected = conv(1, c) + blocks * conv(c, c) + conv(c, 2 * c) + conv(2 * c, 2 * c) + 20 * c + 10
    assert size(cnn(channels, blocks)) == expected


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_cnn_takes_16_x_16_and_names_are_unique(blocks):
    model = cnn(block_cnt=blocks, batch_norm=True)
    assert model(torch.zeros(3, 1, 16, 16)).shape == (3, 10)
    names = [name for name, _ in model.named_children()]
    assert len(set(names)) == len(names)
    assert sum(isinstance(m, nn.MaxPool2d) for m in model) == 4


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_batch_norm_follows_each_activation(activation, build, batch_norm):
    layers = list(build(activation=activation, batch_norm=batch_norm))
    kind = ACTIVATIONS[activation]
    after = [b for a, b in itertools.pairwise(layers) if isinstance(a, kind)]
    assert after
    assert all(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) == batch_norm for m in after)


def test_initial_values_are_those_of_torch_and_the_global_state_stays():
    before = torch.random.get_rng_state()
    model = seeded(mlp, 7, torch.float64)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = nn.Linear(256, 20)
    assert torch.equal(model.fc1.weight, first.weight.double())
    assert not torch.equal(seeded(mlp, 8, torch.float64).fc1.weight, model.fc1.weight)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: mlp(activation="swish"),
            "activation=swish is unknown. Allowed: relu",
        ),
        (lambda: cnn(block_cnt=0), "block_cnt=0 must be at least 1"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
