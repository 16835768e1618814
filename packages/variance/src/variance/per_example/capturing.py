"""Per-example gradients of any model: a recorded pass, its self-check, and exact paths where it does not fit.

The recorded pass assumes that row i of a layer is example i, that a weight is used by its layer alone, and
that examples do not meet. Whether that is so is not read off the code of a model but measured: the sum of
per-example gradients under random normal weights is compared, parameter by parameter, with the gradient of
the weighted loss by plain autograd. That costs about two passes, so it is done at the first, second, fourth,
eighth, ... pass of a model on batches of one shape, and whenever the operations of the recorded pass, which
are looked at in every one with the rows that they pick, are not those of a pass that was compared. (Equal
weights would not see examples that are exchanged.) A weight that is read outside its layer is seen in every
pass, as it leads to autograd there. Parameters that differ take an exact path: vmap over single examples,
rows of the same graph, or a loop over single examples. What no path gets right is refused by name.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from variance import losses as loss_functions
from variance.errors import ConfigError, CoupledExamples, NonFiniteGradient, SlowPath, UnsupportedLayer
from variance.losses import LossFunction, num_examples, plain, require_equally_many, take
from variance.per_example import quantities
from variance.per_example.layers import Call, Layer, WeightLayer, layer_for
from variance.per_example.recording import (
    COUPLING,
    EXCLUSIVE,
    Capture,
    Recorder,
    call_model,
    device_of,
    differentiate,
    hooked,
    protected,
    recordable,
    refuse_coupled_examples,
    require_real,
    standing,
)
from variance.randomness import RandomState, preserved_randomness
from variance.statistics import squared_norm

__all__ = ["COUPLING", "Capture", "capture"]

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Relative difference (of norms) between our weighted sum and autograd's that counts as rounding: that of the
coarsest precision in the graph."""
FLOOR = 0.01
"""Share of the whole gradient's norm below which a parameter's gradient may be rounding, as before a norm
layer."""
ROWS = 16
"""Examples whose backward passes run at once in the path `rows`."""


@dataclass
class _Known:
    """What was found out about one model on batches of one shape."""

    excluded: set[str] = field(default_factory=set)
    method: str = "vmap"
    passes: int = 0
    structures: set[int] = field(default_factory=set)

    def is_due(self) -> bool:
        """Whether this pass is checked: the first, second, fourth, eighth, ..."""
        self.passes += 1
        return self.passes & (self.passes - 1) == 0


_KNOWN: "WeakKeyDictionary[nn.Module, dict[object, _Known]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class _Pass:
    """A model with its values, its loss and a batch: everything the paths need."""

    model: nn.Module
    loss: LossFunction
    x: Any
    y: Any
    state: dict[str, Tensor]
    trainable: tuple[str, ...]
    random_state: RandomState
    indices: Tensor | None = None

    def losses(self, values: Mapping[str, Tensor], loss: LossFunction | None = None) -> tuple[Any, Tensor]:
        """Return outputs and per-example losses, with the random numbers of the first pass."""
        self.random_state.restore()
        state = protected(self.model, {**self.state, **values})
        outputs = call_model(self.model, state, self.x)
        return outputs, loss_functions.example_losses(loss or self.loss, outputs, self.y)

    def derivative(self, losses: Tensor, leaves: Mapping[str, Tensor], **options: Any) -> Any:
        """Return derivatives by leaves that stand for parameters; None where there is none."""
        options |= {"inputs": list(leaves.values()), "allow_unused": True}
        state = {**self.state, **leaves}
        return standing(self.model, state, lambda: torch.autograd.grad(losses, **options))

    def leaves(self, names: tuple[str, ...] | list[str]) -> dict[str, Tensor]:
        """Return parameters that autograd may differentiate by."""
        return {name: self.state[name].detach().requires_grad_() for name in names}


