"""Claims of a paper, and the judgement of measurements against them.

A criterion is a band of accepted values. What is compared with it is not a mean but an interval that
covers the true value nine times in ten: inside the band the claim *holds*, outside it *fails*, and an
interval that reaches over an end leaves it *undecided*. Being better than the paper is a difference
too, so bands have two ends. A claim that holds has also been tried on a control, a run with the effect
removed, which the same band must reject.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from gdyn_common.errors import unknown
from gdyn_reproduce import intervals
from gdyn_reproduce.intervals import Interval, Measured, Method
from gdyn_reproduce.spelling import spell_band

Kind = Literal["number", "statement", "check"]
Registered = Literal["before", "after"]
Expected = Literal["holds", "fails", "undecided"]
Outcome = Literal["holds", "fails", "undecided", "stale", "not judged here"]
Scale = Literal["paper size", "scaled", "smoke"]
Measurement = float | bool | Measured | Sequence[float] | Sequence[bool]

KINDS: tuple[Kind, ...] = ("number", "statement", "check")
SCALES: tuple[Scale, ...] = ("paper size", "scaled")


class MissingMetricError(ValueError):
    """A claim is judged by a measurement that the run did not make."""


class Criterion(Protocol):
    """A band, and the statistic that is compared with it."""

    def bounds(self, paper: float | str | None) -> tuple[float, float]:
        """Return the lower and the upper end of the band."""
        ...

    def interval(self, values: Sequence[float]) -> Interval:
        """Return the interval of the judged statistic from measurements, one per seed."""
        ...

    def judge(self, values: Sequence[float], paper: float | str | None = None) -> Outcome:
        """Return the outcome for these values."""
        ...

    def band(self, paper: float | str | None) -> str:
        """Return the accepted values in words, for tables."""
        ...


@dataclass(frozen=True)
class Between:
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

    def bounds(self, paper: float | str | None) -> tuple[float, float]:
        """Return both ends."""
        return self.low, self.high

    def interval(self, values: Sequence[float]) -> Interval:
        """Return the interval of the mean, the median, or the share of seeds."""
        if all(isinstance(value, bool) for value in values):
            return intervals.of_share(sum(map(bool, values)), len(values))
        return intervals.of_mean(values, self.by)

    def judge(self, values: Sequence[float], paper: float | str | None = None) -> Outcome:
        """Return the outcome for measurements, one per seed."""
        return _decide(self.interval(values), *self.bounds(paper))

    def band(self, paper: float | str | None) -> str:
        """Return the band."""
        return spell_band(self.low, self.high)


@dataclass(frozen=True)
class Within:
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
        if min(self.absolute, self.relative) < 0 or self.absolute == self.relative == 0:
            raise ValueError("Within needs a positive absolute or relative distance")

    def bounds(self, paper: float | str | None) -> tuple[float, float]:
        """Return the ends of the band around the paper's value."""
        if isinstance(paper, bool) or not isinstance(paper, int | float):
            raise TypeError(f"Within compares with the paper's number, but paper={paper!r}; use Between")
        width = max(self.absolute, self.relative * abs(paper))
        return paper - width, paper + width

    def interval(self, values: Sequence[float]) -> Interval:
        """Return the interval as `Between` does."""
        return Between(0, 0, self.by).interval(values)

    def judge(self, values: Sequence[float], paper: float | str | None = None) -> Outcome:
        """Return the outcome for measurements, one per seed."""
        return _decide(self.interval(values), *self.bounds(paper))

    def band(self, paper: float | str | None) -> str:
        """Return the band around the paper's value."""
        return spell_band(*self.bounds(paper))


@dataclass(frozen=True)
class Holds:
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

    def judge(self, values: Sequence[float], paper: float | str | None = None) -> Outcome:
        """Return the outcome for truth values, one per seed."""
        return _decide(self.interval(values), *self.bounds(paper))

    def band(self, paper: float | str | None) -> str:
        """Return the condition."""
        return f"true for more than {self.share:.4g} of all seeds"


