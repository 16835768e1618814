"""The paper's networks. Layer names are unique; weights start as PyTorch starts them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


def mlp(
    inputs: int = 256,
    inter_dim: int = 20,
    outputs: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Sequential:
    """Two linear layers; 5 350 parameters at 256-20-10.

    Example:
        >>> sum(p.numel() for p in mlp().parameters())
        5350
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(inputs, inter_dim))
    layers["act1"] = _activation(activation)
    if batch_norm:
        layers["norm1"] = nn.BatchNorm1d(inter_dim)
    layers["fc2"] = nn.Linear(inter_dim, outputs)
    return nn.Sequential(layers)


def cnn(
    base_channels: int = 4,
    block_cnt: int = 1,
    outputs: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
) -> nn.Sequential:
    """Convolutions of size 3 with four max-poolings, for 16 x 16 inputs; 1 158 parameters at 4 channels.

    Example:
        >>> [sum(p.numel() for p in cnn(block_cnt=b).parameters()) for b in (1, 2)]
        [1158, 1306]

    Raises:
        ValueError: For fewer than one block.
    """
    if block_cnt < 1:
        raise ValueError(f"block_cnt={block_cnt} must be at least 1.")
    c = base_channels
    widths = [(1, c, block_cnt == 1), *((c, c, i == block_cnt - 2) for i in range(block_cnt - 1))]
    widths += [(c, c, True), (c, 2 * c, True), (2 * c, 2 * c, True)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (wide_in, wide_out, pooled) in enumerate(widths, start=1):
        layers[f"conv{i}"] = nn.Conv2d(wide_in, wide_out, 3, padding=1)
        layers[f"act{i}"] = _activation(activation)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(wide_out)
        if pooled:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
    layers["flatten"], layers["fc"] = nn.Flatten(), nn.Linear(2 * c, outputs)
    return nn.Sequential(layers)


def seeded(build: Callable[[], nn.Module], seed: int, dtype: torch.dtype) -> nn.Module:
    """Build a module from a seed without moving the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(dtype)


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name} is unknown. Allowed: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()
