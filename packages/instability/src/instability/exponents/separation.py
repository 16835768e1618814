"""Largest Lyapunov exponent of a training run, by two copies and renormalisation.

It takes any model and any optimiser but LBFGS. Where the step has a tangent, ``lyapunov_exponents`` is exact.

Source: Benettin et al. 1980; Sec. 5.3 of Sun et al. 2022 for what it says about rounding errors.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instability.copies import Copies, LossOf
from instability.exponents.training_step import SQUARES, varies
from instability.reach import check_reached

__all__ = ["lyapunov_estimate"]


def lyapunov_estimate(
    copies: Copies, losses: Iterable[LossOf], *, separation: float = 1e-6, seed: int = 0
) -> Float[np.ndarray, "step"]:
    """Return the log growth of a small difference in each step; its mean is the exponent per step.

    Two copies are trained on the same losses. The second starts ``separation`` (relative) away in a random
    direction, and after each step the difference is scaled back to that size: that of the trained parameters
    and of everything the optimiser keeps for them (momentum, second moments).

    Args:
        copies: exactly two copies, both ``k = 1``; they are advanced.
        losses: one function of the model per step.
        separation: relative distance to keep: far above rounding, far below the non-linearity.
        seed: of the first direction.

    Raises:
        ValueError: there are not two unperturbed copies, the separation is not positive and finite, or the
            loss depends on no trained weight of the copies in any step.
        TypeError: the optimiser is LBFGS.
        FloatingPointError: a copy is no longer finite; the step is named.

    >>> from instability.perturbed_sgd import PerturbedSGD
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> copies = Copies(model, lambda p: PerturbedSGD(p, lr=0.1), perturbations=(1, 1))
    >>> growth = lyapunov_estimate(copies, [lambda m: 2.5 * m.weight.square().sum()] * 5)
    >>> np.exp(growth).round(6).tolist()  # 1 - 0.1 * 5
    [0.5, 0.5, 0.5, 0.5, 0.5]
    """
    if copies.perturbations != (1, 1):
        raise ValueError(f"perturbations must be (1, 1) for two equal copies, got {copies.perturbations}.")
    if not 0 < separation < math.inf:
        raise ValueError(f"separation={separation} must be positive and finite.")
    if isinstance(getattr(copies.optimizers[0], "optimizer", copies.optimizers[0]), torch.optim.LBFGS):
        raise TypeError("LBFGS keeps lists, whose difference cannot be scaled back; use SensitivityProbe.")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for b in copies.trained(1).values():
            b.add_(torch.randn(b.shape, generator=generator, dtype=b.dtype).to(b.device))
    growth: list[float] = []
    reached: set[Tensor] = set()  # seen while it happens: an optimiser may clear the gradients in its step
    with contextlib.ExitStack() as hooks:
        for p in copies.trained(0).values():
            hooks.callback(p.register_post_accumulate_grad_hook(reached.add).remove)
        _grow(copies, losses, separation, growth)
    if growth:
        check_reached(reached, f" in any of {len(growth)} steps")
    return np.array(growth)


def _grow(copies: Copies, losses: Iterable[LossOf], separation: float, growth: list[float]) -> None:
    before = _rescale(copies, separation)
    for number, loss_of in enumerate(losses, 1):
        copies.step(loss_of)
        distance = _distance(copies)
        if not math.isfinite(distance):
            raise FloatingPointError(
                f"step {number}: a copy is not finite; the exponent is not defined beyond."
            )
        if distance == 0:
            raise FloatingPointError(f"step {number}: the difference is rounded to zero; take float64.")
        growth.append(np.log(distance / before))
        before = _rescale(copies, separation)


def _state(copies: Copies) -> tuple[list[Tensor], list[Tensor]]:
    """Trained weights and what the optimiser keeps for them; batch norm's averages do not feed back."""
    states = []
    for index, optimizer in enumerate(copies.optimizers):
        parameters = list(copies.trained(index).values())
        kept = [
            value
            for p in parameters
            for name, value in sorted(optimizer.state[p].items())
            if varies(name, value, p)
        ]
        states.append([p.detach() for p in parameters] + kept)
    return states[0], states[1]


def _squares(copies: Copies) -> set[int]:
    state = copies.optimizers[1].state
    return {kept[name].data_ptr() for kept in state.values() for name in SQUARES & kept.keys()}


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.abs().double().square().sum() for t in tensors]).sum().sqrt())


def _distance(copies: Copies) -> float:
    first, second = _state(copies)
    return _norm([b - a for a, b in zip(first, second, strict=True)])


def _rescale(copies: Copies, separation: float) -> float:
    """Scale the difference to ``separation`` times the first copy's size; return the distance."""
    (first, second), roots = _state(copies), _squares(copies)
    weights = [p.detach() for p in copies.trained(0).values()]
    target = separation * max(_norm(weights), 1e-12)
    scale = target / _distance(copies)
    for a, b in zip(first, second, strict=True):
        moved = a + scale * (b - a)
        # A second moment of the size of the separation must not cross zero: the optimiser takes its root.
        b.copy_(moved.clamp_min_(0) if b.data_ptr() in roots else moved)
    return _distance(copies)  # not the target: adding to the weights rounds
