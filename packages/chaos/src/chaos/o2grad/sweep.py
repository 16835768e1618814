"""Backend 3: the exact Hessian of a feed-forward tree by one sweep of parameter Jacobians.

For layers ``a_m = f_m(a_{m-1}, theta_m)`` keep ``T_m = d a_m / d theta_{<=m}`` and ``delta_m = dL / d a_m``.
Then H is the sum of three kinds of terms, each a batched product with *fixed* weights:

- affine layer m: ``d^2 L / d W_m d theta_{<m}`` contracts ``T_{m-1}`` (unfolded) with ``delta_m``;
- activation m: ``T_m' diag(delta_m sigma''(z_m)) T_m``;
- output: ``J' A J`` with ``J = T_M`` and A the Hessian of the loss in output space.

Columns of ``T_m`` that move one unit only are held without their zeros, see :mod:`chaos.o2grad.jacobian`.
Behind a last linear layer ``z = W a + b`` all earlier ones would be dense; where that costs more, its own
rows are added apart and the others come from ``W' A W`` at its input.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from chaos.o2grad.affine import Affine, Linear
from chaos.o2grad.frames import InputFrame
from chaos.o2grad.jacobian import Jacobian, UnitColumns
from chaos.o2grad.layers import Activation, Layer
from chaos.o2grad.losses import Loss, check_scalar, output_hessian
from chaos.o2grad.tree import Node, Skip, evaluate, leaves
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
        layers = list(leaves(nodes))
        with torch.enable_grad():
            output = evaluate(nodes, x.detach().requires_grad_())
            value = check_scalar(loss(output, y))
            deltas = torch.autograd.grad(
                value, [layer.z for layer in layers], allow_unused=True, materialize_grads=True
            )
        for layer, delta in zip(layers, deltas, strict=True):
            layer.a, layer.z, layer.delta = layer.a.detach(), layer.z.detach(), delta
        self.curvature = output_hessian(loss, output.detach(), y)
        affine = [layer for layer in layers if isinstance(layer, Affine) and layer.trained()]
        self.framed = affine[0] if frame is not None else None
        self.columns = [group for layer in affine for group in self._coordinates(layer)]
        self.head = nodes[-1] if isinstance(nodes[-1], Linear) else None
        self.widest = max(layer.z[0].numel() for layer in layers)

    def _coordinates(self, layer: Affine) -> list[tuple[str, int]]:
        if self.frame is not None and layer is self.framed:
            return [("", self.frame.units * self.frame.q)]
        return layer.trained()

    def hessian(self, budget: int) -> Tensor:
        """The Hessian, its coordinates in the order of ``columns``.

        Args:
            budget: Bytes that the Jacobians of some samples may take together.
        """
        size, A = sum(width for _, width in self.columns), self.curvature
        triangle = LowerTriangle(size, A)
        body = self.nodes if self.head is None else self.nodes[:-1]
        at_once = max(1, budget // (4 * A.element_size() * max(1, size * self.widest)))
        interacting = []
        for start in range(0, len(A), at_once):
            rows = slice(start, start + at_once)
            J = self._push(body, Jacobian(), rows, triangle)
            if self.head is not None:
                J = self._enter(self.head, J, rows, triangle)
            if A.ndim == 3:
                self._add_output(J, A[rows], rows, triangle)
            else:
                interacting.append(J)
        if interacting:
            self._add_output(Jacobian.of_batch(interacting), A, slice(None), triangle)
        return triangle.symmetric()

    def _add_output(self, J: Jacobian, A: Tensor, rows: slice, triangle: LowerTriangle) -> None:
        """Add ``J' A J`` of some samples; J has arrived at the last linear layer, if there is one."""
        if self.head is not None and _pulling_is_cheaper(J, self.head):
            half = A @ self.head.weight
            own = self._own(self.head, rows, J.size)
            if own is not None:
                triangle.add_unit_rows(own, [(half, J), (A, Jacobian(unit=own))])
            A = torch.einsum("bo...,oi->bi...", half, self.head.weight)
        elif self.head is not None:
            J = self._pass(self.head, J, rows)
        triangle.add_sandwich(J, A)

    def _push(self, nodes: list[Node], J: Jacobian, rows: slice, triangle: LowerTriangle) -> Jacobian:
        for node in nodes:
            if isinstance(node, Skip):
                J = self._push_skip(node, J.all_dense(node.shape), rows, triangle)
            else:
                J = self._pass(node, self._enter(node, J, rows, triangle), rows)
        return J

    def _push_skip(self, skip: Skip, J: Jacobian, rows: slice, triangle: LowerTriangle) -> Jacobian:
        inner = self._push(skip.body, J, rows, triangle).all_dense(skip.shape)
        if J.dense is None or inner.dense is None:
            return inner
        straight = inner.dense[:, : J.size] + J.dense
        return Jacobian(torch.cat([straight, inner.dense[:, J.size :]], 1))

    def _enter(self, layer: Layer, J: Jacobian, rows: slice, triangle: LowerTriangle) -> Jacobian:
        """Add the layer's second-order terms; the columns as the layer can take them."""
        if J.unit is not None and not layer.acts_by_unit(J.unit.units):
            J = J.all_dense(layer.a.shape[1:])
        if isinstance(layer, Affine) and layer.weight_name is not None:
            if J.dense is not None:
                triangle.add_cross(J.size, layer.cross(J.dense, rows))
            if J.unit is not None:
                triangle.add_cross_units(J.size, J.unit, layer.cross_units(J.unit.values, rows))
        if isinstance(layer, Activation) and (bend := layer.bend(rows)) is not None:
            triangle.add_bend(J, bend)
        return J

    def _pass(self, layer: Layer, J: Jacobian, rows: slice) -> Jacobian:
        """The Jacobian of the layer's output."""
        own = self._own(layer, rows, J.size) if isinstance(layer, Affine) else None
        dense = None if J.dense is None else layer.push(J.dense, rows)
        if J.unit is None:
            return Jacobian(dense, own)
        values = layer.push_units(J.unit.values, rows)
        if layer.mixes:
            mixed = values.new_empty(len(values), J.size, *values.shape[3:])
            if dense is not None:
                mixed[:, : dense.shape[1]] = dense
            J.unit.store(values, mixed)
            return Jacobian(mixed, own)
        unit = replace(J.unit, values=values)
        return Jacobian(dense, unit if own is None else unit.join(own))

    def _own(self, layer: Affine, rows: slice, start: int) -> UnitColumns | None:
        if self.frame is None or layer is not self.framed:
            return layer.own(rows, start)
        a = layer.a[rows]
        if self.frame.bias is not None:
            a = functional.pad(a, (0, 1), value=1.0)
        xi = (a @ self.frame.basis)[:, None, :, None]
        return UnitColumns(xi.expand(-1, self.frame.units, -1, -1), (self.frame.q,), start)


def _pulling_is_cheaper(J: Jacobian, head: Linear) -> bool:
    """Whether the output term takes fewer multiplications at the input of the last layer than behind it."""
    outputs, inputs = map(int, head.weight.shape)
    if J.unit is None:
        return inputs < outputs
    dense, positions = J.size - J.unit.size, inputs / J.unit.units
    return dense**2 / 2 * inputs + J.unit.size * J.size * positions < J.size**2 / 2 * outputs
