from .estimators.gevp import EigenGameGEVP as EigenGameGEVP
from .estimators.ica import EigenGameICA as EigenGameICA
from .estimators.pca import EigenGame as EigenGame
from .estimators.spectral import EigenGameSpectralEmbedding as EigenGameSpectralEmbedding
from .estimators.two_views import EigenGameCCA as EigenGameCCA
from .estimators.two_views import EigenGamePLS as EigenGamePLS
