"""Residual networks for small images, as in the paper's experiments: depth 6n + 2, ReLU or Swish.

Source: He et al. 2016, Sec. 4.2, with 1x1 convolutions as shortcuts where the shape changes; Sec. 4.1 of
Sun et al. 2022.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from instability.pde.activations import Swish

__all__ = ["Activation", "BasicBlock", "ResNet", "make_activation", "resnet"]

Activation = Literal["relu", "swish"]

SWISH_BETA = 5.0
"""Slope of the Swish in the paper's networks."""


def make_activation(name: Activation) -> nn.Module:
    """Return a ReLU, or a Swish with the paper's beta of 5."""
    if name not in ("relu", "swish"):
        raise ValueError(f"Unknown activation {name!r}. Allowed: 'relu', 'swish'.")
    return nn.ReLU() if name == "relu" else Swish(SWISH_BETA)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, channels_in: int, channels: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.activation = make_activation(activation)
        changes_shape = stride != 1 or channels_in != channels
        self.shortcut: nn.Module = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if changes_shape
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``activation(F(x) + shortcut(x))``."""
        out = self.activation(self.bn1(self.conv1(x)))
        return self.activation(self.bn2(self.conv2(out)) + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks that halve the image from the second on, global average, linear.

    Convolution weights start as ``N(0, 2 / (9 channels_out))``, batch norms as the identity. Stages are the
    attributes ``layer1``, ``layer2``, ..., so that ``layer2.5.conv1.weight`` names what it does in the paper.

    Args:
        blocks: number of blocks in each stage.
        widths: channels of each stage.
        activation: ``"relu"`` or ``"swish"``.
        channels_in: channels of the images.
        num_classes: outputs.

    >>> import torch
    >>> ResNet(blocks=(1, 1), widths=(4, 8))(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        activation: Activation = "relu",
        channels_in: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths) or not blocks:
            raise ValueError(
                f"blocks {tuple(blocks)} and widths {tuple(widths)} must have one entry per stage."
            )
        self.conv1 = nn.Conv2d(channels_in, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.activation = make_activation(activation)
        stages = OrderedDict()
        channels = widths[0]
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stride = 1 if index == 0 else 2
            layers = [BasicBlock(channels, width, stride, activation)]
            layers += [BasicBlock(width, width, 1, activation) for _ in range(count - 1)]
            stages[f"layer{index + 1}"] = nn.Sequential(*layers)
            channels = width
        for name, stage in stages.items():
            self.add_module(name, stage)
        self._stages = tuple(stages)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch cls"]:
        """Return logits."""
        out = self.activation(self.bn1(self.conv1(x)))
        for name in self._stages:
            out = self.get_submodule(name)(out)
        return self.fc(out.mean(dim=(2, 3)))  # type: ignore[no-any-return]  # modules are untyped


def resnet(
    depth: int = 56, *, activation: Activation = "relu", channels_in: int = 3, num_classes: int = 10
) -> ResNet:
    """Return the CIFAR residual network of depth ``6n + 2`` with 16, 32 and 64 channels.

    >>> sum(p.numel() for p in resnet(56).parameters())
    855770
    """
    if depth < 8 or (depth - 2) % 6 != 0:
        raise ValueError(f"depth={depth} is not 6n + 2 with n >= 1; use e.g. 8, 20, 32, 44, 56 or 110.")
    count = (depth - 2) // 6
    return ResNet(
        (count,) * 3, (16, 32, 64), activation=activation, channels_in=channels_in, num_classes=num_classes
    )
