"""The flat parameter vector of a module: order, names, shapes and safe evaluation.

Order everywhere: ``model.parameters()`` (tied weights once, frozen ones left out), each tensor row-major.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chaos.o2grad.batches import Inputs, arguments

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
        for name, p in trainable.items():
            if isinstance(p, nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"Parameter {name!r} has no shape yet; call the model once on a batch first."
                )
            if p.is_complex():
                raise ValueError(
                    f"Parameter {name!r} is complex; a Hessian is defined here for real ones only."
                )
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
    flat = flat.detach().to(dtype, copy=flat is params)
    if not all_finite(flat):
        raise ValueError("params holds non-finite values (NaN or infinity); curvature is undefined there.")
    return flat


def constants(model: nn.Module, layout: ParameterLayout, dtype: torch.dtype) -> dict[str, Tensor]:
    """What is held fixed: copies of buffers, and parameters outside the layout, cast to the type."""
    buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    others = {name: p.detach() for name, p in model.named_parameters() if name not in layout.names}
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in (buffers | others).items()
    }


@dataclass(frozen=True, eq=False)
class LossFunction:
    """The scalar function of the parameters that is differentiated.

    Attributes:
        model: The module.
        layout: Its differentiated parameters.
        loss: The loss.
        x: Inputs.
        y: Targets, ``None`` where the loss takes the output only.
        dtype: Type of the computation.
        seen: Called with every output of the model.
        live: Names of the model's own tensors by identity; a graph of this function must not reach them.
    """

    model: nn.Module
    layout: ParameterLayout
    loss: Callable[..., Tensor]
    x: Inputs
    y: Any
    dtype: torch.dtype
    seen: Callable[[Any], None]
    live: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        """Note the model's own tensors before they are swapped."""
        live = {id(p): name for name, p in self.model.named_parameters() if name in self.layout.names}
        object.__setattr__(self, "live", live)

    def __call__(self, flat: Float[Tensor, " n"]) -> Tensor:
        """Return the loss at flat parameters."""
        return self.of_parts(self.layout.unflatten(flat))

    def of_parts(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the loss at parameters by name."""
        values = constants(self.model, self.layout, self.dtype) | dict(parts)
        joint = _ModelAndLoss(self)
        result = torch.func.functional_call(
            joint, {f"model.{name}": value for name, value in values.items()}, ()
        )
        return check_scalar(result)


class _ModelAndLoss(nn.Module):
    """Both as one module: a loss that reads parameters of the model finds those of the point."""

    def __init__(self, function: LossFunction) -> None:
        super().__init__()
        self.model, self._function = function.model, function

    def forward(self) -> Any:
        of = self._function
        args, kwargs = arguments(of.x)
        output = self.model(*args, **kwargs)
        of.seen(output)
        return of.loss(output) if of.y is None else of.loss(output, of.y)


def check_scalar(value: Tensor) -> Tensor:
    """Refuse a loss per sample.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If the value is not a scalar.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"The loss returned {type(value).__name__}; it must return a scalar tensor.")
    if value.ndim:
        raise ValueError(
            f"The loss has shape {tuple(value.shape)}; curvature needs a scalar: "
            "use reduction='mean' or 'sum' instead of 'none'."
        )
    return value


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite; a finite sum, which is quick, says so."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
