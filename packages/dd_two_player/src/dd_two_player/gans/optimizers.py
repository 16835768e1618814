"""Optimisers as directions: what is multiplied by the learning rate, so that rates may follow any schedule.

Clipping acts on the gradient, before momentum and rate. Without momentum nothing is stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from dd_two_player.gans.naming import named
from dd_two_player.runge_kutta import apply_updates

__all__ = ["OPTIMIZERS", "make_optimizer", "make_schedule"]

OPTIMIZERS = ("sgd", "adam")


def make_optimizer(
    name: str,
    *,
    momentum: float = 0.0,
    b1: float = 0.5,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Return the transformation from gradient to direction.

    Args:
        name: ``sgd``, ``adam``, any other optimiser of optax, or your own function ``module:name`` of
            ``learning_rate`` and ``options`` that returns an optax transformation.
        momentum: Heavy-ball momentum of ``sgd``, in [0, 1).
        b1: First decay rate of ``adam``.
        b2: Second decay rate of ``adam``.
        eps: Added to the root in ``adam``.
        clip: Bound on the absolute value of every entry of the gradient.
        options: Further arguments of an optimiser of optax or of your own.

    Raises:
        ValueError: For values out of range, and names and options that the optimiser does not have.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer("sgd", clip=1.0)
        >>> optimizer.update(jnp.array([3.0, -0.5]), optimizer.init(jnp.zeros(2)))[0].tolist()
        [1.0, -0.5]
    """
    for what, decay in (("momentum", momentum), ("b1", b1), ("b2", b2)):
        if not 0 <= decay < 1:
            raise ValueError(f"{what} is {decay}; it must be in [0, 1).")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}; it must be positive, or null for none.")
    parts = [] if clip is None else [optax.clip(clip)]
    if name not in OPTIMIZERS:
        parts += [_other(name, dict(options or {})), optax.scale(-1.0)]
    elif options:
        raise ValueError(f"{name} has no options {', '.join(options)}; it takes momentum, b1, b2 and clip.")
    elif name == "adam":
        parts.append(optax.scale_by_adam(b1, b2, eps))
    elif momentum:
        parts.append(optax.trace(momentum))
    return optax.chain(*parts) if parts else optax.identity()


def _other(name: str, options: dict[str, Any]) -> optax.GradientTransformation:
    """Return an optimiser of rate 1, whose updates are minus the direction."""
    factories = {
        key: value
        for key, value in vars(optax).items()
        if inspect.isfunction(value)
        and not key.startswith(("_", "scale_by"))
        and key != "lbfgs"  # needs more than gradients
        and "learning_rate" in inspect.signature(value).parameters
    }
    factory = named("optimizer", name, dict.fromkeys(OPTIMIZERS) | factories)
    try:
        made, half = (factory(learning_rate=rate, **options) for rate in (1.0, 0.5))
    except TypeError as error:
        raise ValueError(f"optimizer {name} does not take {options}: {error}.") from error
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f"optimizer {name} returns a {type(made).__name__}, no transformation of optax.")

    def init(params: Any) -> Any:
        if not _proportional(made, half, params):
            raise ValueError(
                f"the updates of optimizer {name} are not proportional to its learning_rate, by which a step "
                "multiplies them; leave out averages, decays and clipping that come after the rate."
            )
        return made.init(params)

    return made._replace(init=init)


def _proportional(whole: optax.GradientTransformation, half: optax.GradientTransformation, like: Any) -> bool:
    """Return whether updates of rate 1, halved, make the path of rate 1/2 from random parameters."""
    generator, ends = np.random.default_rng(0), []
    start = jax.tree.map(lambda a: generator.standard_normal(a.shape).astype(np.float32), like)
    with jax.ensure_compile_time_eval():
        for optimizer, factor in ((whole, 0.5), (half, 1.0)):
            at, state = start, optimizer.init(start)
            for _ in range(3):
                updates, state = optimizer.update(at, state, at)  # the gradient of |x|^2 / 2
                at = apply_updates(at, updates, -factor)
            ends.append(jax.tree.leaves(at))
        return all(np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*ends, strict=True))


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
