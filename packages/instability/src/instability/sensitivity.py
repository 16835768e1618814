"""How much of a result is rounding error? The probe for your own model, loop and optimiser.

Two forms: ``numerical_sensitivity`` runs a whole study; ``SensitivityProbe`` rides along in your own training
loop and leaves your model alone.

Source: the method of Sec. 4 of Sun et al. 2022, for any model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from instability.copies import Copies, LossOf, OptimizerFn
from instability.determinism import numerical_settings
from instability.metrics import first_step_above, growth_rate

__all__ = ["SensitivityProbe", "SensitivityReport", "numerical_sensitivity"]

Batch = tuple[Tensor, Tensor]
VISIBLE = 1e-3
"""Divergence that counts as no longer rounding level."""


@dataclass(frozen=True)
class SensitivityReport:
    """What the copies did.

    Attributes:
        perturbations: the ``k`` of each copy; the first is the baseline.
        steps: the steps at which the divergence was measured.
        divergence: average relative L1 between each copy's weights and the baseline's.
        controls_hold: whether every null control stayed exactly equal. If not, the model or the machine is
            not deterministic, and nothing else in the report means anything.
        growth_rates: e-folds per step between rounding level and 1e-2, for each perturbed copy; NaN if never
            there.
        visible_at: first measured step above 1e-3 for each perturbed copy, or -1.
        saturation: mean divergence over the last tenth, for each perturbed copy.
        scores: ``evaluate`` of each copy at the end, if it was given.
        settings: dtype, threads, versions and flags.
    """

    perturbations: tuple[int, ...]
    steps: np.ndarray
    divergence: Float[np.ndarray, "copy record"]
    controls_hold: bool
    growth_rates: Float[np.ndarray, "perturbed"]
    visible_at: np.ndarray
    saturation: Float[np.ndarray, "perturbed"]
    scores: Float[np.ndarray, "copy"] | None
    settings: dict[str, Any] = field(repr=False)

    @property
    def score_spread(self) -> float:
        """Standard deviation (ddof 0) of the distinct copies' scores; NaN without ``evaluate``."""
        if self.scores is None:
            return float("nan")
        distinct = [0] + [i for i, k in enumerate(self.perturbations) if k & (k - 1)]
        return float(np.std(self.scores[distinct]))

    def summary(self) -> str:
        """Return the report as a few lines of text."""
        lines = [
            f"{len(self.perturbations)} copies, {int(self.steps[-1])} steps, {self.settings['dtype']}, "
            f"{self.settings['threads']} thread(s)",
            f"null controls exactly equal: {'yes' if self.controls_hold else 'NO, not deterministic'}",
        ]
        odd = [k for k in self.perturbations if k & (k - 1)]
        for k, rate, step, level in zip(
            odd, self.growth_rates, self.visible_at, self.saturation, strict=True
        ):
            when = f"visible (> {VISIBLE:g}) at step {step}" if step >= 0 else f"never above {VISIBLE:g}"
            growth = f"growth {rate:.3g} per step" if np.isfinite(rate) else "no growth to measure"
            lines.append(f"k={k}: {when}, {growth}, final divergence {level:.3g}")
        if self.scores is not None:
            lines.append(f"scores {np.round(self.scores, 4).tolist()}, spread {self.score_spread:.3g}")
        return "\n".join(lines)


