"""Gradient variance in deep learning: per-example gradients, statistics, clustering, sampling.

The public names below are imported on first use, so that `import variance` costs nothing.

* statistics of gradients: `per_example`, `statistics`
* clusters and samplers: `gradient_clustering`, `sampling`
* training: `objective`, `stream`, `estimators`, `optimizer`, `measurement`, `monitor`, `training`,
  `data`
"""

import importlib
from typing import Any

_MODULES = (
    "data",
    "estimators",
    "gradient_clustering",
    "losses",
    "measurement",
    "models",
    "monitor",
    "objective",
    "optimizer",
    "per_example",
    "sampling",
    "statistics",
    "stream",
    "training",
)

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"variance.{name}")
    raise AttributeError(f"module 'variance' has no attribute '{name}'")
