"""Backend 3: the exact Hessian of a feed-forward tree by one sweep of parameter Jacobians.

For layers ``a_m = f_m(a_{m-1}, theta_m)`` keep ``T_m = d a_m / d theta_{<=m}`` and ``delta_m = dL / d a_m``.
Then H is the sum of three kinds of terms, each a batched product with *fixed* weights:

- affine layer m: ``d^2 L / d W_m d theta_{<m}`` contracts ``T_{m-1}`` (unfolded) with ``delta_m``;
- activation m: ``T_m' diag(delta_m sigma''(z_m)) T_m``;
- output: ``J' A J`` with ``J = T_M`` and A the Hessian of the loss in output space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chaos.o2grad.frames import InputFrame
from chaos.o2grad.layers import ACTIVATIONS, PARAMETRIC, POOLING, SHAPING, Layer
from chaos.o2grad.losses import Loss, check_scalar, output_hessian, sandwich
from chaos.o2grad.parameters import ParameterLayout


class UnsupportedError(ValueError):
    """The module is not a tree of known layers; the message says which part."""


class Residual(nn.Module):
    """``x + body(x)``, a block that the layer sweep understands.

    Example:
        >>> Residual(nn.Identity())(torch.ones(1)).item()
        2.0
    """

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = body[0] if len(body) == 1 else nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """Add the input to the output of the body."""
        out: Tensor = x + self.body(x)
        return out


@dataclass
class _Skip:
    body: list[Node]


Node = Layer | _Skip


def build_tree(model: nn.Module, layout: ParameterLayout, values: Mapping[str, Tensor]) -> list[Node]:
    """Read a module as a tree of layers holding the given parameter values.

    Raises:
        UnsupportedError: Naming the first part that is not known.
    """
    seen: set[int] = set()
    return list(_nodes(model, "", layout, values, seen))


def _nodes(
    module: nn.Module, name: str, layout: ParameterLayout, values: Mapping[str, Tensor], seen: set[int]
) -> Iterator[Node]:
    if id(module) in seen and any(True for _ in module.parameters()):
        raise UnsupportedError(f"layer {name!r} is used twice")
    seen.add(id(module))
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedError(f"layer {name!r} has hooks")
    if type(module).forward is nn.Sequential.forward:
        for key, child in module.named_children():
            yield from _nodes(child, f"{name}{key}.", layout, values, seen)
    elif type(module) is Residual:
        yield _Skip(list(_nodes(module.body, f"{name}body.", layout, values, seen)))
    elif type(module) in ACTIVATIONS or type(module) in (*PARAMETRIC, *POOLING, *SHAPING):
        yield _layer(module, name, layout, values, seen)
    elif isinstance(module, nn.modules.dropout._DropoutNd) and not module.training:
        yield Layer(nn.Identity())
    else:
        raise UnsupportedError(f"{type(module).__name__} at {name or '(root)'!r} is not a known layer")


def _layer(
    module: nn.Module, name: str, layout: ParameterLayout, values: Mapping[str, Tensor], seen: set[int]
) -> Layer:
    layer = Layer(module)
    for kind, parameter in module._parameters.items():
        if parameter is None:
            continue
        if id(parameter) in seen:
            raise UnsupportedError(f"parameter {name + kind!r} is tied")
        seen.add(id(parameter))
        setattr(layer, kind, values[name + kind])
        if name + kind in layout.names:
            setattr(layer, f"{kind}_name", name + kind)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        if module.training or module.running_mean is None:
            raise UnsupportedError(f"batch norm {name!r} couples the samples of a batch")
        layer.extra = {key: values[name + key] for key in ("running_mean", "running_var")}
    if isinstance(module, nn.Conv1d | nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        raise UnsupportedError(f"convolution {name!r} pads by {module.padding_mode!r}, {module.padding!r}")
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d) and module.return_indices:
        raise UnsupportedError(f"pooling {name!r} returns indices")
    return layer


def leaves(nodes: list[Node]) -> Iterator[Layer]:
    """All layers in the order of evaluation."""
    for node in nodes:
        if isinstance(node, Layer):
            yield node
        else:
            yield from leaves(node.body)


def _forward(nodes: list[Node], a: Tensor) -> Tensor:
    for node in nodes:
        if isinstance(node, _Skip):
            a = a + _forward(node.body, a)
        else:
            if isinstance(node.module, nn.Linear) and a.ndim != 2:
                raise UnsupportedError("a linear layer acts on more than one position per sample")
            a = node.forward(a)
    return a


class Sweep:
    """One evaluation point of a layer tree: values, loss gradients, and the forward sweep.

    Args:
        nodes: Tree from :func:`build_tree`.
        x, y: Batch.
        loss: Scalar loss.
        frame: Coordinates of the first affine layer, or ``None``.
    """

    def __init__(
        self, nodes: list[Node], x: Tensor, y: Tensor, loss: Loss, frame: InputFrame | None = None
    ) -> None:
        self.nodes, self.frame = nodes, frame
        self.columns: list[tuple[str, int]] = []
        layers = list(leaves(nodes))
        with torch.enable_grad():
            output = _forward(nodes, x.detach().requires_grad_())
            self.value = check_scalar(loss(output, y))
            deltas = torch.autograd.grad(
                self.value, [layer.z for layer in layers], allow_unused=True, materialize_grads=True
            )
        for layer, delta in zip(layers, deltas, strict=True):
            layer.a, layer.z, layer.delta = layer.a.detach(), layer.z.detach(), delta
        self.output = output.detach()
        self.curvature = output_hessian(loss, self.output, y)
        self.num_columns = sum(
            self._own_size(layer) for layer in layers if layer.weight_name or layer.bias_name
        )
        self.widest = max(layer.z[0].numel() for layer in layers)

    def _own_size(self, layer: Layer) -> int:
        sizes = [
            tensor.numel()
            for tensor, name in ((layer.weight, layer.weight_name), (layer.bias, layer.bias_name))
            if tensor is not None and name is not None
        ]
        return sum(sizes)

    def hessian(self, budget: int) -> tuple[Tensor, list[tuple[str, int]]]:
        """The Hessian in sweep order and the (name, size) of its coordinate groups."""
        size = self.num_columns
        if self.frame is not None:
            first = [self.frame.weight] if self.frame.bias is None else [self.frame.weight, self.frame.bias]
            size += self.frame.units * self.frame.q - sum(s.stop - s.start for s in first)
        M = self.output.new_zeros(size, size)

        def add(row: int, term: Tensor) -> None:  # only the lower triangle counts
            rows, columns = term.shape
            M[row : row + rows, :columns] += term

        return sandwich(self.jacobian(budget, add), self.curvature, lower=M), self.columns

    def jacobian(self, budget: int, add: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Derivative of the output, (batch, parameters, outputs), a few samples at a time."""
        batch = len(self.output)
        per_sample = 4 * self.output.element_size() * max(1, self.num_columns * self.widest)
        rows = max(1, min(batch, budget // per_sample))
        parts = []
        for start in range(0, batch, rows):
            self.columns = []
            T = self._push(self.nodes, None, slice(start, min(start + rows, batch)), add)
            assert T is not None
            parts.append(T.flatten(2))
        return torch.cat(parts)

    def _push(
        self,
        nodes: list[Node],
        T: Tensor | None,
        rows: slice,
        add: Callable[[int, Tensor], None] | None,
    ) -> Tensor | None:
        for node in nodes:
            if isinstance(node, _Skip):
                inner = self._push(node.body, T, rows, add)
                if T is None:
                    T = inner
                elif inner is not None:
                    T = inner.index_add(1, torch.arange(T.shape[1], device=T.device), T)
            else:
                T = self._step(node, T, rows, add)
        return T

    def _step(
        self, layer: Layer, T: Tensor | None, rows: slice, add: Callable[[int, Tensor], None] | None
    ) -> Tensor | None:
        own: Tensor | None = None
        if layer.weight_name is not None or layer.bias_name is not None:
            own = self._own(layer, rows)
        if T is None:
            return own
        if add is not None:
            if layer.weight_name is not None:
                add(T.shape[1], layer.cross(T, rows))
            bend = layer.bend(rows)
            if bend is not None:
                flat = T.transpose(0, 1).flatten(1)
                add(0, (flat * bend.reshape(1, -1)) @ flat.T)
        T = layer.push(T, rows)
        return T if own is None else torch.cat([T, own], 1)

    def _own(self, layer: Layer, rows: slice) -> Tensor:
        if self.frame is not None and not self.columns:
            return self._own_in_frame(layer, self.frame, rows)
        names, own = layer.own(rows)
        for name in names:
            tensor = layer.weight if name == layer.weight_name else layer.bias
            assert tensor is not None
            self.columns.append((name, tensor.numel()))
        return own

    def _own_in_frame(self, layer: Layer, frame: InputFrame, rows: slice) -> Tensor:
        a = layer.a[rows]
        xi = (a if frame.bias is None else torch.cat([a, a.new_ones(len(a), 1)], 1)) @ frame.basis
        self.columns.append(("", frame.units * frame.q))
        jacobian = a.new_zeros(len(a), frame.units, frame.q, frame.units)
        jacobian.diagonal(dim1=1, dim2=3).copy_(xi[:, :, None].expand(-1, -1, frame.units))
        return jacobian.flatten(1, 2)
