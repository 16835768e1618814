"""SAME convolutions in two equal forms: XLA's own, and slices followed by one matrix product.

XLA's CPU convolutions, and above all their derivatives, are slow for few channels and large kernels. Cutting
the image into shifted slices and multiplying once is several times faster there; its derivatives are slices
and products again. Images are NHWC, kernels HWIO.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["conv2d", "conv2d_transpose", "prefers_slices"]

Images = Float[Array, "n height width channels"]
Kernel = Float[Array, "kernel kernel inputs outputs"]
Method = Literal["auto", "lax", "slices"]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def prefers_slices(kernel_size: int, inputs: int, method: Method) -> bool:
    """Return whether a layer takes the slices path.

    ``auto`` chooses it on the CPU for kernels of 5 and more with at most 64 input channels. That rule is an
    expectation, not a measurement: slices save most where kernels are large and channels few.
    """
    if method not in ("auto", "lax", "slices"):
        raise ValueError(f"convolution method is {method!r}; allowed: auto, lax, slices.")
    if method == "auto":
        return jax.default_backend() == "cpu" and kernel_size >= 5 and inputs <= 64
    return method == "slices"


def conv2d(images: Images, kernel: Kernel, stride: int = 1, method: Method = "auto") -> Images:
    """Convolve with SAME padding.

    >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), 2, "slices")[0, :, :, 0].tolist()
    [[9.0, 6.0], [6.0, 4.0]]
    """
    size, _, inputs, outputs = kernel.shape
    if not prefers_slices(size, inputs, method):
        return jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS
        )
    count, height, width, _ = images.shape
    rows, columns = -(-height // stride), -(-width // stride)
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

    The slices path computes all ``stride**2`` phases of the output in one product and interleaves them.

    >>> conv2d_transpose(jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 1, 1)), 2, "slices")[0, :, :, 0].tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """
    size, _, inputs, outputs = kernel.shape
    if not prefers_slices(size, inputs, method):
        return jax.lax.conv_transpose(images, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS)
    taps, before, after = _phase_taps(size, stride)
    count, height, width, _ = images.shape
    num_offsets = taps.shape[0]
    padded = jnp.pad(images, [(0, 0), (before, after), (before, after), (0, 0)])
    slices = [
        padded[:, i : i + height, j : j + width] for i in range(num_offsets) for j in range(num_offsets)
    ]
    patches = jnp.concatenate(slices, -1).reshape(count * height * width, -1)
    # a tap outside of the kernel reads the row of zeros appended to it
    extended = jnp.pad(kernel, [(0, 1), (0, 1), (0, 0), (0, 0)])
    phased = extended[
        taps[:, None, :, None], taps[None, :, None, :]
    ]  # offsets, offsets, phases, phases, in, out
    weights = phased.transpose(0, 1, 4, 2, 3, 5).reshape(-1, stride * stride * outputs)
    product = (patches @ weights).reshape(count, height, width, stride, stride, outputs)
    return product.transpose(0, 1, 3, 2, 4, 5).reshape(count, height * stride, width * stride, outputs)


def _same_padding(extent: int, size: int, stride: int) -> tuple[int, int]:
    total = max((-(-extent // stride) - 1) * stride + size - extent, 0)
    return total // 2, total - total // 2


def _phase_taps(size: int, stride: int) -> tuple[np.ndarray, int, int]:
    """Return the kernel index per (offset, phase), ``size`` where there is none, and the padding.

    Output ``stride * q + r`` sums ``kernel[j] * image[q + d]`` over ``r + j - pad = stride * d``.
    """
    pad = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
    pairs = [(r, j) for r in range(stride) for j in range(size) if (r + j - pad) % stride == 0]
    offsets = [(r + j - pad) // stride for r, j in pairs]
    lowest, highest = min(0, *offsets), max(0, *offsets)
    taps = np.full((highest - lowest + 1, stride), size)
    for (r, j), d in zip(pairs, offsets, strict=True):
        taps[d - lowest, r] = j
    return taps, -lowest, highest
