"""Valid cross-correlation of one image with many kernels, as a linear map ``M`` and its transpose.

``z = M w`` where row ``x`` of ``M`` is the patch of the image under the kernel at position ``x`` (the im2col
matrix, ``num_positions`` by ``kernel_size**2``). ``M`` itself is never formed by the fast method.

Source: Sec. 5.1 of Sun et al. 2022 (the one-layer network).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instability.metrics import real_array

__all__ = ["Method", "ValidCorrelation", "checkerboard"]

Method = Literal["fft", "direct"]


def checkerboard(
    height: int, width: int | None = None, *, first: float = -1.0
) -> Float[np.ndarray, "height width"]:
    """Return the paper's input: ``first`` where row + column is even, ``-first`` elsewhere.

    >>> checkerboard(2, 3)
    array([[-1.,  1., -1.],
           [ 1., -1.,  1.]])
    """
    rows, columns = np.indices((height, height if width is None else width))
    return np.where((rows + columns) % 2 == 0, first, -first)


class ValidCorrelation:
    """The map ``w -> M w`` of one image, its transpose and its Gram matrix ``M^T M``.

    One kernel at a time, always by the same code on the same shapes: the result for a kernel is independent,
    bit for bit, of how many other copies are simulated beside it.

    Args:
        image: the input, at least as large as the kernel in both directions.
        kernel_size: the side of the square kernel.
        method: ``"fft"`` (circular transforms of the image's size, of which the valid part is exact) or
            ``"direct"`` (a stored im2col matrix of ``8 num_positions kernel_size**2`` bytes).
        dtype: the floating type of everything.

    Raises:
        ValueError: the image is not a matrix, complex, not finite, or smaller than the kernel.

    >>> correlation = ValidCorrelation(checkerboard(4), kernel_size=2)
    >>> correlation.apply(torch.ones(2, 2, dtype=torch.float64)).abs().max().item()  # no checkerboard in it
    0.0
    """

    def __init__(
        self,
        image: Float[np.ndarray, "height width"],
        kernel_size: int,
        *,
        method: Method = "fft",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        pixels = torch.as_tensor(real_array(image, "image")).to(dtype)
        _check_sizes(pixels, kernel_size)
        if method not in ("fft", "direct"):
            raise ValueError(f"Unknown convolution method {method!r}. Allowed: 'fft', 'direct'.")
        self.image = pixels
        self.kernel_size = kernel_size
        self.method = method
        self.output_shape = (pixels.shape[0] - kernel_size + 1, pixels.shape[1] - kernel_size + 1)
        self.num_positions = self.output_shape[0] * self.output_shape[1]
        if method == "fft":
            # Column-major, as the transforms along columns leave their results.
            spectrum = torch.fft.rfft2(pixels).T.contiguous().T
            self._convolver, self._correlator = spectrum, spectrum.conj().resolve_conj()
            self._reversed = torch.arange(0, -kernel_size, -1)
        else:
            patches = pixels.unfold(0, kernel_size, 1).unfold(1, kernel_size, 1)
            self._patches = patches.reshape(self.num_positions, kernel_size**2)

    def apply(self, kernel: Float[Tensor, "k k"]) -> Float[Tensor, "rows columns"]:
        """Return ``M w``: the response at every position."""
        if self.method == "direct":
            return (self._patches @ kernel.reshape(-1)).reshape(self.output_shape)
        # Correlation is convolution with the flipped kernel; nothing wraps around into the valid part.
        whole = self._filter(kernel.flip(0, 1), self._convolver, slice(self.kernel_size - 1, None))
        return whole[:, self.kernel_size - 1 :]

    def transpose(self, response: Float[Tensor, "rows columns"]) -> Float[Tensor, "k k"]:
        """Return ``M^T z``: for each tap the sum over positions of response times pixel under the tap."""
        size = (self.kernel_size, self.kernel_size)
        if self.method == "direct":
            return (response.reshape(-1) @ self._patches).reshape(size)
        # A tap (i, j) of the correlation stands at (-i, -j) of the transform that needs no conjugate of z.
        return self._filter(response, self._correlator, self._reversed)[:, self._reversed]

    def windowed_mean(self) -> Float[Tensor, "k k"]:
        """Return ``M^T 1 / num_positions``: for each tap the mean of the pixels it passes over."""
        return self.transpose(torch.ones(self.output_shape, dtype=self.image.dtype)) / self.num_positions

    def gram(self) -> Float[np.ndarray, "taps taps"]:
        """Return ``M^T M`` in float64, by one summed-area table for each offset between two taps.

        Costs ``O(kernel_size**2 * pixels)`` instead of the ``O(kernel_size**4 * num_positions)`` of the
        product, and is exact for integer images.
        """
        image = self.image.to(torch.float64).numpy()
        k = self.kernel_size
        gram = np.empty((k, k, k, k))
        for down in range(k):
            for across in range(-k + 1, k):
                sums = _window_sums(image, down, across, self.output_shape)
                rows, columns = np.arange(k - down), np.arange(max(0, -across), k - max(0, across))
                i, j = np.meshgrid(rows, columns, indexing="ij")
                values = sums[i, j + min(0, across)]
                gram[i, j, i + down, j + across] = values
                gram[i + down, j + across, i, j] = values
        return gram.reshape(k * k, k * k)

    def _filter(self, small: Tensor, multiplier: Tensor, rows: slice | Tensor) -> Tensor:
        """Some rows of the circular convolution that multiplies spectra by ``multiplier``.

        Rows of zeros are not transformed on the way in, rows that are not kept not on the way out.
        """
        height, width = self.image.shape
        spectrum = torch.fft.fft(torch.fft.rfft(small, n=width, dim=1), n=height, dim=0)
        spectrum *= multiplier
        kept = torch.fft.ifft(spectrum, dim=0)[rows]
        filtered: Tensor = torch.fft.irfft(kept, n=width, dim=1)
        return filtered


def _window_sums(image: np.ndarray, down: int, across: int, window: tuple[int, int]) -> np.ndarray:
    """Sums over all windows of image(x) * image(x + offset), x running over the pixels where both exist."""
    height, width = image.shape
    first = image[: height - down, max(0, -across) : width - max(0, across)]
    second = image[down:, max(0, across) : width + min(0, across)]
    table = np.zeros((first.shape[0] + 1, first.shape[1] + 1))
    np.cumsum(np.cumsum(first * second, axis=0), axis=1, out=table[1:, 1:])
    rows, columns = window
    return (
        table[rows:, columns:] - table[:-rows, columns:] - table[rows:, :-columns] + table[:-rows, :-columns]
    )


def _check_sizes(image: Tensor, kernel_size: int) -> None:
    if image.ndim != 2:
        raise ValueError(
            f"image has shape {tuple(image.shape)}; pass one channel as a matrix (height, width)."
        )
    if not torch.isfinite(image).all():
        raise ValueError("image holds NaN or infinite pixels; pass finite numbers.")
    if not isinstance(kernel_size, int | np.integer) or kernel_size < 1:
        raise ValueError(f"kernel_size must be an int of at least 1, got {kernel_size}.")
    if kernel_size > min(image.shape):
        raise ValueError(
            f"kernel_size {kernel_size} is larger than the image {tuple(image.shape)}: no valid position is "
            f"left. Pass a kernel_size of at most {min(image.shape)}."
        )
