"""The taps of one forward and backward pass that keep what per-example gradients are made of.

For a layer with input a and output gradient b (of the *sum* of the losses), the gradient of example i is a
function of a_i and b_i alone. The pass records both for every supported layer and computes no weight
gradient: parameters enter detached, and autograd starts at the first recorded output.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from variance.errors import ConfigError, UnsupportedLayer
from variance.per_example.layers import Call, Layer, layer_for

EXCLUSIVE = threading.RLock()
"""Held while a model is called functionally: its parameters are exchanged, which other threads would see."""
COUPLING = (nn.modules.batchnorm._BatchNorm,)


class _Tap(torch.autograd.Function):
    """Identity whose backward hands the gradient to a callback; the token makes the graph start here."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, token: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        ctx.receive = receive
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = gradients
        ctx.receive(gradient)
        return (gradient if ctx.needs_input_grad[0] else None), None, None


@dataclass(repr=False)
class Capture:
    """What one pass over a batch leaves behind.

    Attributes:
        losses: Loss of each example.
        layers: Recorded layers by module name, in the order of the model.
        rest: Materialised gradients, ``(batch, *shape)`` by name, of parameters no supported layer owns.
        shapes: Shape of every trainable parameter, in `model.parameters()` order.
        outputs: Detached model outputs.
    """

    losses: Float[Tensor, "batch"]
    layers: dict[str, Layer]
    rest: dict[str, Tensor]
    shapes: dict[str, torch.Size]
    outputs: Any = None

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def num_parameters(self) -> int:
        """Number of trainable coordinates."""
        return sum(shape.numel() for shape in self.shapes.values())

    def __repr__(self) -> str:
        layers = f"{len(self.layers)} layers recorded"
        return f"Capture({len(self)} examples, {self.num_parameters} coordinates, {layers})"


@dataclass
class Recorder:
    """Collects the calls of every hooked module during one forward pass.

    Within its module a parameter is a constant; read elsewhere, it leads to autograd, where it is seen.
    """

    token: Tensor
    calls: dict[str, list[Call]] = field(default_factory=dict)
    _outside: list[dict[str, Tensor | None]] = field(default_factory=list)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Take a module's parameters from autograd until it is left."""
        self._outside.append(dict(module._parameters))
        for key, value in module._parameters.items():
            module._parameters[key] = None if value is None else value.detach()  # type: ignore[assignment]

    def hook(self, name: str) -> Callable[..., Tensor]:
        """Return a forward hook that records the calls of one module."""

        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            module._parameters.update(self._outside.pop())  # type: ignore[arg-type]
            (inputs,) = args or kwargs.values()
            call = Call(inputs.detach(), inputs._version)
            self.calls.setdefault(name, []).append(call)
            return cast("Tensor", _Tap.apply(output, self.token, call.receive))

        return record


