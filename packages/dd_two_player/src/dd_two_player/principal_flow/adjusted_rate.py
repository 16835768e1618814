"""Drift adjusted learning rate: a rate from the size of the drift, as an optax transformation.

``v = |H g| / |g|`` measures per step how strongly the drift bends gradient descent; DAL-p takes the rate
``min(2 / v**p, cap)``. With ``p = 1`` and a gradient along one eigen-direction this is ``2 / l``, the edge
of stability.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dd_two_player.drift import check_number, concrete

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
    learning_rate: float | Callable[[Any], Any],
    power: float = 1.0,
    cap: float = 5.0,
    start: int | None = None,
    stop: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation from gradient to update ``-rate * gradient``.

    Args:
        hvp: ``(params, vector, **extra) -> H vector``, see :func:`exact_hvp`; extra arguments of ``update``
            (a batch) are passed on.
        learning_rate: Fixed rate where DAL is not active, or a schedule of optax.
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
    for name, value, least in (("learning_rate", learning_rate, 0), ("power", power, -1), ("cap", cap, 0)):
        if callable(value) and name == "learning_rate":
            continue
        check_number(name, value)
        known = concrete(value)
        if known is not None and not (known > least and (known >= 0)):
            raise ValueError(f"{name} is {value}; DAL needs learning_rate > 0, power >= 0 and cap > 0.")

    def fixed(iteration: Any) -> Any:
        return learning_rate(iteration) if callable(learning_rate) else learning_rate

    def init(params: Any) -> DalState:
        return DalState(jnp.zeros((), jnp.int32), jnp.asarray(fixed(0), _float_type(params)))

    def update(gradient: Any, state: DalState, params: Any = None, **extra: Any) -> tuple[Any, DalState]:
        if params is None:
            raise ValueError("DAL needs the parameters; call update(gradient, state, params).")
        masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
        if any(map(masked, jax.tree.leaves(params, is_leaf=masked))):
            raise ValueError(
                "DAL's Hessian products need all parameters; masked and multi_transform hide some of them."
            )
        rate = jnp.asarray(fixed(state.iteration), state.rate.dtype)
        known = concrete(power)
        if known is None or known > 0:
            adjusted = _rate(hvp(params, gradient, **extra), gradient, power, cap, rate.dtype)
            after = True if start is None else state.iteration > start
            before = True if stop is None else state.iteration < stop
            rate = jnp.where(jnp.logical_and(after, before) & (power > 0), adjusted, rate)
        updates = jax.tree.map(lambda g: (-rate * g).astype(jnp.result_type(g)), gradient)
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
        params, vector = jax.tree.map(_single, (params, vector))  # half precision would not see the distance
        length = _norm(vector)
        epsilon = jnp.where(length > 0, DISPLACEMENT / jnp.where(length > 0, length, 1.0), 1.0)
        moved = jax.tree.map(lambda p, v: p + (epsilon * v).astype(p.dtype), params, vector)
        gradients = jax.grad(loss)(moved, **extra), jax.grad(loss)(params, **extra)
        return jax.tree.map(lambda a, b: (a - b) / epsilon, *gradients)

    return hvp


def _rate(hessian_gradient: Any, gradient: Any, power: float, cap: float, dtype: Any) -> Any:
    numerator, denominator = _norm(hessian_gradient), _norm(gradient)
    drift = (numerator / jnp.where(denominator == 0, 1.0, denominator)).astype(dtype)
    bound = jnp.minimum(cap, jnp.finfo(dtype).max).astype(dtype)  # times a zero gradient, infinity is NaN
    return jnp.where(drift == 0, bound, jnp.minimum(2 / jnp.where(drift == 0, 1.0, drift) ** power, bound))


def _norm(tree: Any) -> Any:
    """Return the norm of a tree, in single precision at least; squares of any size stay in its range."""
    leaves = [jnp.abs(_single(a)) for a in jax.tree.leaves(tree)]
    largest = functools.reduce(jnp.maximum, (a.max(initial=0.0) for a in leaves), jnp.zeros(()))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return unit * jnp.sqrt(sum(((a / unit) ** 2).sum() for a in leaves))


def _single(a: Any) -> Any:
    """Raise half precision to single."""
    dtype = jnp.result_type(a)
    return jnp.asarray(a, jnp.promote_types(dtype, jnp.float32)) if jnp.issubdtype(dtype, jnp.inexact) else a


def _float_type(params: Any) -> Any:
    return jnp.finfo(jnp.result_type(float, *map(_single, jax.tree.leaves(params)))).dtype
