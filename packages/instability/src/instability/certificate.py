"""A certificate of a training run: which digits of its score would survive another machine or batch split.

The run is repeated under changes that leave it the same in exact arithmetic, or nearly so, and each is ranked
by what it did to the score. Two runs under the same conditions are compared bit by bit, call by call; the
first call that gives other bits for the same input is named.

Source: ours; Sec. 4 of Sun et al. 2022 for the question.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from instability.copies import OptimizerFn
from instability.determinism import numerical_settings
from instability.metrics import average_relative_l1
from instability.streams import RandomStreams, unchanged

__all__ = ["Certificate", "Condition", "Effect", "certify"]

Condition = Literal["repeat", "order", "split", "threads", "float64", "autocast", "compile"]
CONDITIONS: tuple[Condition, ...] = ("repeat", "order", "split", "threads", "float64", "autocast")
COARSER = ("autocast",)
"""Conditions that are asked to compute less exactly; they do not count against the digits."""
Event = tuple[str, str, str]


@dataclass(frozen=True)
class Effect:
    """What one condition did.

    Attributes:
        condition: its name.
        score: the score of the run; NaN if it was not made.
        distance: average relative L1 between its final weights and the baseline's.
        skipped: why it was not made; empty if it was.
    """

    condition: str
    score: float
    distance: float
    skipped: str = ""


@dataclass(frozen=True)
class Certificate:
    """What survives of a score.

    Attributes:
        score: of the baseline.
        effects: one for each condition, the largest effect on the score first.
        culprit: what first gave other bits in a second run under the same conditions; empty if nothing did.
        settings: dtype, threads, versions and flags.
    """

    score: float
    effects: tuple[Effect, ...]
    culprit: str
    settings: dict[str, Any] = field(repr=False)

    @property
    def repeatable(self) -> bool:
        """Whether a second run gave the same bits throughout."""
        return not self.culprit

    @property
    def digits(self) -> float:
        """Leading digits of the score that no condition moved; infinite if the score never changed at all."""
        made = [e.score for e in self.effects if not e.skipped and e.condition not in COARSER]
        moved = max((abs(s - self.score) if math.isfinite(s) else math.inf for s in made), default=0.0)
        if not math.isfinite(self.score) or not math.isfinite(moved):
            return 0.0
        if moved == 0:
            return math.inf
        return float(max(0, math.floor(math.log10(max(abs(self.score), 1e-300) / moved))))

    def summary(self) -> str:
        """Return the certificate as a few lines of text."""
        if self.digits < math.inf:
            digits = f"{self.digits:.0f} digit(s) significant"
        else:
            digits = "no condition moved it" + ("" if self.repeatable else ", but the weights differ")
        lines = [
            f"score {self.score:.6g}: {digits}",
            "repeats bit for bit: " + ("yes" if self.repeatable else f"NO, first in {self.culprit}"),
        ]
        for effect in self.effects:
            found = f"score {effect.score:.6g}, weights {effect.distance:.2g} apart"
            lines.append(
                f"{effect.condition}: " + (f"not run, {effect.skipped}" if effect.skipped else found)
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self) | {"digits": self.digits, "repeatable": self.repeatable}


@dataclass(frozen=True)
class _Training:
    loss_of: Callable[[nn.Module, Any], Tensor]
    model_fn: Callable[[], nn.Module]
    optimizer_fn: OptimizerFn
    batches: Sequence[Any]
    evaluate: Callable[[nn.Module], float]
    seed: int


def certify(
    loss_of: Callable[[nn.Module, Any], Tensor],
    model_fn: Callable[[], nn.Module],
    optimizer_fn: OptimizerFn,
    batches: Sequence[Any],
    *,
    evaluate: Callable[[nn.Module], float],
    conditions: Sequence[Condition] = CONDITIONS,
    seed: int = 0,
) -> Certificate:
    """Train under several conditions and say how many digits of the score they leave standing.

    Every run starts from the same seeds of torch, NumPy and Python. The caller's streams and flags are put
    back. ``order`` turns the examples of each batch around, ``split`` adds up the gradients of two halves;
    both are left out for steps that draw random numbers, and ``split`` for batch norm, where they would
    change more than rounding.

    Args:
        loss_of: maps a model and a batch to the mean loss over the examples of the batch.
        model_fn: makes the model.
        optimizer_fn: makes the optimiser for its parameters.
        batches: one for each step: tensors, or tuples, lists or dicts of them with the examples first.
        evaluate: the score of a trained model.
        conditions: what to try; ``"compile"`` too, where a compiler is at hand.
        seed: of every stream.

    Returns:
        The score, its significant digits, the effects by size, and what broke repeatability.

    Raises:
        ValueError: there are no batches, or a condition is unknown.

    >>> x, y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    >>> found = certify(
    ...     lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    ...     lambda: nn.Linear(4, 2),
    ...     lambda p: torch.optim.SGD(p, lr=0.1),
    ...     [(x, y)] * 3,
    ...     evaluate=lambda model: float((model(x).argmax(1) == y).float().mean()),
    ... )
    >>> found.repeatable, found.digits
    (True, inf)
    """
    if not batches:
        raise ValueError("batches is empty; pass one batch for each step.")
    unknown = set(conditions) - {*CONDITIONS, "compile"}
    if unknown:
        raise ValueError(f"conditions={sorted(unknown)} are unknown. Allowed: {[*CONDITIONS, 'compile']}.")
    training = _Training(loss_of, model_fn, optimizer_fn, batches, evaluate, seed)
    streams = RandomStreams.now()
    try:
        baseline = _Run(training)
        again = _Run(training)
        effects = [_effect(training, condition, baseline, again) for condition in conditions]
    finally:
        streams.restore()
    dtype = next(p.dtype for p in baseline.model.parameters())
    return Certificate(
        score=baseline.score,
        effects=tuple(sorted(effects, key=lambda e: _size(e, baseline.score), reverse=True)),
        culprit=_first_difference(baseline.events, again.events),
        settings=numerical_settings(dtype),
    )


class _Run:
    """One training under one condition, with what every call made of its input."""

    def __init__(self, training: _Training, condition: Condition = "repeat") -> None:
        self.events: list[Event] = []
        self.draws = False
        torch.manual_seed(training.seed)
        np.random.seed(training.seed % 2**32)  # noqa: NPY002 - the global stream is what is meant
        random.seed(training.seed)
        self.model = model = training.model_fn()
        dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
        if condition == "float64":
            model.double()
        self._note("the initialisation", "", model.state_dict())
        optimizer = training.optimizer_fn(model.parameters())
        called: Any = torch.compile(model) if condition == "compile" else model
        with self._watched(model):
            for number, batch in enumerate(training.batches):
                self._note(f"the data of step {number + 1}", "", batch)
                before = torch.get_rng_state()
                self._step(training.loss_of, called, optimizer, _changed(batch, condition), condition)
                self.draws = self.draws or not torch.equal(before, torch.get_rng_state())
        self.weights = np.concatenate(
            [p.detach().double().cpu().numpy().ravel() for p in model.parameters() if not p.is_complex()]
        )
        model.to(dtype)  # what scores it brings data of the model's own type
        with unchanged(model), torch.no_grad():
            self.score = float(training.evaluate(model))
        self._note("the score", "", torch.tensor(self.score))

    def _step(
        self,
        loss_of: Callable[[nn.Module, Any], Tensor],
        model: nn.Module,
        optimizer: Optimizer,
        batch: Any,
        condition: Condition,
    ) -> None:
        optimizer.zero_grad()
        size = _length(batch)
        parts = (
            [batch]
            if condition != "split"
            else [_take(batch, slice(size // 2)), _take(batch, slice(size // 2, None))]
        )
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=condition == "autocast"):
                loss = loss_of(model, part)
            self._note("the loss", self.events[-1][2], loss)
            (loss if len(parts) == 1 else loss * (_length(part) / size)).backward()
        for name, p in reversed(list(self.model.named_parameters())):
            self._note(f"the gradient of {name}", "", p.grad)
        before = _digest([list(self.model.parameters()), [p.grad for p in self.model.parameters()]])
        optimizer.step()
        self._note("the optimiser's step", before, list(self.model.parameters()))

    def _note(self, name: str, given: str, result: Any) -> None:
        self.events.append((name, given, _digest(result)))

    @contextlib.contextmanager
    def _watched(self, model: nn.Module) -> Iterator[None]:
        """Note input and output of every module's call; inner calls end, and are noted, first."""
        inputs: list[str] = []
        handles = []
        for name, module in model.named_modules():
            label = f"layer {name or '(the whole model)'} ({type(module).__name__})"

            def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
                inputs.append(_digest([args, kwargs]))

            def leave(_: nn.Module, args: Any, kwargs: Any, output: Any, label: str = label) -> None:
                self._note(label, inputs.pop(), output)

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _effect(training: _Training, condition: Condition, baseline: _Run, again: _Run) -> Effect:
    if condition == "repeat":
        run = again
    elif reason := _reason_to_skip(condition, baseline):
        return Effect(condition, math.nan, math.nan, reason)
    else:
        threads = torch.get_num_threads()
        try:
            if condition == "threads":
                torch.set_num_threads(1 if threads > 1 else 2)
            run = _Run(training, condition)
        except (RuntimeError, TypeError, ValueError) as error:
            return Effect(condition, math.nan, math.nan, str(error).splitlines()[0])
        finally:
            torch.set_num_threads(threads)
    return Effect(condition, run.score, average_relative_l1(run.weights, baseline.weights))


