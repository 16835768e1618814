"""Train copies of one network side by side, resumable bit for bit.

Source: Secs. 4.1 and 4.2 of Sun et al. 2022.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from instability.copies import Copies
from instability.paper.config import NetworkConfig
from instability.paper.data import ImageSet
from instability.perturbed_sgd import PerturbedSGD

__all__ = ["Measure", "TrainingPlan", "make_copies", "test_accuracies", "train"]

CHECKPOINT_EVERY_S = 30.0


@runtime_checkable
class CheckpointStore(Protocol):
    """Where a run keeps its state; ``gdyn_common``'s checkpoints are one."""

    def load(self) -> dict[str, Any] | None:
        """Return the saved arrays, or None."""
        ...

    def save(self, **arrays: Any) -> None:
        """Replace the saved arrays."""
        ...


@dataclass(frozen=True)
class TrainingPlan:
    """Optimiser and schedule, in steps.

    Attributes:
        num_steps: updates to make.
        batch_size: images in one update.
        learning_rate: at the start.
        milestones: steps at which the learning rate is divided by 10.
        momentum: momentum factor.
        nesterov: use Nesterov momentum.
        weight_decay: coefficient of the weights in the gradient.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    milestones: tuple[int, ...] = ()
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_steps={self.num_steps} and batch_size={self.batch_size} must be at least 1."
            )

    @classmethod
    def of(
        cls, config: NetworkConfig, num_steps: int, *, milestones: Sequence[int] = (), divisor: float = 1
    ) -> TrainingPlan:
        """Return the configured plan, its learning rate divided by ``divisor``."""
        return cls(
            num_steps=num_steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate / divisor,
            milestones=tuple(milestones),
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of update number ``step``, counted from 0.

        >>> plan = TrainingPlan(num_steps=10, batch_size=1, learning_rate=1.0, milestones=(4, 8))
        >>> [plan.learning_rate_at(step) for step in (3, 4, 8)]
        [1.0, 0.1, 0.01]
        """
        return self.learning_rate / float(10 ** sum(step >= milestone for milestone in self.milestones))


Measure = Callable[[Copies, Float[np.ndarray, "copy"]], Sequence[Sequence[float] | np.ndarray]]
"""Maps copies and training accuracies since the last measurement to rows of one number per copy."""


def make_copies(model: nn.Module, plan: TrainingPlan, perturbations: Sequence[int]) -> Copies:
    """Return copies of a model, each with the plan's ``PerturbedSGD``."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it

    def optimizer(parameters: Iterable[nn.Parameter]) -> PerturbedSGD:
        return PerturbedSGD(
            parameters,
            lr=plan.learning_rate,
            momentum=plan.momentum,
            nesterov=plan.nesterov,
            weight_decay=plan.weight_decay,
        )

    return Copies(model, optimizer, perturbations)


def train(
    copies: Copies,
    images: ImageSet,
    plan: TrainingPlan,
    *,
    seed: int,
    measure: Measure,
    measure_every: int,
    checkpoint: CheckpointStore | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Float[np.ndarray, "measurement row copy"]:
    """Train all copies on the same batches and measure them at regular steps.

    Args:
        copies: advanced in place.
        images: the data.
        plan: optimiser and schedule; its learning rate overrides the copies'.
        seed: of order and augmentation.
        measure: what to record, see ``Measure``.
        measure_every: steps between measurements; the first is after that many steps.
        checkpoint: where to keep the state, every half minute. A killed run continues with the same bits.
        progress: wraps the iterable of steps, e.g. in a progress bar.

    Returns:
        One row of measurements per ``measure_every`` steps.
    """
    if measure_every < 1:
        raise ValueError(f"measure_every={measure_every} must be at least 1.")
    state = checkpoint.load() if checkpoint else None
    start, rows = 0, []
    seen, correct = 0, np.zeros(len(copies.models))
    if state is not None:
        copies.load_arrays({k.removeprefix("state/"): v for k, v in state.items() if k.startswith("state/")})
        start, seen, correct = int(state["step"]), int(state["seen"]), state["correct"]
        rows = list(state["rows"])
    saved_at = time.monotonic()
    for step in progress(range(start, plan.num_steps)):
        x, y = images.batch(seed, step, plan.batch_size)
        copies.set_learning_rate(plan.learning_rate_at(step))
        hits: list[int] = []
        copies.step(lambda model, x=x, y=y, hits=hits: _loss(model, x, y, hits))  # type: ignore[misc]
        seen, correct = seen + len(y), correct + np.array(hits)
        if (step + 1) % measure_every == 0:
            rows.append(np.asarray(measure(copies, correct / seen), dtype=np.float64))
            seen, correct = 0, np.zeros(len(copies.models))
        if checkpoint and time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
            body = {f"state/{name}": array for name, array in copies.arrays().items()}
            checkpoint.save(step=step + 1, seen=seen, correct=correct, rows=np.array(rows), **body)
            saved_at = time.monotonic()
    return np.array(rows)


def test_accuracies(copies: Copies, images: ImageSet) -> Float[np.ndarray, "copy"]:
    """Return each copy's share of correctly classified test images, with batch norm's averages."""
    totals = np.zeros(len(copies.models))
    for x, y in images.test_batches():
        for i, model in enumerate(copies.models):
            totals[i] += _hits(model, x, y)
    return totals / len(images.test_y)


@torch.no_grad()
def _hits(model: nn.Module, x: Tensor, y: Tensor) -> int:
    model.eval()
    hits = int((model(_like(model, x)).argmax(dim=1) == y).sum())
    model.train()
    return hits


def _loss(model: nn.Module, x: Tensor, y: Tensor, hits: list[int]) -> Tensor:
    logits = model(_like(model, x))
    hits.append(int((logits.detach().argmax(dim=1) == y).sum()))
    return nn.functional.cross_entropy(logits, y.to(logits.device))


def _like(model: nn.Module, x: Tensor) -> Tensor:
    """The batch in the model's dtype and on its device."""
    return x.to(next(model.parameters()))
