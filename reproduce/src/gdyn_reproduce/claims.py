"""Claims of a paper, and the criteria that decide them.

A criterion is a band of accepted values. What is compared with it is not a mean but an interval that
covers the true value nine times in ten: inside the band the claim *holds*, outside it *fails*, and an
interval that reaches over an end leaves it *undecided*. Being better than the paper is a difference
too, so bands have two ends.
"""

from __future__ import annotations

import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gdyn_common.errors import unknown
from gdyn_reproduce import intervals
from gdyn_reproduce.intervals import Interval, Method
from gdyn_reproduce.spelling import spell_band

Kind = Literal["number", "statement", "check"]
Registered = Literal["before", "after"]
Expected = Literal["holds", "fails", "undecided"]
Outcome = Literal["holds", "fails", "undecided", "stale", "not judged here"]
Scale = Literal["paper size", "scaled", "smoke"]

KINDS: tuple[Kind, ...] = ("number", "statement", "check")
SCALES: tuple[Scale, ...] = ("paper size", "scaled")


class Criterion(ABC):
    """A band, and the statistic that is compared with it."""

    @abstractmethod
    def bounds(self, paper: float | str | None) -> tuple[float, float]:
        """Return the lower and the upper end of the band."""

    @abstractmethod
    def interval(self, values: Sequence[float]) -> Interval:
        """Return the interval of the judged statistic from measurements, one per seed."""

    def judge(self, values: Sequence[float], paper: float | str | None = None) -> Outcome:
        """Return the outcome for these values."""
        return decide(self.interval(values), *self.bounds(paper))

    def band(self, paper: float | str | None) -> str:
        """Return the accepted values in words, for tables."""
        return spell_band(*self.bounds(paper))


@dataclass(frozen=True)
class Between(Criterion):
    """The mean over seeds lies in ``[low, high]``; of truth values, the share of seeds that are true.

    Attributes:
        low: Lower end of the band.
        high: Upper end.
        by: How the interval is found; see `gdyn_reproduce.intervals.of_mean`.

    >>> Between(0.2, 2.0).judge([0.4, 0.6, 0.5])
    'holds'
    >>> Between(0.2, 2.0).judge([3.0, 3.1, 3.2])
    'fails'
    >>> Between(-1, 1).judge([-100, 100])
    'undecided'
    """

    low: float
    high: float
    by: Method = "t"

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Between needs low <= high, got {self.low} and {self.high}")
        if math.isinf(self.low) and math.isinf(self.high):
            raise ValueError("Between needs a finite end; a band that nothing can leave is no criterion")
        _check_method(self.by)

    def bounds(self, paper: float | str | None) -> tuple[float, float]:
        """Return both ends."""
        return self.low, self.high

    def interval(self, values: Sequence[float]) -> Interval:
        """Return the interval of the mean, the median, or the share of seeds."""
        if all(isinstance(value, bool) for value in values):
            return intervals.of_share(sum(map(bool, values)), len(values))
        return intervals.of_mean(values, self.by)


@dataclass(frozen=True)
class Within(Criterion):
    """The mean over seeds lies within a distance of the paper's value.

    Attributes:
        absolute: Distance in the unit of the value.
        relative: Distance as a share of the paper's value; the larger distance counts.
        by: As in `Between`.

    >>> Within(absolute=0.02).judge([0.85, 0.851], 0.86)
    'holds'
    >>> Within(relative=0.1).judge([1.2e7, 1.2001e7], 1.3e7)
    'holds'
    """

    absolute: float = 0.0
    relative: float = 0.0
    by: Method = "t"

    def __post_init__(self) -> None:
        distances = self.absolute, self.relative
        if not all(0 <= distance < math.inf for distance in distances) or not any(distances):
            raise ValueError("Within needs a positive absolute or relative distance, and a finite one")
        _check_method(self.by)

    def bounds(self, paper: float | str | None) -> tuple[float, float]:
        """Return the ends of the band around the paper's value."""
        if isinstance(paper, bool) or not isinstance(paper, int | float):
            raise TypeError(f"Within compares with the paper's number, but paper={paper!r}; use Between")
        width = max(self.absolute, self.relative * abs(paper))
        return paper - width, paper + width

    def interval(self, values: Sequence[float]) -> Interval:
        """Return the interval as `Between` does."""
        return Between(0, 0, self.by).interval(values)


def _check_method(name: str) -> None:
    if name not in (known := typing.get_args(Method)):
        raise ValueError(unknown("method", name, known))


