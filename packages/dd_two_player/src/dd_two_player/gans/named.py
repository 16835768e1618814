"""Parts of a GAN by name: those of this package, or ``module:name`` for your own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from gdyn_common.errors import unknown

__all__ = ["named"]


def named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """Return what a name stands for.

    Args:
        kind: What it is, for the message.
        name: A key of ``known``, or ``module:attribute``; the working folder is searched too.
        known: What this package has.

    Raises:
        ValueError: For an unknown name, with the nearest match, or a module or attribute that is not there.

    Example:
        >>> import math
        >>> named("number", "math:pi", {"one": 1}) == math.pi, named("number", "one", {"one": 1})
        (True, 1)
    """
    if name in known:
        return known[name]
    if ":" not in name:
        raise ValueError(unknown(kind, name, known) + " Your own one is called module:name.")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{kind} {name!r} is not there: {error}.") from error
    finally:
        sys.path.remove(here)