def capture(
    model: nn.Module,
    loss: LossFunction,
    x: Any,
    y: Any,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    weights_only: bool = False,
    indices: Int[Tensor, "n"] | None = None,
) -> Capture:
    """Run one forward and one output-gradient backward pass over a batch.

    Args:
        model: Any module; its `.grad` fields, parameters, buffers and the random state stay as they are.
        loss: Per-example or reducing loss, see `variance.losses.example_losses`.
        x: Inputs, examples first: a tensor, a tuple of arguments or a mapping of keywords.
        y: Targets, examples first.
        parameters: Values used in place of the model's own.
        buffers: Buffers used in place of the model's own.
        weights_only: Record Linear and Conv layers only and skip all other parameters.
        indices: Names of the examples in messages; their positions where None.

    Returns:
        The recorded layers.

    Raises:
        ConfigError: Inputs and targets differ in number, there are none, a parameter is complex, or
            autocast is on.
        CoupledExamples: The loss or the model mixes examples.
        UnsupportedLayer: Batch norm in training mode, an input changed in place after its layer used it, or
            parameters that no path gets right.
        NonFiniteGradient: Some loss is NaN or infinite.
    """
    with EXCLUSIVE:
        x, y = plain(x), plain(y)
        require_equally_many(x, y)
        refuse_coupled_examples(model)
        require_real(model)
        if torch.is_autocast_enabled(device_of(x).type):
            raise ConfigError(
                "per-example quantities would be rounded inside a torch.autocast block; leave it, and put "
                "autocast into the model's forward where mixed precision is wanted."
            )
        own = dict(model.named_parameters())
        values = {name: (parameters or own)[name].detach() for name in own}
        state = {**values, **(dict(model.named_buffers()) if buffers is None else dict(buffers))}
        trainable = tuple(name for name, value in own.items() if value.requires_grad)
        known = _known(model, x, y, trainable, weights_only=weights_only)
        with torch.inference_mode(False), preserved_randomness() as random_state:
            job = _Pass(model, loss, x, y, state, trainable, random_state, indices)
            if not known.is_due():
                found, structure = _run(job, known, weights_only=weights_only)
                if structure in known.structures:
                    return found
            return _checked(job, known, weights_only=weights_only)


def _known(model: nn.Module, x: Any, y: Any, trainable: tuple[str, ...], *, weights_only: bool) -> _Known:
    shapes = tuple(
        (tuple(leaf.shape), leaf.dtype) for leaf in pytree.tree_leaves((x, y)) if isinstance(leaf, Tensor)
    )
    modes = tuple(module.training for module in model.modules())
    return _KNOWN.setdefault(model, {}).setdefault((shapes, modes, trainable, weights_only), _Known())


def _run(job: _Pass, known: _Known, *, weights_only: bool) -> tuple[Capture, int]:
    """Record what can be recorded, compute the rest by the known method, and name the operations."""
    modules = recordable(job.model)
    chosen = {name: module for name, module in modules.items() if name not in known.excluded}
    if weights_only:
        chosen = {name: module for name, module in chosen.items() if _is_weight_layer(module)}
    losses, outputs, layers, structure, elsewhere = _record(job, chosen)
    if elsewhere:
        known.excluded |= elsewhere
        return _run(job, known, weights_only=weights_only)
    shapes = {name: job.state[name].shape for name in job.trainable}
    covered = {name for layer in layers.values() for name in layer.parameter_names}
    left = [] if weights_only else [name for name in shapes if name not in covered]
    rest = _METHODS[known.method](job, left) if left else {}
    kinds = (job.state[name].dtype for name in job.trainable)
    dtype = reduce(torch.promote_types, kinds, torch.promote_types(losses.dtype, torch.float32))
    for layer in layers.values():
        for call in layer.calls:
            call.convert(dtype)
    rest = {name: value.to(dtype) for name, value in rest.items()}
    return Capture(losses.detach().to(dtype), layers, rest, shapes, outputs), structure


def _structure(losses: Tensor) -> int:
    """Return a hash of the operations between the first recorded output and the losses, in the order met.

    Where an operation picks rows, which ones belongs to it: sorted batches have another order in every pass.
    """
    return hash(tuple((type(node).__name__, _rows(node)) for node in _walk(losses)))


def _rows(node: Any) -> bytes | None:
    index = getattr(node, "_saved_index", None) if getattr(node, "_saved_dim", None) == 0 else None
    if type(node).__name__ in ("IndexBackward0", "IndexPutBackward0"):
        index = node._saved_indices[0]
    return index.cpu().numpy().tobytes() if isinstance(index, Tensor) else None


