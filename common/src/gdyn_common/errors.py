"""Messages that help: what was given, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownNameError(ValueError):
    """A name that is not registered; the message lists what is and the nearest match."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name, with the names that exist and the one probably meant.

    >>> unknown("figure", "fig3", ["fig1", "fig3a"])
    "Unknown figure 'fig3'. Allowed: fig1, fig3a. Did you mean 'fig3a'?"
    """
    names = list(allowed)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {given!r}. Allowed: {', '.join(names)}.{hint}"


def printable(text: str) -> str:
    r"""Return text that cannot steer a terminal: one line, every invisible character spelled out.

    >>> printable("a\x1b[31mb\n\u202ec")
    'a\\x1b[31mb\\n\\u202ec'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
