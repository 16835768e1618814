"""Backend 3, the layers: how each layer type moves values and parameter Jacobians forward.

Axes: activations are ``(batch, *shape)``, Jacobians ``(batch, parameter, *shape)``. One-dimensional
convolution and pooling run as two-dimensional ones of height 1. At kinks the Hessian is that of the active
linear piece: ReLU'(0) = 0, and of equal maxima the one that ``max_pool`` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Elementwise activations, as pure functions of the module's settings and the input.
ACTIVATIONS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.ReLU: lambda m, z: functional.relu(z),
    nn.LeakyReLU: lambda m, z: functional.leaky_relu(z, m.negative_slope),
    nn.Sigmoid: lambda m, z: torch.sigmoid(z),
    nn.Tanh: lambda m, z: torch.tanh(z),
    nn.GELU: lambda m, z: functional.gelu(z, approximate=m.approximate),
    nn.SiLU: lambda m, z: functional.silu(z),
    nn.Softplus: lambda m, z: functional.softplus(z, m.beta, m.threshold),
    nn.ELU: lambda m, z: functional.elu(z, m.alpha),
}
PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU)
PARAMETRIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
POOLING = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
SHAPING = (nn.Flatten, nn.Unflatten, nn.Identity)


@dataclass
class Layer:
    """A leaf of the network with what its forward pass left behind.

    Attributes:
        module: The layer.
        weight, bias: Current values, or ``None`` where the layer has none.
        weight_name, bias_name: Names of those that are differentiated, else ``None``.
        extra: Frozen buffers.
        a: Input; ``z``: output; ``delta``: gradient of the loss with respect to the output.
        indices: Positions of the maxima, for max pooling.
    """

    module: Any
    weight: Any = None
    bias: Any = None
    weight_name: str | None = None
    bias_name: str | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    a: Tensor = field(default_factory=lambda: torch.empty(0))
    z: Tensor = field(default_factory=lambda: torch.empty(0))
    delta: Tensor = field(default_factory=lambda: torch.empty(0))
    indices: Tensor = field(default_factory=lambda: torch.empty(0))

    # values -------------------------------------------------------------------------------------

    def forward(self, a: Tensor) -> Tensor:
        """Evaluate the layer without calling the module (no hooks, no in-place operations)."""
        m: Any = self.module
        self.a = a
        if isinstance(m, nn.MaxPool1d | nn.MaxPool2d):
            pool = functional.max_pool1d if isinstance(m, nn.MaxPool1d) else functional.max_pool2d
            self.z, self.indices = pool(
                a, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, return_indices=True
            )
        else:
            self.z = self._value(a)
        return self.z

    def _value(self, a: Tensor) -> Tensor:
        m: Any = self.module
        if type(m) in ACTIVATIONS:
            return ACTIVATIONS[type(m)](m, a)
        if isinstance(m, nn.Linear):
            return functional.linear(a, self.weight, self.bias)
        if isinstance(m, nn.Conv1d | nn.Conv2d):
            convolve = functional.conv1d if isinstance(m, nn.Conv1d) else functional.conv2d
            padding: Any = m.padding
            return convolve(a, self.weight, self.bias, m.stride, padding, m.dilation, m.groups)
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            mean, var = self.extra["running_mean"], self.extra["running_var"]
            return functional.batch_norm(a, mean, var, self.weight, self.bias, False, 0.0, m.eps)
        return _pool_or_shape(m, a)

    # Jacobians ----------------------------------------------------------------------------------

    def push(self, T: Tensor, rows: slice) -> Tensor:
        """Derivative of the output along the columns of T, with parameters held fixed."""
        m: Any = self.module
        if type(m) in ACTIVATIONS:
            return T * self._slope[rows, None]
        if isinstance(m, nn.Linear):
            out: Tensor = T @ self.weight.T
            return out
        if isinstance(m, nn.MaxPool1d | nn.MaxPool2d):
            indices = self.indices[rows].flatten(2)[:, None].expand(-1, T.shape[1], -1, -1)
            spatial = 2 + (isinstance(m, nn.MaxPool2d))
            flat = T.flatten(-(spatial - 1)) if spatial > 2 else T
            return flat.gather(3, indices).reshape(*T.shape[:2], *self.z.shape[1:])
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            return T * self._scale.reshape(1, 1, -1, *[1] * (T.ndim - 3))
        if isinstance(m, nn.Conv1d | nn.Conv2d):
            convolve = functional.conv1d if isinstance(m, nn.Conv1d) else functional.conv2d
            padding: Any = m.padding
            out = convolve(T.flatten(0, 1), self.weight, None, m.stride, padding, m.dilation, m.groups)
        elif isinstance(m, POOLING):
            out = _pool_or_shape(m, T.flatten(0, 1))
        else:
            out = T
        return out.reshape(*T.shape[:2], *self.z.shape[1:])

    def own(self, rows: slice) -> tuple[list[str], Tensor]:
        """Names of the layer's parameters and the Jacobian of its output with respect to them."""
        a, m, z = self.a[rows], self.module, self.z[rows]
        batch, units = z.shape[:2]
        names, parts = [], []
        if self.weight_name is not None:
            features = self.features(a[:, None])[:, 0] if not isinstance(m, _NORMS) else self._normalised(a)
            # features: (batch, groups, inputs, positions); unit o belongs to group o // (units / groups)
            per_unit = features.repeat_interleave(units // features.shape[1], 1)
            jacobian = z.new_zeros(batch, units, per_unit.shape[2], units, per_unit.shape[3])
            jacobian.diagonal(dim1=1, dim2=3).copy_(per_unit.permute(0, 2, 3, 1))
            names.append(self.weight_name)
            parts.append(jacobian.reshape(batch, -1, *z.shape[1:]))
        if self.bias_name is not None:
            positions = z[0, 0].numel()
            jacobian = z.new_zeros(batch, units, units, positions)
            jacobian.diagonal(dim1=1, dim2=2).fill_(1)
            names.append(self.bias_name)
            parts.append(jacobian.reshape(batch, units, *z.shape[1:]))
        return names, torch.cat(parts, 1)

    def cross(self, T: Tensor, rows: slice) -> Tensor:
        """Second derivatives of (weight, earlier parameters), weights as rows: (weights, p)."""
        delta = self.delta[rows]
        batch, units = delta.shape[:2]
        if isinstance(self.module, _NORMS):
            scaled = (T * self._inverse_std.reshape(1, 1, -1, *[1] * (T.ndim - 3))) * delta[:, None]
            return scaled.flatten(3).sum((0, 3)).T if T.ndim > 3 else scaled.sum(0).T
        if isinstance(self.module, nn.Linear):
            return torch.einsum("bpi,bo->oip", T, delta).reshape(-1, T.shape[1])
        # moving delta under each tap costs a kernel's worth of one small array; unfolding T, of all of T
        groups = self.module.groups
        D = self._taps(delta).reshape(batch, groups, units // groups, -1, T[0, 0, 0].numel())
        U = T.reshape(*T.shape[:2], groups, T.shape[2] // groups, -1)
        return torch.einsum("bpgil,bgotl->goitp", U, D).reshape(-1, T.shape[1])

    def _taps(self, delta: Tensor) -> Tensor:
        """Delta where each tap of the kernel reads the input: (batch, units, taps, input positions)."""
        m: Any = self.module
        taps = self.weight[0, 0].numel()
        kernel = torch.eye(taps, dtype=delta.dtype, device=delta.device).reshape(1, taps, *m.kernel_size)
        spread = functional.conv_transpose1d if isinstance(m, nn.Conv1d) else functional.conv_transpose2d
        reach = [
            (n - 1) * stride - 2 * pad + dilation * (size - 1) + 1
            for n, stride, pad, dilation, size in zip(
                delta.shape[2:], m.stride, m.padding, m.dilation, m.kernel_size, strict=True
            )
        ]
        unread = [n - r for n, r in zip(self.a.shape[2:], reach, strict=True)]
        flat = delta.reshape(-1, 1, *delta.shape[2:])
        moved = spread(flat, kernel, None, m.stride, m.padding, unread, 1, m.dilation)
        return moved.reshape(*delta.shape[:2], taps, -1)

    def features(self, T: Tensor) -> Tensor:
        """What multiplies the weights: (batch, p, groups, inputs per unit, positions)."""
        m: Any = self.module
        if isinstance(m, nn.Linear):
            return T[:, :, None, :, None]
        assert isinstance(m, nn.Conv1d | nn.Conv2d)
        flat = T.flatten(0, 1)
        settings: list[Any] = [m.kernel_size, m.dilation, m.padding, m.stride]
        if isinstance(m, nn.Conv1d):
            flat = flat[:, :, None]
            settings = [(neutral, s[0]) for s, neutral in zip(settings, (1, 1, 0, 1), strict=True)]
        patches = functional.unfold(flat, *settings)
        return patches.reshape(*T.shape[:2], m.groups, patches.shape[1] // m.groups, -1)

    def bend(self, rows: slice) -> Tensor | None:
        """``delta sigma''(z)`` of an activation, or ``None`` where it is piecewise linear."""
        m: Any = self.module
        if type(m) not in ACTIVATIONS or isinstance(m, PIECEWISE_LINEAR):
            return None
        return self.delta[rows] * self._curvature[rows]

    # derivatives of single layers ---------------------------------------------------------------

    @property
    def _scale(self) -> Tensor:
        return self._inverse_std if self.weight is None else self.weight * self._inverse_std

    @property
    def _inverse_std(self) -> Tensor:
        eps: float = self.module.eps
        return (self.extra["running_var"] + eps).rsqrt()

    def _normalised(self, a: Tensor) -> Tensor:
        centred = a.flatten(2) if a.ndim > 2 else a[:, :, None]
        centred = centred - self.extra["running_mean"][:, None]
        return (centred * self._inverse_std[:, None])[:, :, None]

    @property
    def _slope(self) -> Tensor:
        if isinstance(self.module, nn.ReLU):
            return (self.a > 0).to(self.a.dtype)
        return self._derivatives()[0]

    @property
    def _curvature(self) -> Tensor:
        return self._derivatives()[1]

    def _derivatives(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = self.a.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self._value(z).sum(), z, create_graph=True)
            if not slope.requires_grad:
                return slope.detach(), torch.zeros_like(slope)
            (curvature,) = torch.autograd.grad(slope.sum(), z)
        return slope.detach(), curvature


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def _pool_or_shape(m: Any, a: Tensor) -> Tensor:
    if isinstance(m, nn.AvgPool1d):
        return functional.avg_pool1d(a, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)
    if isinstance(m, nn.AvgPool2d):
        return functional.avg_pool2d(
            a, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
        )
    if isinstance(m, nn.Flatten):
        return a.flatten(m.start_dim, m.end_dim)
    if isinstance(m, nn.Unflatten):
        out: Tensor = a.unflatten(m.dim, m.unflattened_size)
        return out
    return a
