"""Eigenpairs of a symmetric matrix with an explicit null space, and the one rule for what is zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from chaos.o2grad.budget import check_budget
from chaos.o2grad.frames import Frame, IdentityFrame
from chaos.o2grad.observation import full_precision
from chaos.o2grad.parameters import ParameterLayout, all_finite
from gdyn_common.display import Axes, Figure, axes_for

#: An eigenvalue is zero when |w| <= ZERO_FACTOR * eps * max|w|. Rounding leaves exact zeros at 1.5 eps max|w|
#: (float32, n = 5350), so this keeps a factor of twenty.
ZERO_FACTOR = 32.0


def zero_tolerance(values: Tensor) -> float:
    """Magnitude below which an eigenvalue of the set counts as zero.

    Example:
        >>> values = torch.tensor([-1.0, 2.0], dtype=torch.float64)
        >>> zero_tolerance(values) == 64 * torch.finfo(torch.float64).eps
        True
    """
    if values.numel() == 0:
        return 0.0
    return ZERO_FACTOR * torch.finfo(values.dtype).eps * float(values.abs().max())


@dataclass(frozen=True)
class Eigenpairs:
    """Non-null eigenpairs of an n x n symmetric matrix and the multiplicity of its null space.

    ``A = V diag(w) V'`` with V (n x m). V is held in the coordinates of a frame and expanded on demand;
    nothing here forms n x n vectors except :meth:`dense`.

    Attributes:
        values: w, ascending, all with ``|w| > tol``.
        core_vectors: Eigenvectors in the coordinates of ``frame``, columns, shape (r, m).
        frame: Maps coordinates to parameter space.
        tol: Tolerance of the zero rule that was applied.
        layout: Names and positions of the parameters, if they are those of a Hessian.

    Example:
        >>> pairs = Eigenpairs.of(torch.diag(torch.tensor([0.0, -1.0, 3.0], dtype=torch.float64)))
        >>> pairs
        eigenpairs of 3: 1 positive (largest 3), 1 negative (least -1), 1 zero
        >>> pairs.values.tolist(), pairs.num_zero
        ([-1.0, 3.0], 1)
        >>> pairs.project(torch.ones(3, dtype=torch.float64), keep=pairs.positive()).abs().tolist()
        [0.0, 0.0, 1.0]
    """

    values: Tensor
    core_vectors: Tensor
    frame: Frame
    tol: float
    layout: ParameterLayout | None = None

    def __repr__(self) -> str:
        positive, negative = int(self.positive().sum()), int(self.negative().sum())
        largest = f" (largest {float(self.values[-1]):.4g})" if positive else ""
        least = f" (least {float(self.values[0]):.4g})" if negative else ""
        counts = f"{positive} positive{largest}, {negative} negative{least}, {self.num_zero} zero"
        return f"eigenpairs of {self.n}: {counts}"

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the eigenvalues in ascending order, symmetric-logarithmic, and return the figure.

        Args:
            axes: Axes of matplotlib to draw into; ``None`` makes a new figure.
        """
        axes = axes_for(axes)
        axes.plot(range(1, len(self.values) + 1), self.values.tolist(), ".")
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set_yscale("symlog", linthresh=max(float(self.values.abs().max()) * 1e-4, 1e-300))
        axes.set(title=f"Spectrum, {self.num_zero} zeros left out", xlabel="direction", ylabel="eigenvalue")
        return axes.figure

    @classmethod
    def of(cls, matrix: Float[Tensor, "r r"], frame: Frame | None = None) -> Eigenpairs:
        """Diagonalise a symmetric matrix (in frame coordinates) and apply the zero rule.

        Rows and columns that are zero throughout are null directions by construction and are not passed
        to the eigensolver.

        Raises:
            FloatingPointError: If the matrix holds NaN or infinity.
        """
        frame = IdentityFrame(len(matrix)) if frame is None else frame
        _check_finite(matrix)
        active = matrix.abs().amax(dim=1) > 0
        if bool(active.all()):
            values, vectors = torch.linalg.eigh(matrix)
        else:
            index = active.nonzero()[:, 0]
            values, small = torch.linalg.eigh(matrix[index][:, index])
            vectors = matrix.new_zeros(len(matrix), len(index))
            vectors[index] = small
        return cls.from_pairs(values, vectors, frame)

    @classmethod
    def from_pairs(cls, values: Tensor, vectors: Tensor, frame: Frame | None = None) -> Eigenpairs:
        """Take eigenvalues and orthonormal columns as they come, sort them and drop the zeros."""
        frame = IdentityFrame(len(vectors)) if frame is None else frame
        _check_finite(values)
        tol = zero_tolerance(values)
        keep = values.abs() > tol
        if not bool(keep.all()):
            values, vectors = values[keep], vectors[:, keep]
        if bool((values[1:] < values[:-1]).any()):
            order = values.argsort()
            values, vectors = values[order], vectors[:, order]
        return cls(values, vectors, frame, tol)

    @property
    def n(self) -> int:
        """Dimension of the parameter space."""
        return self.frame.n

    @property
    def num_zero(self) -> int:
        """Multiplicity of the null space."""
        return self.n - len(self.values)

    @cached_property
    @full_precision()
    def vectors(self) -> Float[Tensor, "n m"]:
        """Eigenvectors as columns, in the order of ``values``."""
        return self.frame.expand(self.core_vectors)

    def positive(self) -> Bool[Tensor, " m"]:
        """Mask of positive eigenvalues."""
        return self.values > 0

    def negative(self) -> Bool[Tensor, " m"]:
        """Mask of negative eigenvalues."""
        return self.values < 0

    def chaotic(self, h: float) -> Bool[Tensor, " m"]:
        """Mask of directions that one step of size h expands: (1 - h w)^2 > 1, tested on w.

        Source: Sec. 2 of the paper; in float32 the square cannot see |w| < 6e-5 at h = 1e-3.
        """
        return (self.values < 0) | (self.values > 2 / h)

    @full_precision()
    def coefficients(self, v: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Components ``V' v``."""
        return self.core_vectors.T @ self.frame.restrict(v[:, None])[:, 0]

    @full_precision()
    def combine(self, coefficients: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """The vector ``V c``."""
        return self.frame.expand((self.core_vectors @ coefficients)[:, None])[:, 0]

    def project(
        self, v: Float[Tensor, " n"], keep: Bool[Tensor, " m"], *, keep_null: bool = False
    ) -> Float[Tensor, " n"]:
        """Orthogonal projection onto the kept eigenvectors, and the null space if asked."""
        coefficients = self.coefficients(v)
        if keep_null:
            return v - self.combine(torch.where(keep, 0.0, coefficients))
        return self.combine(torch.where(keep, coefficients, 0.0))

    def apply(self, function: Callable[[Tensor], Tensor], v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The matrix function ``f(A) v = V f(w) V' v + f(0) (v - V V' v)``."""
        at_zero = function(self.values.new_zeros(1))[0]
        return at_zero * v + self.combine((function(self.values) - at_zero) * self.coefficients(v))

    def all_values(self) -> Float[Tensor, " n"]:
        """All n eigenvalues, ascending, with the exact zeros in place."""
        return torch.cat([self.values, self.values.new_zeros(self.num_zero)]).sort().values

    def dense(self) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
        """All n pairs, ascending; the null space gets an arbitrary orthonormal basis (n x n memory).

        Raises:
            ValueError: If the vectors exceed the default memory budget.
        """
        instead = "Use values, vectors and num_zero, which leave the null space out."
        check_budget(self.n, self.n, self.values.dtype, instead=instead)
        m = len(self.values)
        completion = torch.linalg.qr(self.vectors, mode="complete").Q[:, m:]
        values = torch.cat([self.values, self.values.new_zeros(self.num_zero)])
        order = values.argsort(stable=True)
        return values[order], torch.cat([self.vectors, completion], dim=1)[:, order]


def _check_finite(numbers: Tensor) -> None:
    if not all_finite(numbers):
        raise FloatingPointError("The matrix holds NaN or infinity, so it has no eigenvalues.")
