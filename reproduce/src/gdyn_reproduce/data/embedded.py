"""The handwritten digits that come with the package, and their 16 x 16 version."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from jaxtyping import Float, Int, UInt8


def digits(split: str) -> tuple[UInt8[np.ndarray, "n 8 8"], Int[np.ndarray, " n"]]:
    """Return the 8 x 8 digits, levels 0..16: 1437 for training, 360 for testing.

    The split is stored in the file: one fixed random permutation of the 1797 images, since their
    original order goes by writer. Source and licence: `data_files/digits.LICENSE.txt`.
    """
    with files("gdyn_reproduce").joinpath("data_files/digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        return archive[f"x_{split}"], archive[f"y_{split}"].astype(np.int64)


def digits16(split: str) -> tuple[Float[np.ndarray, "n 16 16"], Int[np.ndarray, " n"]]:
    """Return the digits with the shape, type and range of USPS: 16 x 16, float32 in [-1, 1]."""
    x, y = digits(split)
    return resize_bilinear(x.astype(np.float32) / 8 - 1, 16), y


def resize_bilinear(images: Float[np.ndarray, "n rows cols"], size: int) -> Float[np.ndarray, "n size size"]:
    """Resize images to `size` x `size` by bilinear interpolation.

    Pixel centres lie at half integers and the border is repeated, as in
    ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``. No smoothing before
    shrinking.

    >>> resize_bilinear(np.array([[[0.0, 4.0]]]), 4)[0, 0].tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    rows, cols = (_interpolation(length, size) for length in images.shape[1:])
    return np.asarray(rows @ images @ cols.T, dtype=images.dtype)


def _interpolation(length: int, size: int) -> Float[np.ndarray, "size length"]:
    position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    below = np.minimum(position.astype(int), max(length - 2, 0))
    matrix = np.zeros((size, length))
    matrix[np.arange(size), below] = 1 - (position - below)
    matrix[np.arange(size), np.minimum(below + 1, length - 1)] += position - below
    return matrix
