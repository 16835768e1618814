"""Rounding-error instabilities in training deep networks, and the PDE analysis that explains them.

Source: Sun, Lao, Sundaramoorthi, Yezzi, *Surprising Instabilities in Training Deep Networks and a Theoretical
Analysis*, NeurIPS 2022; extended as *A PDE-based Explanation of Extreme Numerical Sensitivities and Edge of
Stability in Training Neural Networks*, JMLR 25(174), 2024.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
