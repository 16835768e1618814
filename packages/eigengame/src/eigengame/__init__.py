"""EigenGame: top-k eigenvectors from minibatches, one player per vector.

Sources: Gemp et al., arXiv 2102.04152 (mu), 2010.00554 (alpha), 2206.04993 (gamma).
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
