"""Rounding-error instabilities in training deep networks, and the PDE analysis that explains them.

Source: Sun, Lao, Sundaramoorthi, Yezzi, *Surprising Instabilities in Training Deep Networks and a Theoretical
Analysis*, NeurIPS 2022.
"""
