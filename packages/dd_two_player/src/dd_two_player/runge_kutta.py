"""The explicit Runge-Kutta methods of orders 1, 2 and 4."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["TABLEAUX", "Tableau"]


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
