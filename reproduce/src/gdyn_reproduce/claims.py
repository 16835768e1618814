"""Claims of a paper, and the judgement of a measurement against one, two-sided.

A criterion says which outcomes a list of measurements (one per seed) allows. Being better than the
paper is a difference too, so numeric criteria have an upper and a lower end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Outcome = Literal["holds", "partly", "fails", "not run"]
Scale = Literal["paper", "scaled down", "smoke"]
Measurement = float | bool | Sequence[float] | Sequence[bool]


class Criterion(Protocol):
    """Decides the outcome of a claim from its measurements, one per seed."""

    def judge(self, values: Sequence[float], paper: float | str | None) -> Outcome:
        """Return the outcome for these values."""
        ...

    def band(self, paper: float | str | None) -> str:
        """Return the accepted values in words, for tables."""
        ...


@dataclass(frozen=True)
class Between:
    """The mean over seeds lies in ``[low, high]``.

    >>> Between(0.2, 2.0).judge([0.4, 0.6], None)
    'holds'
    >>> Between(0.2, 2.0).judge([3.0], None)
    'fails'
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Between needs low <= high, got {self.low} and {self.high}")

    def judge(self, values: Sequence[float], paper: float | str | None) -> Outcome:
        """Return ``holds`` if the mean is inside, else ``partly`` if at least half the seeds are."""
        mean = math.fsum(values) / len(values)
        if self.low <= mean <= self.high:
            return "holds"
        inside = sum(self.low <= value <= self.high for value in values)
        return "partly" if 2 * inside >= len(values) else "fails"

    def band(self, paper: float | str | None) -> str:
        """Return the interval."""
        return f"{self.low:.7g} to {self.high:.7g}"


@dataclass(frozen=True)
class Within:
    """The mean over seeds lies within a distance of the paper's value.

    >>> Within(absolute=0.02).judge([0.85], 0.86)
    'holds'
    >>> Within(relative=0.1).judge([1.2e7], 1.3e7)
    'holds'
    """

    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        if min(self.absolute, self.relative) < 0 or self.absolute == self.relative == 0:
            raise ValueError("Within needs a positive absolute or relative distance")

    def judge(self, values: Sequence[float], paper: float | str | None) -> Outcome:
        """Return the outcome of the interval around the paper's value."""
        return self._interval(paper).judge(values, paper)

    def band(self, paper: float | str | None) -> str:
        """Return the interval around the paper's value."""
        return self._interval(paper).band(paper)

    def _interval(self, paper: float | str | None) -> Between:
        if not isinstance(paper, int | float):
            raise TypeError(f"Within compares with the paper's number, but paper={paper!r}; use Between")
        width = max(self.absolute, self.relative * abs(paper))
        return Between(paper - width, paper + width)


@dataclass(frozen=True)
class Holds:
    """The statement is true for every seed.

    >>> Holds().judge([True, True, False], None)
    'partly'
    """

    def judge(self, values: Sequence[float], paper: float | str | None) -> Outcome:
        """Return ``holds`` if all are true, ``partly`` if more than half are, else ``fails``."""
        true = sum(bool(value) and not math.isnan(value) for value in values)
        if true == len(values):
            return "holds"
        return "partly" if 2 * true > len(values) else "fails"

    def band(self, paper: float | str | None) -> str:
        """Return the condition."""
        return "true for every seed"


@dataclass(frozen=True)
class Claim:
    """One checkable statement of a figure, registered before the figure is run.

    Attributes:
        id: Unique within the paper, for example ``"fig3.below-alpha-min"``.
        figure: Id of the figure that measures it.
        statement: The claim in words.
        source: Section, equation or figure that states it.
        metric: Name of the measurement that decides it.
        accept: The criterion, two-sided where it is a number.
        because: Why the criterion is as wide as it is.
        paper: The paper's own value, if it prints one.
        unit: Unit of the measurement.
        expected: The outcome we expect. A run whose outcome differs, in either direction, exits with 1.
        expected_because: Required when the expected outcome is not ``holds``.
        presets: The presets at which the claim is judged; empty means all but smoke.
    """

    id: str
    figure: str
    statement: str
    source: str
    metric: str
    accept: Criterion
    because: str
    paper: float | str | None = None
    unit: str = ""
    expected: Outcome = "holds"
    expected_because: str = ""
    presets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.expected != "holds" and not self.expected_because:
            raise ValueError(f"claim {self.id!r} expects {self.expected!r}; say why in expected_because")


@dataclass(frozen=True)
class Verdict:
    """A claim, judged, with everything a reader needs to check the judgement.

    Attributes:
        claim: Id of the claim.
        outcome: ``holds``, ``partly``, ``fails`` or ``not run``.
        scale: ``paper``, ``scaled down`` or ``smoke``.
        values: The measurements, one per seed; empty if not measured.
        band: The accepted values in words.
        statement: The claim in words.
        source: Where the paper states it.
        paper: The paper's own value, if it prints one.
        unit: Unit of value and band.
        because: Why the band is as wide as it is.
        expected: The registered expectation.
        expected_because: Its reason, where it is not ``holds``.
    """

    claim: str
    outcome: Outcome
    scale: Scale
    values: tuple[float, ...]
    band: str
    statement: str
    source: str
    paper: float | str | None
    unit: str
    because: str
    expected: Outcome
    expected_because: str

    @property
    def as_expected(self) -> bool:
        """Whether the outcome is the registered one; a claim that was not run surprises nobody."""
        return self.outcome in (self.expected, "not run")


def judge(claim: Claim, measurement: Measurement | None, *, scale: Scale, preset: str) -> Verdict:
    """Judge one claim.

    Args:
        claim: The registered claim.
        measurement: A number, a truth value, or one of these per seed; ``None`` if it was not measured.
        scale: Scale of the preset that was run.
        preset: Name of the preset that was run.

    Returns:
        The verdict; ``not run`` for smoke runs, for presets the claim is not about, and without
        a measurement.
    """
    values = () if measurement is None else _as_tuple(measurement)
    about_this_preset = not claim.presets or preset in claim.presets
    if not values or scale == "smoke" or not about_this_preset:
        outcome: Outcome = "not run"
    elif any(math.isnan(value) for value in values):
        outcome = "fails"
    else:
        outcome = claim.accept.judge(values, claim.paper)
    return Verdict(
        claim=claim.id,
        outcome=outcome,
        scale=scale,
        values=values,
        band=claim.accept.band(claim.paper),
        statement=claim.statement,
        source=claim.source,
        paper=claim.paper,
        unit=claim.unit,
        because=claim.because,
        expected=claim.expected,
        expected_because=claim.expected_because,
    )


def _as_tuple(measurement: Measurement) -> tuple[float, ...]:
    values = measurement if isinstance(measurement, Sequence) else (measurement,)
    return tuple(value if isinstance(value, bool) else float(value) for value in values)
