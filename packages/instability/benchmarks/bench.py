"""Gradients of the one-layer network, thresholds and perturbed optimisers, against other libraries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.signal import fftconvolve
from torch import nn

from gdyn_reproduce.benchmark import OURS, Case, Contender, main
from instability import OneLayerNetwork, PerturbedSGD, ValidCorrelation, perturb_optimizer
from instability.stability import signal_eigenvalues


def gradient(size: int, kernel_size: int) -> dict[str, Contender]:
    """The non-linear field at one kernel."""
    rng = np.random.default_rng(0)
    image, kernel = rng.standard_normal((size, size)), rng.standard_normal((kernel_size, kernel_size))
    network, ours = OneLayerNetwork(image, kernel_size), torch.from_numpy(kernel)
    pixels = torch.from_numpy(image)[None, None]

    def autograd() -> object:
        w = torch.from_numpy(kernel)[None, None].requires_grad_()
        logit = nn.functional.silu(nn.functional.conv2d(pixels, w)).mean()
        return torch.autograd.grad(nn.functional.softplus(-logit), w)

    def scipy() -> object:
        z = fftconvolve(image, kernel[::-1, ::-1], mode="valid")
        s = 1 / (1 + np.exp(-z))
        slope = (s + z * s * (1 - s)) * (1 / (1 + np.exp(-(z * s).mean())) - 1) / z.size
        return fftconvolve(image, slope[::-1, ::-1], mode="valid")

    return {
        OURS: partial(network.evaluate, ours),
        "conv2d and autograd": autograd,
        "SciPy fftconvolve": scipy,
    }


def thresholds(size: int, kernel_size: int) -> dict[str, Contender]:
    """Both ends of the spectrum of M'M of a noise image."""
    image = np.random.default_rng(0).standard_normal((size, size))
    return {
        OURS: partial(signal_eigenvalues, image, kernel_size),
        "dense eigvalsh": lambda: np.linalg.eigvalsh(ValidCorrelation(image, kernel_size).gram()),
    }


def steps(perturbed: Callable[[Any], torch.optim.Optimizer] | None) -> dict[str, Contender]:
    """One update of 1.9 million weights in eight matrices, momentum included."""
    torch.manual_seed(0)
    start = nn.Sequential(*(nn.Linear(490, 490) for _ in range(8)))
    gradients = [torch.randn_like(p) for p in start.parameters()]
    settings: dict[str, Any] = {"lr": 1e-4, "momentum": 0.9}

    def make(build: Callable[..., torch.optim.Optimizer], **more: object) -> Callable[[], object]:
        twin = copy.deepcopy(start)
        for p, g in zip(twin.parameters(), gradients, strict=True):
            p.grad = g.clone()
        return build(twin.parameters(), **settings, **more).step

    sgd = torch.optim.SGD
    wrapped = None if perturbed is None else make(lambda p, **s: perturbed(sgd(p, **s)))
    return {
        OURS: wrapped or make(PerturbedSGD, perturbation=3),
        "torch SGD, loop": make(sgd, foreach=False),
        "torch SGD, foreach": make(sgd, foreach=True),
        "torch SGD, fused": make(sgd, fused=True),
    }


CASES = [
    *(
        Case(
            f"gradient-{size}",
            f"gradient of the one-layer network, image {size}, kernel {kernel}, float64",
            partial(gradient, size, kernel),
            growth="gradient of the one-layer network over the image's side",
            size=size,
        )
        for size, kernel in ((64, 8), (128, 16), (256, 32))
    ),
    *(
        Case(
            f"thresholds-{kernel}",
            f"stability thresholds, image {4 * kernel}, kernel {kernel}",
            partial(thresholds, 4 * kernel, kernel),
            growth="stability thresholds over the kernel's side",
            size=kernel,
        )
        for kernel in (8, 16, 32)
    ),
    Case("perturbed-sgd", "one update of 1.9 M weights by PerturbedSGD, k = 3", partial(steps, None)),
    *(
        Case(
            f"perturbed-{at}",
            f"the same by torch's SGD with its {at} perturbed, k = 3",
            partial(steps, partial(perturb_optimizer, perturbation=3, at=at)),
        )
        for at in ("gradient", "update")
    ),
]

if __name__ == "__main__":
    main("instability", CASES)
