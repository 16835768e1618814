"""A whole study: copies of a model trained on the same data, and a report.

Source: the method of Sec. 4 of Sun et al. 2022, for any model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gdyn_common.errors import require_count
from instability.copies import OptimizerFn
from instability.reach import check_function
from instability.sensitivity.probe import SensitivityProbe
from instability.sensitivity.report import SensitivityReport
from instability.streams import check_loss, unchanged

__all__ = ["numerical_sensitivity"]

Batch = Any


@torch.inference_mode(False)
def numerical_sensitivity(
    model_fn: Callable[[], nn.Module],
    data: Iterable[Batch] | Callable[[int], Batch],
    optimizer_fn: OptimizerFn,
    steps: int,
    perturbations: Sequence[int] = (1, 1, 2, 3, 5),
    seed: int = 0,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    every: int = 1,
) -> SensitivityReport:
    """Train copies of a model that differ only by rounding, and report how far apart they end.

    Args:
        model_fn: makes the model; called once, under ``seed``.
        data: batches ``(inputs, targets)``, iterated again from the start when exhausted, or a function of
            the step. Inputs may be a tuple of arguments or a mapping of keywords; a batch that is a mapping
            holds its own targets, and ``loss_fn`` gets ``None`` for them.
        optimizer_fn: makes the optimiser for a list of parameters. A ``PerturbedSGD`` perturbs as in the
            paper, any other is perturbed at the gradient.
        steps: updates to make.
        perturbations: the integers ``k``. The first must be 1; a second 1 and a power of two are null
            controls.
        seed: seed of torch's generator for the model, the data order and random layers; the caller's
            generator is left as it was.
        loss_fn: maps ``(model(inputs), targets)`` to a scalar. By default cross-entropy, or for a batch that
            is a mapping the loss that the model returns (``outputs.loss`` or ``outputs["loss"]``).
        evaluate: optional score of a trained model, e.g. its test accuracy.
        every: measure every so many steps.

    Returns:
        The outcome of each copy, divergence curves in total and by layer, and the numerical settings.

    Raises:
        ValueError: no steps, no data, perturbations without a baseline, or no class to tell from another.
        TypeError: model, batches, outputs or score are of another kind.

    >>> x, y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    >>> report = numerical_sensitivity(
    ...     lambda: nn.Linear(4, 2), [(x, y)], lambda p: torch.optim.SGD(p, lr=0.1), steps=20
    ... )
    >>> report.controls_hold, bool(report.divergence.max() < 1e-5)  # convex and stable: no amplification
    (True, True)
    """
    require_count("steps", steps)
    check_function(model_fn, "model_fn")
    with unchanged():
        torch.manual_seed(seed)
        with SensitivityProbe(model_fn(), optimizer_fn, perturbations, every=every) as probe:
            for batch in _batches(data, steps):
                is_pair = isinstance(batch, tuple | list) and len(batch) == 2
                if not is_pair and not isinstance(batch, Mapping):
                    raise TypeError(
                        f"a batch is a {type(batch).__name__}; pass pairs (inputs, targets) or mappings of "
                        "keywords, or use SensitivityProbe in a loop of your own."
                    )
                loss_of = partial(_loss, loss_fn, *(batch if is_pair else (batch, None)))
                # Not `step`, which puts the streams back: random layers must draw anew in every step.
                probe._advance(probe.copies.step, loss_of)
        return probe.report(evaluate)


def _loss(loss_fn: Callable[[Any, Any], Tensor] | None, x: Any, y: Any, model: nn.Module) -> Tensor:
    arguments = x if isinstance(x, tuple | list) else (x,)
    outputs = model(**x) if isinstance(x, Mapping) else model(*arguments)
    if loss_fn is not None:
        return loss_fn(outputs, y)
    if y is None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if loss is None:
            raise TypeError(
                f"the model returned a {type(outputs).__name__} without a loss for a mapping as batch; "
                "put the labels into it, or pass loss_fn."
            )
        return check_loss(loss)
    if not (isinstance(outputs, Tensor) and isinstance(y, Tensor)):
        raise TypeError(
            f"the model returned a {type(outputs).__name__} and the targets are a {type(y).__name__}, no two "
            "tensors for cross-entropy: pass loss_fn."
        )
    if outputs.ndim and outputs.shape[min(1, outputs.ndim - 1)] == 1:
        raise ValueError(
            f"the model returned the shape {tuple(outputs.shape)}: of one class, cross-entropy is always 0; "
            "pass loss_fn."
        )
    if y.is_floating_point() and y.shape != outputs.shape:
        raise ValueError(
            f"the targets are {y.dtype} of shape {tuple(y.shape)}, which cross-entropy does not take for "
            f"scores of shape {tuple(outputs.shape)}: pass whole numbers, or loss_fn."
        )
    return nn.functional.cross_entropy(outputs, y)


def _batches(data: Iterable[Batch] | Callable[[int], Batch], steps: int) -> Iterator[Batch]:
    if callable(data):
        yield from (data(step) for step in range(steps))
        return
    made = 0
    while made < steps:
        before = made
        for batch in data:
            if made == steps:
                return
            yield batch
            made += 1
        if made == before:
            raise ValueError(
                f"data ran out after {made} of {steps} steps; pass a list or a loader, not an iterator."
            )
