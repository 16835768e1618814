"""Chaotic dynamics of neural network training: exact curvature, Lyapunov exponents, pruned descent."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