@contextmanager
def hooked(modules: Mapping[str, nn.Module], recorder: Recorder) -> Iterator[None]:
    """Record the calls of these modules inside the block."""
    handles = [
        handle
        for name, module in modules.items()
        for handle in (
            module.register_forward_pre_hook(recorder.enter),
            module.register_forward_hook(recorder.hook(name), with_kwargs=True),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def refuse_coupled_examples(model: nn.Module) -> None:
    """Refuse layers that make the loss or gradient of one example depend on the others.

    Raises:
        UnsupportedLayer: Some batch-norm layer would use batch statistics, or an embedding divides its
            gradient by frequencies in the batch.
    """
    for name, module in model.named_modules():
        if isinstance(module, COUPLING) and (module.training or module.running_mean is None):
            raise UnsupportedLayer(
                f"layer '{name}' ({type(module).__name__}) uses batch statistics, so examples have no "
                "gradients of "
                "their own. Call model.eval() to use the running statistics, or replace it by GroupNorm."
            )
        if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
            raise UnsupportedLayer(
                f"layer '{name}' (Embedding) has scale_grad_by_freq, which divides by frequencies in the "
                "whole batch, so examples have no gradients of their own; leave it out."
            )


def require_real(model: nn.Module) -> None:
    """Refuse complex parameters: sums of squares and orders of coordinates are those of real numbers.

    Raises:
        ConfigError: A trainable parameter is complex.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            raise ConfigError(
                f"parameter '{name}' is complex, which is not supported; store both parts as one "
                "real parameter and use torch.view_as_complex of it in forward."
            )


def recordable(model: nn.Module) -> dict[str, nn.Module]:
    """Return supported modules whose weight and bias are parameters of their own, and of no other module.

    A pruned or weight-normalised layer computes its weight from other parameters; it is left to vmap.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    chosen = {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        plain = own.keys() <= {"weight", "bias"} and all(owners[id(value)] == 1 for value in own.values())
        if plain and layer_for(module) and any(value.requires_grad for value in own.values()):
            chosen[name] = module
    return chosen


def call_model(model: nn.Module, state: Mapping[str, Tensor], x: Any) -> Any:
    """Call a model with other values: a mapping as keywords, a tuple or list as arguments, else one input."""
    if isinstance(x, Mapping):
        return _call(model, state, (), dict(x))
    return _call(model, state, tuple(x) if isinstance(x, tuple | list) else (x,))


def _call(model: nn.Module, state: Mapping[str, Tensor], args: Any, kwargs: Any = None) -> Any:
    """Call a model with other values, each put at every place of its parameter, and once at each.

    Where a module has two names, torch's own search for tied weights would exchange its parameters twice, and
    put back the wrong ones.
    """
    values: dict[int, Tensor] = {}
    places = {}
    for prefix, module in model.named_modules():
        for key, own in {**module._parameters, **module._buffers}.items():
            name = f"{prefix}.{key}" if prefix else key
            if name in state:
                values[id(own)] = state[name]
            if id(own) in values:
                places[name] = values[id(own)]
    return functional_call(model, places, args, kwargs, tie_weights=False)


def device_of(batch: Any) -> torch.device:
    """Return where the first tensor of a batch lives."""
    return next(leaf.device for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))


class _Beside(nn.Module):
    """A module whose call is something else than that of the model it holds."""

    def __init__(self, model: nn.Module, act: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.forward = model, act


def standing(model: nn.Module, state: Mapping[str, Tensor], backward: Callable[[], Any]) -> Any:
    """Make a backward pass, which may run parts of a model again, while the model has other values.

    A checkpoint does so, and the adjoint method of differential equations, which even differentiates by the
    parameters that it finds then.
    """
    values = {f"model.{name}": value for name, value in protected(model, dict(state)).items()}
    return _call(_Beside(model, backward), values, ())


def differentiate(
    total: Tensor, leaves: Mapping[str, Tensor], model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return dense gradients of a scalar by some leaves, and by the model's own parameters that it reads.

    The leaves stand for the parameters wherever the model uses them as its attributes. A loss that closes
    over the model, such as one with a weight penalty, reads the parameters themselves.

    Raises:
        UnsupportedLayer: Autograd refuses, with what to do.
    """
    own = {name: p for name, p in model.named_parameters() if name in leaves and p.requires_grad}
    try:
        backward = partial(torch.autograd.grad, total, [*leaves.values(), *own.values()], allow_unused=True)
        found = standing(model, {**state, **leaves}, backward)
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        said = str(error).partition(", which is")[0].partition("\n")[0]
        raise UnsupportedLayer(
            f"autograd cannot differentiate this model by its parameters ({said}). Use out-of-place "
            "operations (x = x + y instead of x += y) and checkpointing with use_reentrant=False."
        ) from None
    dense = [g.to_dense() if g is not None and g.is_sparse else g for g in found]
    of_leaves = {
        name: torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), dense, strict=False)
    }
    direct = zip(own, dense[len(leaves) :], strict=True)
    return of_leaves, {name: g for name, g in direct if g is not None}


def protected(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy what a forward pass may write into: buffers, and tables that `max_norm` renormalises."""
    written = {name for name, _ in model.named_buffers()}
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None:
            written.add(f"{name}.weight" if name else "weight")
    return {name: value.clone() if name in written else value for name, value in state.items()}