def _reason_to_skip(condition: Condition, baseline: _Run) -> str:
    if condition in ("order", "split") and baseline.draws:
        return "the step draws random numbers, which would fall on other examples"
    couples = any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in baseline.model.modules()
    )
    if condition == "split" and couples:
        return "batch norm couples the examples of a batch"
    return ""


def _size(effect: Effect, score: float) -> tuple[float, float]:
    moved = abs(effect.score - score)
    return (-1.0, 0.0) if effect.skipped else (moved if math.isfinite(moved) else math.inf, effect.distance)


def _first_difference(first: Sequence[Event], second: Sequence[Event]) -> str:
    """Name the first call that made other bits of the same input."""
    for (name, given, result), (other, other_given, other_result) in zip(first, second, strict=False):
        if name != other:
            return f"the order of calls ({name} in one run, {other} in the other)"
        if given == other_given and result != other_result:
            return name
    return "" if len(first) == len(second) else "the number of calls"


def _changed(batch: Any, condition: Condition) -> Any:
    if condition == "order":
        return _map(lambda t: t.flip(0) if t.ndim else t, batch)
    if condition == "float64":
        return _map(lambda t: t.double() if t.is_floating_point() else t, batch)
    return batch


def _take(batch: Any, part: slice) -> Any:
    return _map(lambda t: t[part] if t.ndim else t, batch)


def _length(batch: Any) -> int:
    return next((len(t) for t in _tensors(batch) if isinstance(t, Tensor) and t.ndim), 1)


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(function, entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([_map(function, entry) for entry in value])
    return value


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)
    else:
        yield value


def _digest(value: Any) -> str:
    """Raw bits of all tensors, NaN and signed zeros included; of other things only numbers and text."""
    state = hashlib.blake2b(digest_size=16)
    for entry in _tensors(value):
        if isinstance(entry, Tensor):
            dense = entry.detach().to_dense() if entry.is_sparse else entry.detach()
            state.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
            state.update(
                dense.cpu().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        elif isinstance(entry, int | float | str | None):
            state.update(repr(entry).encode())
    return state.hexdigest()
