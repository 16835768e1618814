"""Parts of a GAN by name: those of this package, or ``module:name`` for your own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from gdyn_common.errors import unknown

__all__ = ["named"]


def named(kind: str, name: str, known: Mapping[str, Any], takes: Sequence[str] | None = None) -> Any:
    """Return what a name stands for.

    Args:
        kind: What it is, for the message.
        name: A key of ``known``, or ``module:attribute``; the working folder is searched too.
        known: What this package has.
        takes: What your own one is called with, if that is to be checked.

    Raises:
        ValueError: For an unknown name, with the nearest match, what is not there, or cannot be called so.

    Example:
        >>> import math
        >>> named("root", "math:sqrt", {}, ["x"]) is math.sqrt, named("root", "half", {"half": 0.5})
        (True, 0.5)
        >>> named("root", "math:sqrt", {}, [])
        Traceback (most recent call last):
        ValueError: root 'math:sqrt' cannot be called as sqrt(): missing a required argument: 'x'.
    """
    if name in known:
        return known[name]
    if ":" not in name:
        raise ValueError(unknown(kind, name, known) + " Your own one is called module:name.")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        own = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{kind} {name!r} is not there: {error}.") from error
    finally:
        sys.path.remove(here)
    if not callable(own):
        raise ValueError(f"{kind} {name!r} is a {type(own).__name__}; pass the name of a function.")
    if takes is not None:
        _check_call(own, kind, name, takes)
    return own


def _check_call(function: Any, kind: str, name: str, takes: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not know theirs
        return
    try:
        signature.bind(*takes)
    except TypeError as error:
        call = f"{name.rpartition(':')[2]}({', '.join(takes)})"
        raise ValueError(f"{kind} {name!r} cannot be called as {call}: {error}.") from error