def _walk(losses: Tensor) -> Iterator[Any]:
    seen, ahead = set(), [losses.grad_fn]
    while ahead:
        node = ahead.pop()
        yield node
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]


def _tolerance(losses: Tensor) -> float:
    """Return the tolerance of the coarsest precision in the graph: with autocast not that of a parameter."""
    kinds = {kind.dtype for node in _walk(losses) for kind in getattr(node, "_input_metadata", ())}
    return max(TOLERANCE.get(dtype, 0.0) for dtype in kinds | {losses.dtype})


def _is_weight_layer(module: nn.Module) -> bool:
    kind = layer_for(module)
    return kind is not None and kind.is_weight_layer


def _record(
    job: _Pass, modules: Mapping[str, nn.Module]
) -> tuple[Tensor, Any, dict[str, Layer], int, set[str]]:
    """Record a pass; the last value names the modules whose parameters are also read elsewhere."""
    owners = {
        f"{name}.{key}" if name else key: name
        for name, module in modules.items()
        for key, _ in module.named_parameters(recurse=False)
    }
    leaves = {key: job.state[key].detach().requires_grad_() for key in job.trainable if key in owners}
    recorder = Recorder(torch.zeros((), requires_grad=True, device=device_of(job.x)))
    with torch.enable_grad(), hooked(modules, recorder):
        outputs, losses = job.losses(leaves)
        loss_functions.require_finite(losses.detach(), "the loss", job.indices)
        structure = _structure(losses)
        read = {id(getattr(node, "variable", None)) for node in _walk(losses)}
        if recorder.calls:
            backward = partial(torch.autograd.grad, losses.sum(), recorder.token, allow_unused=True)
            standing(job.model, job.state, backward)
    layers = {}
    for name, module in modules.items():
        calls = [call for call in recorder.calls.get(name, []) if call.is_used]
        if not calls or any(len(call.inputs) != len(losses) for call in calls):
            continue  # unused, or the first axis of this layer is not the batch
        for call in calls:
            call.require_untouched(name)
        kind = layer_for(module)
        assert kind is not None
        layers[name] = kind(name, module, calls, buffers=job.state)
    elsewhere = {owners[key] for key, leaf in leaves.items() if id(leaf) in read}
    return losses, outputs, layers, structure, elsewhere


def _checked(job: _Pass, known: _Known, *, weights_only: bool) -> Capture:
    """Run, compare with autograd, and change paths until both agree."""
    expected, weights, tolerance, is_random = _by_autograd(job)
    methods = list(_METHODS)[list(_METHODS).index(known.method) :]
    if is_random:  # single examples would draw other random numbers
        methods = [name for name in methods if name == "rows"] or ["rows"]
    reason = ""
    for known.method in [methods[0], *methods]:  # the first once more, without the layers that failed
        try:
            found, structure = _run(job, known, weights_only=weights_only)
        except (UnsupportedLayer, NonFiniteGradient, ConfigError):
            raise
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0]
            known.excluded |= set(recordable(job.model)) - known.excluded
            continue
        wrong = _wrong(found, expected, weights, tolerance)
        if not wrong:
            known.structures.add(structure)
            if known.excluded or (found.rest and known.method != "vmap"):
                _warn(found, known)
            return found
        known.excluded |= {name for name, layer in found.layers.items() if wrong & set(layer.parameter_names)}
        reason = f"gradients of {', '.join(sorted(wrong)[:4])} differ from those of autograd"
    raise UnsupportedLayer(
        "no path gives per-example gradients of this model that add up to the gradient of the batch "
        f"({reason}). Reentrant checkpointing (pass use_reentrant=False) and losses that draw random "
        "numbers are known reasons."
    )


def _warn(found: Capture, known: _Known) -> None:
    names = list(found.rest) or sorted(known.excluded)
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    warnings.warn(
        f"{len(names)} parameters take a slow exact path ({known.method}): {shown}. Their values are "
        "right; the recorded pass does not fit them (a weight that is also used as a function's argument, "
        "another order of "
        "examples, random numbers, or an operation without batching rule).",
        SlowPath,
        stacklevel=5,
    )


