"""The thin core of the gdyn packages: logging, seeding, errors, safe files and spectral tools.

It imports neither torch nor jax, and at import nothing at all.
"""
