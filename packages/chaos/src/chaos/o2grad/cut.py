"""Where curvature stops being pulled back: the cheapest place by a count of multiplications."""

from __future__ import annotations

from collections.abc import Callable

from chaos.o2grad.affine import Affine
from chaos.o2grad.layers import Activation
from chaos.o2grad.tree import Node, Skip, leaves


def costs_of_cuts(nodes: list[Node], outputs: int, num_columns: Callable[[Affine], int]) -> dict[int, float]:
    """Places where the cut may be, the latest first, and what it costs there.

    A place is the index of the first layer whose input gets a curvature; the number of layers if none does.

    Args:
        nodes: The layers, evaluated.
        outputs: Features of the last one.
        num_columns: Columns of the Jacobian that belong to a layer's own parameters.
    """
    count = _Count(num_columns)
    for place, node in enumerate(nodes):
        count.follow(node, place)
    count.mix(len(nodes), outputs)
    costs = {}
    for place in reversed(range(len(nodes) + 1)):
        if place < len(nodes) and not all(layer.can_pull for layer in leaves([nodes[place]])):
            break
        if place in count.at_once:
            costs[place] = count.of_cut(place)
    return costs


class _Count:
    """Multiplications for each sample, layer by layer.

    Attributes:
        at_once: Of adding the rows of all columns so far, by place.
        own: Place, and cost of adding the rows of unit columns there.
        bends: Place, and cost of the dense rows at a curved activation.
    """

    def __init__(self, num_columns: Callable[[Affine], int]) -> None:
        self.num_columns = num_columns
        self.dense, self.unit, self.units = 0, 0, 1
        self.at_once: dict[int, float] = {}
        self.own: list[tuple[int, float]] = []
        self.bends: list[tuple[int, float]] = []

    def of_cut(self, place: int) -> float:
        """Of all rows, with the cut in front of a place."""
        carried = sum(cost for at, cost in self.bends if at < place)
        return self.at_once[place] + carried + sum(cost for at, cost in self.own if at >= place)

    def follow(self, node: Node, place: int) -> None:
        """Move through a layer."""
        if isinstance(node, Skip):
            self.mix(place, node.shape.numel())
            before = self.dense
            for inner in node.body:
                self.follow(inner, place)
            self.mix(place, node.shape.numel())
            self.own.append((place, (self.dense - before) * self.dense * node.shape.numel()))
            return
        if node.mixes or (self.unit and not node.acts_by_unit(self.units)):
            self.mix(place, node.a[0].numel())
        if isinstance(node, Activation) and node.is_curved:
            self.bends.append((place, self.dense**2 / 2 * node.a[0].numel()))
        if isinstance(node, Affine) and node.trained():
            self.unit, self.units = self.unit + self.num_columns(node), node.z.shape[1]

    def mix(self, place: int, features: int) -> None:
        """Add the rows of unit columns, which become dense."""
        size, positions = self.dense + self.unit, features / self.units
        weighted = features * (features * self.dense + positions * self.unit)
        if size:
            self.at_once.setdefault(place, self.dense**2 / 2 * features)
        self.own.append((place, weighted + self.unit * size * positions))
        self.dense, self.unit = size, 0
