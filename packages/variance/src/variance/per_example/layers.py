"""Layers whose per-example gradients follow from inputs and output gradients.

Axis order: n examples, t positions (sequence or space), i inputs, o outputs. A weight layer has the gradient
G_n = sum_t b_nt a_nt^T; a module that is called twice simply has more positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from variance.errors import UnsupportedLayer


class Call:
    """Input and output gradient of one call of one module."""

    def __init__(self, inputs: Tensor, version: int) -> None:
        self.inputs = inputs
        self._version = version
        self.output_gradients: Tensor | None = None

    def receive(self, gradient: Tensor) -> None:
        """Store the gradient that autograd delivers."""
        self.output_gradients = gradient

    def convert(self, dtype: torch.dtype) -> None:
        """Bring inputs and output gradients to one precision: with autocast they differ."""
        self.output_gradients = self.b.to(dtype)
        if self.inputs.is_floating_point():
            self.inputs = self.inputs.to(dtype)

    def in_double(self) -> "Call":
        """Return a copy in float64."""
        made = Call(self.inputs, self._version)
        made.receive(self.b)
        made.convert(torch.float64)
        return made

    @property
    def is_used(self) -> bool:
        """Whether the loss depends on this call."""
        return self.output_gradients is not None

    def require_untouched(self, name: str) -> None:
        """Refuse an input that was overwritten after the layer read it."""
        if self.inputs._version != self._version:
            raise UnsupportedLayer(
                f"the input of layer '{name}' was changed in place after the layer used it, so its value is "
                "lost. "
                "Use the out-of-place form (for example x = x + y instead of x += y) before this layer."
            )

    @property
    def b(self) -> Tensor:
        """The output gradient."""
        assert self.output_gradients is not None
        return self.output_gradients


class Layer(ABC):
    """One module with all its calls in one pass."""

    is_weight_layer: ClassVar[bool] = False

    def __init__(
        self, name: str, module: nn.Module, calls: Sequence[Call], buffers: Mapping[str, Tensor]
    ) -> None:
        self.name = name
        self.module = module
        self.calls = calls
        self.buffers = buffers
        prefix = f"{name}." if name else ""
        self._names = {
            key: prefix + key for key, value in module.named_parameters(recurse=False) if value.requires_grad
        }

    @property
    def parameter_names(self) -> list[str]:
        """Full names of the trainable parameters, in the module's order."""
        return list(self._names.values())

    def parameter(self, key: str) -> str | None:
        """Full name of the module's parameter `key`, or None where it is absent or frozen."""
        return self._names.get(key)

    def __len__(self) -> int:
        return len(self.calls[0].inputs)

    @abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """Return materialised gradients, ``(n, *shape)`` by full parameter name."""


class WeightLayer(Layer):
    """A layer with G_n = sum_t b_nt a_nt^T: Linear, Conv1d, Conv2d."""

    is_weight_layer = True

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """Number of positions t, over all calls."""

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, int]:
        """(o, i) of the flattened weight."""

    @property
    def groups(self) -> int:
        """Number of convolution groups."""
        return 1

    @abstractmethod
    def positions(self) -> tuple[Float[Tensor, "n t i"], Float[Tensor, "n t o"]]:
        """Return inputs and output gradients per position."""

    @abstractmethod
    def kernels(self, rows: slice = slice(None)) -> Float[Tensor, "n o i"]:
        """Materialise the flattened weight gradients of some examples."""

    @abstractmethod
    def input_means(self) -> Float[Tensor, "n i"]:
        """Return the input, averaged over positions."""

    def bias_gradients(self) -> Float[Tensor, "n o"]:
        """Return the bias gradient, which is the output gradient summed over positions."""
        return sum((call.b.flatten(2).sum(2) for call in self.calls[1:]), self.calls[0].b.flatten(2).sum(2))

    def gradients(self) -> dict[str, Tensor]:
        """Materialise weight and bias gradients."""
        result = {}
        if name := self.parameter("weight"):
            weight = cast("Tensor", self.module.weight)
            result[name] = self.kernels().reshape(-1, *weight.shape)
        if name := self.parameter("bias"):
            result[name] = self.bias_gradients()
        return result


