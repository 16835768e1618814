"""How the frames of a moving picture share what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[2] / "packages"
FRAMES = 40
MOVING = 32
"""The frames after these show the whole. They are written first, for pictures that do not move."""


def shown(frame: int, count: int) -> int:
    """Return how many of the parts are shown in a frame: at least one, in the end all."""
    return max(1, round(count * min(1.0, (frame + 1) / MOVING)))


def numbers_of(record: str) -> dict[str, Any]:
    """Return the arrays of a committed record."""
    with np.load(RESULTS / f"{record}.npz") as stored:
        return dict(stored)
