"""The flat parameter vector of a module: order, names, shapes and safe evaluation.

Order everywhere: ``model.parameters()`` (tied weights once, frozen ones left out), each tensor row-major.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chaos.o2grad.batches import Inputs, call, copied, tensors
from chaos.o2grad.memory import check_memory
from chaos.o2grad.observation import same, swapped
from chaos.o2grad.parts import Parts

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
            ValueError: If a name matches nothing, nothing is trainable, parameters are on several devices
                or share memory.
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
        devices = {str(p.device) for p in trainable.values()}
        if len(devices) > 1 or "meta" in devices:
            raise ValueError(
                f"The parameters are on {', '.join(sorted(devices))}; curvature needs them on one device "
                "that holds values: move the model, or restrict layers=."
            )
        own = {id(p) for p in trainable.values()}
        everything = [*model.named_parameters(), *model.named_buffers()]
        check_memory(trainable, {name: tensor for name, tensor in everything if id(tensor) not in own})
        return cls(tuple(trainable), tuple(p.shape for p in trainable.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(shape.numel() for shape in self.shapes)

    @cached_property
    def n(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Position of each parameter in the flat vector."""
        out, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            out[name] = slice(start, start + size)
            start += size
        return out

    def unflatten(self, flat: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Split a flat vector into views shaped like the parameters."""
        parts = torch.split_with_sizes(flat, self.sizes)
        return {
            name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Concatenate named tensors in layout order.

        Raises:
            ValueError: If a name is missing, or a shape differs.
        """
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise ValueError(f"params lacks {', '.join(missing)}; it must hold {', '.join(self.names)}.")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tensors[name].shape != shape:
                raise ValueError(
                    f"params has {name!r} as {tuple(tensors[name].shape)}; the model has {tuple(shape)}."
                )
        return torch.cat([tensors[name].reshape(-1) for name in self.names])


def flat_parameters(
    parts: Parts, layout: ParameterLayout, params: Parameters, dtype: torch.dtype
) -> Float[Tensor, " n"]:
    """Return the point of evaluation as a detached flat vector of the given type.

    Raises:
        ValueError: If a flat vector has another length or holds non-finite values, or a dictionary has other
            values than the model for what is held fixed.
    """
    if params is None:
        params = parts.parameters
    elif isinstance(params, Mapping):
        for name, own in (parts.parameters | parts.buffers).items():
            if name in params and name not in layout.names and not same(params[name].to(own), own):
                raise ValueError(
                    f"params has other values than the model for {name!r}, which is held fixed as the model "
                    "has it; load them into the model first, or leave it out."
                )
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


@dataclass(eq=False)
class LossFunction:
    """The scalar function of the parameters that is differentiated.

    Attributes:
        model: The module.
        parts: What stands in it and in the loss; it is read before tensors are swapped.
        layout: Its differentiated parameters.
        loss: The loss.
        x: Inputs.
        y: Targets, ``None`` where the loss takes the output only.
        dtype: Type of the computation.
        seen: Called with every output of the model.
        is_kept: Whether a graph of it outlives the call, so that it must not follow the caller's tensors.
        look: Called with a linearisation of it, to look at its second derivatives.
        live: Names of the differentiated ones by identity; a graph of this function must not reach them.
    """

    model: nn.Module
    parts: Parts
    layout: ParameterLayout
    loss: Callable[..., Tensor]
    x: Inputs
    y: Any
    dtype: torch.dtype
    seen: Callable[[Any], None]
    is_kept: bool = False
    look: Callable[[Any], None] | None = None
    live: dict[int, str] = field(init=False)
    _constants: dict[str, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Note the model's own parameters before they are swapped."""
        own = self.parts.parameters
        self.live = {id(own[n]): n for n in self.layout.names if n in own}

    @property
    def is_whole(self) -> bool:
        """Whether all trainable parameters of the model are differentiated."""
        return len(self.live) == sum(p.requires_grad for p in self.parts.parameters.values())

    @property
    def can_stay(self) -> bool:
        """Whether a derivative can be taken at the model's own parameters, without a copy of them.

        So no code but PyTorch's runs, and they are as the point of evaluation must be.
        """
        own = [self.parts.parameters.get(name) for name in self.layout.names]
        return self.parts.runs_only_torch and all(
            p is not None
            and p.dtype == self.dtype
            and p.shape == shape
            and not p.is_inference()
            and all_finite(p)
            for p, shape in zip(own, self.layout.shapes, strict=True)
        )

    def __call__(self, flat: Float[Tensor, " n"]) -> Tensor:
        """Return the loss at flat parameters."""
        with self.at(self.layout.unflatten(flat)):
            return self.value()

    def constants(self) -> dict[str, Tensor]:
        """What is held fixed: copies of buffers, and parameters outside the layout, cast to the type.

        Where a graph is kept they stay what they were: a checkpoint runs the model again in each product.
        """
        if not self.is_kept:
            return self._constants_now()
        self._constants = self._constants_now() if self._constants is None else self._constants
        return copy.deepcopy(self._constants)

    def _constants_now(self) -> dict[str, Tensor]:
        memories = {tensor.untyped_storage()._cdata for tensor in self.parts.buffers.values()}
        buffers = {name: tensor.detach() for name, tensor in self.parts.buffers.items()}
        if len(memories) < len(buffers):
            buffers = copy.deepcopy(buffers)  # those that share memory share it afterwards
        else:
            buffers = {name: tensor.clone() for name, tensor in buffers.items()}
        others = {name: p.detach() for name, p in self.parts.parameters.items() if id(p) not in self.live}
        if self.is_kept:
            others = {name: tensor.clone() for name, tensor in others.items()}
        return {
            name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in (buffers | others).items()
        }

    def at(self, parts: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Let the model have these parameters, in a block that ends with everything as it was."""
        new = {id(self.parts.parameters[name]): tensor for name, tensor in parts.items()}
        if len(new) < len(self.parts.parameters) or self.parts.buffers:
            own = self.parts.parameters | self.parts.buffers
            new |= {id(own[name]): tensor for name, tensor in self.constants().items()}
        return swapped(self.parts, new)

    def value(self) -> Tensor:
        """Return the loss at the parameters that the model has."""
        x, y = batch = self.x, self.y
        is_safe = self.parts.keeps_inputs and not self.is_kept
        if not is_safe or any(tensor.is_inference() for tensor in tensors(batch)):
            x, y = copied(batch)
        output = call(self.model, x)
        self.seen(output)
        return check_scalar(self.loss(output) if y is None else self.loss(output, y))


def check_scalar(value: Tensor) -> Tensor:
    """Refuse what is no real scalar.

    Raises:
        TypeError: If it is no tensor of real numbers.
        ValueError: If it is a loss per sample.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"The loss returned {type(value).__name__}; it must return a scalar tensor.")
    if not value.is_floating_point():
        raise TypeError(
            f"The loss returned {value.dtype}, which has no curvature; it must return real numbers."
        )
    if value.ndim:
        raise ValueError(
            f"The loss has shape {tuple(value.shape)}; curvature needs a scalar: "
            "use reduction='mean' or 'sum' instead of 'none'."
        )
    return value


def check_finite(loss: Tensor | float) -> None:
    """Refuse a loss whose curvature would be made of numbers that mean nothing.

    Raises:
        ValueError: If it is not finite.
    """
    if not math.isfinite(loss):
        raise ValueError(
            f"The loss is {float(loss)}, so it has no curvature: targets are not finite or all of them "
            "ignored, or the model overflows. Leave such batches out."
        )


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite; a finite sum, which is quick, says so."""
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
