"""Backend 3: the exact Hessian of a feed-forward tree in one sweep over its layers.

For layers ``a_m = f_m(a_{m-1}, theta_m)`` keep ``T_m = d a_m / d theta_{<=m}`` and ``delta_m = dL / d a_m``,
and let ``C_m`` be the curvature of the loss with respect to ``a_m`` (see :mod:`chaos.o2grad.curvature`).
Against all earlier parameters, the rows of H that belong to ``theta_m`` are the sum of

- ``d^2 L / d W_m d theta_{<m}``, which contracts ``T_{m-1}`` (unfolded) with ``delta_m``, and
- ``(d a_m / d theta_m)' C_m T_m``.

``d a_m / d theta_m`` moves one unit per parameter and is held without its zeros until the next layer mixes
the units (:mod:`chaos.o2grad.jacobian`); there its rows are added. ``C_m`` has the square of the features,
too much on large maps. In front of a cut (:mod:`chaos.o2grad.cut`), and inside residual blocks, rows are
therefore left due: an activation adds ``T_m' diag(delta_m sigma''(z_m)) T_m`` to them, and the next layer
with a known C the rest.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from chaos.o2grad.affine import Affine
from chaos.o2grad.curvature import pull_back, pull_gradient
from chaos.o2grad.cut import costs_of_cuts
from chaos.o2grad.frames import InputFrame
from chaos.o2grad.jacobian import Jacobian, UnitColumns
from chaos.o2grad.layers import Activation, Layer, UnsupportedError
from chaos.o2grad.losses import Loss, output_hessian
from chaos.o2grad.parameters import check_scalar
from chaos.o2grad.tree import Node, evaluate, leaves
from chaos.o2grad.triangle import LowerTriangle


class Sweep:
    """One evaluation point of a layer tree: values, loss gradients, and the forward sweep.

    Args:
        nodes: Tree from :func:`~chaos.o2grad.tree.build_tree`.
        x, y: Batch.
        loss: Scalar loss.
        frame: Coordinates of the first affine layer, or ``None``.

    Attributes:
        columns: Name and size of each group of coordinates, in order; the frame's has no name.
    """

    def __init__(
        self, nodes: list[Node], x: Tensor, y: Tensor, loss: Loss, frame: InputFrame | None = None
    ) -> None:
        self.nodes, self.frame = nodes, frame
        output = evaluate(nodes, x)
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            value = check_scalar(loss(leaf, y))
            if not value.requires_grad:
                raise UnsupportedError("the loss does not depend on the output")
            (gradient,) = torch.autograd.grad(value, leaf)
        pull_gradient(nodes, gradient.flatten(1))
        self.curvature = output_hessian(loss, output, y)
        layers = list(leaves(nodes))
        affine = [layer for layer in layers if isinstance(layer, Affine) and layer.trained()]
        self.framed = affine[0] if frame is not None else None
        self.columns = [group for layer in affine for group in self._coordinates(layer)]
        self.widest = max(layer.z[0].numel() for layer in layers)

    def _coordinates(self, layer: Affine) -> list[tuple[str, int]]:
        if self.frame is not None and layer is self.framed:
            return [("", self.frame.units * self.frame.q)]
        return layer.trained()

    def _num_columns(self, layer: Affine) -> int:
        return sum(width for _, width in self._coordinates(layer))

    def hessian(self, budget: int) -> Tensor:
        """The Hessian, its coordinates in the order of ``columns``.

        Args:
            budget: Bytes that the Jacobians of some samples may take together.

        Raises:
            UnsupportedError: If the samples interact and their Jacobians exceed the budget.
        """
        size, A = sum(width for _, width in self.columns), self.curvature
        at_once = max(1, budget // (4 * A.element_size() * size * self.widest))
        if A.ndim == 4 and at_once < len(A):
            raise UnsupportedError("the loss couples samples whose Jacobians exceed the budget together")
        triangle = LowerTriangle(size, A)
        cuts = costs_of_cuts(self.nodes, A.shape[1], self._num_columns)
        cut = min(cuts, key=lambda place: cuts[place])
        for start in range(0, len(A), at_once):
            rows = slice(start, start + at_once)
            _Samples(self, rows, triangle).add(A[rows], cut)
        return triangle.symmetric()


class _Samples:
    """The sweep of some samples.

    Attributes:
        due: First column whose row is still to be added.
    """

    def __init__(self, sweep: Sweep, rows: slice, triangle: LowerTriangle) -> None:
        self.sweep, self.rows, self.triangle = sweep, rows, triangle
        self.due = 0

    def add(self, A: Tensor, cut: int) -> None:
        """Add these samples' part of the Hessian; A is the curvature in output space."""
        nodes = self.sweep.nodes
        J = Jacobian()
        for node in nodes[:cut]:
            J = self._push(node, J, None)
        curvatures = pull_back(nodes[cut:], A, self.rows)
        for node, C in zip(nodes[cut:], curvatures, strict=False):
            J = self._push(node, J, C)
        self._add_rows(J, A)

    def _add_rows(self, J: Jacobian, C: Tensor | None) -> None:
        """Add the rows that are due, where the curvature is known."""
        if C is not None:
            self.triangle.add_sandwich(J, C, self.due)
            self.due = J.size

    def _push(self, node: Node, J: Jacobian, C: Tensor | None) -> Jacobian:
        """Add what arises in a layer; the Jacobian of its output. C is the curvature at its input."""
        if isinstance(node, Layer):
            return self._pass(node, self._enter(node, J, C))
        self._add_rows(J, C)
        J = inner = J.all_dense(node.shape)
        for layer in node.body:
            inner = self._push(layer, inner, None)
        inner = inner.all_dense(node.shape)
        if J.dense is None or inner.dense is None:
            return inner
        straight = inner.dense[:, : J.size] + J.dense
        return Jacobian(torch.cat([straight, inner.dense[:, J.size :]], 1))

    def _enter(self, layer: Layer, J: Jacobian, C: Tensor | None) -> Jacobian:
        """Add the terms that arise in the layer; the columns as the layer can take them."""
        cannot_take = J.unit is not None and not layer.acts_by_unit(J.unit.units)
        if layer.mixes or cannot_take:
            self._add_rows(J, C)
        if cannot_take:
            J = J.all_dense(layer.a.shape[1:])
        if isinstance(layer, Affine) and layer.weight_name is not None:
            if J.dense is not None:
                self.triangle.add_cross(J.size, layer.cross(J.dense, self.rows))
            if J.unit is not None:
                self.triangle.add_cross_units(J.size, J.unit, layer.cross_units(J.unit.values, self.rows))
        if isinstance(layer, Activation) and layer.is_curved and J.size:
            self.triangle.add_bend(J, layer.bend(self.rows), self.due)
        return J

    def _pass(self, layer: Layer, J: Jacobian) -> Jacobian:
        """The Jacobian of the layer's output."""
        own = self._own(layer, J.size) if isinstance(layer, Affine) else None
        dense = None if J.dense is None else layer.push(J.dense, self.rows)
        if J.unit is None:
            return Jacobian(dense, own)
        values = layer.push_units(J.unit.values, self.rows)
        if layer.mixes:
            mixed = values.new_empty(len(values), J.size, *values.shape[3:])
            if dense is not None:
                mixed[:, : dense.shape[1]] = dense
            J.unit.store(values, mixed)
            return Jacobian(mixed, own)
        unit = replace(J.unit, values=values)
        return Jacobian(dense, unit if own is None else unit.join(own))

    def _own(self, layer: Affine, start: int) -> UnitColumns | None:
        frame = self.sweep.frame
        if frame is None or layer is not self.sweep.framed:
            return layer.own(self.rows, start)
        a = layer.a[self.rows]
        if frame.bias is not None:
            a = functional.pad(a, (0, 1), value=1.0)
        xi = (a @ frame.basis)[:, None, :, None]
        return UnitColumns(xi.expand(-1, frame.units, -1, -1), (frame.q,), start)
