"""Chaotic dynamics of neural network training: exact curvature, Lyapunov exponents, pruned descent.

``import chaos`` and ``import chaos.paper`` import no framework; the names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "LossSurface": "chaos.o2grad",
    "CGD": "chaos.cgd",
    "LyapunovTracker": "chaos.lyapunov",
    "local_exponents": "chaos.exponents",
    "tangent_error": "chaos.lyapunov",
    "perturb": "chaos.perturbation",
    "subspace_similarity": "chaos.subspace",
    "random_similarity": "chaos.subspace",
    "eigenbasis_dissimilarity": "chaos.subspace",
    "fit_divergence": "chaos.divergence",
    "fit_theoretical_bound": "chaos.divergence",
    "exponential_bounds": "chaos.divergence",
    "load_eigenthings": "chaos.eigenthings",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'chaos' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
