"""What reproducing a paper takes: claims, runs, records, the command line, reports and data.

It imports neither torch nor jax, and at import nothing at all: every name is loaded when first used.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
