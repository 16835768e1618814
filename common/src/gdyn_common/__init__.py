"""The core the five gdyn packages share: claims, runs, reports, data and spectral tools.

It imports neither torch nor jax, and at import nothing at all: every name is loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdyn_common.records import load_runs

__all__ = ["load_runs"]


def __getattr__(name: str) -> Any:
    if name == "load_runs":
        from gdyn_common.records import load_runs

        return load_runs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