def _by_autograd(job: _Pass) -> tuple[dict[str, Tensor], Tensor, float, bool]:
    """Return the gradient under random weights, these, a tolerance, and whether random numbers are drawn."""
    leaves = job.leaves(job.trainable)
    with torch.enable_grad():
        outputs, losses = job.losses(leaves)
        after = RandomState.now()
        is_random = not after.same_as(job.random_state)
        generator = torch.Generator().manual_seed(len(losses))
        weights = torch.randn(len(losses), generator=generator, dtype=torch.float64).to(losses)
        loss_functions.require_finite(losses.detach(), "the loss", job.indices)
        tolerance = _tolerance(losses)
        _require_independent(job, outputs, losses, after, min(tolerance, 0.02))
        if not leaves or not losses.requires_grad:
            return {}, weights, tolerance, is_random
        found, direct = differentiate((weights * losses).sum(), leaves, job.model, job.state)
    if direct:
        raise CoupledExamples(
            f"the loss (a weight penalty?) or a list inside the model reads parameter '{next(iter(direct))}' "
            "itself, so a part of the loss is that of no example. Leave a penalty out (it adds the same to "
            "all gradients), or measure batch gradients with measure_model."
        )
    return found, weights, tolerance, is_random


def _require_independent(
    job: _Pass, outputs: Any, losses: Tensor, after: RandomState, tolerance: float
) -> None:
    """Refuse a model whose output for one example depends on the others: every second one is replaced.

    Where no output has the examples along its first axis, the losses are compared. Models that draw random
    numbers are compared under the same ones, if they draw as many for other examples.

    Raises:
        CoupledExamples: It does.
    """
    even = torch.arange(len(losses)) // 2 * 2
    with torch.enable_grad():  # a model may differentiate in its forward pass
        job.random_state.restore()
        replaced = call_model(job.model, protected(job.model, job.state), take(job.x, even))
        if not after.same_as(RandomState.now()):
            return
        pairs = [
            (one, other)
            for one, other in zip(pytree.tree_leaves(replaced), pytree.tree_leaves(outputs), strict=False)
            if isinstance(one, Tensor) and one.is_floating_point() and one.ndim and len(other) == len(losses)
        ] or [(loss_functions.example_losses(job.loss, replaced, take(job.y, even)), losses)]
    for pair in pairs:
        one, other = (value.detach() for value in pair)
        finite = one.isfinite() & other.isfinite()  # masked outputs are infinite
        one, other = one.where(finite, 0), other.where(finite, 0)
        difference = (one - other)[::2].abs()
        if difference.numel() and float(difference.max()) > tolerance * float(other.abs().max()):
            raise CoupledExamples(
                "the model's output for one example depends on the other examples of the batch, so "
                "examples have no gradients of their own. Look for statistics over the first axis (batch "
                "norm of your own, x - x.mean(0)), or measure batch gradients with measure_model."
            )


def _wrong(found: Capture, expected: Mapping[str, Tensor], weights: Tensor, tolerance: float) -> set[str]:
    """Return the parameters whose weighted sum of per-example gradients is not autograd's."""
    least = FLOOR * sum(map(squared_norm, expected.values())) ** 0.5
    return {
        name
        for name, value in _weighted_sums(found, weights)
        if not _same(value, expected[name], tolerance, least)
    }


