"""A certificate of a training run: which digits of its score would survive another machine or batch split.

The run is repeated under changes that leave it the same in exact arithmetic, or nearly so, and each is ranked
by what it did to the score. Two runs under the same conditions are compared bit by bit, call by call; the
first call that gives other bits for the same input is named.

Source: ours; Sec. 4 of Sun et al. 2022 for the question.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from instability.certificate.batch_dependence import batch_dependent_layers
from instability.certificate.result import COARSER, Certificate, Effect
from instability.certificate.run import (
    Condition,
    Training,
    TrainingRun,
    first_difference,
    half_the_digits,
    length,
)
from instability.copies import OptimizerFn
from instability.determinism import float32_precision, numerical_settings
from instability.metrics import average_relative_l1
from instability.reach import check_function
from instability.streams import unchanged

__all__ = ["certify"]

CONDITIONS: tuple[Condition, ...] = ("repeat", "order", "split", "threads", "float64", "autocast", "tf32")


@torch.inference_mode(False)
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
    back. ``order`` turns the examples of each batch around, ``split`` adds up the gradients of two halves. A
    condition that would change more than rounding, or that the machine does not have, is not run, with the
    reason.

    Args:
        loss_of: maps a model and a batch to the mean loss over the examples of the batch.
        model_fn: makes the model.
        optimizer_fn: makes the optimiser for its parameters.
        batches: one for each step: tensors, or tuples, lists or dicts of them with the examples first.
        evaluate: the score of a trained model.
        conditions: what to try; ``"compile"`` too, which takes minutes and a C++ compiler.
        seed: of every stream.

    Returns:
        The score, its significant digits, the effects by size, and what broke repeatability.

    Raises:
        ValueError: there are no batches, they can be read once only, nothing is trained, a loss depends on no
            trained weight, or a condition is unknown.
        TypeError: a model or an optimiser is given instead of what makes it, or the score is no number.

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
    if isinstance(batches, Iterator):
        raise ValueError("batches can be read once only; pass a list, since every run reads them anew.")
    if not len(batches):
        raise ValueError("batches is empty; pass one batch for each step.")
    if unknown := set(conditions) - set(get_args(Condition)):
        raise ValueError(f"conditions={sorted(unknown)} are unknown. Allowed: {list(get_args(Condition))}.")
    check_function(model_fn, "model_fn")
    check_function(optimizer_fn, "optimizer_fn")
    training = Training(loss_of, model_fn, optimizer_fn, batches, evaluate, seed)
    with unchanged():
        trained = [p for p in training.start().parameters() if p.requires_grad]
        if not trained:
            raise ValueError("the model has no parameter that requires a gradient: nothing is trained.")
        baseline = TrainingRun(training, watched=True)
        again = TrainingRun(training, watched=True)
        effects = [_effect(training, condition, baseline, again) for condition in conditions]
        dependent = batch_dependent_layers(training)
    return Certificate(
        score=baseline.score,
        effects=tuple(sorted(effects, key=lambda e: _size(e, baseline.score), reverse=True)),
        culprit=first_difference(baseline, again),
        batch_dependent=dependent,
        settings=numerical_settings(trained[0].dtype),
    )


def _effect(training: Training, condition: Condition, baseline: TrainingRun, again: TrainingRun) -> Effect:
    run, reason = again, _reason_to_skip(training, condition, baseline)
    if condition != "repeat" and not reason:
        try:
            with _switched(condition):
                run = TrainingRun(training, condition)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
        else:
            if run.streams != baseline.streams:
                reason = "the steps drew other random numbers, which is more than rounding"
            elif condition not in COARSER:
                reason = _another_loss(condition, baseline, run)
    if reason:
        return Effect(condition, math.nan, math.nan, reason)
    return Effect(condition, run.score, average_relative_l1(run.weights, baseline.weights))


def _another_loss(condition: Condition, baseline: TrainingRun, run: TrainingRun) -> str:
    """Name the first loss that differs by more than half of the digits from that at equal weights."""
    pairs = run.losses
    if condition not in ("order", "split"):
        pairs = [(run.losses[0][0], baseline.losses[0][0], half_the_digits(baseline.model))]
    for number, (loss, expected, level) in enumerate(pairs, 1):
        if abs(loss - expected) > level * abs(expected):
            return (
                f"loss {number} is {loss:.6g} instead of {expected:.6g}, more than rounding: it is no mean "
                "over examples along the first axis"
            )
    return ""


@contextlib.contextmanager
def _switched(condition: Condition) -> Iterator[None]:
    threads = torch.get_num_threads()
    with float32_precision("tf32") if condition == "tf32" else contextlib.nullcontext():
        try:
            if condition == "threads":
                torch.set_num_threads(1 if threads > 1 else 2)
            yield
        finally:
            torch.set_num_threads(threads)


def _reason_to_skip(training: Training, condition: Condition, baseline: TrainingRun) -> str:
    if condition == "tf32" and not any(p.is_cuda for p in baseline.model.parameters()):
        return "not applicable: TF32 is a format of NVIDIA GPUs, and the model is not on one"
    if condition not in ("order", "split"):
        return ""
    if baseline.draws:
        return "the step draws random numbers, which would fall on other examples"
    sizes = [length(batch) for batch in training.batches]
    if 0 in sizes:
        return "a batch's tensors differ in length, or are none: which axis holds the examples is not known"
    if condition == "split" and 1 in sizes:
        return "a batch of one example has no halves"
    if condition == "split" and baseline.changed_buffer:
        return f"each pass changes the buffer {baseline.changed_buffer}, and two halves are two passes"
    return ""


def _size(effect: Effect, score: float) -> tuple[float, float]:
    moved = abs(effect.score - score)
    return (-1.0, 0.0) if effect.skipped else (moved if math.isfinite(moved) else math.inf, effect.distance)
