"""Reading a module as a tree of the layers that the sweep knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from chaos.o2grad.affine import Affine, Linear, Norm
from chaos.o2grad.convolution import Convolution
from chaos.o2grad.layers import Activation, AveragePool, Layer, MaxPool, Shape, UnsupportedError
from chaos.o2grad.parameters import ParameterLayout
from chaos.o2grad.parts import is_plain

LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.BatchNorm1d: Norm,
    nn.BatchNorm2d: Norm,
    nn.MaxPool1d: MaxPool,
    nn.MaxPool2d: MaxPool,
    nn.AvgPool1d: AveragePool,
    nn.AvgPool2d: AveragePool,
    nn.Flatten: Shape,
    nn.Unflatten: Shape,
    nn.Identity: Shape,
    **dict.fromkeys(Activation.FUNCTIONS, Activation),
}


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
class Skip:
    """A residual block.

    Attributes:
        body: Its layers.
        shape: Of what it adds to, without the batch.
    """

    body: list[Node]
    shape: torch.Size = field(default_factory=torch.Size)


Node = Layer | Skip


def build_tree(model: nn.Module, layout: ParameterLayout, values: Mapping[str, Tensor]) -> list[Node]:
    """Read a module as a tree of layers holding the given values of parameters and buffers.

    Raises:
        UnsupportedError: Naming the first part that is not known.
    """
    return _pool_first(_nodes(model, "", layout, values, set()))


def leaves(nodes: list[Node]) -> Iterator[Layer]:
    """All layers in the order of evaluation."""
    for node in nodes:
        if isinstance(node, Layer):
            yield node
        else:
            yield from leaves(node.body)


def evaluate(nodes: list[Node], a: Tensor) -> Tensor:
    """The forward pass; every layer keeps its input and output.

    Raises:
        UnsupportedError: If a layer cannot take what it is given.
    """
    for node in nodes:
        if isinstance(node, Layer):
            a = node.forward(a)
        else:
            body = evaluate(node.body, a)
            if body.shape != a.shape:
                raise UnsupportedError("a residual block changes the shape")
            node.shape, a = a.shape[1:], a + body
    return a


def _nodes(
    module: nn.Module, name: str, layout: ParameterLayout, values: Mapping[str, Tensor], seen: set[int]
) -> Iterator[Node]:
    if id(module) in seen and any(True for _ in module.parameters()):
        raise UnsupportedError(f"layer {_place(name)} is used twice")
    seen.add(id(module))
    if not is_plain(module):
        raise UnsupportedError(f"layer {_place(name)} has hooks or a forward of its own")
    if type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():  # named_children leaves out the second use of a module
            assert child is not None
            yield from _nodes(child, f"{name}{key}.", layout, values, seen)
    elif type(module) is Residual:
        yield Skip(_pool_first(_nodes(module.body, f"{name}body.", layout, values, seen)))
    elif type(module) in LAYERS:
        yield _layer(module, name, layout, values, seen)
    elif isinstance(module, nn.modules.dropout._DropoutNd) and not module.training:
        yield Shape(nn.Identity())
    else:
        raise UnsupportedError(f"{type(module).__name__} at {_place(name)} is not a known layer")


def _pool_first(nodes: Iterable[Node]) -> list[Node]:
    """Let max pooling change places with an increasing function before it: the same, on fewer entries."""
    out: list[Node] = []
    for node in nodes:
        before = out[-1] if out else None
        swaps = isinstance(node, MaxPool) and isinstance(before, Activation) and before.is_increasing
        out.insert(len(out) - swaps, node)
    return out


def _layer(
    module: nn.Module, name: str, layout: ParameterLayout, values: Mapping[str, Tensor], seen: set[int]
) -> Layer:
    try:
        layer = LAYERS[type(module)](module)
    except UnsupportedError as reason:
        raise UnsupportedError(f"{type(module).__name__} at {_place(name)} {reason}") from None
    if isinstance(layer, Affine):
        for kind, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) in seen:
                raise UnsupportedError(f"parameter {name + kind!r} is tied")
            seen.add(id(parameter))
            setattr(layer, kind, values[name + kind])
            if name + kind in layout.names:
                setattr(layer, f"{kind}_name", name + kind)
    if isinstance(layer, Norm):
        layer.running_mean, layer.running_var = values[name + "running_mean"], values[name + "running_var"]
    return layer


def _place(name: str) -> str:
    return repr(name.removesuffix(".") or "(root)")
