"""Backend 3, the layers with parameters: linear, batch norm in evaluation mode, convolution."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from chaos.o2grad.jacobian import UnitColumns
from chaos.o2grad.layers import Layer, UnsupportedError

#: Kernel size, dilation, padding and stride of a two-dimensional convolution.
Settings = tuple[tuple[int, int], ...]


class Affine(Layer):
    """``z_u = sum_j w_uj f_uj(a) + b_u`` with fixed features f.

    Attributes:
        weight, bias: Current values, or ``None`` where the layer has none.
        weight_name, bias_name: Names of those that are differentiated, else ``None``.
    """

    weight: Any = None
    bias: Any = None
    weight_name: str | None = None
    bias_name: str | None = None

    def trained(self) -> list[tuple[str, int]]:
        """Name and size of each parameter that is differentiated."""
        named = ((self.weight_name, self.weight), (self.bias_name, self.bias))
        return [(name, tensor.numel()) for name, tensor in named if name is not None]

    def features(self, rows: slice) -> Float[Tensor, "batch units j positions"]:
        """What multiplies the weights of each unit; one unit where all have the same."""
        raise NotImplementedError

    def own(self, rows: slice, start: int) -> UnitColumns | None:
        """Derivative of the output by the layer's own parameters, from column ``start`` on."""
        z = self.z[rows].flatten(1).unflatten(1, (self.z.shape[1], -1))
        if self.weight_name is not None:
            values = self.features(rows)
            widths: tuple[int, ...] = (values.shape[2],)
            if self.bias_name is not None:
                values, widths = functional.pad(values, (0, 0, 0, 1), value=1.0), (*widths, 1)
        elif self.bias_name is not None:
            values, widths = z.new_ones(1, 1, 1, 1), (1,)
        else:
            return None
        return UnitColumns(values.expand(len(z), z.shape[1], -1, z.shape[2]), widths, start)

    def cross(self, T: Tensor, rows: slice) -> Float[Tensor, "outputs inputs taps p"]:
        """Second derivatives of (weight, dense columns); the weight is read as (outputs, inputs, taps)."""
        raise NotImplementedError

    def cross_units(self, values: Tensor, rows: slice) -> Float[Tensor, "units outputs taps j"]:
        """Second derivatives of (weight, unit columns) where they are not zero.

        The weight is read as (outputs, units, taps).
        """
        raise NotImplementedError


class Linear(Affine):
    """``z = W a + b``. The features of a unit are the inputs."""

    mixes = True

    def value(self, a: Tensor) -> Tensor:
        """W a + b."""
        if a.ndim != 2:
            raise UnsupportedError("a linear layer acts on more than one position per sample")
        return functional.linear(a, self.weight, self.bias)

    def acts_by_unit(self, units: int) -> bool:
        """Always: the inputs are so many stretches."""
        return True

    def features(self, rows: slice) -> Tensor:
        """The inputs."""
        return self.a[rows, None, :, None]

    def push(self, T: Tensor, rows: slice) -> Tensor:
        """T W'."""
        out: Tensor = T @ self.weight.T
        return out

    def push_units(self, values: Tensor, rows: slice) -> Tensor:
        """Each unit times its columns of W."""
        by_unit = self.weight.T.unflatten(0, (values.shape[1], -1))
        return torch.einsum("bujt,uto->bujo", values, by_unit)

    def cross(self, T: Tensor, rows: slice) -> Tensor:
        """delta_o T_i."""
        return torch.einsum("bpi,bo->oip", T, self.delta[rows])[:, :, None]

    def cross_units(self, values: Tensor, rows: slice) -> Tensor:
        """delta_o times the columns."""
        return torch.einsum("bujt,bo->uotj", values, self.delta[rows])


class Norm(Affine):
    """Batch norm in evaluation mode: an affine map of each channel."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        if module.training or module.running_mean is None:
            raise UnsupportedError("couples the samples of a batch")

    def value(self, a: Tensor) -> Tensor:
        """Normalise, scale and shift."""
        statistics = self.running_mean, self.running_var
        return functional.batch_norm(a, *statistics, self.weight, self.bias, False, 0.0, self.module.eps)

    def features(self, rows: slice) -> Tensor:
        """The normalised input of the channel."""
        a = self.a[rows]
        centred = a.reshape(*a.shape[:2], 1, -1) - self.running_mean[:, None, None]
        return centred * self._inverse_std[:, None, None]

    def push(self, T: Tensor, rows: slice) -> Tensor:
        """Multiply by the channel's scale."""
        return (T.reshape(*T.shape[:3], -1) * self._scale[:, None]).reshape(T.shape)

    def push_units(self, values: Tensor, rows: slice) -> Tensor:
        """Multiply by the channel's scale."""
        return values * self._scale[:, None, None]

    def cross(self, T: Tensor, rows: slice) -> Tensor:
        """The channel's own weight only."""
        delta = self.delta[rows].reshape(len(T), T.shape[2], -1)
        by_channel = T.reshape(*T.shape[:3], -1)
        term = torch.einsum("bpul,bul->up", by_channel, delta * self._inverse_std[:, None])
        return term[None, :, None]

    def cross_units(self, values: Tensor, rows: slice) -> Tensor:
        """The channel's own weight only."""
        delta = self.delta[rows].reshape(len(values), values.shape[1], -1)
        term = torch.einsum("bujl,bul->uj", values, delta * self._inverse_std[:, None])
        return term[:, None, None]

    @property
    def _scale(self) -> Tensor:
        return self._inverse_std if self.weight is None else self.weight * self._inverse_std

    @property
    def _inverse_std(self) -> Tensor:
        eps: float = self.module.eps
        return (self.running_var + eps).rsqrt()


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
        patches = functional.unfold(plane, *self._settings).unflatten(1, (groups, -1))
        self.patches = patches.detach()
        z = (self.weight.flatten(1).unflatten(0, (groups, -1)) @ patches).flatten(1, 2)
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