class LinearLayer(WeightLayer):
    """`nn.Linear` on (n, i) or (n, ..., i)."""

    @property
    @override
    def num_positions(self) -> int:
        return sum(call.inputs[0].numel() // call.inputs.shape[-1] for call in self.calls)

    @property
    @override
    def weight_shape(self) -> tuple[int, int]:
        return cast("tuple[int, int]", tuple(cast("Tensor", self.module.weight).shape))

    @override
    def positions(self) -> tuple[Tensor, Tensor]:
        a = [call.inputs.reshape(len(call.inputs), -1, call.inputs.shape[-1]) for call in self.calls]
        b = [call.b.reshape(len(call.b), -1, call.b.shape[-1]) for call in self.calls]
        return (a[0], b[0]) if len(a) == 1 else (torch.cat(a, 1), torch.cat(b, 1))

    @override
    def kernels(self, rows: slice = slice(None)) -> Tensor:
        a, b = self.positions()
        return torch.bmm(b[rows].transpose(1, 2), a[rows])

    @override
    def input_means(self) -> Tensor:
        a = self.positions()[0]
        return a[:, 0] if a.shape[1] == 1 else a.mean(1)  # a mean over one position is slow

    @override
    def bias_gradients(self) -> Tensor:
        b = self.positions()[1]
        return b[:, 0] if b.shape[1] == 1 else b.sum(1)


class ConvLayer(WeightLayer):
    """`nn.Conv1d` and `nn.Conv2d` with zero padding, any stride, dilation and groups.

    Per-example kernels come from the weight gradient of *one* convolution with n times as many groups, which
    costs about as much as the batch gradient itself; unfolding the input is several times slower on wide
    feature maps.
    """

    @property
    def _convolution(self) -> nn.Conv1d | nn.Conv2d:
        return cast("nn.Conv1d | nn.Conv2d", self.module)

    @property
    @override
    def groups(self) -> int:
        return self._convolution.groups

    @property
    @override
    def num_positions(self) -> int:
        return sum(call.b[0, 0].numel() for call in self.calls)

    @property
    @override
    def weight_shape(self) -> tuple[int, int]:
        weight = self._convolution.weight
        return weight.shape[0], weight[0].numel()

    def _padded(self, call: Call) -> tuple[Tensor, list[int]]:
        """Return the input and the symmetric padding that is still to be applied to it."""
        module = self._convolution
        rank = call.inputs.ndim - 2
        if module.padding == "valid":
            return call.inputs, [0] * rank
        if module.padding == "same" or module.padding_mode != "zeros":
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            return F.pad(call.inputs, module._reversed_padding_repeated_twice, mode=mode), [0] * rank
        return call.inputs, list(cast("tuple[int, ...]", module.padding))

    @override
    def kernels(self, rows: slice = slice(None)) -> Tensor:
        parts = [self._kernels(call, rows) for call in self.calls]
        return sum(parts[1:], parts[0])

    def _kernels(self, call: Call, rows: slice) -> Tensor:
        module = self._convolution
        x, padding = self._padded(call)
        x, b = x[rows], call.b[rows]
        n, rank = len(x), x.ndim - 2
        weight = module.weight.detach().to(x.dtype)  # only its shape matters
        (_, kernels, _) = torch.ops.aten.convolution_backward(
            b.reshape(1, n * b.shape[1], *b.shape[2:]),
            x.reshape(1, n * x.shape[1], *x.shape[2:]),
            weight.expand(n, *weight.shape).reshape(n * len(weight), *weight.shape[1:]),
            None,
            list(module.stride),
            padding,
            list(module.dilation),
            False,
            [0] * rank,
            n * module.groups,
            [False, True, False],
        )
        return cast("Tensor", kernels).reshape(n, len(weight), -1)

    @override
    def positions(self) -> tuple[Tensor, Tensor]:
        if self.groups != 1:
            raise UnsupportedLayer(
                f"layer '{self.name}' has {self.groups} groups and no single rank-1 factor."
            )
        a = torch.cat([self._patches(call) for call in self.calls], 1)
        return a, torch.cat([call.b.flatten(2).transpose(1, 2) for call in self.calls], 1)

    def _patches(self, call: Call) -> Float[Tensor, "n t i"]:
        module = self._convolution
        x, padding = self._padded(call)
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        if x.ndim == 3:
            x, kernel, padding = x.unsqueeze(2), (1, *kernel), [0, *padding]
            stride, dilation = (1, *stride), (1, *dilation)
        return F.unfold(x, kernel, dilation=dilation, padding=tuple(padding), stride=stride).transpose(1, 2)

    def input_means(self) -> Float[Tensor, "n i"]:
        """Average patches over positions: sums of shifted windows, without unfolding."""
        if self.groups != 1:
            raise UnsupportedLayer(
                f"layer '{self.name}' has {self.groups} groups and no single rank-1 factor."
            )
        total = sum((self._patch_sums(call) for call in self.calls[1:]), self._patch_sums(self.calls[0]))
        return total / self.num_positions

    def _patch_sums(self, call: Call) -> Float[Tensor, "n i"]:
        module = self._convolution
        x, padding = self._padded(call)
        x = F.pad(x, [p for p in reversed(padding) for _ in (0, 1)])
        if x.ndim == 3:
            x = x.unsqueeze(2)
        sizes = list(call.b.shape[2:])
        kernel, stride, dilation = list(module.kernel_size), list(module.stride), list(module.dilation)
        if len(sizes) == 1:
            sizes, kernel, stride, dilation = [1, *sizes], [1, *kernel], [1, *stride], [1, *dilation]
        rows = _window_sums(x, 2, sizes[0], kernel[0], stride[0], dilation[0])
        both = _window_sums(rows, 3, sizes[1], kernel[1], stride[1], dilation[1])
        return both.flatten(1)


def _window_sums(x: Tensor, axis: int, size: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """Replace `axis` by the kernel offsets: entry k sums the `size` positions that offset k visits."""
    taken = [
        x.narrow(axis, k * dilation, (size - 1) * stride + 1)[
            (slice(None),) * axis + (slice(None, None, stride),)
        ]
        for k in range(kernel)
    ]
    return torch.stack([part.sum(axis) for part in taken], axis)


class NormLayer(Layer):
    """Affine part of LayerNorm, GroupNorm and of batch norm with frozen statistics."""

    def gradients(self) -> dict[str, Tensor]:
        """Multiply output gradients with the normalised input and sum over positions."""
        total: dict[str, Tensor] = {}
        for call in self.calls:
            for key, part in (("weight", call.b * self._normalised(call.inputs)), ("bias", call.b)):
                if name := self.parameter(key):
                    total[name] = total[name] + self._sum(part) if name in total else self._sum(part)
        return total

    def _normalised(self, x: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(x, module.normalized_shape, eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x, module.num_groups, eps=module.eps)
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        prefix = f"{self.name}." if self.name else ""
        mean, variance = (self.buffers[prefix + name].to(x) for name in ("running_mean", "running_var"))
        return F.batch_norm(x, mean, variance, eps=module.eps)

    def _sum(self, part: Tensor) -> Tensor:
        if isinstance(self.module, nn.LayerNorm):
            shape = self.module.normalized_shape
            return part.reshape(len(part), -1, *shape).sum(1)
        return part.flatten(2).sum(2) if part.ndim > 2 else part


class EmbeddingLayer(Layer):
    """`nn.Embedding`: output gradients added to the rows that were looked up."""

    def gradients(self) -> dict[str, Tensor]:
        """Scatter output gradients into the table."""
        module = cast("nn.Embedding", self.module)
        total = self.calls[0].b.new_zeros(len(self), *module.weight.shape)
        for call in self.calls:
            ids = call.inputs.reshape(len(self), -1, 1).expand(-1, -1, module.embedding_dim)
            rows = call.b.reshape(len(self), -1, module.embedding_dim)
            if module.padding_idx is not None:
                rows = rows * (ids != module.padding_idx)
            total.scatter_add_(1, ids, rows)
        return dict.fromkeys(self.parameter_names, total)


def layer_for(module: nn.Module) -> type[Layer] | None:
    """Return the class that handles a module, or None where only vmap does."""
    if type(module) is nn.Linear:
        return LinearLayer
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return ConvLayer
    if type(module) in (nn.LayerNorm, nn.GroupNorm) or isinstance(module, nn.modules.batchnorm._BatchNorm):
        return NormLayer
    if type(module) is nn.Embedding:
        return EmbeddingLayer
    return None
