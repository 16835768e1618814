"""EigenGame: top-k eigenvectors from minibatches, one player per vector.

Sources: Gemp et al., arXiv 2102.04152 (mu), 2010.00554 (alpha), 2206.04993 (gamma).
Submodules are imported on first use, so that `eigengame.paper` and the listing commands stay instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eigengame.estimators.gevp import EigenGameGEVP
    from eigengame.estimators.pca import EigenGame
    from eigengame.estimators.pencil import EigenGameCCA, EigenGameICA, EigenGamePLS
    from eigengame.estimators.spectral import EigenGameSpectralEmbedding

_HOMES = {
    "EigenGame": "eigengame.estimators.pca",
    "EigenGameCCA": "eigengame.estimators.pencil",
    "EigenGameGEVP": "eigengame.estimators.gevp",
    "EigenGameICA": "eigengame.estimators.pencil",
    "EigenGamePLS": "eigengame.estimators.pencil",
    "EigenGameSpectralEmbedding": "eigengame.estimators.spectral",
}

__all__ = [
    # estimators
    "EigenGame",
    "EigenGameCCA",
    "EigenGameGEVP",
    "EigenGameICA",
    "EigenGamePLS",
    "EigenGameSpectralEmbedding",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
