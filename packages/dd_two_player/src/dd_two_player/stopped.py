"""Which numbers a function uses, and which its derivative sees: not those behind ``stop_gradient``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

__all__ = ["seen_leaves", "used_leaves"]


def used_leaves(function: Callable[[Any], Any], at: Any) -> list[list[bool]]:
    """Return, for each leaf that a function returns, which leaves of its argument it depends on.

    The function is traced and not computed: what is multiplied by zero counts as used.

    >>> used_leaves(lambda x: (x["a"] + 1.0, x["b"] * x["a"]), {"a": 1.0, "b": 2.0})
    [[True, False], [True, True]]
    """
    leaves, structure = jax.tree.flatten(at)
    traced = jax.make_jaxpr(lambda *x: jax.tree.leaves(function(jax.tree.unflatten(structure, x))))(*leaves)
    count = len(traced.jaxpr.outvars)
    return [list(dce_jaxpr(traced.jaxpr, [i == j for j in range(count)])[1]) for i in range(count)]


def seen_leaves(function: Callable[[Any], Any], at: Any) -> list[list[bool]]:
    """Return the same for the derivative: along which leaves it is not zero by construction.

    >>> seen_leaves(lambda x: x[0] * jax.lax.stop_gradient(x[1]) + x[2], (1.0, 2.0, 3.0))
    [[True, False, True]]
    """
    return used_leaves(lambda along: jax.jvp(function, (at,), (along,))[1], at)
