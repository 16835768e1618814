"""Derivatives of a layer's output with respect to all parameters before it, in two kinds of columns.

A parameter of an affine layer moves one unit only (a neuron, a channel), and still does behind activations
and pooling, until the next layer mixes the units. Such columns are stored without their zeros: a factor of
the number of units less memory and work. All earlier columns are dense.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class UnitColumns:
    """Columns of parameters that move one unit each, stored without the zeros of the others.

    Attributes:
        values: Derivative of unit u at a position by its j-th parameter.
        widths: How many of the j belong to each parameter tensor, in order; a tensor's columns are ordered
            by unit, then by j.
        start: Place of the first column among all parameters.

    Example:
        >>> columns = UnitColumns(torch.tensor([[[[2.0]], [[3.0]]]]), widths=(1,))  # two units, a weight each
        >>> columns.dense((2,)).tolist()
        [[[2.0, 0.0], [0.0, 3.0]]]
    """

    values: Float[Tensor, "batch units j positions"]
    widths: tuple[int, ...]
    start: int = 0

    @property
    def units(self) -> int:
        """Number of units."""
        return self.values.shape[1]

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.units * self.values.shape[2]

    def tensors(self) -> Iterator[tuple[slice, slice]]:
        """Of each parameter tensor: its place among all parameters, and its j."""
        place, j = self.start, 0
        for width in self.widths:
            yield slice(place, place + self.units * width), slice(j, j + width)
            place, j = place + self.units * width, j + width

    def store(self, X: Float[Tensor, "batch units j *shape"], out: Float[Tensor, "batch p *shape"]) -> None:
        """Write what was computed per unit and j to the columns' places."""
        for place, j in self.tensors():
            out[:, place].unflatten(1, (self.units, -1)).copy_(X[:, :, j])

    def dense(self, shape: Sequence[int]) -> Float[Tensor, "batch columns *shape"]:
        """The columns with their zeros; ``shape`` is that of the layer's output."""
        batch, units, width, positions = self.values.shape
        full = self.values.new_zeros(batch, units, width, units, positions)
        full.diagonal(dim1=1, dim2=3).copy_(self.values.permute(0, 2, 3, 1))
        out = self.values.new_empty(batch, self.size, *shape)
        replace(self, start=0).store(full.reshape(batch, units, width, *shape), out)
        return out

    def join(self, other: UnitColumns) -> UnitColumns:
        """These columns and those of the next layer, of the same units."""
        values = torch.cat([self.values, other.values], 2)
        return UnitColumns(values, self.widths + other.widths, self.start)


@dataclass(frozen=True)
class Jacobian:
    """Dense columns first, unit columns behind them; either may be missing.

    Attributes:
        dense: ``(batch, parameter, *shape)``, the shape being that of the layer's output.
        unit: Columns of the last affine layers.
    """

    dense: Tensor | None = None
    unit: UnitColumns | None = None

    @property
    def size(self) -> int:
        """Number of columns."""
        dense = 0 if self.dense is None else self.dense.shape[1]
        return dense + (0 if self.unit is None else self.unit.size)

    def all_dense(self, shape: Sequence[int]) -> Jacobian:
        """The same columns, all of them dense."""
        if self.unit is None:
            return self
        unit = self.unit.dense(shape)
        return Jacobian(unit if self.dense is None else torch.cat([self.dense, unit], 1))

    def weighted(self, A: Tensor) -> list[Float[Tensor, "batch outputs columns"]]:
        """``A J``, in pieces of consecutive columns.

        Args:
            A: (batch, outputs, features) sample by sample, or (batch, outputs, batch, features).
        """
        pieces = []
        if self.dense is not None:
            J = self.dense.flatten(2)
            pieces.append(A @ J.mT if A.ndim == 3 else torch.einsum("bgcf,cpf->bgp", A, J))
        if self.unit is not None:
            by_unit, values = A.unflatten(-1, (self.unit.units, -1)), self.unit.values
            product = "bgut,bujt->bguj" if A.ndim == 3 else "bgcut,cujt->bguj"
            weighted = torch.einsum(product, by_unit, values)
            pieces += [weighted[..., j].flatten(2) for _, j in self.unit.tensors()]
        return pieces
