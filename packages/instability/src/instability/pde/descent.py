"""Gradient descent on several kernels side by side, each with its own rate, decay and perturbation.

Replicas never share a vectorised operation: each is advanced by the same code on arrays of the same shape, so
that a replica's trajectory does not depend on how many others there are, nor on its place among them. Any
difference between two replicas therefore comes from their updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from instability.metrics import real_array
from instability.pde.convolution import Method
from instability.pde.one_layer import OneLayerNetwork, check_kernel
from instability.rounding import check_perturbation, perturb_update

__all__ = [
    "PUBLISHED",
    "DescentOptions",
    "LossConvention",
    "Observer",
    "Replicas",
    "Simulation",
    "descend",
    "replicas",
]

LossConvention = Literal["consistent", "mixed"]
Field = Callable[[Tensor], tuple[float, Tensor]]
Observer = Callable[[int, Float[Tensor, "run k k"]], None]


@dataclass(frozen=True)
class DescentOptions:
    """How to descend, and on what network; the defaults are the paper's.

    Attributes:
        momentum: buffer ``b <- momentum b + g``; the update is ``b``, with ``nesterov`` ``g + momentum b``.
        nesterov: see ``momentum``.
        loss: ``"consistent"`` records data loss and decay at ``w_t``; ``"mixed"`` takes the decay at
            ``w_{t+1}``, as the original scripts of the linear PDE do.
        beta: slope of the Swish.
        method: ``"fft"`` or ``"direct"`` correlation.
        dtype: ``torch.float64`` or ``torch.float32``.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    momentum: float = 0.0
    nesterov: bool = False
    loss: LossConvention = "consistent"
    beta: float = 1.0
    method: Method = "fft"
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.loss not in ("consistent", "mixed"):
            raise ValueError(f"Unknown loss {self.loss!r}. Allowed: 'consistent', 'mixed'.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}.")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum > 0.")

    def network(
        self, image: Float[np.ndarray, "height width"], kernel: Float[np.ndarray, "k k"], label: int
    ) -> OneLayerNetwork:
        """Return the network that these options describe."""
        return OneLayerNetwork(
            image, check_kernel(kernel), label=label, beta=self.beta, method=self.method, dtype=self.dtype
        )


PUBLISHED = DescentOptions()


@dataclass(frozen=True)
class Replicas:
    """Settings of the copies, zipped to one length.

    Attributes:
        learning_rates: step sizes.
        weight_decays: coefficients of ``w`` in the gradient.
        perturbations: the integers ``k`` of ``perturb_update``.
    """

    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    perturbations: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.learning_rates)


@dataclass(frozen=True)
class Simulation:
    """What a simulation returns; axis 0 is the run.

    Attributes:
        losses: loss at each step, NaN after the first non-finite one.
        kernels: the weights after the last step.
        stopped_at: for each run the first step whose loss was not finite, or -1.
        replicas: the settings of each run.
    """

    losses: Float[np.ndarray, "run step"]
    kernels: Float[np.ndarray, "run k k"]
    stopped_at: Int[np.ndarray, "run"]
    replicas: Replicas

    def __repr__(self) -> str:
        runs, steps = self.losses.shape
        ends = [f"{last:.4g}" if np.isfinite(last) else "not finite" for last in self.losses[:8, -1:].ravel()]
        more = ", ..." if runs > 8 else ""
        return f"{runs} runs of {steps} steps; last losses {', '.join(ends)}{more}"


def replicas(
    learning_rates: float | Sequence[float],
    weight_decays: float | Sequence[float],
    perturbations: int | Sequence[int] = (1,),
) -> Replicas:
    """Zip the settings of the runs; numbers and sequences of length one are repeated.

    Raises:
        ValueError: lengths differ, a list is empty, a rate is not positive, a weight decay is negative.

    >>> replicas([0.1, 0.2], 20.0).weight_decays
    (20.0, 20.0)
    """
    lists = {
        "learning_rates": _as_list(learning_rates),
        "weight_decays": _as_list(weight_decays),
        "perturbations": _as_list(perturbations),
    }
    for name, values in lists.items():
        if not values:
            raise ValueError(f"{name} is empty; pass at least one value.")
    length = max(len(values) for values in lists.values())
    for name, values in lists.items():
        if len(values) not in (1, length):
            lengths = ", ".join(f"{n}: {len(v)}" for n, v in lists.items())
            raise ValueError(
                f"{name} cannot be zipped with the others ({lengths}); pass one value or {length}."
            )
    rates, decays, ks = (values * (length if len(values) == 1 else 1) for values in lists.values())
    if not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise ValueError(f"learning_rates must be positive and finite, got {rates}.")
    if not all(math.isfinite(decay) and decay >= 0 for decay in decays):
        raise ValueError(f"weight_decays must be finite and not negative, got {decays}.")
    return Replicas(
        tuple(float(r) for r in rates),
        tuple(float(d) for d in decays),
        tuple(check_perturbation(int(k) if isinstance(k, np.integer) else k) for k in ks),
    )


def descend(
    field: Field,
    kernel: Float[np.ndarray, "k k"],
    settings: Replicas,
    num_steps: int,
    *,
    options: DescentOptions,
    observe: Observer | None = None,
) -> Simulation:
    """Run plain, heavy-ball or Nesterov descent of ``field`` from one kernel.

    Args:
        field: maps a kernel to the data loss and the gradient field, weight decay excluded.
        kernel: the common start.
        settings: one entry for each run.
        num_steps: updates to make; the loss before each is recorded.
        options: momentum, floating type and what is recorded as loss.
        observe: called as ``observe(steps_done, kernels)`` after every step, with a view of all kernels.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must not be negative, got {num_steps}.")
    start = torch.as_tensor(real_array(kernel, "kernel")).to(options.dtype)
    kernels = start.repeat(len(settings), 1, 1)
    buffers = torch.zeros_like(kernels)
    losses = np.full((len(settings), num_steps), np.nan)
    stopped_at = np.full(len(settings), -1)
    for step in range(num_steps):
        for run in np.flatnonzero(stopped_at < 0):
            w = kernels[run].clone()
            decay = settings.weight_decays[run]
            data_loss, gradient = field(w)
            value = data_loss + _penalty(w, decay)
            gradient.add_(w, alpha=decay)
            if options.momentum:
                buffer = buffers[run].mul_(options.momentum).add_(gradient)
                gradient = gradient.add(buffer, alpha=options.momentum) if options.nesterov else buffer
            direction, rate = perturb_update(
                gradient, settings.learning_rates[run], settings.perturbations[run]
            )
            w.add_(direction, alpha=-rate)
            if options.loss == "mixed":
                value = data_loss + _penalty(w, decay)
            if math.isfinite(value):
                losses[run, step] = value
                kernels[run] = w
            else:
                stopped_at[run] = step
        if observe is not None:
            observe(step + 1, kernels)
    return Simulation(losses, kernels.to(torch.float64).numpy(), stopped_at, settings)


def _penalty(w: Tensor, decay: float) -> float:
    return decay / 2 * float((w * w).sum())


def _as_list(values: Any) -> list[Any]:
    return [values] if np.ndim(values) == 0 else list(values)
