"""Backend 3, the layers: how each moves values and parameter Jacobians forward.

Axes: activations are ``(batch, *shape)``, dense Jacobians ``(batch, parameter, *shape)``, unit columns
``(batch, units, j, positions)``. At kinks the Hessian is that of the active linear piece: ReLU'(0) = 0, and
of equal maxima the one that ``max_pool`` returns (of values before an increasing activation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class UnsupportedError(ValueError):
    """The module is not a tree of known layers; the message says which part."""


class Layer(ABC):
    """A leaf of the network with what its forward pass left behind.

    Attributes:
        module: The layer as the user wrote it; only its settings are read.
        a: Input; ``z``: output; ``delta``: gradient of the loss with respect to the output.
        mixes: Whether an output depends on more than one unit of the input.
    """

    mixes: ClassVar[bool] = False
    a: Tensor
    z: Tensor
    delta: Tensor

    def __init__(self, module: Any) -> None:
        self.module = module

    def forward(self, a: Tensor) -> Tensor:
        """Evaluate the layer without calling the module (no hooks, no in-place operations)."""
        self.a, self.z = a, self.value(a)
        return self.z

    @abstractmethod
    def value(self, a: Tensor) -> Tensor:
        """The layer as a function."""

    def acts_by_unit(self, units: int) -> bool:
        """Whether unit columns of so many units can be moved through as they are."""
        return units == self.a.shape[1]

    @abstractmethod
    def push(self, T: Tensor, rows: slice) -> Tensor:
        """Derivative of the output along dense columns, with parameters held fixed."""

    @abstractmethod
    def push_units(self, values: Tensor, rows: slice) -> Tensor:
        """The same along unit columns: ``(batch, units, j, positions)`` of the output.

        A layer that mixes units returns ``(batch, units, j, *shape)`` instead, with the shape of its output.
        """

    @property
    def can_pull(self) -> bool:
        """Whether :meth:`pull` is worth its cost."""
        return True

    @abstractmethod
    def pull(self, X: Float[Tensor, "batch outputs k"], rows: slice) -> Float[Tensor, "batch inputs k"]:
        """The transpose of :meth:`push`, with inputs and outputs flattened: gradients move backward."""


class Shape(Layer):
    """Flatten, unflatten and identity: the entries keep their order."""

    def value(self, a: Tensor) -> Tensor:
        """A view of the input."""
        m = self.module
        if isinstance(m, nn.Flatten):
            return a.flatten(m.start_dim, m.end_dim)
        if isinstance(m, nn.Unflatten):
            out: Tensor = a.unflatten(m.dim, m.unflattened_size)
            return out
        return a

    def acts_by_unit(self, units: int) -> bool:
        """Always: a unit is a stretch of entries."""
        return True

    def push(self, T: Tensor, rows: slice) -> Tensor:
        """Another view."""
        return T.reshape(*T.shape[:2], *self.z.shape[1:])

    def push_units(self, values: Tensor, rows: slice) -> Tensor:
        """Nothing to do."""
        return values

    def pull(self, X: Tensor, rows: slice) -> Tensor:
        """Nothing to do."""
        return X


class Activation(Layer):
    """An elementwise function sigma."""

    #: As pure functions of the module's settings and the input.
    FUNCTIONS: ClassVar[dict[type[nn.Module], Callable[[Any, Tensor], Tensor]]] = {
        nn.ReLU: lambda m, z: functional.relu(z),
        nn.LeakyReLU: lambda m, z: functional.leaky_relu(z, m.negative_slope),
        nn.Sigmoid: lambda m, z: torch.sigmoid(z),
        nn.Tanh: lambda m, z: torch.tanh(z),
        nn.GELU: lambda m, z: functional.gelu(z, approximate=m.approximate),
        nn.SiLU: lambda m, z: functional.silu(z),
        nn.Softplus: lambda m, z: functional.softplus(z, m.beta, m.threshold),
        nn.ELU: lambda m, z: functional.elu(z, m.alpha),
    }

    def value(self, a: Tensor) -> Tensor:
        """sigma(a)."""
        return self.FUNCTIONS[type(self.module)](self.module, a)

    def acts_by_unit(self, units: int) -> bool:
        """Always."""
        return True

    def push(self, T: Tensor, rows: slice) -> Tensor:
        """Multiply by sigma'."""
        return T * self.slope[rows, None]

    def push_units(self, values: Tensor, rows: slice) -> Tensor:
        """Multiply by sigma'."""
        return values * self.slope[rows].reshape(len(values), values.shape[1], 1, -1)

    def pull(self, X: Tensor, rows: slice) -> Tensor:
        """Multiply by sigma'."""
        return X * self.slope[rows].flatten(1)[:, :, None]

    @property
    def is_increasing(self) -> bool:
        """Whether sigma never falls, whatever its settings (softplus does, where it turns linear)."""
        return isinstance(self.module, nn.ReLU | nn.Sigmoid | nn.Tanh)

    @property
    def is_curved(self) -> bool:
        """Whether sigma'' is anything but zero."""
        return not isinstance(self.module, nn.ReLU | nn.LeakyReLU)

    def bend(self, rows: slice) -> Float[Tensor, "batch features"]:
        """``delta sigma''(a)``."""
        return (self.delta[rows] * self._derivatives[1][rows]).flatten(1)

    @cached_property
    def slope(self) -> Tensor:
        """sigma'(a)."""
        if isinstance(self.module, nn.ReLU):
            return (self.a > 0).to(self.a.dtype)
        return self._derivatives[0]

    @cached_property
    def _derivatives(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            a = self.a.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.value(a).sum(), a, create_graph=True)
            if not slope.requires_grad:
                return slope.detach(), torch.zeros_like(slope)
            (curvature,) = torch.autograd.grad(slope.sum(), a)
        return slope.detach(), curvature