def _decide(interval: Interval, low: float, high: float) -> Outcome:
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
        id: Unique within the paper, for example ``"fig3.below-alpha-min"``.
        figure: Id of the figure that measures it.
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
        registered: Whether claim and band were written ``before`` or ``after`` the first run that
            measured them; not given, it is shown as not stated.
        registered_because: Required with ``after``: what was seen, and what was changed.
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
    figure: str
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
    registered: Registered | None = None
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
        for name, allowed in (
            ("kind", KINDS),
            ("registered", ("before", "after", None)),
            ("expected", ("holds", "fails", "undecided")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"claim {self.id!r}: {unknown(name, str(getattr(self, name)), [a for a in allowed if a])}"
                )
        if self.expected != "holds" and not self.expected_because:
            raise ValueError(f"claim {self.id!r} expects {self.expected!r}; say why in expected_because")
        if self.registered == "after" and not self.registered_because:
            raise ValueError(f"claim {self.id!r} was registered after a run; say why in registered_because")
        if self.kind == "number" and self.paper is None:
            raise ValueError(f"claim {self.id!r} is of kind 'number' but has no value of the paper")
        if self.control and self.no_control:
            raise ValueError(f"claim {self.id!r} has a control and a reason why none can exist; keep one")
        if not isinstance(self.requires, tuple):
            raise TypeError(f"claim {self.id!r}: requires is a tuple of names, not {self.requires!r}")

    @property
    def needs_control(self) -> bool:
        """Whether this is a claim of the paper that nothing has tried to refute."""
        return self.kind != "check" and self.control is None and not self.no_control


@dataclass(frozen=True)
class Refutation:
    """What the criterion said of a control.

    Attributes:
        metric: Name of the control's measurement.
        removes: What was removed and how.
        values: The control's measurements.
        interval: Ends of its interval.
        rejected: Whether the interval lies outside the band.
    """

    metric: str
    removes: str
    values: tuple[float, ...]
    interval: tuple[float, float]
    rejected: bool


@dataclass(frozen=True)
class Verdict:
    """A claim, judged, with everything a reader needs to check the judgement.

    Attributes:
        claim: Id of the claim.
        outcome: ``holds``, ``fails``, ``undecided``, ``not judged here`` (a smoke run, or a preset the
            claim is not about), or ``stale`` (measured by other code than today's).
        reason: Why it is undecided, stale or not judged here.
        scale: ``paper size``, ``scaled`` or ``smoke``.
        values: The measurements, one per seed; empty if not measured.
        estimate: The judged statistic; ``None`` where nothing was judged.
        interval: Ends of its interval; infinite where it has none.
        method: How the interval was found.
        low: Lower end of the band.
        high: Upper end of the band.
        band: The accepted values in words.
        kind: As in `Claim`.
        registered: As in `Claim`.
        registered_because: As in `Claim`.
        statement: The claim in words.
        source: Where the paper states it.
        paper: The paper's own value, if it prints one.
        unit: Unit of value and band.
        because: Why the band is as wide as it is.
        expected: The registered expectation.
        expected_because: Its reason, where it is not ``holds``.
        control: What the criterion said of the control.
        no_control: Why no control can exist.
        requires: The gates.
        gated: Whether a gate failed.
    """

    claim: str
    outcome: Outcome
    reason: str
    scale: Scale
    values: tuple[float, ...]
    estimate: float | None
    interval: tuple[float, float]
    method: str
    low: float
    high: float
    band: str
    kind: Kind
    registered: Registered | None
    registered_because: str
    statement: str
    source: str
    paper: float | str | None
    unit: str
    because: str
    expected: Expected
    expected_because: str
    control: Refutation | None
    no_control: str
    requires: tuple[str, ...]
    gated: bool

    @property
    def as_expected(self) -> bool:
        """Whether nothing contradicts the registered expectation.

        A verdict that decides otherwise does, in either direction, and so does a gate that fails. Too
        few seeds to decide contradict nothing.
        """
        if self.outcome == "undecided":
            return not self.gated or self.expected == "undecided"
        return self.outcome not in ("holds", "fails") or self.outcome == self.expected


def judge_all(
    claims: Sequence[Claim], measurements: Mapping[str, Measurement], *, scale: str, preset: str
) -> list[Verdict]:
    """Judge claims of one figure by the measurements of one run.

    Args:
        claims: The registered claims.
        measurements: By name: a number, a truth value, one of these per seed, or a `Measured`.
        scale: Scale of the preset that was run.
        preset: Name of the preset that was run.

    Returns:
        One verdict per claim, in order.

    Raises:
        MissingMetricError: If a claim that is judged here names a measurement that was not made.
        TypeError: If a measurement is neither a number nor a truth value.
        ValueError: If paired metrics have different numbers of seeds, or claims require each other.
    """
    judged: dict[str, Verdict] = {}
    by_id = {claim.id: claim for claim in claims}

    def verdict(claim: Claim, path: tuple[str, ...] = ()) -> Verdict:
        if claim.id in path:
            raise ValueError(f"claims require each other: {' -> '.join((*path, claim.id))}")
        if claim.id not in judged:
            others = {
                name: verdict(by_id[name], (*path, claim.id)) for name in claim.requires if name in by_id
            }
            judged[claim.id] = judge(claim, measurements, scale=scale, preset=preset, others=others)
        return judged[claim.id]

    return [verdict(claim) for claim in claims]


def judge(
    claim: Claim,
    measurements: Mapping[str, Measurement],
    *,
    scale: str,
    preset: str,
    others: Mapping[str, Verdict] | None = None,
) -> Verdict:
    """Judge one claim; see `judge_all`.

    Args:
        claim: The registered claim.
        measurements: All measurements of the run, by name.
        scale: Scale of the preset that was run.
        preset: Name of the preset that was run.
        others: Verdicts of the claims that this one requires, by id.
    """
    size = scale_of(scale)
    if size == "smoke" or (claim.presets and preset not in claim.presets):
        where = "a smoke run judges nothing" if size == "smoke" else f"judged at {', '.join(claim.presets)}"
        known = measurements.get(claim.metric)
        values = () if known is None else _values(claim.metric, known)
        return make_verdict(claim, "not judged here", where, size, values)
    values, interval = _measure(claim, claim.metric, measurements)
    outcome = _outcome(claim, values, interval)
    control = _refute(claim, measurements)
    closed = _closed_gate(claim, measurements, others or {})
    reason = interval.problem
    if closed:
        outcome, reason = "undecided", closed
    elif outcome == "undecided" and not reason:
        reason = "the interval reaches over an end of the band"
    elif outcome == "holds" and control and not control.rejected:
        outcome, reason = "undecided", f"the criterion does not reject its control ({control.removes})"
    elif outcome == "holds" and claim.needs_control:
        outcome, reason = "undecided", "it was not tried on a control"
    return make_verdict(
        claim, outcome, reason, size, values, interval=interval, control=control, gated=bool(closed)
    )


def make_verdict(
    claim: Claim,
    outcome: Outcome,
    reason: str,
    scale: Scale,
    values: tuple[float, ...] = (),
    *,
    interval: Interval | None = None,
    control: Refutation | None = None,
    gated: bool = False,
) -> Verdict:
    """Return a verdict with everything that it takes from its claim."""
    low, high = claim.accept.bounds(claim.paper)
    known = interval is not None and not math.isnan(interval.estimate)
    assert claim.kind is not None
    return Verdict(
        claim=claim.id,
        outcome=outcome,
        reason=reason,
        scale=scale,
        values=values,
        estimate=interval.estimate if interval and known else None,
        interval=(interval.low, interval.high) if interval else (-math.inf, math.inf),
        method=interval.method if interval else "",
        low=low,
        high=high,
        band="true"
        if claim.deterministic and isinstance(claim.accept, Holds)
        else claim.accept.band(claim.paper),
        kind=claim.kind,
        registered=claim.registered,
        registered_because=claim.registered_because,
        statement=claim.statement,
        source=claim.source,
        paper=claim.paper,
        unit=claim.unit,
        because=claim.because,
        expected=claim.expected,
        expected_because=claim.expected_because,
        control=control,
        no_control=claim.no_control,
        requires=claim.requires,
        gated=gated,
    )


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


def _measure(
    claim: Claim, metric: str, measurements: Mapping[str, Measurement]
) -> tuple[tuple[float, ...], Interval]:
    """Return the values of a metric, or its paired differences, with their interval."""
    measured = _find(claim, metric, measurements)
    if isinstance(measured, Measured):
        if claim.minus or claim.deterministic:
            raise ValueError(f"claim {claim.id!r}: {metric!r} brings its own error; it is one single value")
        return (measured.value,), intervals.of_measured(
            measured.value, measured.standard_error, measured.degrees
        )
    values = _values(metric, measured)
    if claim.minus:
        second = _find(claim, claim.minus, measurements)
        other = () if isinstance(second, Measured) else _values(claim.minus, second)
        if len(values) != len(other):
            raise ValueError(
                f"claim {claim.id!r} pairs {metric!r} with {claim.minus!r} seed by seed, but they have "
                f"{len(values)} and {len(other)} values"
            )
        values = tuple(float(one) - float(two) for one, two in zip(values, other, strict=True))
    return values, intervals.of_exact(values) if claim.deterministic else claim.accept.interval(values)


def _outcome(claim: Claim, values: tuple[float, ...], interval: Interval) -> Outcome:
    low, high = claim.accept.bounds(claim.paper)
    if not claim.deterministic:
        return _decide(interval, low, high)
    if isinstance(claim.accept, Holds):
        claim.accept.interval(values)  # refuses numbers
        return "holds" if all(values) else "fails"
    return "holds" if all(low <= value <= high and math.isfinite(value) for value in values) else "fails"


def _refute(claim: Claim, measurements: Mapping[str, Measurement]) -> Refutation | None:
    """Judge the control as if it were the measurement."""
    if claim.control is None:
        return None
    control = claim.control
    claim = replace(
        claim,
        minus=control.minus or claim.minus,
        deterministic=control.deterministic or claim.deterministic,
    )
    values, interval = _measure(claim, control.metric, measurements)
    return Refutation(
        metric=control.metric,
        removes=control.removes,
        values=values,
        interval=(interval.low, interval.high),
        rejected=_outcome(claim, values, interval) == "fails" and not interval.problem,
    )


def _closed_gate(claim: Claim, measurements: Mapping[str, Measurement], others: Mapping[str, Verdict]) -> str:
    """Return why nothing can be judged; empty if every gate is open."""
    for name in claim.requires:
        if name in others:
            if others[name].outcome != "holds":
                return f"it requires {name}, which is {others[name].outcome}"
            continue
        measured = _find(claim, name, measurements)
        values = () if isinstance(measured, Measured) else _values(name, measured)
        if not values or not all(isinstance(value, bool) for value in values):
            raise TypeError(f"claim {claim.id!r} requires {name!r}, which is no truth value")
        if not all(values):
            true = f"true for {int(sum(values))} of {len(values)} seeds" if len(values) > 1 else "false"
            return f"it requires {name!r}, which is {true}"
    return ""


def _find(claim: Claim, metric: str, measurements: Mapping[str, Measurement]) -> Measurement:
    if metric not in measurements:
        message = unknown("metric", metric, measurements)
        raise MissingMetricError(f"claim {claim.id!r} cannot be judged. {message}")
    return measurements[metric]


def _values(metric: str, measured: Any) -> tuple[float, ...]:
    """Return measurements as plain numbers and truth values, one per seed."""
    if isinstance(measured, Measured):
        return (measured.value,)
    if hasattr(measured, "tolist"):  # arrays and scalars of NumPy
        measured = measured.tolist()
    items: Iterable[Any] = measured if isinstance(measured, list | tuple) else (measured,)
    values: list[float] = []
    for item in items:
        value = item.tolist() if hasattr(item, "tolist") else item
        if isinstance(value, bool):
            values.append(value)
        elif isinstance(value, int | float):
            values.append(float(value))
        else:
            raise TypeError(f"metric {metric!r} holds {value!r}; it must be a number or a truth value")
    if not values:
        raise MissingMetricError(f"metric {metric!r} holds no value")
    if len({isinstance(value, bool) for value in values}) > 1:
        raise TypeError(f"metric {metric!r} mixes numbers and truth values")
    return tuple(values)
