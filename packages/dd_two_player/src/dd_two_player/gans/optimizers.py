"""Optimisers as directions: what is multiplied by the learning rate, so that rates may follow any schedule.

Clipping acts on the gradient, before momentum and rate. Without momentum nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

__all__ = ["OPTIMIZERS", "apply_updates", "make_optimizer", "make_schedule"]

OPTIMIZERS = ("sgd", "adam")


def make_optimizer(
    name: str,
    *,
    momentum: float = 0.0,
    b1: float = 0.5,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Return the transformation from gradient to direction.

    Args:
        name: ``sgd`` or ``adam``.
        momentum: Heavy-ball momentum of ``sgd``, in [0, 1).
        b1: First decay rate of ``adam``.
        b2: Second decay rate of ``adam``.
        eps: Added to the root in ``adam``.
        clip: Bound on the absolute value of every entry of the gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer("sgd", clip=1.0)
        >>> optimizer.update(jnp.array([3.0, -0.5]), optimizer.init(jnp.zeros(2)))[0].tolist()
        [1.0, -0.5]
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {name!r}; allowed: {', '.join(OPTIMIZERS)}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; it must be in [0, 1).")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}; it must be positive, or null for none.")
    parts = [] if clip is None else [optax.clip(clip)]
    if name == "adam":
        parts.append(optax.scale_by_adam(b1, b2, eps))
    elif momentum:
        parts.append(optax.trace(momentum))
    return optax.chain(*parts) if parts else optax.identity()


def apply_updates(params: Any, direction: Any, rate: Any) -> Any:
    """Return ``params - rate * direction``, keeping the parameters' types."""
    return jax.tree.map(lambda x, d: x - (rate * d).astype(x.dtype), params, direction)


def make_schedule(factors: Mapping[int, float]) -> Callable[[Any], Any]:
    """Return the factor of the learning rates at a step: a product of factors that apply from given steps on.

    >>> schedule = make_schedule({500: 4.0, 400_000: 0.5})  # the one of ODE-GAN
    >>> [float(schedule(step)) for step in (0, 499, 500, 400_000)]
    [1.0, 1.0, 4.0, 2.0]
    """
    for step, factor in factors.items():
        if step < 0 or not factor > 0:
            raise ValueError(f"schedule entry {step}: {factor} needs a step >= 0 and a positive factor.")
    schedule: Callable[[Any], Any] = optax.piecewise_constant_schedule(1.0, dict(factors))
    return schedule
