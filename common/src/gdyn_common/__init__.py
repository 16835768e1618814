"""The thin core of the gdyn packages: logging, seeding, errors, safe files and spectral tools.

Importing it is cheap: a submodule loads on first use, and neither torch nor JAX is needed.
"""
