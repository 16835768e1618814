"""SAME convolutions in two equal forms: XLA's own, and one whose derivatives stay fast on the CPU.

XLA's CPU convolutions reach two thirds of the speed of a matrix product, with one exception: where the kernel
of a convolution is larger than its image, XLA swaps the two, and the swapped form runs in plain loops, ten to
forty times slower. Derivatives meet that case although the layers do not:

* the image gradient of a strided convolution with fewer output pixels than kernel pixels;
* the kernel gradient of every strided transposed convolution, a convolution of the small image with the large
  output.

The second form avoids both: the first by a matrix product of shifted slices of the image, the second by one
convolution of stride one per phase of the output, each with its slice of the kernel. Derivatives of any order
are slices, products and small convolutions again. Images are NHWC, kernels HWIO.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["conv2d", "conv2d_transpose"]

Images = Float[Array, "n height width channels"]
Kernel = Float[Array, "kernel kernel inputs outputs"]
Method = Literal["auto", "lax", "slices"]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(images: Images, kernel: Kernel, stride: int = 1, method: Method = "auto") -> Images:
    """Convolve with SAME padding.

    Args:
        images: Input.
        kernel: Square kernel.
        stride: Of both axes.
        method: ``lax``, ``slices``, or ``auto``: the second on the CPU where XLA would swap operands in a
            derivative.

    >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), 2, "slices")[0, :, :, 0].tolist()
    [[9.0, 6.0], [6.0, 4.0]]
    """
    size, _, inputs, outputs = kernel.shape
    count, height, width, _ = images.shape
    rows, columns = -(-height // stride), -(-width // stride)
    if not _uses_slices(method, swapped=stride > 1 and rows * columns < size * size):
        return jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS
        )
    pads = [_same_padding(extent, size, stride) for extent in (height, width)]
    padded = jnp.pad(images, [(0, 0), *pads, (0, 0)])
    slices = [
        padded[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.concatenate(slices, -1).reshape(count * rows * columns, size * size * inputs)
    return (patches @ kernel.reshape(-1, outputs)).reshape(count, rows, columns, outputs)


def conv2d_transpose(images: Images, kernel: Kernel, stride: int = 1, method: Method = "auto") -> Images:
    """Convolve the images dilated by ``stride`` with SAME padding, as ``jax.lax.conv_transpose`` does.

    Output pixel ``stride * q + r`` sums ``kernel[j] * image[q + d]`` over the taps with
    ``r + j - pad = stride * d``: for each phase ``r`` a convolution of stride one with every
    ``stride``-th tap.

    Args:
        images: Input.
        kernel: Square kernel.
        stride: Of both axes.
        method: ``lax``, ``slices``, or ``auto``: the second on the CPU for strides above one.

    >>> conv2d_transpose(jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 1, 1)), 2, "slices")[0, :, :, 0].tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """
    size, _, _, outputs = kernel.shape
    if not _uses_slices(method, swapped=stride > 1):
        return jax.lax.conv_transpose(images, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS)
    count, height, width, _ = images.shape
    phases = _phases(size, stride)

    def phase(row: int, column: int) -> Images:
        (i, up), (j, left) = phases[row], phases[column]
        taps = kernel[i::stride, j::stride]
        if not taps.size:  # a stride above the kernel's size leaves gaps
            return jnp.zeros((count, height, width, outputs), images.dtype)
        pads = [(up, taps.shape[0] - 1 - up), (left, taps.shape[1] - 1 - left)]
        return jax.lax.conv_general_dilated(images, taps, (1, 1), pads, dimension_numbers=DIMENSIONS)

    phase_rows = [jnp.stack([phase(r, c) for c in range(stride)], 3) for r in range(stride)]
    return jnp.stack(phase_rows, 2).reshape(count, height * stride, width * stride, outputs)


def _uses_slices(method: Method, *, swapped: bool) -> bool:
    if method not in ("auto", "lax", "slices"):
        raise ValueError(f"convolution method is {method!r}; allowed: auto, lax, slices.")
    return swapped and jax.default_backend() == "cpu" if method == "auto" else method == "slices"


def _same_padding(extent: int, size: int, stride: int) -> tuple[int, int]:
    total = max((-(-extent // stride) - 1) * stride + size - extent, 0)
    return total // 2, total - total // 2


def _phases(size: int, stride: int) -> list[tuple[int, int]]:
    """Return per phase the first tap and the padding before the image, the negative of its offset ``d``."""
    pad = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
    first = [(pad - r) % stride for r in range(stride)]
    return [(j, (pad - r - j) // stride) for r, j in enumerate(first)]
