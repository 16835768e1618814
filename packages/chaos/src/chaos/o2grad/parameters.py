"""The flat parameter vector of a module: order, names, shapes and safe evaluation.

Order everywhere: ``model.parameters()`` (tied weights once, frozen ones left out), each tensor row-major.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from chaos.o2grad.losses import check_scalar

Parameters = Tensor | Mapping[str, Tensor] | None


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and positions of the differentiated parameters.

    Example:
        >>> layout = ParameterLayout.of(nn.Linear(3, 2))
        >>> layout.n, layout.slices["bias"]
        (8, slice(6, 8, None))
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[str] | None = None) -> ParameterLayout:
        """Read the layout of a module, optionally restricted to named parameters or submodules.

        Args:
            model: Any module.
            layers: Parameter names (``"0.weight"``) or module names (``"0"``); ``None`` takes all that
                require a gradient.

        Raises:
            ValueError: If a name matches nothing, or nothing is trainable.
        """
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if layers is not None:
            for layer in layers:
                if not any(name == layer or name.startswith(f"{layer}.") for name in trainable):
                    raise ValueError(
                        f"layers names {layer!r}; trainable parameters are {', '.join(trainable)}."
                    )
            trainable = {
                name: p
                for name, p in trainable.items()
                if any(name == layer or name.startswith(f"{layer}.") for layer in layers)
            }
        if not trainable:
            raise ValueError(
                "The module has no parameter that requires a gradient; call requires_grad_(True)."
            )
        return cls(tuple(trainable), tuple(p.shape for p in trainable.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(shape.numel() for shape in self.shapes)

    @property
    def n(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @property
    def slices(self) -> dict[str, slice]:
        """Position of each parameter in the flat vector."""
        out, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            out[name] = slice(start, start + size)
            start += size
        return out

    def unflatten(self, flat: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Split a flat vector into views shaped like the parameters."""
        parts = flat.split(self.sizes)
        return {
            name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Concatenate named tensors in layout order.

        Raises:
            ValueError: If a name is missing.
        """
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise ValueError(f"params lacks {', '.join(missing)}; it must hold {', '.join(self.names)}.")
        return torch.cat([tensors[name].reshape(-1) for name in self.names])


def flat_parameters(
    model: nn.Module, layout: ParameterLayout, params: Parameters, dtype: torch.dtype
) -> Float[Tensor, " n"]:
    """Return the point of evaluation as a detached flat vector of the given type.

    Raises:
        ValueError: If a flat vector has another length or holds non-finite values.
    """
    if params is None:
        params = dict(model.named_parameters())
    flat = params if isinstance(params, Tensor) else layout.flatten(params)
    if flat.shape != (layout.n,):
        raise ValueError(
            f"params has shape {tuple(flat.shape)}; this model has {layout.n} trainable parameters, "
            f"so pass a flat tensor of shape ({layout.n},), a dict of them, or None for the current ones."
        )
    flat = flat.detach().to(dtype)
    if not torch.isfinite(flat).all():
        raise ValueError("params holds non-finite values (NaN or infinity); curvature is undefined there.")
    return flat


def constants(model: nn.Module, layout: ParameterLayout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that is held fixed: buffers and parameters outside the layout, cast to the type."""
    fixed = [*model.named_buffers(), *((k, p) for k, p in model.named_parameters() if k not in layout.names)]
    return {
        name: tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
        for name, tensor in fixed
    }


def check_deterministic(model: nn.Module) -> None:
    """Refuse a module whose output is random, naming the layer.

    Raises:
        ValueError: If a dropout layer is active.
    """
    for name, module in model.named_modules():
        if not module.training:
            continue
        dropout = getattr(module, "p", 0.0) if isinstance(module, _DropoutNd) else 0.0
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            dropout = module.dropout
        if dropout:
            raise ValueError(
                f"Dropout is active in layer {name or '(root)'!r}, so the loss has no fixed curvature. "
                "Call .eval() on that layer, or set its probability to 0."
            )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluate a module without leaving a trace in it.

    Batch norm in training mode uses batch statistics and keeps its running ones; attention runs in the
    form that has second derivatives; the random state is put back.
    """
    tracking = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    random_state = torch.random.get_rng_state()
    for module in tracking:
        module.track_running_stats = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module in tracking:
            module.track_running_stats = True
        torch.random.set_rng_state(random_state)


def loss_function(
    model: nn.Module,
    layout: ParameterLayout,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    dtype: torch.dtype,
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Build the scalar function of the named parameters that the backends differentiate."""
    fixed = constants(model, layout, dtype)

    def evaluate(tensors: dict[str, Tensor]) -> Tensor:
        return check_scalar(loss(torch.func.functional_call(model, {**fixed, **tensors}, (x,)), y))

    return evaluate
