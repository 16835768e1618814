"""The noise scale, read off the single examples of a training loop's own backward passes."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from variance.errors import ConfigError, CoupledExamples, UnsupportedLayer
from variance.noise_scale.base import Hook, Meter, dense, squared_norm, world_size
from variance.noise_scale.divisor import shares
from variance.per_example.capturing import capture
from variance.per_example.layers import Call, EmbeddingLayer, Layer, WeightLayer, layer_for
from variance.per_example.quantities import materialised, weight_squared_norms
from variance.per_example.recording import recordable, refuse_coupled_examples
from variance.randomness import RandomState, preserved_randomness


class ExampleMeter(Meter):
    """Reads the noise scale off single examples, in the backward pass that the loop makes anyway.

    The input and the output gradient of a Linear, Conv, Embedding, LayerNorm or GroupNorm layer give the
    norms of its per-example gradients. Parameters of other layers are left out: the noise scale is that of
    the parameters in `result().by_parameter`. Gradients count as those of the mean loss of a step; with a
    summed loss the noise scale is the same, variance and squared norm are too large by the squared number
    of examples. The meter sees the gradient of the loss by the outputs and not the loss, which must be a mean
    or sum over examples: one that mixes them otherwise (a contrastive loss, the root of a mean) is *not*
    noticed. A loss that divides by what differs from batch to batch (class weights, masked positions) has
    noise in its divisor, which single examples do not show: a cross-entropy of this kind is refused,
    with label smoothing, too (class weights in batches of at least three positions; together with
    smoothing in float32 and float64 only, and of at least six).

    A step is given up by clearing all gradients instead of calling `step`.

    At the first, second, fourth, eighth, ... measured step the sums of squared norms are compared with those
    of `variance.per_example` on the step's inputs and the gradients of its outputs, under the random numbers
    of the step. Parameters that differ are left out from then on, with a warning. This takes about five
    passes. It needs a model whose outputs have the examples along their first axis: a model that returns its
    own loss is refused, let it return its logits. A step of one example after larger ones, as at the end of
    an epoch, is left out with a warning, and counted in `num_skipped`.

    Args:
        model: The model that is trained, in a loop with one forward and backward pass per step (and rank).
        population: As in `NoiseMeter`.
        every: Steps between two measured ones; the others cost nothing. A measured step takes 1.2 of a plain
            one for a multilayer perceptron, 1.3 for a small transformer, 1.4 for a small CNN (one thread).

    Raises:
        ConfigError: No trainable parameter, or `every` below 1.
        UnsupportedLayer: Batch norm in training mode, which couples the examples.
        CoupledExamples: From `step`: a cross-entropy that divides by a sum of weights.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(3, 1)
        >>> with ExampleMeter(model) as meter:
        ...     for _ in range(50):
        ...         model.zero_grad()
        ...         x = torch.randn(32, 3)
        ...         (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        ...         meter.step()
        >>> found = meter.result()
        >>> found.low < found.noise_scale < found.high
        True
    """

    def __init__(self, model: nn.Module, *, population: int = 0, every: int = 1) -> None:
        refuse_coupled_examples(model)
        self._checks = 0
        self._shared: list[list[Tensor]] = []
        self._modules = recordable(model)
        super().__init__(model, population, every)
        covered = {name for key, module in self._modules.items() for name in _names(key, module)}
        self._leave_out(
            self._parameters.keys() - covered, "belong to several layers or to one without a rule"
        )
        self._handles.append(model.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._recorder(name), with_kwargs=True))
        self._handles.append(model.register_forward_hook(Hook(self._see_outputs)))

    @override
    def _forget_gradients(self) -> None:
        super()._forget_gradients()
        self._passes: list[_Pass] = []
        self._open: _Pass | None = None  # from the model's forward pass
        self._current: _Pass | None = None  # in backward

    @override
    def _start_afresh(self) -> None:
        passes, current = [one for one in self._passes if not one.is_accumulated], self._current
        super()._start_afresh()
        self._passes, self._current = passes, None if current and current.is_accumulated else current

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_due and torch.is_grad_enabled() and module is self._model:
            inputs: Any = kwargs if kwargs and not args else args
            self._open = _Pass(inputs, bool(args and kwargs), RandomState.now())
            self._passes.append(self._open)

    @override
    def _take(self, name: str, p: Tensor, gradient: Tensor) -> None:
        if self._current is not None:
            self._current.is_accumulated = True

    def _see_outputs(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        found = self._open
        if found is None or not torch.is_grad_enabled() or module is not self._model:
            return None
        self._open = None
        leaves, form = pytree.tree_flatten(outputs)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        for i in places:
            if len(places) > 1:  # one output may be made of another, whose gradient is not the loss's alone
                leaves[i] = leaves[i].view_as(leaves[i])
            leaves[i].register_hook(found.receiver(i))
        return pytree.tree_unflatten(leaves, form) if len(places) > 1 else None

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            found = self._open
            is_own = module is self._modules[name]  # not that of a copy
            if found is None or not (is_own and torch.is_grad_enabled() and output.requires_grad):
                return
            (inputs,) = args or kwargs.values()
            call = Call(inputs.detach(), inputs._version)
            found.calls.setdefault(name, []).append(call)

            def receive(gradient: Tensor) -> None:
                call.receive(gradient.detach())
                self._current = found

            output.register_hook(receive)

        return Hook(record)

    @override
    def _measure(self, loss_scale: float) -> None:
        seen = [one for one in self._passes if one.is_accumulated]
        if len(seen) != 1:
            raise ConfigError(
                f"{len(seen)} forward and backward passes of the model were seen in this step; ExampleMeter "
                "reads one. Use NoiseMeter for accumulated gradients; attach a meter before torch.compile."
            )
        (found,) = seen
        refuse_coupled_examples(self._model)
        self._require_untouched()
        if (n := found.num_examples) < 2:
            if n == 1 and self._had_noise:
                self._take_in({}, 1.0, world_size(), 1, "are fewer than two (on a rank)")
                return
            raise ConfigError(f"a step of {n} example has no variance; use batches of at least 2.")
        sums = self._sums(found)
        if self._checks & (self._checks + 1) == 0 and math.isfinite(sum(map(float, sums.values()))):
            self._check(found, sums, loss_scale)
        small = {name: value * (n / loss_scale**2) for name, value in sums.items()}  # mean of |n c|^2
        self._checks += self._take_in(small, 1 / loss_scale, n * world_size(), 1)

    def _sums(self, found: "_Pass") -> dict[str, Tensor]:
        """Return the sum over examples of squared norms, by parameter; what does not fit is left out."""
        sums: dict[str, Tensor] = {}
        for name, calls in found.calls.items():
            used = [call for call in calls if call.is_used]
            if not used:
                continue
            kind = layer_for(self._modules[name])
            assert kind is not None
            layer = kind(name, self._modules[name], used, buffers=dict(self._model.named_buffers()))
            if any(len(call.inputs) != found.num_examples for call in used):
                self._leave_out(layer.parameter_names, "do not have the examples along their first axis")
                continue
            for call in used:
                call.require_untouched(name)
                call.convert(torch.promote_types(call.b.dtype, torch.float32))
            sums |= {key: value for key, value in _squares(layer) if key in self._parameters}
        return sums

    def _check(self, found: "_Pass", sums: Mapping[str, Tensor], loss_scale: float) -> None:
        """Compare with verified per-example gradients of the same pass, and look for a divisor of weights."""
        outputs = found.output_gradients
        n = found.num_examples
        if (
            found.is_mixed
            or not outputs
            or any(value.ndim == 0 or len(value) != n for value in outputs.values())
        ):
            raise ConfigError(
                "ExampleMeter checks itself on the model's outputs: call the model with arguments or with "
                "keywords, not both, and let every output that the loss uses have the examples along its "
                "first axis (return logits instead of the loss)."
            )
        places = list(outputs)

        def loss(produced: Any, gradients: list[Tensor]) -> Tensor:
            leaves = pytree.tree_leaves(produced)
            parts = [
                torch.real(leaves[i] * g.conj()).reshape(len(g), -1).sum(1)
                for i, g in zip(places, gradients, strict=True)
            ]
            return sum(parts[1:], parts[0])

        with preserved_randomness(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which parameters take a slow path does not matter here
            found.random_state.restore()
            captured = capture(self._model, loss, found.inputs, [outputs[i] for i in places])
        produced = pytree.tree_leaves(captured.outputs)
        read = (shares(produced[i].detach(), gradient / loss_scale) for i, gradient in outputs.items())
        rounding = max(torch.finfo(gradient.dtype).eps for gradient in outputs.values())
        self._require_one_divisor(next((some for some in read if some), []), rounding)
        expected = materialised(captured)
        squares = {name: float(squared_norm(value)) for name, value in expected.items()}
        floor = 1e-6 * sum(squares.values())
        wrong = {
            name
            for name, value in sums.items()
            if not abs(float(value) - squares[name]) <= found.tolerance * squares[name] + floor
        }
        self._leave_out(wrong, "differ from per-example gradients by autograd")
        if world_size() > 1:
            return  # gradients are those of all ranks
        beyond = {
            name
            for name, p in self._parameters.items()
            if p.grad is not None
            and name in expected
            and float(squared_norm(dense(p.grad) - expected[name].sum(0)))
            > found.tolerance * (float(squared_norm(p.grad)) + squares[name]) + floor
        }
        self._leave_out(beyond, "have a gradient that does not come through the outputs (a weight penalty?)")

    def _require_one_divisor(self, readings: list[Tensor], rounding: float) -> None:
        """Refuse weights that differ among examples and from check to check, where their sum does not.

        In half precision sums may agree by accident, so three checks must agree.
        """
        if not readings or any(float(v.max() - v.min()) < 0.01 * float(v.max()) for v in readings):
            return
        tolerance, checks = (1e-4, 2) if rounding < 1e-4 else (rounding, 3)
        sums = [torch.stack([v.sum(), v.square().sum()]).cpu() for v in readings]
        self._shared = [*self._shared, sums][-checks:]
        for chosen in itertools.product(*self._shared) if len(self._shared) == checks else ():
            ends = torch.stack(chosen).aminmax(dim=0)
            total, squares = ((ends.max - ends.min) / ends.max).tolist()
            if not (total < tolerance and squares > 3 * tolerance):
                continue
            raise CoupledExamples(
                "the loss divides by a sum of class weights or by a number of unmasked positions, which "
                "differs from batch to batch, so examples have no gradients of their own. Use NoiseMeter or "
                "measure_model, or divide by a constant."
            )

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        kept = state.get("parameters", self._parameters)
        self._leave_out(self._parameters.keys() - set(kept), "were left out in the state that is loaded")
        super().load_state_dict(state)

    def _leave_out(self, names: Any, why: str) -> None:
        """Measure without some parameters from now on."""
        gone = [name for name in self._parameters if name in set(names)]
        if not gone:
            return
        if len(gone) == len(self._parameters):
            raise UnsupportedLayer(f"no parameter is left to measure: {', '.join(gone[:4])} {why}.")
        warnings.warn(
            f"ExampleMeter leaves out {len(gone)} of {len(self._parameters)} parameters, which {why}: "
            f"{', '.join(gone[:4])}{', ...' if len(gone) > 4 else ''}.",
            stacklevel=4,
        )
        keep = [i for i, name in enumerate(self._parameters) if name not in gone]
        self._parameters = {name: p for name, p in self._parameters.items() if name not in gone}
        self._steps = [(trace[keep], norm[keep]) for trace, norm in self._steps]


@dataclass
class _Pass:
    """What one forward and backward pass leaves behind."""

    inputs: Any
    is_mixed: bool
    random_state: RandomState
    calls: dict[str, list[Call]] = field(default_factory=dict)
    output_gradients: dict[int, Tensor] = field(default_factory=dict)
    is_accumulated: bool = False

    def receiver(self, place: int) -> Callable[[Tensor], None]:
        """Return a hook that keeps the gradient of an output."""

        def receive(gradient: Tensor) -> None:
            self.output_gradients[place] = gradient.detach()

        return receive

    @property
    def tolerance(self) -> float:
        """Relative difference of sums of squared norms that counts as rounding."""
        kinds = {value.dtype for value in self.output_gradients.values()} | {
            call.b.dtype for calls in self.calls.values() for call in calls if call.is_used
        }
        return 0.05 if kinds & {torch.bfloat16, torch.float16} else 0.001

    @property
    def num_examples(self) -> int:
        """Length of the first axis of the inputs.

        Raises:
            ConfigError: They hold no tensor.
        """
        first = next((leaf for leaf in pytree.tree_leaves(self.inputs) if isinstance(leaf, Tensor)), None)
        if first is None:
            kinds = ", ".join(type(leaf).__name__ for leaf in pytree.tree_leaves(self.inputs))
            raise ConfigError(
                f"the model's inputs ({kinds}) hold no tensor whose first axis counts examples; call the "
                "model with tensors, or in dictionaries, lists and tuples, or use NoiseMeter."
            )
        return len(first)


def _names(name: str, module: nn.Module) -> list[str]:
    return [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]


def _squares(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """Yield the sum over examples of the squared gradient norm of each parameter of a layer."""
    if isinstance(layer, WeightLayer):
        if weight := layer.parameter("weight"):
            yield weight, weight_squared_norms(layer).sum(dtype=torch.float64)
        if bias := layer.parameter("bias"):
            yield bias, squared_norm(layer.bias_gradients())
    elif isinstance(layer, EmbeddingLayer):
        yield layer.parameter_names[0], _embedding_squares(layer)
    else:
        for name, gradients in layer.gradients().items():
            yield name, squared_norm(gradients)


def _embedding_squares(layer: EmbeddingLayer) -> Tensor:
    """Return the same for a table: output gradients are summed by example and row, never the whole table."""
    module = cast("nn.Embedding", layer.module)
    n, width = len(layer), module.embedding_dim
    ids = torch.cat([call.inputs.reshape(n, -1) for call in layer.calls], 1)
    rows = torch.cat([call.b.reshape(n, -1, width) for call in layer.calls], 1)
    if module.padding_idx is not None:
        rows = rows * (ids != module.padding_idx).unsqueeze(2)
    keys = ids + module.num_embeddings * torch.arange(n, device=ids.device).unsqueeze(1)
    found, place = torch.unique(keys, return_inverse=True)
    total = rows.new_zeros(len(found), width).index_add_(0, place.flatten(), rows.flatten(0, 1))
    return squared_norm(total)
