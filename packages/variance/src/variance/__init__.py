"""Gradient variance in deep learning: per-example gradients, statistics, clustering, sampling.

The public names below are imported on first use, so that `import variance` costs nothing.

* statistics of gradients: `per_example`, `statistics`
* clusters and samplers: `gradient_clustering`, `sampling`
"""

import importlib
from typing import Any

_MODULES = ("per_example", "statistics", "gradient_clustering", "sampling")

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"variance.{name}")
    raise AttributeError(f"module 'variance' has no attribute '{name}'")
