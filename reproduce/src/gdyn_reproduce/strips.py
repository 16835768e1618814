"""Band strips: one line of a report that shows where a measurement lies in its accepted band.

A strip is a small SVG, drawn with the colours of the page around it: the band as a shade, the paper's
value as a diamond, our seeds as dots, the interval as a bar, the control as crosses. Written by hand
since a page holds hundreds of them; a picture of matplotlib's takes a hundred times the bytes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gdyn_reproduce.spelling import spell_number
from gdyn_reproduce.verdicts import Verdict

WIDTH, HEIGHT, MARGIN = 360, 54, 14
_LINE = 22  # where the marks stand
_DECADES = 2.0  # a strip whose numbers span more is logarithmic


@dataclass(frozen=True)
class _Axis:
    """Maps numbers to places on the strip; numbers beyond its ends stand at the ends."""

    low: float
    high: float
    logarithmic: bool

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value = math.log10(value) if value > 0 else -math.inf
            low, high = math.log10(low), math.log10(high)
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def band_strip(verdict: Verdict) -> str:
    """Return the strip of a verdict as SVG, or nothing where there is no number to place.

    Truth values are placed as their share.
    """
    values = _numbers(verdict.values)
    if not values or verdict.outcome == "not judged here":
        return ""
    shares = all(isinstance(value, bool) for value in verdict.values)
    dots = [sum(values) / len(values)] if shares else values
    paper = None if isinstance(verdict.paper, str | None) else float(verdict.paper)
    control = _numbers(verdict.control.values) if verdict.control else []
    if shares and control:
        control = [sum(control) / len(control)]
    axis = _axis(verdict, [*dots, *([paper] if paper is not None else [])], control)
    left, right = axis.place(verdict.low), axis.place(verdict.high)
    parts = [
        f'<line class="rail" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{_LINE}" y2="{_LINE}"/>',
        f'<rect class="band" x="{left}" y="6" width="{max(right - left, 2):.1f}" height="32" rx="3"/>',
        *(_label(end, axis, verdict) for end in (verdict.low, verdict.high)),
    ]
    if all(map(math.isfinite, verdict.interval)) and verdict.interval[0] < verdict.interval[1]:
        a, b = (axis.place(end) for end in verdict.interval)
        parts.append(f'<line class="interval" x1="{a}" x2="{b}" y1="{_LINE}" y2="{_LINE}"/>')
    parts += [_cross(axis, value) for value in control[:20]]
    parts += [_dot(axis, value) for value in dots[:60]]
    if paper is not None:
        x = axis.place(paper)
        parts.append(f'<path class="paper" d="M{x} 2l5 6-5 6-5-6z"><title>paper: {paper:g}</title></path>')
    name = html.escape(_in_words(verdict, dots, paper))
    body = "".join(parts)
    return f'<svg class="strip" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{body}</svg>'


def _axis(verdict: Verdict, shown: Sequence[float], control: Sequence[float]) -> _Axis:
    """Return an axis that holds the band, what was measured and the paper's value, and nearby controls."""
    ends = [end for end in (verdict.low, verdict.high) if math.isfinite(end)]
    interval = [end for end in verdict.interval if math.isfinite(end)]
    numbers = [*ends, *shown, *interval]
    positive = [number for number in numbers if number > 0]
    spread = math.log10(max(positive) / min(positive)) if positive else 0.0
    logarithmic = len(positive) == len(numbers) and spread > _DECADES
    low, high = min(numbers), max(numbers)
    if logarithmic:
        near = [value for value in control if low / 10 <= value <= high * 10]
        low, high = min([low, *near]), max([high, *near])
        return _Axis(low * (low / high) ** 0.08, high * (high / low) ** 0.08, True)
    width = high - low or abs(high) or 1.0
    near = [value for value in control if low - width <= value <= high + width]
    low, high = min([low, *near]), max([high, *near])
    pad = 0.08 * (high - low or abs(high) or 1.0)
    return _Axis(low - pad, high + pad, False)


def _label(end: float, axis: _Axis, verdict: Verdict) -> str:
    if not math.isfinite(end):
        return ""
    anchor = "start" if end == verdict.low else "end"
    text = html.escape(spell_number(end, verdict.low, verdict.high))
    return f'<text x="{axis.place(end)}" y="50" text-anchor="{anchor}">{text}</text>'


def _dot(axis: _Axis, value: float) -> str:
    x = axis.place(value)
    if axis.holds(value):
        return f'<circle class="seed" cx="{x}" cy="{_LINE}" r="4"><title>ours: {value:g}</title></circle>'
    tip = -7 if value < axis.low else 7
    return f'<path class="seed" d="M{x} {_LINE - 5}l{tip} 5l{-tip} 5z"><title>ours: {value:g}</title></path>'


def _cross(axis: _Axis, value: float) -> str:
    x, beyond = axis.place(value), "" if axis.holds(value) else " (beyond the strip)"
    path = f"M{x - 4} {_LINE - 4}l8 8m0-8l-8 8"
    return f'<path class="control" d="{path}"><title>control: {value:g}{beyond}</title></path>'


def _in_words(verdict: Verdict, dots: Sequence[float], paper: float | None) -> str:
    middle = math.fsum(dots) / len(dots)
    words = [f"band {verdict.band}", f"ours {spell_number(middle, verdict.low, verdict.high)}"]
    if paper is not None:
        words.append(f"paper {paper:g}")
    return f"{', '.join(words)}: {verdict.outcome}"


def _numbers(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]
