"""Drift adjusted learning rate: a rate from the size of the drift, as an optax transformation.

``v = |H g| / |g|`` measures per step how strongly the drift bends gradient descent; DAL-p takes the rate
``min(2 / v**p, cap)``. With ``p = 1`` and a gradient along one eigen-direction this is ``2 / l``, the edge
of stability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = ["DalState", "dal", "exact_hvp", "finite_difference_hvp"]

Hvp = Callable[..., Any]
DISPLACEMENT = 0.01  # length of the finite difference


class DalState(NamedTuple):
    """Iteration counter and the last rate, for logging."""

    iteration: jax.Array
    rate: jax.Array


def dal(
    hvp: Hvp,
    *,
    learning_rate: float,
    power: float = 1.0,
    cap: float = 5.0,
    start: int | None = None,
    stop: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation from gradient to update ``-rate * gradient``.

    Args:
        hvp: ``(params, vector, **extra) -> H vector``, see :func:`exact_hvp`; extra arguments of ``update``
            (a batch) are passed on.
        learning_rate: Fixed rate where DAL is not active.
        power: ``p``; 1 or 0.5. With 0 the rate is always the fixed one and no Hessian product is computed.
        cap: Largest rate; also the rate at a zero gradient.
        start: Active for iterations above it (counted from 0); by default from the beginning.
        stop: Active for iterations below it; by default to the end.

    Example:
        On ``x**2`` the Hessian is 2 and DAL's rate 2/2:

        >>> optimizer = dal(exact_hvp(lambda x: (x**2).sum()), learning_rate=0.1)
        >>> x = jnp.array([3.0])
        >>> optimizer.update(2 * x, optimizer.init(x), x)[0].tolist()
        [-6.0]
    """
    for name, value, good in (
        ("learning_rate", learning_rate, learning_rate > 0),
        ("power", power, power >= 0),
        ("cap", cap, cap > 0),
    ):
        if not good:
            raise ValueError(f"{name} is {value}; DAL needs learning_rate > 0, power >= 0 and cap > 0.")

    def init(params: Any) -> DalState:
        return DalState(jnp.zeros((), jnp.int32), jnp.asarray(learning_rate, _float_type(params)))

    def update(gradient: Any, state: DalState, params: Any = None, **extra: Any) -> tuple[Any, DalState]:
        if params is None:
            raise ValueError("DAL needs the parameters; call update(gradient, state, params).")
        rate = jnp.asarray(learning_rate, state.rate.dtype)
        if power > 0:
            adjusted = _rate(hvp(params, gradient, **extra), gradient, power, cap).astype(rate.dtype)
            after = True if start is None else state.iteration > start
            before = True if stop is None else state.iteration < stop
            rate = jnp.where(jnp.logical_and(after, before), adjusted, rate)
        updates = jax.tree.map(lambda g: (-rate * g).astype(g.dtype), gradient)
        return updates, DalState(state.iteration + 1, rate)

    return optax.GradientTransformationExtraArgs(init, update)


def exact_hvp(loss: Callable[..., Any]) -> Hvp:
    """Return ``(params, vector, **extra) -> H vector`` by a forward derivative of the gradient."""

    def hvp(params: Any, vector: Any, **extra: Any) -> Any:
        return jax.jvp(lambda p: jax.grad(loss)(p, **extra), (params,), (vector,))[1]

    return hvp


def finite_difference_hvp(loss: Callable[..., Any]) -> Hvp:
    """Return an approximate product from one more gradient, 0.01 away along the vector."""

    def hvp(params: Any, vector: Any, **extra: Any) -> Any:
        length = optax.tree.norm(vector)
        epsilon = jnp.where(length > 0, DISPLACEMENT / jnp.where(length > 0, length, 1.0), 1.0)
        moved = jax.tree.map(lambda p, v: p + (epsilon * v).astype(p.dtype), params, vector)
        gradients = jax.grad(loss)(moved, **extra), jax.grad(loss)(params, **extra)
        return jax.tree.map(lambda a, b: (a - b) / epsilon, *gradients)

    return hvp


def _rate(hessian_gradient: Any, gradient: Any, power: float, cap: float) -> Any:
    numerator, denominator = optax.tree.norm(hessian_gradient), optax.tree.norm(gradient)
    drift = numerator / jnp.where(denominator > 0, denominator, 1.0)
    return jnp.where(drift > 0, jnp.minimum(2 / jnp.where(drift > 0, drift, 1.0) ** power, cap), cap)


def _float_type(params: Any) -> Any:
    return jnp.result_type(float, *jax.tree.leaves(params))
