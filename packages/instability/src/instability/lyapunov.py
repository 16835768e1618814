"""Largest Lyapunov exponent of a training run, by two copies and renormalisation.

Source: Benettin et al. 1980; Sec. 5.3 of Sun et al. 2022 for what it says about rounding errors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float

from instability.copies import Copies, LossOf

__all__ = ["lyapunov_estimate"]


def lyapunov_estimate(
    copies: Copies, losses: Iterable[LossOf], *, separation: float = 1e-6, seed: int = 0
) -> Float[np.ndarray, "step"]:
    """Return the log growth of a small difference in each step; its mean is the exponent per step.

    Two copies are trained on the same losses. The second starts ``separation`` (relative) away in a random
    direction, and after each step the difference, momentum included, is scaled back to that size.

    Args:
        copies: exactly two copies, both ``k = 1``; they are advanced.
        losses: one function of the model per step.
        separation: relative distance to keep: far above rounding, far below the non-linearity.
        seed: of the first direction.

    Raises:
        ValueError: there are not two unperturbed copies.

    >>> from instability.perturbed_sgd import PerturbedSGD
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> copies = Copies(model, lambda p: PerturbedSGD(p, lr=0.1), perturbations=(1, 1))
    >>> growth = lyapunov_estimate(copies, [lambda m: 2.5 * m.weight.square().sum()] * 5)
    >>> np.exp(growth).round(6).tolist()  # 1 - 0.1 * 5
    [0.5, 0.5, 0.5, 0.5, 0.5]
    """
    if copies.perturbations != (1, 1):
        raise ValueError(f"perturbations must be (1, 1) for two equal copies, got {copies.perturbations}.")
    generator = torch.Generator().manual_seed(seed)
    first, second = copies.models
    with torch.no_grad():
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            b.add_(torch.randn(a.shape, generator=generator, dtype=a.dtype))
    before = _rescale(copies, separation)
    growth = []
    for loss_of in losses:
        copies.step(loss_of)
        growth.append(np.log(_distance(copies) / before))
        before = _rescale(copies, separation)
    return np.array(growth)


def _state(copies: Copies) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights and momentum of both copies; batch norm's averages do not feed back in training."""
    states = []
    for model, optimizer in zip(copies.models, copies.optimizers, strict=True):
        parameters = list(model.parameters())
        buffers = [
            optimizer.state[p]["momentum_buffer"]
            for p in parameters
            if "momentum_buffer" in optimizer.state[p]
        ]
        states.append([p.detach() for p in parameters] + buffers)
    return states[0], states[1]


def _norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([t.to(torch.float64).square().sum() for t in tensors]).sum().sqrt())


def _distance(copies: Copies) -> float:
    first, second = _state(copies)
    return _norm([b - a for a, b in zip(first, second, strict=True)])


def _rescale(copies: Copies, separation: float) -> float:
    """Scale the difference to ``separation`` times the first copy's size; return the distance."""
    first, second = _state(copies)
    target = separation * max(_norm([p.detach() for p in copies.models[0].parameters()]), 1e-12)
    scale = target / _distance(copies)
    for a, b in zip(first, second, strict=True):
        b.copy_(a + scale * (b - a))
    return _distance(copies)  # not the target: adding to the weights rounds
