"""Which numbers move a function, and which its derivative sees: not those behind ``stop_gradient``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["moving_leaves", "seen_leaves"]

_STEPS = frozenset({"ceil", "floor", "round", "sign"})  # constant but for jumps, so their derivative is zero
_CALLS = frozenset({"checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit"})


def moving_leaves(function: Callable[[Any], Any], at: Any) -> list[set[int]]:
    """Return, for each leaf that a function returns, the numbers of the argument's leaves that move it.

    The function is traced and not computed. What only chooses (comparisons, rounding) moves nothing; what is
    multiplied by zero does, and so does what is behind ``stop_gradient``.

    Raises:
        jax.errors.ConcretizationTypeError: If Python code branches on the argument.

    >>> moving_leaves(lambda x: (x["a"] + 1.0, x["b"] * x["a"]), {"a": 1.0, "b": 2.0})
    [{0}, {0, 1}]
    >>> moving_leaves(lambda x: jax.numpy.where(x[0] > 0, x[1], 1.0), (1.0, 2.0))
    [{1}]
    """
    leaves, structure = jax.tree.flatten(at)
    traced = jax.make_jaxpr(lambda *x: jax.tree.leaves(function(jax.tree.unflatten(structure, x))))(*leaves)
    return _follow(traced.jaxpr, [{i} for i in range(len(leaves))])


def seen_leaves(function: Callable[[Any], Any], at: Any) -> list[set[int]]:
    """Return the same for the derivative: along which leaves it is not zero by construction.

    >>> seen_leaves(lambda x: x[0] * jax.lax.stop_gradient(x[1]) + x[2], (1.0, 2.0, 3.0))
    [{0, 2}]
    """
    return moving_leaves(lambda along: jax.jvp(function, (at,), (along,))[1], at)


def _follow(program: Any, given: list[set[int]]) -> list[set[int]]:
    """Return what moves the outputs of a traced program, given what moves its inputs."""
    known = dict(zip(program.invars, given, strict=True))

    def moving(value: Any) -> set[int]:
        return set() if hasattr(value, "val") else known.get(value, set())  # a constant has a value

    for step in program.eqns:
        name, inputs = step.primitive.name, [moving(value) for value in step.invars]
        inner = step.params.get("jaxpr", step.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        if name in _CALLS and inner is not None and len(inner.invars) == len(inputs):
            outputs = _follow(inner, inputs)
        else:
            together = set() if name in _STEPS else set().union(*inputs)
            outputs = [together] * len(step.outvars)
        for value, found in zip(step.outvars, outputs, strict=True):
            dtype = getattr(value.aval, "dtype", None)
            known[value] = found if dtype is not None and jnp.issubdtype(dtype, jnp.inexact) else set()
    return [moving(value) for value in program.outvars]
