"""Backend 3, the layers with parameters: what they share, linear layers, batch norm in evaluation mode."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from chaos.o2grad.jacobian import UnitColumns
from chaos.o2grad.layers import Layer, UnsupportedError


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

    @abstractmethod
    def features(self, rows: slice) -> Float[Tensor, "batch units j positions"]:
        """What multiplies the weights of each unit; one unit where all have the same."""

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

    @abstractmethod
    def cross(self, T: Tensor, rows: slice) -> Float[Tensor, "outputs inputs taps p"]:
        """Second derivatives of (weight, dense columns); the weight is read as (outputs, inputs, taps)."""

    @abstractmethod
    def cross_units(self, values: Tensor, rows: slice) -> Float[Tensor, "units outputs taps j"]:
        """Second derivatives of (weight, unit columns) where they are not zero.

        The weight is read as (outputs, units, taps).
        """


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

    def pull(self, X: Tensor, rows: slice) -> Tensor:
        """W' X."""
        out: Tensor = (X.mT @ self.weight).mT
        return out

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

    def pull(self, X: Tensor, rows: slice) -> Tensor:
        """Multiply by the channel's scale."""
        by_channel = X.reshape(len(X), len(self._scale), -1, X.shape[2])
        return (by_channel * self._scale[:, None, None]).flatten(1, 2)

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
