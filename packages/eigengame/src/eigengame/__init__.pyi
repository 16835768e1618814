from .estimators.gevp import EigenGameGEVP as EigenGameGEVP
from .estimators.pca import EigenGame as EigenGame
from .estimators.pencil import EigenGameCCA as EigenGameCCA
from .estimators.pencil import EigenGameICA as EigenGameICA
from .estimators.pencil import EigenGamePLS as EigenGamePLS
from .estimators.spectral import EigenGameSpectralEmbedding as EigenGameSpectralEmbedding
