"""One training under one condition, with what every call made of its input."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from instability.certificate.bits import digest, in_float64, map_tensors, tensors
from instability.copies import OptimizerFn, closed_step, trained_parameters
from instability.reach import check_number, check_reached
from instability.streams import RandomStreams, check_loss, check_model, unchanged

__all__ = [
    "THROUGH_FLOAT32",
    "Condition",
    "Training",
    "TrainingRun",
    "first_difference",
    "half_the_digits",
    "layer_label",
    "length",
    "streams_digest",
    "take",
    "widen",
]

THROUGH_FLOAT32 = torch.finfo(torch.float32).eps ** 0.5
"""Relative difference taken for rounding in double precision: what is computed may go through float32."""

Condition = Literal["repeat", "order", "split", "threads", "float64", "autocast", "tf32", "compile"]


@dataclass(frozen=True)
class Training:
    """What ``certify`` was given."""

    loss_of: Callable[[nn.Module, Any], Tensor]
    model_fn: Callable[[], nn.Module]
    optimizer_fn: OptimizerFn
    batches: Sequence[Any]
    evaluate: Callable[[nn.Module], float]
    seed: int

    def start(self) -> nn.Module:
        """Seed every stream and make the model."""
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)  # noqa: NPY002 - the global stream is what is meant
        random.seed(self.seed)
        return check_model(self.model_fn())


class TrainingRun:
    """A finished training: its model, trained weights and score, and the bits of every call if watched."""

    def __init__(self, training: Training, condition: Condition = "repeat", *, watched: bool = False) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.draws = False
        # With that of the whole batch at the same weights, and how far apart rounding may bring the two.
        self.losses: list[tuple[float, float, float]] = []
        self.changed_buffer = ""
        self._watched = watched
        self.model = model = training.start()
        dtypes = {name: value.dtype for name, value in _named(model)}
        if condition == "float64":
            widen(model)
        self._note("the initialisation", (), [value for _, value in _named(model)])
        optimizer = training.optimizer_fn(model.parameters())
        if not trained_parameters(model, optimizer):
            raise ValueError("the optimiser trains no parameter of the model that requires a gradient.")
        called: Any = torch.compile(model) if condition == "compile" else model
        with self._watch(model):
            for number, batch in enumerate(training.batches, 1):
                self._note(f"the data of step {number}", (), batch)
                before = streams_digest()
                self._step(training.loss_of, called, optimizer, batch, condition)
                self.draws = self.draws or before != streams_digest()
        self.streams = streams_digest()
        self.weights = np.concatenate(
            [
                (torch.view_as_real(p) if p.is_complex() else p).detach().double().cpu().numpy().ravel()
                for p in trained_parameters(model, optimizer).values()
            ]
        )
        for name, value in _named(model):  # what scores it brings data of the model's own type
            value.data = value.data.to(dtypes.get(name, value.dtype))
        with unchanged(model), torch.no_grad():
            self.score = check_number(training.evaluate(model), "evaluate")
        self._note("the score", (), self.score)

    def _step(
        self,
        loss_of: Callable[[nn.Module, Any], Tensor],
        model: nn.Module,
        optimizer: Optimizer,
        whole: Any,
        condition: Condition,
    ) -> None:
        batch = _changed(whole, condition)
        size, parts = length(batch), [batch]
        if condition == "split":
            parts = [take(batch, slice(size // 2)), take(batch, slice(size // 2, None))]
        parameters = list(self.model.parameters())
        device = parameters[0].device.type

        def evaluate() -> Tensor:
            total, pair, expected = torch.zeros(()), None, math.nan
            if condition in ("order", "split"):
                with unchanged(self.model), torch.no_grad():
                    pair = _in_float64(loss_of, self.model, whole, parts)
                    expected = float(loss_of(model, _changed(whole, "repeat")))
            for part in parts:
                with torch.autocast(device, torch.bfloat16, enabled=condition == "autocast"):
                    loss = check_loss(loss_of(model, part))
                loss = loss if len(parts) == 1 else loss * (length(part) / size)
                self._note("the loss", (), loss)
                loss.backward()
                total = total + loss.detach().cpu()
            self.losses.append(pair or (float(total), expected, half_the_digits(self.model)))
            check_reached(p.grad for p in trained_parameters(self.model, optimizer).values())
            for name, p in reversed(list(self.model.named_parameters())):
                self._note(f"the gradient of {name}", (), p.grad)
            return total

        before = digest(parameters) if self._watched else ""
        buffers = {name: digest(b) for name, b in self.model.named_buffers() if self._watched}
        closed_step(optimizer, evaluate)
        for name, b in self.model.named_buffers():
            self.changed_buffer = name if buffers.get(name, digest(b)) != digest(b) else self.changed_buffer
        self._note("the optimiser's step", before, parameters)

    def _note(self, name: str, given: Any, *result: Any) -> None:
        if self._watched:
            self.events.append((name, given if isinstance(given, str) else digest(given), digest(*result)))

    @contextlib.contextmanager
    def _watch(self, model: nn.Module) -> Iterator[None]:
        """Note input and output of every module's call; inner calls end, and are noted, first."""
        inputs: list[str] = []
        handles = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not inputs:
                self._note("the loss function, before it calls the model", (), args, kwargs)
            inputs.append(digest(args, kwargs, _own(module)))

        for name, module in model.named_modules() if self._watched else ():

            def leave(
                module: nn.Module, args: Any, kwargs: Any, output: Any, label: str = layer_label(name, module)
            ) -> None:
                self._note(label, inputs.pop(), output, _own(module))

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def first_difference(first: TrainingRun, second: TrainingRun) -> str:
    """Name the first call that made other bits of the same input; empty if there is none."""
    for (name, given, result), (other, other_given, other_result) in zip(
        first.events, second.events, strict=False
    ):
        if name != other:
            return f"the order of calls ({name} in one run, {other} in the other)"
        if given == other_given and result != other_result:
            return name
    return "" if len(first.events) == len(second.events) else "the number of calls"


