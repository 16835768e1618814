"""Exponents with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gdyn_common.display import Axes, Figure, axes_for

__all__ = ["LyapunovExponents"]


@dataclass(frozen=True)
class LyapunovExponents:
    """The leading exponents of a run, in log units per step.

    Attributes:
        exponents: mean growth of each direction per step, largest first; positive: rounding is amplified.
        error: standard error of each, from the means over windows of the run; NaN with fewer than two.
        growth: log growth of each direction in each step after the transient.
        exact: whether every tangent was exact; else some are central differences.
        state: the state after the last step.
    """

    exponents: Float[np.ndarray, "k"]
    error: Float[np.ndarray, "k"]
    growth: Float[np.ndarray, "step k"] = field(repr=False)
    exact: bool
    state: dict[str, Tensor] = field(repr=False)

    def __repr__(self) -> str:
        return self.summary()

    @property
    def amplifies(self) -> bool | None:
        """Whether the largest exponent is positive; ``None`` if two standard errors do not tell."""
        largest, error = float(self.exponents[0]), float(self.error[0])
        if largest == -math.inf:  # a direction that a step annihilates never comes back
            return False
        return largest > 0 if abs(largest) > 2 * error else None

    def summary(self) -> str:
        """Return the result as a few lines of text."""
        verdict = {
            True: "rounding errors grow",
            False: "rounding errors are forgotten",
            None: "undecided: take more steps",
        }[self.amplifies]
        tangent = "exact tangent" if self.exact else "tangent by central differences"
        lines = [f"{len(self.growth)} steps, {tangent}: {verdict}"]
        for number, (value, error) in enumerate(zip(self.exponents, self.error, strict=True), 1):
            lines.append(f"exponent {number}: {value:+.4g} +- {error:.2g} per step")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the exponents with their errors as plain data."""
        return {
            "exponents": self.exponents.tolist(),
            "error": self.error.tolist(),
            "steps": len(self.growth),
            "exact": self.exact,
        }

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw each exponent as it settles with the number of steps averaged, and return the figure.

        Args:
            axes: axes of matplotlib to draw into; ``None`` makes a new figure.
        """
        axes = axes_for(axes)
        steps = np.arange(1, len(self.growth) + 1)
        for number, curve in enumerate((np.cumsum(self.growth, axis=0) / steps[:, None]).T, 1):
            axes.plot(steps, curve, label=f"exponent {number}")
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set(title="Lyapunov exponents", xlabel="steps averaged", ylabel="growth per step")
        axes.legend()
        return axes.figure