class MaxPool(Layer):
    """The largest entry of each window, channel by channel."""

    indices: Tensor  # positions of the maxima in a channel, as torch numbers them

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        if module.return_indices:
            raise UnsupportedError("returns indices")

    def value(self, a: Tensor) -> Tensor:
        """The maxima; their places are kept."""
        m = self.module
        pool = functional.max_pool1d if isinstance(m, nn.MaxPool1d) else functional.max_pool2d
        z, indices = pool(a, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, return_indices=True)
        self.indices = indices.flatten(2)
        return z

    def push(self, T: Tensor, rows: slice) -> Tensor:
        """The entries that were largest."""
        places = self.indices[rows, None].expand(-1, T.shape[1], -1, -1)
        return T.flatten(3).gather(3, places).reshape(*T.shape[:2], *self.z.shape[1:])

    def push_units(self, values: Tensor, rows: slice) -> Tensor:
        """The entries that were largest."""
        return values.gather(3, self.indices[rows, :, None].expand(-1, -1, values.shape[2], -1))

    def pull(self, X: Tensor, rows: slice) -> Tensor:
        """Put the entries where the maxima were."""
        places = self.indices[rows, :, :, None].expand(-1, -1, -1, X.shape[2])
        by_channel = X.unflatten(1, places.shape[1:3])
        out = X.new_zeros(*places.shape[:2], self.a[0, 0].numel(), X.shape[2])
        return out.scatter_add_(2, places, by_channel).flatten(1, 2)


class AveragePool(Layer):
    """The mean of each window, channel by channel."""

    def value(self, a: Tensor) -> Tensor:
        """The means."""
        m = self.module
        settings = m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad
        if isinstance(m, nn.AvgPool1d):
            return functional.avg_pool1d(a, *settings)
        return functional.avg_pool2d(a, *settings, m.divisor_override)

    def push(self, T: Tensor, rows: slice) -> Tensor:
        """The means of the columns."""
        return self.value(T.flatten(0, 1)).reshape(*T.shape[:2], *self.z.shape[1:])

    def push_units(self, values: Tensor, rows: slice) -> Tensor:
        """The means of the columns."""
        planes = values.reshape(-1, 1, *self.a.shape[2:])
        return self.value(planes).reshape(*values.shape[:3], -1)

    def pull(self, X: Tensor, rows: slice) -> Tensor:
        """Spread the entries over their windows."""
        planes = X.transpose(1, 2).reshape(-1, *self.z.shape[1:])
        spread = torch.func.vjp(self.value, X.new_zeros(len(planes), *self.a.shape[1:]))[1]
        out: Tensor = spread(planes)[0]
        return out.reshape(len(X), X.shape[2], -1).mT