@dataclass(frozen=True)
class Holds(Criterion):
    """The statement is true for more than a share of all seeds, those not tried included.

    Attributes:
        share: The share; five true seeds of five show that more than half of all are true, and one
            half is what a coin reaches. Nine tenths take 29 of 29.

    >>> Holds().judge([True] * 5), Holds().judge([True, True, False]), Holds().judge([False] * 5)
    ('holds', 'undecided', 'fails')
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"Holds needs a share between 0 and 1, got {self.share}")

    def bounds(self, paper: float | str | None) -> tuple[float, float]:
        """Return the accepted shares of seeds."""
        return self.share, 1.0

    def interval(self, values: Sequence[float]) -> Interval:
        """Return the exact binomial interval of the share of seeds that are true.

        Raises:
            TypeError: If the values are numbers instead of truth values.
        """
        if not all(isinstance(value, bool) for value in values):
            raise TypeError(f"Holds judges truth values, got {values[0]!r}; use Between for numbers")
        return intervals.of_share(sum(map(bool, values)), len(values))

    def band(self, paper: float | str | None) -> str:
        """Return the condition."""
        return f"true for more than {self.share:.4g} of all seeds"


def decide(interval: Interval, low: float, high: float) -> Outcome:
    """Return the outcome of an interval against a band."""
    if interval.problem:
        return "undecided"
    if low <= interval.low and interval.high <= high:
        return "holds"
    return "fails" if interval.high < low or interval.low > high else "undecided"


@dataclass(frozen=True)
class Control:
    """A run of the same code with the effect removed; the claim's criterion must reject it.

    Attributes:
        metric: Name of the measurement, made in the same run and stored in the same record.
        removes: What was removed and how, for example ``"labels shuffled"``.
        minus: What is subtracted seed by seed, instead of the claim's own `Claim.minus`.
        deterministic: As in `Claim`, for a control whose value no seed changes, such as an exact zero.
    """

    metric: str
    removes: str
    minus: str = ""
    deterministic: bool = False


@dataclass(frozen=True)
class Claim:
    """One checkable statement of a figure.

    Attributes:
        id: Unique within the paper; begins with the figure that measures it, for example
            ``"fig3.below-alpha-min"``.
        statement: The claim in words.
        source: Section, equation or figure that states it.
        metric: Name of the measurement that decides it.
        accept: The criterion, two-sided where it is a number.
        because: Why the criterion is as wide as it is.
        paper: The paper's own value, if it prints one.
        unit: Unit of the measurement.
        expected: The outcome we expect. A run that decides otherwise, in either direction, exits with 1.
        expected_because: Required when the expected outcome is not ``holds``.
        presets: The presets at which the claim is judged; empty means all but smoke.
        kind: ``number``: the paper prints a value. ``statement``: the paper says it in words.
            ``check``: our own, such as identities, null controls and tools. Claims of the paper are
            the first two. Not given, it is a ``number`` if `paper` is one and a ``statement`` else.
        registered_because: Required where claim and band were written after the first run that measured
            them: what was seen, and what was changed.
        control: What the criterion must reject; a claim of the paper has one, or `no_control`.
        no_control: Why no control can exist.
        requires: What must be true before anything is judged: metrics that are true for every seed,
            such as ``"trained"``, or ids of claims of the same figure that must hold.
        deterministic: The values would come out again bit for bit whatever the seed, so they need no
            interval: the claim holds if all lie in the band and fails otherwise.
        minus: A second metric, of the same seeds, that is subtracted seed by seed; the interval is
            that of the paired differences.
    """

    id: str
    statement: str
    source: str
    metric: str
    accept: Criterion
    because: str
    paper: float | str | None = None
    unit: str = ""
    expected: Expected = "holds"
    expected_because: str = ""
    presets: tuple[str, ...] = ()
    kind: Kind | None = None
    registered_because: str = ""
    control: Control | None = None
    no_control: str = ""
    requires: tuple[str, ...] = ()
    deterministic: bool = False
    minus: str = ""

    def __post_init__(self) -> None:
        if self.kind is None:
            number = isinstance(self.paper, int | float) and not isinstance(self.paper, bool)
            object.__setattr__(self, "kind", "number" if number else "statement")
        for name, allowed in (("kind", KINDS), ("expected", ("holds", "fails", "undecided"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"claim {self.id!r}: {unknown(name, str(getattr(self, name)), allowed)}")
        if self.expected != "holds" and not self.expected_because:
            raise ValueError(f"claim {self.id!r} expects {self.expected!r}; say why in expected_because")
        if self.kind == "number" and self.paper is None:
            raise ValueError(f"claim {self.id!r} is of kind 'number' but has no value of the paper")
        if self.control and self.no_control:
            raise ValueError(f"claim {self.id!r} has a control and a reason why none can exist; keep one")
        if not isinstance(self.requires, tuple):
            raise TypeError(f"claim {self.id!r}: requires is a tuple of names, not {self.requires!r}")

    @property
    def figure(self) -> str:
        """Id of the figure that measures it."""
        return self.id.partition(".")[0]

    @property
    def registered(self) -> Registered:
        """Whether claim and band were written before or after the first run that measured them."""
        return "after" if self.registered_because else "before"

    @property
    def needs_control(self) -> bool:
        """Whether this is a claim of the paper that nothing has tried to refute."""
        return self.kind != "check" and self.control is None and not self.no_control


def scale_of(word: str) -> Scale:
    """Return the scale for a word, those of earlier records included.

    Raises:
        ValueError: If the word is no scale.
    """
    earlier: dict[str, Scale] = {"paper": "paper size", "scaled down": "scaled"}
    for scale in (*SCALES, "smoke"):
        if earlier.get(word, word) == scale:
            return scale
    raise ValueError(unknown("scale", word, [*SCALES, "smoke"]))
