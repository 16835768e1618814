"""Backend 3, convolutions: products with the patches under the kernel, and with a matrix on small maps."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from chaos.o2grad.affine import Affine
from chaos.o2grad.layers import UnsupportedError

#: Kernel size, dilation, padding and stride of a two-dimensional convolution.
Settings = tuple[tuple[int, int], ...]


class Convolution(Affine):
    """Convolution with zero padding, as products with the patches under the kernel.

    One-dimensional ones are described as two-dimensional, of height 1.
    """

    mixes = True
    patches: Float[Tensor, "batch groups j outputs"]

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        m = module
        if m.padding_mode != "zeros" or isinstance(m.padding, str):
            raise UnsupportedError(f"pads by {m.padding_mode!r}, {m.padding!r}")
        self._is_flat = isinstance(m, nn.Conv1d)
        settings = (m.kernel_size, 1), (m.dilation, 1), (m.padding, 0), (m.stride, 1)
        self._settings = tuple((neutral, *s) if self._is_flat else s for s, neutral in settings)

    def value(self, a: Tensor) -> Tensor:
        """Weights times patches."""
        groups, plane = self.module.groups, a[:, :, None] if self._is_flat else a
        self.patches = functional.unfold(plane, *self._settings).unflatten(1, (groups, -1))
        z = (self.weight.flatten(1).unflatten(0, (groups, -1)) @ self.patches).flatten(1, 2)
        if self.bias is not None:
            z = z + self.bias[:, None]
        height, width = (
            (n + 2 * padding - dilation * (size - 1) - 1) // stride + 1
            for n, size, dilation, padding, stride in zip(plane.shape[2:], *self._settings, strict=True)
        )
        return z if self._is_flat else torch.unflatten(z, 2, (height, width))

    def acts_by_unit(self, units: int) -> bool:
        """Where every output reads all channels."""
        return self.module.groups == 1 and units == self.a.shape[1]

    def features(self, rows: slice) -> Tensor:
        """The patches under the kernel."""
        groups, patches = self.module.groups, self.patches[rows]
        return patches.repeat_interleave(self.z.shape[1] // groups, 1) if groups > 1 else patches

    def push(self, T: Tensor, rows: slice) -> Tensor:
        """Convolve the columns."""
        if self._is_small:
            out = T.flatten(2) @ self._matrix.flatten(0, 1)
        else:
            out = self._convolve(T.flatten(0, 1), self.weight)
        return out.reshape(*T.shape[:2], *self.z.shape[1:])

    def push_units(self, values: Tensor, rows: slice) -> Tensor:
        """Convolve the columns of a unit by the weights that read it."""
        if self._is_small:
            out = torch.einsum("bujt,utx->bujx", values, self._matrix)
        else:
            planes = values.transpose(0, 1).reshape(values.shape[1], -1, 1, *self.a.shape[2:])
            by_unit = zip(planes, self.weight.split(1, dim=1), strict=True)
            out = torch.stack([self._convolve(columns, weight) for columns, weight in by_unit])
            out = out.unflatten(1, (len(values), -1)).transpose(0, 1)
        return out.reshape(*values.shape[:3], *self.z.shape[1:])

    @property
    def can_pull(self) -> bool:
        """On small maps: curvature has the square of their size."""
        return self._is_small

    def pull(self, X: Tensor, rows: slice) -> Tensor:
        """Weights times X, laid back over the patches they came from."""
        if self._is_small:
            return (X.mT @ self._matrix.flatten(0, 1).T).mT
        groups, planes = self.module.groups, X.transpose(1, 2).reshape(-1, *self.z.shape[1:])
        by_group = planes.flatten(2).unflatten(1, (groups, -1))
        patches = (self.weight.flatten(1).unflatten(0, (groups, -1)).mT @ by_group).flatten(1, 2)
        out: Tensor = functional.fold(patches, self._plane, *self._settings)
        return out.reshape(len(X), X.shape[2], -1).mT

    def cross(self, T: Tensor, rows: slice) -> Tensor:
        """Delta at the reader of each tap, times what it reads."""
        # moving delta under each tap costs a kernel's worth of one small array; unfolding T, of all of T
        groups = self.module.groups
        delta = self._delta_of_readers(rows).unflatten(1, (groups, -1))
        by_group = T.flatten(3).unflatten(2, (groups, -1))
        return torch.einsum("bpgil,bgotl->goitp", by_group, delta).flatten(0, 1)

    def cross_units(self, values: Tensor, rows: slice) -> Tensor:
        """Delta at the reader of each tap, times what it reads."""
        return torch.einsum("bujl,botl->uotj", values, self._delta_of_readers(rows))

    def _convolve(self, planes: Tensor, weight: Tensor) -> Tensor:
        m = self.module
        convolve = functional.conv1d if self._is_flat else functional.conv2d
        out: Tensor = convolve(planes, weight, None, m.stride, m.padding, m.dilation, m.groups)
        return out

    def _delta_of_readers(self, rows: slice) -> Float[Tensor, "batch outputs taps inputs"]:
        """Delta of the output that reads an input by a tap; zero where none does."""
        delta = functional.pad(self.delta[rows].flatten(2), (0, 1))
        readers = _readers(self._plane, self._settings, self.a.device)
        moved = delta.gather(2, readers.flatten().expand(*delta.shape[:2], -1))
        return moved.reshape(*delta.shape[:2], *readers.shape)

    @property
    def _plane(self) -> tuple[int, int]:
        return (1, self.a.shape[2]) if self._is_flat else (self.a.shape[2], self.a.shape[3])

    @property
    def _is_small(self) -> bool:
        """Whether a product with the matrix, zeros and all, is faster than a convolution."""
        inputs, taps = self.a[0, 0].numel(), int(self.weight[0, 0].numel())
        return inputs <= min(64, 8 * taps) and self.module.groups == 1

    @cached_property
    def _matrix(self) -> Float[Tensor, "channels inputs outputs"]:
        """The convolution as a matrix."""
        placed = _placing_taps(self._plane, self._settings, self.weight.dtype, self.weight.device)
        channels = self.weight.flatten(2).transpose(0, 1)
        matrix: Tensor = (channels @ placed.flatten(1)).unflatten(2, placed.shape[1:])
        return matrix.transpose(1, 2).flatten(2)


@lru_cache(maxsize=256)
def _readers(plane: tuple[int, int], settings: Settings, device: torch.device) -> Int[Tensor, "taps inputs"]:
    """Which output reads an input by a tap; the number of outputs where none does."""
    places = torch.arange(1, 1 + plane[0] * plane[1], dtype=torch.float64, device=device)
    read = functional.unfold(places.view(1, 1, *plane), *settings)[0].long()  # (taps, outputs); 0 is padding
    taps, outputs = read.shape
    readers = read.new_full((taps, 1 + len(places)), outputs)
    readers.scatter_(1, read, torch.arange(outputs, device=device).expand(taps, -1))
    return readers[:, 1:].contiguous()


@lru_cache(maxsize=64)
def _placing_taps(
    plane: tuple[int, int], settings: Settings, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "taps inputs outputs"]:
    """One where an output reads an input by a tap, else zero."""
    readers = _readers(plane, settings, device)
    outputs = functional.unfold(torch.zeros(1, 1, *plane, device=device), *settings).shape[2]
    return functional.one_hot(readers, outputs + 1)[..., :outputs].to(dtype)
