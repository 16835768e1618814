"""The Hessian as an object: held as ``Q M Q'``, shown in whatever form is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from chaos.o2grad.budget import DEFAULT_BUDGET, check_budget
from chaos.o2grad.eigenpairs import Eigenpairs
from chaos.o2grad.frames import Frame
from chaos.o2grad.observation import full_precision
from chaos.o2grad.parameters import ParameterLayout


class Blocks(Mapping[tuple[str, str], Tensor]):
    """Layer blocks of a Hessian by pairs of parameter names, computed when read.

    Also reads as a nested mapping: ``blocks["0.weight"]["2.bias"]`` is ``blocks["0.weight", "2.bias"]``.
    """

    def __init__(self, hessian: Hessian) -> None:
        self._hessian = hessian

    def __getitem__(self, key: str | tuple[str, str]) -> Tensor | dict[str, Tensor]:  # type: ignore[override]
        names = self._hessian.layout.names
        for name in (key,) if isinstance(key, str) else key:
            if name not in names:
                raise KeyError(f"{name!r}; parameters are {', '.join(names)}")
        if isinstance(key, str):
            return {name: self._hessian.block(key, name) for name in names}
        return self._hessian.block(*key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        names = self._hessian.layout.names
        return iter([(a, b) for a in names for b in names])

    def __len__(self) -> int:
        return len(self._hessian.layout.names) ** 2


@dataclass(frozen=True)
class Hessian:
    """``H = Q M Q'`` of a loss at a point, symmetric n x n.

    Attributes:
        core: M, symmetric up to rounding (r, r).
        frame: Q, orthonormal columns (n, r), applied and never formed.
        layout: Names and positions of the parameters.
        backend: Which backend computed it.
        memory_budget: Bytes that a dense form may take.

    Example:
        >>> import torch
        >>> from chaos.o2grad import LossSurface
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> surface = LossSurface(model, torch.nn.MSELoss())
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
        >>> H = surface.hessian(None, x, torch.zeros(2, 1, dtype=torch.float64))
        >>> H
        Hessian of 2 parameters, torch.float64 (backend sweep)
        >>> H.dense().round(decimals=12).tolist()  # 2 x'x / B
        [[2.0, 2.0], [2.0, 4.0]]
    """

    core: Tensor
    frame: Frame
    layout: ParameterLayout
    backend: str
    memory_budget: int = DEFAULT_BUDGET

    def __repr__(self) -> str:
        held = f", held by {len(self.core)} coordinates" if len(self.core) < self.n else ""
        return f"Hessian of {self.n} parameters{held}, {self.core.dtype} (backend {self.backend})"

    @property
    def n(self) -> int:
        """Number of parameters."""
        return self.frame.n

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.n, self.n

    @full_precision()
    def matvec(self, V: Float[Tensor, "n *k"]) -> Float[Tensor, "n *k"]:
        """``H V`` for a vector or a matrix of columns."""
        columns = (V[:, None] if V.ndim == 1 else V).to(self.core)
        out = self.frame.expand(self.core @ self.frame.restrict(columns))
        return out[:, 0] if V.ndim == 1 else out

    def rows(self, rows: slice) -> Float[Tensor, "rows n"]:
        """Some rows of H."""
        index = range(*rows.indices(self.n))
        check_budget(len(index), self.n, self.core.dtype, self.memory_budget)
        basis = self.core.new_zeros(self.n, len(index))
        basis[list(index), list(range(len(index)))] = 1
        return self.matvec(basis).T

    @full_precision()
    def dense(self) -> Float[Tensor, "n n"]:
        """The full matrix.

        Raises:
            ValueError: If it exceeds the memory budget.
        """
        check_budget(self.n, self.n, self.core.dtype, self.memory_budget)
        return self.frame.dense(self.core)

    @full_precision()
    def block(self, row: str, column: str) -> Float[Tensor, "rows columns"]:
        """The block of second derivatives of two named parameters."""
        slices = self.layout.slices
        return self.frame.block(self.core, slices[row], slices[column])

    def blocks(self) -> Blocks:
        """All layer blocks, lazily."""
        return Blocks(self)

    def block_diagonal(self) -> dict[str, Tensor]:
        """The diagonal block of each parameter."""
        return {name: self.block(name, name) for name in self.layout.names}

    @full_precision()
    def diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal, without forming the matrix."""
        return self.frame.diagonal(self.core)

    def trace(self) -> Tensor:
        """Sum of the eigenvalues."""
        return self.core.diagonal().sum()

    def eigh(self) -> Eigenpairs:
        """All eigenpairs that are not exactly zero, and the size of the null space."""
        return replace(Eigenpairs.of(self.core, self.frame), layout=self.layout)

    def to(self, form: str) -> Tensor | Blocks:
        """Convert to ``"dense"``, ``"sparse"`` (COO) or ``"blocks"``.

        Raises:
            ValueError: For another form.
        """
        if form == "dense":
            return self.dense()
        if form == "sparse":
            return self.dense().to_sparse()
        if form == "blocks":
            return self.blocks()
        raise ValueError(f"Unknown form {form!r}; choose dense, sparse or blocks.")
