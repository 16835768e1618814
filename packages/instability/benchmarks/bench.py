"""Gradients of the one-layer network, thresholds, sharpness, perturbed optimisers, against other libraries.

The limit of a gradient is two transforms of the image, of a threshold one product, of the sharpness one
gradient, of a perturbed update torch's fused SGD, which is as fast as memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.signal import fftconvolve
from scipy.sparse.linalg import eigsh
from torch import nn

from gdyn_reproduce.benchmark import LIMIT, OURS, Case, Contender, main, optional
from instability import OneLayerNetwork, PerturbedSGD, ValidCorrelation, perturb_optimizer, sharpness
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
        LIMIT: lambda: torch.fft.irfft2(torch.fft.rfft2(pixels)),
    }


def thresholds(size: int, kernel_size: int) -> dict[str, Contender]:
    """Both ends of the spectrum of M'M of a noise image."""
    image = np.random.default_rng(0).standard_normal((size, size))
    correlation, kernel = ValidCorrelation(image, kernel_size), torch.ones(kernel_size, kernel_size).double()
    return {
        OURS: partial(signal_eigenvalues, image, kernel_size),
        "dense eigvalsh": lambda: np.linalg.eigvalsh(ValidCorrelation(image, kernel_size).gram()),
        LIMIT: lambda: correlation.transpose(correlation.apply(kernel)),
    }


def largest_eigenvalue() -> dict[str, Contender]:
    """The sharpness of a small network to four digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10))
    x, y, loss = torch.randn(256, 64), torch.randint(10, (256,)), nn.CrossEntropyLoss()
    parameters = list(model.parameters())

    def by_curvlinops() -> Callable[[], object]:
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(model, loss, parameters, [(x, y)], check_deterministic=False)
        start = torch.randn(operator.shape[0]).numpy()
        return lambda: eigsh(operator.to_scipy(), 1, which="LA", tol=1e-4, v0=start)

    def by_pyhessian() -> Callable[[], object]:
        from pyhessian import hessian

        twin = copy.deepcopy(model)

        def run() -> object:
            twin.zero_grad(set_to_none=True)
            return hessian(twin, loss, data=(x, y), cuda=False).eigenvalues(tol=1e-4)

        return run

    return {
        OURS: lambda: sharpness(model, lambda m: loss(m(x), y)),
        "curvlinops and eigsh": optional(by_curvlinops),
        "PyHessian": optional(by_pyhessian),
        LIMIT: lambda: torch.autograd.grad(loss(model(x), y), parameters),
    }


def steps(perturbed: Callable[[Any], torch.optim.Optimizer] | None, side: int = 490) -> dict[str, Contender]:
    """One update of eight square matrices, momentum included."""
    torch.manual_seed(0)
    start = nn.Sequential(*(nn.Linear(side, side) for _ in range(8)))
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
        LIMIT: make(sgd, fused=True),
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
            note=""
            if kernel > 16
            else "Lanczos finds both ends to 1e-14; of few taps all values are cheaper",
        )
        for kernel in (8, 16, 32)
    ),
    Case(
        "sharpness",
        "sharpness to four digits, n = 17 226, batch 256",
        largest_eigenvalue,
        note="it takes products; PyHessian's value is 4e-4 off: it stops where its estimate changes by 1e-4",
    ),
    Case(
        "perturbed-sgd",
        "one update of 1.9 M weights by PerturbedSGD, k = 3",
        partial(steps, None),
        note="torch's SGD does not perturb; here a pass over memory divides by k, and two find out whether a "
        "quotient would be subnormal",
    ),
    *(
        Case(
            f"perturbed-{at}",
            f"the same by torch's SGD with its {at} perturbed, k = 3",
            partial(steps, partial(perturb_optimizer, perturbation=3, at=at)),
            note=note,
        )
        for at, note in (
            ("gradient", "as above, and a pass that multiplies by k"),
            ("update", "as above; the weights are copied before the step, and their change is recomputed"),
        )
    ),
    *(
        Case(
            f"growth-perturbed-{side}",
            f"one update of {8 * side * (side + 1)} weights by PerturbedSGD, k = 3",
            partial(steps, None, side),
            growth="one update by PerturbedSGD over weights",
            size=8 * side * (side + 1),
        )
        for side in (62, 175, 490, 980)
    ),
]

if __name__ == "__main__":
    main("instability", CASES)
