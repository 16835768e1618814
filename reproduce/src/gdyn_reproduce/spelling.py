"""Numbers in words: as short as they may be, and never on the wrong side of a bound."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_DIGITS = 4
_ALL_DIGITS = 17  # as many as tell any two doubles apart


def spell_number(value: float, low: float = -math.inf, high: float = math.inf) -> str:
    """Spell a number with four significant digits, or as many as its band needs.

    Args:
        value: The number.
        low: Lower end of the band that the number is compared with.
        high: Upper end.

    >>> spell_number(12960000.0), spell_number(0.25), spell_number(3.86521662)
    ('1.296e+07', '0.25', '3.865')
    >>> spell_number(0.501373, 0.50137, 0.50138)
    '0.501373'
    """
    if not math.isfinite(value):
        return f"{value:g}"
    texts = spell_bounds(low, high)
    bounds = (float(texts[0]), float(texts[1]))
    width = high - low
    side = _side(value, low, high)
    for digits in range(_DIGITS, _ALL_DIGITS + 1):
        text = f"{value:.{digits}g}"
        printed = float(text)
        # Fine enough to see where in the band the number lies, and on the same side of both ends.
        fine = side or not math.isfinite(width) or abs(printed - value) <= width / 20
        if fine and _side(printed, *bounds) == side:
            return text
    return repr(value) if side else min(texts, key=lambda text: abs(float(text) - value))


def spell_bounds(low: float, high: float) -> tuple[str, str]:
    """Spell the two ends of a band in full, but for the rounding of the last bits.

    >>> spell_bounds(0.2, 2.0), spell_bounds(-0.18 - 1e-9, -0.18 + 1e-9)
    (('0.2', '2'), ('-0.180000001', '-0.179999999'))
    """
    return f"{low:.15g}", f"{high:.15g}"


def spell_band(low: float, high: float) -> str:
    """Spell a band.

    >>> spell_band(0.2, 2.0), spell_band(1.0, float("inf")), spell_band(0.0, 0.0)
    ('0.2 to 2', '1 or more', 'exactly 0')
    """
    first, last = spell_bounds(low, high)
    if low == high:
        return f"exactly {first}"
    if math.isinf(high):
        return f"{first} or more"
    return f"{last} or less" if math.isinf(low) else f"{first} to {last}"


def spell_values(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> str:
    """Spell measurements as mean ± standard deviation with their number.

    >>> spell_values([1.0, 3.0])
    '2 ± 1.414 (n=2)'
    >>> spell_values([0.5])
    '0.5'
    >>> spell_values([True, True, False]), spell_values([True])
    ('2 of 3 true', 'true')
    >>> spell_values([1.0, 3.0, float("inf")])
    '2 ± 1.414 (n=2), 1 of 3 not finite'
    """
    if not values:
        return "not measured"
    if all(isinstance(value, bool) for value in values):
        return str(values[0]).lower() if len(values) == 1 else f"{int(sum(values))} of {len(values)} true"
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values) > 1:
        known = f"{spell_values(finite, low, high)}, " if finite else ""
        return f"{known}{len(values) - len(finite)} of {len(values)} not finite"
    mean = spell_number(math.fsum(values) / len(values), low, high)
    if len(values) == 1:
        return mean
    return f"{mean} ± {spell_number(statistics.stdev(values))} (n={len(values)})"


def _side(value: float, low: float, high: float) -> int:
    return -1 if value < low else int(value > high)