def layer_label(name: str, module: nn.Module) -> str:
    """Return how a layer is called in a certificate."""
    return f"layer {name or '(the whole model)'} ({type(module).__name__})"


def half_the_digits(model: nn.Module) -> float:
    """Return the relative difference that is taken for rounding: half of the coarsest parameter's digits."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex()}
    return float(max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5)


def widen(model: nn.Module) -> nn.Module:
    """Return the module itself, its parameters and buffers now in double precision."""
    for _, value in _named(model):
        value.data = in_float64(value.data)
    return model


def _in_float64(
    loss_of: Callable[[nn.Module, Any], Tensor], model: nn.Module, whole: Any, parts: list[Any]
) -> tuple[float, float, float] | None:
    """Compare in float64 what half precision cannot tell from rounding, if the loss can be taken there."""
    level = THROUGH_FLOAT32
    if half_the_digits(model) <= level:
        return None
    try:
        wide = widen(copy.deepcopy(model))
        losses = [loss_of(wide, _changed(batch, "float64")) for batch in (whole, *parts)]
    except (RuntimeError, TypeError, ValueError):
        return None
    if any(torch.finfo(loss.dtype).eps ** 0.5 > level for loss in losses):
        return None
    expected, *found = (float(loss) for loss in losses)
    sizes = [length(part) for part in parts] if len(parts) > 1 else [1]
    return sum(x * n for x, n in zip(found, sizes, strict=True)) / sum(sizes), expected, level


def streams_digest() -> str:
    """Return a hash of where every random stream stands."""
    return digest(vars(RandomStreams.now()))


def length(batch: Any) -> int:
    """Return the number of examples in a batch, 0 if its tensors do not agree on one."""
    sizes = {len(t) for t in tensors(batch) if t.ndim}
    return sizes.pop() if len(sizes) == 1 else 0


def take(batch: Any, part: slice) -> Any:
    """Return some examples of a batch."""
    return map_tensors(lambda t: t[part] if t.ndim else t, batch)


def _changed(batch: Any, condition: Condition) -> Any:
    if condition == "order":
        return map_tensors(lambda t: t.flip(0) if t.ndim else t, batch)
    # A copy in any case: a loss may take the labels out of a dict.
    return map_tensors(lambda t: t, in_float64(batch) if condition == "float64" else batch)


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
