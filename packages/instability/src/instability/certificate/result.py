"""What survives of a score."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from gdyn_common.display import Shown

__all__ = ["COARSER", "Certificate", "Effect"]

COARSER = ("autocast", "tf32")
"""Conditions that are asked to compute less exactly; they do not count against the digits."""


@dataclass(frozen=True)
class Effect:
    """What one condition did.

    Attributes:
        condition: its name.
        score: the score of the run; NaN if it was not made.
        distance: average relative L1 between its final trained weights and the baseline's.
        skipped: why it was not made; empty if it was.
    """

    condition: str
    score: float
    distance: float
    skipped: str = ""

    def line(self) -> str:
        """Return the effect as a line of text."""
        found = f"score {self.score:.6g}, weights {self.distance:.2g} apart"
        return f"{self.condition}: " + (f"not run, {self.skipped}" if self.skipped else found)


@dataclass(frozen=True, repr=False)
class Certificate(Shown):
    """What survives of a score.

    Attributes:
        score: of the baseline.
        effects: one for each condition, the largest effect on the score first.
        culprit: what first gave other bits in a second run under the same conditions; empty if nothing did.
        batch_dependent: layers in which rounding of an example depends on the examples beside it.
        settings: dtype, threads, versions and flags.
    """

    score: float
    effects: tuple[Effect, ...]
    culprit: str
    batch_dependent: tuple[str, ...]
    settings: dict[str, Any] = field(repr=False)

    @property
    def repeatable(self) -> bool:
        """Whether a second run gave the same bits throughout."""
        return not self.culprit

    @property
    def digits(self) -> float:
        """Leading digits of the score that no condition moved.

        Infinite if the score never changed at all, NaN if no condition but coarser arithmetic was made.
        """
        made = [e.score for e in self.effects if not e.skipped and e.condition not in COARSER]
        if not made:
            return math.nan
        moved = max(abs(score - self.score) for score in made)
        if not all(map(math.isfinite, (*made, self.score))):
            return 0.0
        if moved == 0:
            return math.inf
        return float(max(0, math.floor(math.log10(max(abs(self.score), 1e-300) / moved))))

    def summary(self) -> str:
        """Return the certificate as a few lines of text."""
        if math.isnan(self.digits):
            digits = "no condition was made that could move it"
        elif self.digits < math.inf:
            digits = f"{self.digits:.0f} digit(s) significant"
        else:
            digits = "no condition moved it" + ("" if self.repeatable else ", but the weights differ")
        beside = ", ".join(self.batch_dependent) or "in no layer"
        return "\n".join(
            [
                f"score {self.score:.6g}: {digits}",
                "repeats bit for bit: " + ("yes" if self.repeatable else f"NO, first in {self.culprit}"),
                f"rounding of an example depends on those beside it: {beside}",
                *(effect.line() for effect in self.effects),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self) | {"digits": self.digits, "repeatable": self.repeatable}
