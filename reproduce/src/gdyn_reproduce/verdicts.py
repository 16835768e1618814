"""Verdicts: claims judged by the measurements of a run.

A claim that holds has also been tried on a control, a run with the effect removed, which the same band
must reject; and its gates are open, so that a run that did not train confirms nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gdyn_common.errors import unknown
from gdyn_reproduce import intervals
from gdyn_reproduce.claims import Claim, Expected, Holds, Kind, Outcome, Registered, Scale, decide, scale_of
from gdyn_reproduce.intervals import Interval, Measured

Measurement = float | bool | Measured | Sequence[float] | Sequence[bool]


class MissingMetricError(ValueError):
    """A claim is judged by a measurement that the run did not make."""


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
        control: What the criterion said of the control.
        gated: Whether a gate failed.

    The others are those of its `Claim`.
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
    registered: Registered
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
    names = {item.name for item in fields(Verdict)} - {"control"}
    shared = {name: getattr(claim, name) for name in names if hasattr(claim, name)}
    known = interval is not None and not math.isnan(interval.estimate)
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
        control=control,
        gated=gated,
        **shared,
    )


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
        return decide(interval, low, high)
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
    low, high = claim.accept.bounds(claim.paper)
    return Refutation(
        metric=control.metric,
        removes=control.removes,
        values=values,
        interval=(interval.low, interval.high),
        # Where no chance is at work one value outside fails a claim; all must be outside to reject a control.
        rejected=_outcome(claim, values, interval) == decide(interval, low, high) == "fails",
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
