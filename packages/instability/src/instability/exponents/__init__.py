"""Lyapunov exponents of a map, of an optimiser's whole step, and of copies of a run."""
