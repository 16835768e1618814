"""One forward and backward pass that keeps what per-example gradients are made of.

For a layer with input a and output gradient b (of the *sum* of the losses), the gradient of example i is a
function of a_i and b_i alone. The pass records both for every supported layer and computes no weight
gradient: parameters enter detached, and autograd starts at the first recorded output.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from variance import losses as loss_functions
from variance.errors import ConfigError, UnsupportedLayer
from variance.losses import LossFunction
from variance.per_example.layers import Call, Layer, layer_for

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


@dataclass
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


@dataclass
class _Recorder:
    """Collects the calls of every hooked module during one forward pass."""

    token: Tensor
    calls: dict[str, list[Call]] = field(default_factory=dict)

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            call = Call(inputs[0].detach(), inputs[0]._version)
            self.calls.setdefault(name, []).append(call)
            return cast("Tensor", _Tap.apply(output, self.token, call.receive))

        return record


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], recorder: _Recorder) -> Iterator[None]:
    handles = [module.register_forward_hook(recorder.hook(name)) for name, module in modules.items()]
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


def _owned_once(model: nn.Module) -> dict[str, nn.Module]:
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


def capture(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    weights_only: bool = False,
) -> Capture:
    """Run one forward and one output-gradient backward pass over a batch.

    Args:
        model: Any module; its `.grad` fields, parameters and buffers stay as they are.
        loss: Per-example or reducing loss, see `variance.losses.per_example`.
        x: Inputs, examples first.
        y: Targets, examples first.
        parameters: Values used in place of the model's own.
        buffers: Buffers used in place of the model's own.
        weights_only: Record Linear and Conv layers only and skip all other parameters.

    Returns:
        The recorded layers.

    Raises:
        ConfigError: Inputs and targets differ in number, or there are none.
        UnsupportedLayer: Batch norm in training mode, or an input changed in place after its layer used it.
        NonFiniteGradient: Some loss is NaN or infinite.
    """
    if len(x) != len(y) or len(x) == 0:
        raise ConfigError(f"{len(x)} inputs and {len(y)} targets: need equally many, at least one.")
    refuse_coupled_examples(model)
    own_parameters = dict(model.named_parameters())
    values = {name: (parameters or own_parameters)[name].detach() for name in own_parameters}
    state = {**values, **(dict(model.named_buffers()) if buffers is None else buffers)}
    modules = _owned_once(model)
    if weights_only:
        modules = {name: module for name, module in modules.items() if layer_for(module).is_weight_layer}  # type: ignore[union-attr]
    recorder = _Recorder(torch.zeros((), requires_grad=True, device=x.device))
    random_state = torch.get_rng_state()
    with torch.enable_grad(), _hooked(modules, recorder):
        outputs = functional_call(model, state, (x,))
        losses = loss_functions.per_example(loss, outputs, y)
        loss_functions.require_finite(losses.detach(), "the loss")
        if recorder.calls:
            torch.autograd.grad(losses.sum(), recorder.token, allow_unused=True)
    layers = {}
    for name, module in modules.items():
        calls = [call for call in recorder.calls.get(name, []) if call.is_used]
        if not calls or any(len(call.inputs) != len(x) for call in calls):
            continue  # unused, or the first axis of this layer is not the batch: left to vmap
        for call in calls:
            call.require_untouched(name)
        kind = layer_for(module)
        assert kind is not None
        layers[name] = kind(name, module, calls, buffers=state)
    shapes = {name: value.shape for name, value in own_parameters.items() if value.requires_grad}
    covered = {name for layer in layers.values() for name in layer.parameter_names}
    left = [] if weights_only else [name for name in shapes if name not in covered]
    rest = _rest(model, loss, x, y, state, left, random_state) if left else {}
    return Capture(losses.detach(), layers, rest, shapes, outputs)


def _rest(
    model: nn.Module,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    state: Mapping[str, Tensor],
    names: list[str],
    random_state: Tensor,
) -> dict[str, Tensor]:
    """Materialise the gradients of `names` by vmap(grad); those the loss ignores are zero."""
    leaves = {name: state[name].clone().requires_grad_() for name in names}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        total = loss_functions.per_example(loss, functional_call(model, {**state, **leaves}, (x,)), y).sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    result = {
        name: value.new_zeros((len(x), *value.shape))
        for (name, value), gradient in zip(leaves.items(), found, strict=True)
        if gradient is None
    }
    used = {name: state[name] for name in names if name not in result}
    if used:

        def single(parameters: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
            outputs = functional_call(model, {**state, **parameters}, (example.unsqueeze(0),))
            return loss_functions.per_example(loss, outputs, target.unsqueeze(0)).sum()

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            result |= vmap(grad(single), in_dims=(None, 0, 0), randomness="different")(used, x, y)
    return result
