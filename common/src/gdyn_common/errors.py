"""Messages that help: what was given, what is allowed, what was probably meant."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from operator import index
from typing import SupportsIndex, cast

# How JAX and PyTorch say that another process is gone.
_LOST = re.compile(r"gloo|nccl|heartbeat|UNAVAILABLE", re.IGNORECASE)
TRY_AGAIN = 75
"""Exit code that batch systems read as *try again*."""


class UnknownNameError(ValueError):
    """A name that is not registered; the message lists what is and the nearest match."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name, with the names that exist and the one probably meant.

    >>> unknown("figure", "fig3", ["fig1", "fig3a"])
    "Unknown figure 'fig3'. Allowed: fig1, fig3a. Did you mean 'fig3a'?"
    >>> unknown("figure", "Fig4", ["fig3", "fig4-left", "fig4-right"])
    "Unknown figure 'Fig4'. Allowed: fig3, fig4-left, fig4-right. Did you mean 'fig4-left' or 'fig4-right'?"
    """
    names, typed = list(allowed), given.lower()
    lower = {name.lower(): name for name in names}
    begun = [name for name in lower if len(typed) > 2 and name.startswith(typed)]
    close = begun[:3] or difflib.get_close_matches(typed, lower, n=1, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(lower[name]) for name in close)}?" if close else ""
    return f"Unknown {kind} {given!r}. Allowed: {', '.join(names)}.{hint}"


def require_count(
    name: str, value: object, least: int = 1, most: float = math.inf, error: type[ValueError] = ValueError
) -> None:
    """Refuse what is no whole number between two bounds.

    Args:
        name: Of the argument.
        value: What was given; integers of NumPy count, truth values do not.
        least: Smallest value allowed.
        most: Largest value allowed.
        error: What is raised.

    >>> require_count("every", 2.5)
    Traceback (most recent call last):
    ValueError: every is 2.5; pass a whole number of at least 1.
    """
    with contextlib.suppress(TypeError):  # from what is no whole number
        if not isinstance(value, bool) and least <= index(cast(SupportsIndex, value)) <= most:
            return
    allowed = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    raise error(f"{name} is {value!r}; pass a whole number {allowed}.")


def printable(text: str) -> str:
    r"""Return text that cannot steer a terminal: one line, every invisible character spelled out.

    >>> printable("a\x1b[31mb\n\u202ec")
    'a\\x1b[31mb\\n\\u202ec'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def ends_with_the_others(process_id: int, num_processes: int) -> Iterator[None]:
    """End this process in one line when another one, with which it trains in JAX or PyTorch, is lost.

    Neither framework can go on without a process, nor leave in order. So this one says what happened and
    ends at once with exit code 75, without any further clean-up. Start all processes anew, and let them
    load the last checkpoint. A framework may notice the loss in a thread of its own; its report of that
    comes before the line.

    Args:
        process_id: Index of this process.
        num_processes: Total number of processes.
    """

    def end(reason: str) -> None:
        line = (
            f"Process {process_id} of {num_processes} {reason}. "
            "Start all of them again; they can continue from the last checkpoint.\n"
        )
        os.write(2, line.encode())  # another thread may hold the lock of sys.stderr
        os._exit(TRY_AGAIN)

    try:
        with _told_of_aborts(lambda: end("is ended by its framework, as when another one is lost")):
            yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        end(f"lost another one and ends ({printable(' '.join(str(error).split())[:200])})")


@contextlib.contextmanager
def _told_of_aborts(tell: Callable[[], None]) -> Iterator[None]:
    """Call a function when a thread other than this one aborts the process, which it may end before."""
    if os.name != "posix":
        yield
        return
    # JAX aborts when it loses process 0, whatever Python does then. `signal.signal` would come too late:
    # its handlers wait for the main thread, and `abort` does not.
    own = threading.get_ident()
    function = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = function(lambda number: None if threading.get_ident() == own else tell())
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)
