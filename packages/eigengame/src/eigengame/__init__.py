"""EigenGame: top-k eigenvectors from minibatches, one player per vector.

Sources: Gemp et al., arXiv 2102.04152 (mu), 2010.00554 (alpha), 2206.04993 (gamma).
Submodules are imported on first use, so that `eigengame.paper` and the listing commands stay instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eigengame.estimators.pca import EigenGame

_HOMES = {
    "EigenGame": "eigengame.estimators.pca",
}

__all__ = [
    # estimators
    "EigenGame",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
