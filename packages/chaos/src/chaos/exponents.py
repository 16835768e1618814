"""Exponents of one step and of many, and the one rule for which of them are zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from chaos.o2grad import Eigenpairs
from chaos.o2grad.eigenpairs import ZERO_FACTOR
from gdyn_common.display import Axes, Figure, axes_for


def local_exponents(pairs: Eigenpairs, h: float) -> Float[Tensor, " n"]:
    """Exponents of one step, ``log|1 - h w_i|``, ascending; exact zeros included.

    Example:
        >>> pairs = Eigenpairs.of(torch.diag(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)))
        >>> local_exponents(pairs, 0.5).round(decimals=3).tolist()
        [-0.693, 0.0, 0.405]
    """
    local = torch.log1p(-h * pairs.values) if bool((h * pairs.values < 1).all()) else None
    if local is None:
        local = (1 - h * pairs.values).abs().log()
    return torch.cat([local, local.new_zeros(pairs.num_zero)]).sort().values


def resolution(dtype: torch.dtype, num_steps: int) -> float:
    """Relative to the largest, what T rounded products and a decomposition leave of a singular value.

    Example:
        >>> resolution(torch.float64, 4) / torch.finfo(torch.float64).eps
        64.0
    """
    return ZERO_FACTOR * float(torch.finfo(dtype).eps) * math.sqrt(max(num_steps, 1))


def snap_neutral(logs: Float[Tensor, " k"], num_steps: int, largest: float) -> Float[Tensor, " k"]:
    """Set logarithms of growth factors that are 1 up to rounding to exactly 0.

    A direction is neutral when ``|sigma - 1| <= 32 eps sqrt(T) sigma_max``: a decomposition finds singular
    values to a few ``eps sigma_max``, and T updates round T times, with random signs. This is the one rule
    by which directions count as expanding, contracting or neutral. Unresolved ones (``-inf``) stay.

    Args:
        logs: ``log sigma_i`` over T steps.
        num_steps: T.
        largest: ``sigma_max`` of the matrix that was decomposed.

    Example:
        >>> snap_neutral(torch.tensor([-1e-3, -1e-15, 3e-16, 2.0], dtype=torch.float64), 100, 7.4).tolist()
        [-0.001, 0.0, 0.0, 2.0]
    """
    tol = resolution(logs.dtype, num_steps) * max(largest, 1.0)
    return torch.where(logs.isfinite() & (logs.expm1().abs() <= tol), 0.0, logs)


@dataclass(frozen=True)
class Spectrum:
    """Finite-time exponents of a tangent matrix.

    Attributes:
        exponents: Per step, ascending; ``-inf`` where the growth is below what the type resolves, exactly 0
            where it is 1 up to rounding (:func:`snap_neutral`).
        num_unresolved: How many are ``-inf``.
        num_steps: T.
        method: ``"svd"`` (exact at T), or ``"qr"`` / ``"vectors"`` (equal to it in the limit only).
    """

    exponents: Tensor
    num_unresolved: int
    num_steps: int
    method: str

    def __repr__(self) -> str:
        largest = f" (largest {float(self.exponents[-1]):.4g} per step)" if len(self.exponents) else ""
        counts = f"{self.chaotic()} expanding, {self.edge()} neutral, {self.contracting()} contracting"
        return f"exponents of {self.num_steps} steps ({self.method}): {counts}{largest}"

    def chaotic(self) -> int:
        """Number of expanding directions."""
        return int((self.exponents > 0).sum())

    def contracting(self) -> int:
        """Number of contracting directions."""
        return int((self.exponents < 0).sum())

    def edge(self) -> int:
        """Number of neutral directions."""
        return int((self.exponents == 0).sum())

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the resolved exponents, the largest first, and return the figure.

        Args:
            axes: Axes of matplotlib to draw into; ``None`` makes a new figure.

        Example:
            >>> spectrum = Spectrum(torch.tensor([-0.2, 0.0, 0.1]), 0, 10, "svd")
            >>> spectrum
            exponents of 10 steps (svd): 1 expanding, 1 neutral, 1 contracting (largest 0.1 per step)
            >>> spectrum.plot().axes[0].get_title()
            '1 expanding, 1 neutral, 1 contracting'
        """
        axes = axes_for(axes)
        descending = self.exponents[self.exponents.isfinite()].flip(0)
        axes.plot(range(1, len(descending) + 1), descending.tolist(), ".")
        axes.axhline(0, color="0.5", linewidth=0.8)
        counts = f"{self.chaotic()} expanding, {self.edge()} neutral, {self.contracting()} contracting"
        axes.set(title=counts, xlabel="direction", ylabel="growth per step")
        return axes.figure


@dataclass(frozen=True)
class FiniteTimeExponents:
    """The leading exponents of T steps and their directions.

    Attributes:
        values: ``log sigma_i(Y) / T`` per step, the largest first (k,).
        start: Directions at time 0, right singular vectors as columns (n, k).
        end: Directions at time T, left singular vectors (n, k).
        residuals: ``|Y'Y v - sigma^2 v| / sigma_1^2`` for each; what is left to converge.
        num_steps: T.
    """

    values: Tensor
    start: Tensor
    end: Tensor
    residuals: Tensor
    num_steps: int

    def summary(self) -> str:
        """One line."""
        found = ", ".join(f"{value:.4g}" for value in self.values.tolist())
        worst = float(self.residuals.max())
        return f"finite-time exponents of {self.num_steps} steps: {found} per step (residual <= {worst:.0e})"

    __repr__ = summary

    def to_dict(self) -> dict[str, Any]:
        """Numbers without the directions."""
        return {
            "kind": "finite-time",
            "exponents": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "num_steps": self.num_steps,
        }


@dataclass(frozen=True)
class AsymptoticExponents:
    """Estimated rates of endless training.

    Attributes:
        values: Mean rate per step over the windows, the largest first (k,).
        standard_errors: Of these means, from the spread over windows; NaN for one window.
        windows: Rate in each window (w, k): convergence is seen here.
        num_steps: Steps that were counted.
        warm_up: Steps before that, in which the vectors turned.
    """

    values: Tensor
    standard_errors: Tensor
    windows: Tensor
    num_steps: int
    warm_up: int

    def summary(self) -> str:
        """One line."""
        pairs = zip(self.values.tolist(), self.standard_errors.tolist(), strict=True)
        found = ", ".join(f"{value:.4g} +- {error:.1g}" for value, error in pairs)
        return f"asymptotic exponents over {self.num_steps} steps: {found} per step"

    __repr__ = summary

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the rate of each direction in every window, with its mean, and return the figure.

        Args:
            axes: Axes of matplotlib to draw into; ``None`` makes a new figure.
        """
        axes = axes_for(axes)
        curves = zip(self.windows.T.tolist(), self.values.tolist(), strict=True)
        for number, (curve, mean) in enumerate(curves, 1):
            (line,) = axes.plot(range(1, len(curve) + 1), curve, "o-", label=f"exponent {number}")
            axes.axhline(mean, color=line.get_color(), linestyle="--", linewidth=0.8)
        axes.set(title="Exponents by window (dashed: mean)", xlabel="window", ylabel="growth per step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        return axes.figure

    def to_dict(self) -> dict[str, Any]:
        """Numbers, with every window."""
        return {
            "kind": "asymptotic",
            "exponents": self.values.tolist(),
            "standard_errors": self.standard_errors.tolist(),
            "windows": self.windows.tolist(),
            "num_steps": self.num_steps,
            "warm_up": self.warm_up,
        }