class SensitivityProbe:
    """Shadow copies of a model that train beside it in your own loop.

    The probe copies the model once, then trains its own copies on the losses you show it. Your model, your
    optimiser and torch's random state are as if the probe were not there.

    Args:
        model: the model at the start.
        optimizer_fn: makes an optimiser like yours for a list of parameters.
        perturbations: the integers ``k``; keep a second 1 and a power of two as null controls.
        every: measure the divergence every so many steps.

    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> probe = SensitivityProbe(model, lambda p: torch.optim.SGD(p, lr=0.1), (1, 1, 2, 3), every=5)
    >>> for x in torch.eye(3).repeat(7, 1)[:20]:
    ...     loss_of = lambda m: (m(x) - 1).square().sum()
    ...     probe.step(loss_of)
    ...     optimizer.zero_grad()
    ...     loss_of(model).backward()
    ...     optimizer.step()
    >>> report = probe.report()
    >>> report.controls_hold, report.divergence.shape
    (True, (4, 4))
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer_fn: OptimizerFn,
        perturbations: Sequence[int] = (1, 1, 2, 3, 5),
        *,
        every: int = 1,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1.")
        self.copies = Copies(model, optimizer_fn, perturbations)
        self.every = every
        self.num_steps = 0
        self._steps: list[int] = []
        self._divergence: list[list[float]] = []

    def step(self, loss_of: LossOf) -> None:
        """Train every shadow copy on one loss; call it once per step of your loop, before your own update."""
        with torch.random.fork_rng(devices=[]):
            self.copies.step(loss_of)
        self.num_steps += 1
        if self.num_steps % self.every == 0:
            self._steps.append(self.num_steps)
            self._divergence.append(self.copies.divergence())

    def report(self, evaluate: Callable[[nn.Module], float] | None = None) -> SensitivityReport:
        """Return what was measured so far.

        Args:
            evaluate: optional score of a model, e.g. its test accuracy.

        Raises:
            ValueError: nothing was measured yet.
        """
        if not self._steps:
            raise ValueError(
                f"nothing measured yet: {self.num_steps} steps made, one measurement every {self.every}."
            )
        dtype = next(self.copies.models[0].parameters()).dtype
        steps, curves = np.array(self._steps), np.array(self._divergence).T
        perturbed = curves[self.copies.perturbed]
        last = max(1, len(steps) // 10)
        crossings = np.array([first_step_above(curve, VISIBLE) for curve in perturbed], dtype=int)
        floor = 10 * torch.finfo(dtype).eps
        return SensitivityReport(
            perturbations=self.copies.perturbations,
            steps=steps,
            divergence=curves,
            controls_hold=bool((curves[self.copies.controls] == 0).all()),
            growth_rates=np.array([growth_rate(curve, floor, 1e-2) / self.every for curve in perturbed]),
            visible_at=np.where(crossings >= 0, steps[np.maximum(crossings, 0)], -1),
            saturation=perturbed[:, -last:].mean(axis=1),
            scores=None if evaluate is None else np.array([evaluate(model) for model in self.copies.models]),
            settings=numerical_settings(dtype),
        )


def numerical_sensitivity(
    model_fn: Callable[[], nn.Module],
    data: Iterable[Batch] | Callable[[int], Batch],
    optimizer_fn: OptimizerFn,
    steps: int,
    perturbations: Sequence[int] = (1, 1, 2, 3, 5),
    seed: int = 0,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    evaluate: Callable[[nn.Module], float] | None = None,
    every: int = 1,
) -> SensitivityReport:
    """Train copies of a model that differ only by rounding, and report how far apart they end.

    Args:
        model_fn: makes the model; called once, under ``seed``.
        data: batches ``(inputs, targets)``, iterated again from the start when exhausted, or a function of
            the step.
        optimizer_fn: makes the optimiser for a list of parameters. A ``PerturbedSGD`` perturbs as in the
            paper, any other is perturbed at the gradient.
        steps: updates to make.
        perturbations: the integers ``k``. The first must be 1; a second 1 and a power of two are null
            controls.
        seed: seed of torch's generator for the model, the data order and random layers; the caller's
            generator is left as it was.
        loss_fn: maps ``(model(inputs), targets)`` to a scalar.
        evaluate: optional score of a trained model, e.g. its test accuracy.
        every: measure every so many steps.

    Returns:
        Null controls, divergence curves, growth rates, saturation, score spread and the numerical settings.

    Raises:
        ValueError: no steps, no data, or perturbations without a baseline.

    >>> x, y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    >>> report = numerical_sensitivity(
    ...     lambda: nn.Linear(4, 2), [(x, y)], lambda p: torch.optim.SGD(p, lr=0.1), steps=20
    ... )
    >>> report.controls_hold, bool(report.divergence.max() < 1e-5)  # convex and stable: no amplification
    (True, True)
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = SensitivityProbe(model_fn(), optimizer_fn, perturbations, every=min(every, steps))
        for inputs, targets in _batches(data, steps):
            probe.step(lambda model, x=inputs, y=targets: loss_fn(model(x), y))  # type: ignore[misc]
        return probe.report(evaluate)


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
