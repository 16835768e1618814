"""The explicit Runge-Kutta methods of orders 1, 2 and 4, and the update that they and descent make."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

__all__ = ["TABLEAUX", "Tableau", "apply_updates"]


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method whose stages use the previous stage only.

    Attributes:
        nodes: Where each stage stands, in steps.
        weights: Weight of each stage's gradient.
    """

    nodes: tuple[float, ...]
    weights: tuple[float, ...]


TABLEAUX = {
    1: Tableau((0.0,), (1.0,)),  # Euler
    2: Tableau((0.0, 1.0), (1 / 2, 1 / 2)),  # Heun
    4: Tableau((0.0, 1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),  # the classical one, of ODE-GAN
}


def apply_updates(params: Any, direction: Any, rate: Any) -> Any:
    """Return ``params - rate * direction``, keeping the parameters' types."""
    return jax.tree.map(lambda x, d: x - (rate * d).astype(x.dtype), params, direction)
