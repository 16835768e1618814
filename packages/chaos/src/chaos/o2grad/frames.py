"""Orthonormal frames: the subspace of parameter space in which a Hessian can be non-zero.

A Hessian is held as ``H = Q M Q'`` with a small symmetric ``M`` and a frame ``Q`` (n x r, orthonormal
columns) that is applied, never formed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from chaos.o2grad.budget import new_matrix
from chaos.o2grad.singular import thin_svd


@dataclass(frozen=True)
class IdentityFrame:
    """``Q = I``: no structure is used."""

    n: int

    @property
    def rank(self) -> int:
        """Number of columns r."""
        return self.n

    def expand(self, core: Float[Tensor, "r k"]) -> Float[Tensor, "n k"]:
        """Apply Q."""
        return core

    def add_expanded(self, out: Float[Tensor, "n k"], core: Float[Tensor, "r k"], scale: float) -> None:
        """Add ``scale Q core`` to a matrix in place."""
        out.add_(core, alpha=scale)

    def restrict(self, full: Float[Tensor, "n k"]) -> Float[Tensor, "r k"]:
        """Apply Q'."""
        return full

    def dense(self, core: Float[Tensor, "r r"]) -> Float[Tensor, "n n"]:
        """``Q M Q'``."""
        return core

    def block(self, core: Float[Tensor, "r r"], rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """Part of ``Q M Q'``."""
        return core[rows, columns]

    def diagonal(self, core: Float[Tensor, "r r"]) -> Float[Tensor, " n"]:
        """Diagonal of ``Q M Q'``."""
        return core.diagonal()


@dataclass(frozen=True)
class DenseFrame:
    """A frame given by its matrix, for low-rank objects such as the Gauss-Newton matrix."""

    basis: Tensor

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.basis.shape[0])

    @property
    def rank(self) -> int:
        """Number of columns r."""
        return int(self.basis.shape[1])

    def expand(self, core: Float[Tensor, "r k"]) -> Float[Tensor, "n k"]:
        """Apply Q."""
        return self.basis @ core

    def add_expanded(self, out: Float[Tensor, "n k"], core: Float[Tensor, "r k"], scale: float) -> None:
        """Add ``scale Q core`` to a matrix in place."""
        out.addmm_(self.basis, core, alpha=scale)

    def restrict(self, full: Float[Tensor, "n k"]) -> Float[Tensor, "r k"]:
        """Apply Q'."""
        return self.basis.T @ full

    def dense(self, core: Float[Tensor, "r r"]) -> Float[Tensor, "n n"]:
        """``Q M Q'``."""
        return self.basis @ core @ self.basis.T

    def block(self, core: Float[Tensor, "r r"], rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """Part of ``Q M Q'``."""
        return self.basis[rows] @ core @ self.basis[columns].T

    def diagonal(self, core: Float[Tensor, "r r"]) -> Float[Tensor, " n"]:
        """Diagonal of ``Q M Q'``."""
        return ((self.basis @ core) * self.basis).sum(1)


@dataclass(frozen=True)
class InputFrame:
    """``Q = blockdiag(I_units (x) U, I_rest)`` of a first affine layer seen by few inputs.

    The loss depends on the weights W (units x inputs) and bias b of the first layer only through
    ``W x_b + b``. With ``U`` an orthonormal basis of span{(x_b, 1)}, every direction outside
    ``I_units (x) U`` is an exact null vector of every derivative.

    Attributes:
        n: Number of parameters.
        weight: Position of W in the flat vector.
        bias: Position of b, or ``None``.
        units: Rows of W.
        basis: U, shape (inputs [+ 1], q).

    Source: the chain rule; coordinates are C in W = W_0 + C U'.
    """

    n: int
    weight: slice
    bias: slice | None
    units: int
    basis: Tensor

    @property
    def q(self) -> int:
        """Rank of the batch of inputs."""
        return int(self.basis.shape[1])

    @property
    def rank(self) -> int:
        """Number of columns r."""
        return self.units * self.q + sum(_length(s) for s in self.rest)

    @property
    def rest(self) -> tuple[slice, ...]:
        """Stretches of the flat vector outside the first layer."""
        taken = (
            [self.weight] if self.bias is None else sorted([self.weight, self.bias], key=lambda s: s.start)
        )
        edges = [0, *(edge for s in taken for edge in (s.start, s.stop)), self.n]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return tuple(slice(start, stop) for start, stop in pairs if stop > start)

    def state(self) -> dict[str, Tensor]:
        """The frame as tensors, for checkpoints."""
        bias = slice(-1, -1) if self.bias is None else self.bias
        numbers = [self.n, self.weight.start, self.weight.stop, bias.start, bias.stop, self.units]
        return {"frame.basis": self.basis, "frame.layout": torch.tensor(numbers)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> InputFrame:
        """Rebuild what :meth:`state` returned."""
        n, start, stop, bias_start, bias_stop, units = state["frame.layout"].tolist()
        bias = None if bias_start < 0 else slice(bias_start, bias_stop)
        return cls(n, slice(start, stop), bias, units, state["frame.basis"].clone())

    def union(self, other: InputFrame) -> InputFrame:
        """The frame of both batches together; both must belong to the same layer."""
        joint = torch.cat([self.basis, other.basis], 1)
        U, sigma, _ = thin_svd(joint)
        kept = sigma > torch.finfo(joint.dtype).eps * max(joint.shape) * sigma[0]
        return replace(self, basis=U[:, kept].contiguous())

    @property
    def _inputs(self) -> int:
        return _length(self.weight) // self.units

    def expand(self, core: Float[Tensor, "r k"]) -> Float[Tensor, "n k"]:
        """Apply Q."""
        columns = core.shape[1]
        first = core[: self.units * self.q].reshape(self.units, self.q, columns)
        pieces = {self.weight.start: (self.basis[: self._inputs] @ first).reshape(-1, columns)}
        if self.bias is not None:
            pieces[self.bias.start] = (self.basis[-1:] @ first)[:, 0]
        start = self.units * self.q
        for stretch in self.rest:
            stop = start + stretch.stop - stretch.start
            pieces[stretch.start] = core[start:stop]
            start = stop
        return torch.cat([pieces[position] for position in sorted(pieces)])

    def add_expanded(self, out: Float[Tensor, "n k"], core: Float[Tensor, "r k"], scale: float) -> None:
        """Add ``scale Q core`` to a contiguous matrix in place: it is read and written once."""
        units, columns = self.units, core.shape[1]
        first = core[: units * self.q].reshape(units, self.q, columns)
        weights = self.basis[: self._inputs].expand(units, -1, -1)
        out[self.weight].view(units, self._inputs, columns).baddbmm_(weights, first, alpha=scale)
        if self.bias is not None:
            out[self.bias].add_((self.basis[-1:] @ first)[:, 0], alpha=scale)
        start = units * self.q
        for stretch in self.rest:
            stop = start + stretch.stop - stretch.start
            out[stretch].add_(core[start:stop], alpha=scale)
            start = stop

    def restrict(self, full: Float[Tensor, "n k"]) -> Float[Tensor, "r k"]:
        """Apply Q'."""
        columns = full.shape[1]
        weights = full[self.weight].reshape(self.units, self._inputs, columns)
        first = self.basis[: self._inputs].T @ weights
        if self.bias is not None:
            first = first + self.basis[-1][None, :, None] * full[self.bias][:, None, :]
        return torch.cat([first.reshape(self.units * self.q, columns), *(full[s] for s in self.rest)])

    def dense(self, core: Float[Tensor, "r r"]) -> Float[Tensor, "n n"]:
        """``Q M Q'``, written in place: the n x n result is touched once."""
        half = self.expand(core).T.contiguous()
        out, units = new_matrix(self.n, self.n, core), self.units
        first = half[: units * self.q].reshape(units, self.q, self.n)
        weights = self.basis[: self._inputs].expand(units, -1, -1)
        torch.bmm(weights, first, out=out[self.weight].view(units, self._inputs, self.n))
        if self.bias is not None:
            bias = self.basis[-1:].expand(units, -1, -1)
            torch.bmm(bias, first, out=out[self.bias].view(units, 1, self.n))
        start = units * self.q
        for stretch in self.rest:
            stop = start + stretch.stop - stretch.start
            out[stretch] = half[start:stop]
            start = stop
        return out

    def block(self, core: Float[Tensor, "r r"], rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """Part of ``Q M Q'``."""
        basis = self.matrix(core)
        return basis[rows] @ core @ basis[columns].T

    def diagonal(self, core: Float[Tensor, "r r"]) -> Float[Tensor, " n"]:
        """Diagonal of ``Q M Q'``."""
        basis = self.matrix(core)
        return ((basis @ core) * basis).sum(1)

    def matrix(self, like: Tensor) -> Float[Tensor, "n r"]:
        """Q itself, of the type of ``like``."""
        return self.expand(torch.eye(self.rank, dtype=like.dtype, device=like.device))


def _length(stretch: slice) -> int:
    return int(stretch.stop) - int(stretch.start)


Frame = IdentityFrame | DenseFrame | InputFrame
