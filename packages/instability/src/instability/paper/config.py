"""What the configurations of several experiments share; field descriptions are the ``--help``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gdyn_reproduce.runs import RunOptions
from instability.pde.descent import DescentOptions


@dataclass
class OneLayerConfig(RunOptions):
    """What the experiments on the one-layer network share.

    Attributes:
        image: checkerboard, noise, or the path of a .npy matrix.
        image_size: Side of a generated image.
        kernel_size: Side of the kernel.
        label: 0 or 1.
        seeds: Seeds of the first kernel, one run each (legacy NumPy stream; the original's is 7).
        method: fft or direct convolution.
        dtype: float64 or float32.
    """

    image: str = "checkerboard"
    image_size: int = 256
    kernel_size: int = 32
    label: int = 1
    num_steps: int = 1000
    seeds: list[int] = field(default_factory=lambda: [7])
    method: str = "fft"
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or (
            self.image in ("checkerboard", "noise") and self.kernel_size > self.image_size
        ):
            raise ValueError(
                f"kernel_size={self.kernel_size} must lie between 1 and image_size={self.image_size}."
            )
        if self.label not in (0, 1):
            raise ValueError(f"label={self.label} must be 0 or 1.")
        check_not_empty("seeds", self.seeds)
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1.")
        if self.method not in ("fft", "direct"):
            raise ValueError(f"method={self.method} is unknown. Allowed: fft, direct.")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype={self.dtype} is unknown. Allowed: float64, float32.")

    def only_seed(self) -> int:
        """Return the seed of an experiment that has one run."""
        if len(self.seeds) != 1:
            raise ValueError(f"seeds={self.seeds}: this figure draws one run; give one seed.")
        return self.seeds[0]

    def options(self, **more: Any) -> DescentOptions:
        """Return the configured options of a simulation."""
        method: Any = self.method
        return DescentOptions(method=method, dtype=getattr(torch, self.dtype), **more)


@dataclass
class NetworkConfig(RunOptions):
    """Data and network of the experiments on deep networks.

    Attributes:
        dataset: cifar10, fashion_mnist, mnist, digits, textures32, ...
        train_size: Training images, 0 for all.
        random_labels: Share of training labels replaced at random.
        model: resnet (by depth), vgg16, or tiny (one stage of narrow blocks, for 8x8 images).
        depth: Depth of resnet, 6n + 2.
        tiny_blocks: Blocks of tiny.
        tiny_width: Channels of tiny.
        activation: relu or swish.
        batch_size: Images in one update.
        learning_rate: At the start.
        momentum: Momentum factor.
        nesterov: Use Nesterov momentum.
        weight_decay: Coefficient of the weights in the gradient.
        seeds: Seeds of initialisation and batches.
        dtype: float32 or float64.
        device: cpu or cuda.
    """

    dataset: str = "cifar10"
    data_root: str | None = None
    download: bool = False
    train_size: int = 0
    random_labels: float = 0.0
    model: str = "resnet"
    depth: int = 56
    tiny_blocks: int = 6
    tiny_width: int = 8
    activation: str = "swish"
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 5e-4
    seeds: list[int] = field(default_factory=lambda: [7])
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.model not in ("resnet", "vgg16", "tiny"):
            raise ValueError(f"model={self.model} is unknown. Allowed: resnet, vgg16, tiny.")
        if self.activation not in ("relu", "swish"):
            raise ValueError(f"activation={self.activation} is unknown. Allowed: relu, swish.")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype={self.dtype} is unknown. Allowed: float64, float32.")
        check_rates("learning_rate", [self.learning_rate])
        check_not_empty("seeds", self.seeds)
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")


def check_perturbations(perturbations: list[int]) -> None:
    """Raise ValueError unless the list starts with the baseline 1 and holds integers from 1 on."""
    check_not_empty("perturbations", perturbations)
    if perturbations[0] != 1 or min(perturbations) < 1:
        raise ValueError(f"perturbations={perturbations} must start with the baseline 1 and hold ints >= 1.")


def check_not_empty(name: str, values: Sequence[object]) -> None:
    """Raise ValueError if a list has no entry."""
    if not values:
        raise ValueError(f"{name} is empty; give at least one.")


def check_rates(name: str, values: list[float], *, zero: bool = False) -> None:
    """Raise ValueError unless all are positive, or with `zero` not negative."""
    check_not_empty(name, values)
    if min(values) < 0 or (min(values) == 0 and not zero):
        raise ValueError(f"{name}={values} must be {'not negative' if zero else 'positive'}.")


def check_checkerboard(image: str) -> None:
    """Raise ValueError for an image without an exact reduced map."""
    if image != "checkerboard":
        raise ValueError(
            f"image={image}: this figure is compared with the exact reduced map, which exists for "
            "image=checkerboard only. For other images use instability.pde.nonlinear.simulate."
        )
