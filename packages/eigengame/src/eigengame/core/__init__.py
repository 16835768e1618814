"""The functional core in one import: directions, utilities, state and steps. Pure and jittable.

Rows are vectors and rows are samples. Arrays may be pytrees with leading axes k and n.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