def _weighted_sums(found: Capture, weights: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, value in found.rest.items():
        yield name, torch.tensordot(weights.to(value), value, 1)
    for layer in found.layers.values():
        scaled = type(layer)(
            layer.name, layer.module, [_scaled(c, weights) for c in layer.calls], layer.buffers
        )
        if isinstance(scaled, WeightLayer):
            if weight := scaled.parameter("weight"):
                yield weight, quantities.weight_sum(scaled)
            if bias := scaled.parameter("bias"):
                yield bias, scaled.bias_gradients().sum(0)
        else:
            yield from ((name, value.sum(0)) for name, value in scaled.gradients().items())


def _scaled(call: Call, weights: Tensor) -> Call:
    scaled = Call(call.inputs, call.inputs._version)
    scaled.receive(call.b * weights.to(call.b).reshape(-1, *(1 for _ in call.b.shape[1:])))
    return scaled


def _same(one: Tensor, other: Tensor, tolerance: float, least: float) -> bool:
    difference = squared_norm(one.reshape(-1) - other.reshape(-1)) ** 0.5
    return not difference > tolerance * max(squared_norm(other) ** 0.5, least)


def _by_vmap(job: _Pass, names: list[str]) -> dict[str, Tensor]:
    """Materialise by vmap(grad) over single examples; parameters that the loss ignores are zero."""
    used, zeros = _used(job, names)

    def single(parameters: dict[str, Tensor], example: Any, target: Any) -> Tensor:
        one = pytree.tree_map(
            lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, (example, target)
        )
        outputs = call_model(job.model, protected(job.model, {**job.state, **parameters}), one[0])
        return loss_functions.example_losses(job.loss, outputs, one[1]).sum()

    if not used:
        return zeros
    axes = pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, (job.x, job.y))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        found = vmap(grad(single), in_dims=(None, *axes), randomness="different")(
            {name: job.state[name] for name in used}, job.x, job.y
        )
    result: dict[str, Tensor] = zeros | found
    return result


def _used(job: _Pass, names: list[str]) -> tuple[list[str], dict[str, Tensor]]:
    leaves = job.leaves(names)
    with torch.enable_grad():
        _, losses = job.losses(leaves)
        found = job.derivative(losses.sum(), leaves)
    zeros = {
        name: leaf.detach().new_zeros((len(losses), *leaf.shape))
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        if gradient is None
    }
    return [name for name in names if name not in zeros], zeros


def _by_rows(job: _Pass, names: list[str]) -> dict[str, Tensor]:
    """Differentiate one loss after the other through the graph of the batch, with its random numbers."""
    leaves = job.leaves(names)
    with torch.enable_grad():
        _, losses = job.losses(leaves)
    one_hot = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    try:
        pieces = [
            job.derivative(losses, leaves, grad_outputs=rows, retain_graph=True, is_grads_batched=True)
            for rows in one_hot.split(ROWS)
        ]
    except RuntimeError:  # an operation whose backward has no batching rule
        pieces = [
            tuple(None if g is None else _dense(g).unsqueeze(0) for g in found)
            for row in one_hot
            for found in [job.derivative(losses, leaves, grad_outputs=row, retain_graph=True)]
        ]
    return _stacked(leaves, pieces, len(losses))


def _by_singles(job: _Pass, names: list[str]) -> dict[str, Tensor]:
    """Differentiate by plain autograd on batches of one."""
    count, pieces = num_examples(job.x), []
    leaves = job.leaves(names)
    for i in range(count):
        x, y = take((job.x, job.y), slice(i, i + 1))
        with torch.enable_grad():
            state = protected(job.model, {**job.state, **leaves})
            total = loss_functions.example_losses(job.loss, call_model(job.model, state, x), y).sum()
            found = job.derivative(total, leaves)
        pieces.append(tuple(None if g is None else _dense(g).unsqueeze(0) for g in found))
    return _stacked(leaves, pieces, count)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _stacked(
    leaves: Mapping[str, Tensor], pieces: Sequence[tuple[Tensor | None, ...]], count: int
) -> dict[str, Tensor]:
    result = {}
    for column, (name, leaf) in enumerate(leaves.items()):
        parts = [piece[column] for piece in pieces]
        filled = [part for part in parts if part is not None]
        # a parameter that only some losses use has pieces that are None
        same = len(filled) == len(parts)
        zeros = leaf.detach().new_zeros((1, *leaf.shape))
        result[name] = (
            torch.cat(filled)
            if same
            else torch.cat([zeros if part is None else part for part in parts])
            if filled
            else zeros.expand(count, *leaf.shape)
        )
    return result


_METHODS: dict[str, Callable[[_Pass, list[str]], dict[str, Tensor]]] = {
    "vmap": _by_vmap,
    "rows": _by_rows,
    "singles": _by_singles,
}
