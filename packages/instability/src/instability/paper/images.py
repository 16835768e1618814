"""Input images of the one-layer experiments, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from gdyn_common.seeding import generator
from gdyn_common.storage import read_array
from instability.pde.convolution import checkerboard

__all__ = ["make_image"]


def make_image(image: str, size: int, seed: int = 0) -> Float[np.ndarray, "height width"]:
    """Return a checkerboard, standard normal noise, or the matrix in a ``.npy`` file.

    Args:
        image: ``"checkerboard"``, ``"noise"`` or a path.
        size: side of the generated images; a file keeps its own.
        seed: of the noise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold one matrix of finite numbers.

    >>> make_image("checkerboard", 4)[0, :2].tolist()
    [-1.0, 1.0]
    """
    if image == "checkerboard":
        return checkerboard(size)
    if image == "noise":
        return generator(seed, "image").standard_normal((size, size))
    path = Path(image)
    if not path.exists():
        raise FileNotFoundError(
            f"image={image} is no file. Allowed: checkerboard, noise, or the path of a .npy matrix."
        )
    pixels = read_array(path, advice="write it with numpy.save(path, matrix)")
    if pixels.ndim != 2 or pixels.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} does not hold one matrix of real numbers; save a single channel (height, width)."
        )
    return pixels.astype(np.float64)
