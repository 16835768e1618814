"""A symmetric matrix that is summed up in its lower triangle."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from chaos.o2grad.budget import new_matrix
from chaos.o2grad.jacobian import Jacobian, UnitColumns

#: Rows per product: enough to keep the processor busy, few enough to skip half the work.
_PANEL = 192
#: Numbers of an intermediate product: few enough to be read again from a cache.
_CACHED = 1 << 19


class LowerTriangle:
    """The Hessian while its terms are added; rows and columns are parameters in the order of the sweep.

    Every ``add`` puts in at least what belongs below and on the diagonal; the rest is never read.

    Args:
        size: Rows and columns.
        like: Tensor of the wanted type and device.

    Example:
        >>> triangle = LowerTriangle(2, torch.empty(0))
        >>> triangle.add_product(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 6.0]]))
        >>> triangle.symmetric()
        tensor([[ 3.,  6.],
                [ 6., 12.]])
    """

    def __init__(self, size: int, like: Tensor) -> None:
        self._matrix = new_matrix(size, size, like).zero_()

    def add_product(self, X: Float[Tensor, "rows k"], Y: Float[Tensor, "k p"]) -> None:
        """``X Y`` in the last rows of the first p parameters; of it, what lies in the lower triangle."""
        first = Y.shape[1] - len(X)
        for start in range(0, len(X), _PANEL):
            stop = min(start + _PANEL, len(X))
            block = self._matrix[first + start : first + stop, : first + stop]
            block.addmm_(X[start:stop], Y[:, : first + stop])

    def add_sandwich(self, J: Jacobian, A: Tensor, first: int = 0) -> None:
        """``J' A J``, summed over the batch, without the rows before the first.

        Args:
            J: Derivative of the features.
            A: Curvature, symmetric: (batch, features, features), or (batch, features, batch, features) where
                the samples interact.
            first: At most the number of dense columns.
        """
        if J.dense is not None and first < J.dense.shape[1]:
            weighted = Jacobian(J.dense).weighted(A)[0]
            self.add_product(_rows(J.dense[:, first:]), weighted.flatten(0, 1))
        if J.unit is None:
            return
        batch, units, _, positions = J.unit.values.shape
        at_once = max(1, _CACHED // (batch * positions * J.size))
        for start in range(0, units, at_once):
            some = slice(start, min(start + at_once, units))
            pieces = J.weighted(A.unflatten(1, (units, -1))[:, some].flatten(1, 2))
            self._add_rows_of(J.unit, some, torch.cat(pieces, 2))

    def _add_rows_of(
        self, unit: UnitColumns, some: slice, weighted: Float[Tensor, "batch features p"]
    ) -> None:
        """The rows of some units' columns in ``unit' weighted``, summed over the batch."""
        values = unit.values[:, some]
        term = torch.einsum("bujt,butp->ujp", values, weighted.unflatten(1, (values.shape[1], -1)))
        for place, j in unit.tensors():
            rows = self._matrix[place, : term.shape[2]].unflatten(0, (unit.units, -1))
            rows[some].add_(term[:, j])

    def add_bend(self, J: Jacobian, bend: Float[Tensor, "batch features"], first: int = 0) -> None:
        """The same with ``diag(bend)`` for A: units do not interact."""
        if J.dense is not None:
            weighted = J.dense.flatten(2).mT * bend[:, :, None]
            if first < J.dense.shape[1]:
                self.add_product(_rows(J.dense[:, first:]), weighted.flatten(0, 1))
            if J.unit is not None:
                self._add_rows_of(J.unit, slice(None), weighted)
        if J.unit is not None:
            values = J.unit.values
            scaled = values * bend.reshape(len(bend), values.shape[1], 1, -1)
            term = torch.einsum("bujt,bukt->ujk", scaled, values)
            for row, j in J.unit.tensors():
                for column, k in J.unit.tensors():
                    block = self._matrix[row, column].unflatten(1, (J.unit.units, -1))
                    same_unit = block.unflatten(0, (J.unit.units, -1)).diagonal(dim1=0, dim2=2)
                    same_unit.add_(term[:, j, k].permute(1, 2, 0))

    def add_cross(self, row: int, term: Float[Tensor, "outputs inputs taps p"]) -> None:
        """Rows of a weight (outputs, inputs, taps) against the first p parameters."""
        weights = term.shape[:3]
        block = self._matrix[row : row + weights.numel(), : term.shape[3]]
        block.unflatten(0, weights).add_(term)

    def add_cross_units(
        self, row: int, unit: UnitColumns, term: Float[Tensor, "units outputs taps j"]
    ) -> None:
        """Rows of a weight (outputs, units, taps) against unit columns that each meet their own unit."""
        units, outputs, taps, _ = term.shape
        for place, j in unit.tensors():
            block = self._matrix[row : row + outputs * units * taps, place].unflatten(1, (units, -1))
            same_unit = block.unflatten(0, (outputs, units, taps)).diagonal(dim1=1, dim2=3)
            same_unit.add_(term[..., j].permute(1, 2, 3, 0))

    def symmetric(self) -> Float[Tensor, "p p"]:
        """The matrix, its upper triangle overwritten by the lower."""
        M = self._matrix
        below = torch.ones(_PANEL, _PANEL, dtype=torch.bool, device=M.device).tril()
        for start in range(0, len(M), _PANEL):
            stop = min(start + _PANEL, len(M))
            M[:start, start:stop] = M[start:stop, :start].T
            square = M[start:stop, start:stop]
            square.copy_(torch.where(below[: stop - start, : stop - start], square, square.T))
        return M


def _rows(T: Float[Tensor, "batch p *shape"]) -> Float[Tensor, "p k"]:
    return T.transpose(0, 1).flatten(1)
