"""How much of a result is rounding error? The probe for your own model, loop and optimiser.

Two forms: ``numerical_sensitivity`` runs a whole study; ``SensitivityProbe`` rides along in your own training
loop and leaves your model alone.

Source: the method of Sec. 4 of Sun et al. 2022, for any model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from instability.copies import Copies, LossOf, OptimizerFn, StepFn
from instability.determinism import numerical_settings
from instability.metrics import first_step_above, growth_rate
from instability.streams import RandomStreams, unchanged

__all__ = ["CopyOutcome", "SensitivityProbe", "SensitivityReport", "numerical_sensitivity"]

Batch = tuple[Tensor, Tensor]
VISIBLE = 1e-3
"""Divergence that counts as no longer rounding level; in half precision, four units in the last place."""


@dataclass(frozen=True)
class CopyOutcome:
    """What became of one copy.

    Attributes:
        k: its perturbation.
        is_control: whether it must equal the baseline bit for bit (a second 1, or a power of two).
        injected: whether any trained weight or buffer ever differed from the baseline's.
        nonfinite_at: first step with a loss or weight that is not finite, or -1.
        visible_at: first measured step above the visible level, or -1.
        growth_rate: e-folds per step between rounding level and 1e-2; NaN if never there.
        final: mean divergence over the last tenth of the measurements.
        score: its score at the end; NaN without ``evaluate``.
    """

    k: int
    is_control: bool
    injected: bool
    nonfinite_at: int
    visible_at: int
    growth_rate: float
    final: float
    score: float

    def line(self, visible: float) -> str:
        """Return the outcome as a line of text."""
        if self.is_control:
            return f"k={self.k}: null control, {'NOT equal' if self.injected else 'equal bit for bit'}"
        if not self.injected:
            return f"k={self.k}: nothing was injected: no weight ever differed, so this says nothing"
        when = f"visible (> {visible:g}) at step {self.visible_at}"
        when = when if self.visible_at >= 0 else f"never above {visible:g}"
        growth = f"growth {self.growth_rate:.3g} per step"
        growth = growth if np.isfinite(self.growth_rate) else "no growth to measure"
        last = f"final divergence {self.final:.3g}"
        if self.nonfinite_at >= 0:
            last = f"not finite from step {self.nonfinite_at}"
        return f"k={self.k}: {when}, {growth}, {last}"


@dataclass(frozen=True)
class SensitivityReport:
    """What the copies did.

    Attributes:
        copies: one outcome for each copy; the first is the baseline.
        steps: the steps at which the divergence was measured.
        divergence: average relative L1 between the trained weights of each copy and the baseline's; NaN from
            where one of them is not finite.
        by_layer: the same for each trained parameter by its name, (copy, record).
        outputs: relative distance of the outputs on the probe batch, (copy, record), if one was given.
        broken_control_at: first measured step at which a null control differed, or -1. If there is one, the
            model or the machine is not deterministic, and nothing else in the report means anything.
        visible: the level that counts as visible.
        settings: dtype, threads, versions and flags.
    """

    copies: tuple[CopyOutcome, ...]
    steps: np.ndarray
    divergence: Float[np.ndarray, "copy record"]
    by_layer: dict[str, np.ndarray] = field(repr=False)
    outputs: Float[np.ndarray, "copy record"] | None
    broken_control_at: int
    visible: float
    settings: dict[str, Any] = field(repr=False)

    @property
    def perturbations(self) -> tuple[int, ...]:
        """The ``k`` of each copy."""
        return tuple(outcome.k for outcome in self.copies)

    @property
    def perturbed(self) -> tuple[CopyOutcome, ...]:
        """The copies that rounding may drive away."""
        return tuple(outcome for outcome in self.copies if not outcome.is_control)[1:]

    @property
    def controls_hold(self) -> bool:
        """Whether every null control stayed equal bit for bit."""
        return self.broken_control_at < 0

    @property
    def injected(self) -> bool:
        """Whether at least one perturbation changed a weight."""
        return any(outcome.injected for outcome in self.perturbed)

    @property
    def nonfinite_at(self) -> int:
        """First step at which the baseline was not finite, or -1."""
        return self.copies[0].nonfinite_at

    @property
    def growth_rates(self) -> Float[np.ndarray, "perturbed"]:
        """Growth rate of each perturbed copy."""
        return np.array([outcome.growth_rate for outcome in self.perturbed])

    @property
    def visible_at(self) -> np.ndarray:
        """Step at which each perturbed copy became visible, or -1."""
        return np.array([outcome.visible_at for outcome in self.perturbed], dtype=int)

    @property
    def saturation(self) -> Float[np.ndarray, "perturbed"]:
        """Final divergence of each perturbed copy."""
        return np.array([outcome.final for outcome in self.perturbed])

    @property
    def scores(self) -> Float[np.ndarray, "copy"] | None:
        """Score of each copy, ``None`` without ``evaluate``."""
        scores = np.array([outcome.score for outcome in self.copies])
        return None if np.isnan(scores).all() else scores

    @property
    def score_spread(self) -> float:
        """Standard deviation (ddof 0) of the scores of baseline and perturbed copies; NaN without scores."""
        scores = [outcome.score for outcome in (self.copies[0], *self.perturbed)]
        return 0.0 if len(set(scores)) == 1 else float(np.std(scores))

    def layers(self) -> list[tuple[str, float]]:
        """Return trained parameters with their final divergence, that of the farthest copy, largest first."""
        last = {name: float(np.nanmax(curve[:, -1], initial=0.0)) for name, curve in self.by_layer.items()}
        return sorted(last.items(), key=lambda item: -item[1])

    def to_dict(self) -> dict[str, Any]:
        """Return the outcomes and settings as plain data."""
        return {"copies": [asdict(outcome) for outcome in self.copies], "settings": dict(self.settings)}

    def summary(self) -> str:
        """Return the report as a few lines of text."""
        lines = [
            f"{len(self.copies)} copies, {int(self.steps[-1])} steps, {self.settings['dtype']}, "
            f"{self.settings['threads']} thread(s)",
            "null controls exactly equal: "
            + (
                "yes" if self.controls_hold else f"NO, not deterministic (from step {self.broken_control_at})"
            ),
        ]
        if self.nonfinite_at >= 0:
            lines.append(f"the unperturbed run is not finite from step {self.nonfinite_at}: it diverged")
        lines += [outcome.line(self.visible) for outcome in self.perturbed]
        moved = [(name, level) for name, level in self.layers() if level > 0][:3]
        if moved:
            lines.append("moved most: " + ", ".join(f"{name} {level:.2g}" for name, level in moved))
        if self.outputs is not None:
            lines.append(
                f"outputs on the probe batch: {np.nanmax(self.outputs[:, -1]):.3g} apart (relative L2)"
            )
        if self.scores is not None:
            lines.append(f"scores {np.round(self.scores, 4).tolist()}, spread {self.score_spread:.3g}")
        return "\n".join(lines)


class SensitivityProbe:
    """Shadow copies of a model that train beside it in your own loop.

    The probe copies the model once, then trains its own copies on the losses you show it. Your model, your
    optimiser and every random stream are as if the probe were not there.

    Args:
        model: the model at the start.
        optimizer: the optimiser that trains it, whose state every copy takes over and whose settings (such as
            a scheduled rate) they follow; or a function that makes one like it for a list of parameters.
        perturbations: the integers ``k``; keep a second 1 and a power of two as null controls.
        every: measure the divergence every so many steps.
        outputs: maps a model to its outputs on a probe batch, for the distance of the copies as functions;
            called in evaluation mode without gradients. Directions of weight space that cannot matter, such
            as a bias before batch norm, do not show there.

    Raises:
        ValueError: ``every`` or the perturbations are out of range, or nothing is trained.
        TypeError: the model cannot be copied.

    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> probe = SensitivityProbe(model, optimizer, (1, 1, 2, 3), every=5)
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
        optimizer: OptimizerFn | Optimizer,
        perturbations: Sequence[int] = (1, 1, 2, 3, 5),
        *,
        every: int = 1,
        outputs: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1.")
        self.copies = Copies(model, optimizer, perturbations)
        self.every = every
        self.num_steps = 0
        self._followed = optimizer if isinstance(optimizer, Optimizer) else None
        self._outputs_of = outputs
        self._steps: list[int] = []
        self._by_layer: list[list[dict[str, float]]] = []
        self._total: list[list[float]] = []
        self._outputs: list[list[float]] = []
        self._injected = [False] * len(self.copies.models)
        self._nonfinite_at = [-1] * len(self.copies.models)
        self._broken_control_at = -1

    def step(self, loss_of: LossOf) -> None:
        """Train every shadow copy on one loss; call it once per step of your loop, before your own update."""
        streams = RandomStreams.now()
        try:
            self._advance(lambda: self.copies.step(loss_of))
        finally:
            streams.restore()

    def advance(self, step: StepFn) -> None:
        """Make one whole step of your own with every shadow copy, before you make it with your model.

        Args:
            step: takes a model and its optimiser and does all that your loop does in a step: accumulation,
                clipping, ``optimizer.step()``. It returns the loss, or ``None``.
        """
        streams = RandomStreams.now()
        try:
            self._advance(lambda: self.copies.advance(step))
        finally:
            streams.restore()

    def _advance(self, make: Callable[[], list[float]]) -> None:
        if self._followed is not None:
            self.copies.follow(self._followed)
        losses = make()
        self.num_steps += 1
        for index, loss in enumerate(losses):
            if self._nonfinite_at[index] < 0 and not np.isfinite(loss) and not self.copies.is_finite(index):
                self._nonfinite_at[index] = self.num_steps
            if not self._injected[index]:
                self._injected[index] = index > 0 and not self.copies.same_bits(index)
        if self.num_steps % self.every == 0:
            self._measure()

    def _measure(self) -> None:
        self._steps.append(self.num_steps)
        layers = [layer_divergence(self.copies.models[0], twin) for twin in self.copies.models]
        self._by_layer.append([{name: total / size for name, (total, size) in one.items()} for one in layers])
        sizes = sum(size for _, size in layers[0].values())
        self._total.append([sum(total for total, _ in one.values()) / sizes for one in layers])
        for index in range(len(self.copies.models)):
            if self._nonfinite_at[index] < 0 and not self.copies.is_finite(index):
                self._nonfinite_at[index] = self.num_steps
        if self._broken_control_at < 0 and not all(map(self.copies.same_bits, self.copies.controls)):
            self._broken_control_at = self.num_steps
        if self._outputs_of is not None:
            outputs = [self._evaluate(self._outputs_of, model) for model in self.copies.models]
            self._outputs.append([_relative_l2(output, outputs[0]) for output in outputs])

    def _evaluate(self, function: Callable[[nn.Module], Any], model: nn.Module) -> Any:
        with unchanged(model), torch.no_grad():
            return function(model.eval())

    def _score(self, evaluate: Callable[[nn.Module], float] | None, model: nn.Module) -> float:
        if evaluate is None:
            return float("nan")
        with unchanged(model):
            return float(evaluate(model))

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
        models = self.copies.models
        dtype = next(p.dtype for p in models[0].parameters() if p.requires_grad)
        eps = torch.finfo(dtype).eps
        visible = max(VISIBLE, 4 * eps)
        steps, curves = np.array(self._steps), np.array(self._total).T
        last = max(1, len(steps) // 10)
        outcomes = []
        for index, (k, curve) in enumerate(zip(self.copies.perturbations, curves, strict=True)):
            known = np.where(np.isfinite(curve), curve, np.inf)
            crossing = first_step_above(known, visible) if index else -1
            outcomes.append(
                CopyOutcome(
                    k=k,
                    is_control=index in self.copies.controls,
                    injected=self._injected[index],
                    nonfinite_at=self._nonfinite_at[index],
                    visible_at=int(steps[crossing]) if crossing >= 0 else -1,
                    growth_rate=growth_rate(curve, 10 * eps, max(1e-2, 100 * eps)) / self.every,
                    final=float(curve[-last:].mean()),
                    score=self._score(evaluate, models[index]),
                )
            )
        names = list(self._by_layer[0][0])
        return SensitivityReport(
            copies=tuple(outcomes),
            steps=steps,
            divergence=curves,
            by_layer={
                n: np.array([[one[n] for one in record] for record in self._by_layer]).T for n in names
            },
            outputs=np.array(self._outputs).T if self._outputs else None,
            broken_control_at=self._broken_control_at,
            visible=visible,
            settings=numerical_settings(dtype),
        )


@torch.no_grad()
def layer_divergence(baseline: nn.Module, other: nn.Module) -> dict[str, tuple[float, int]]:
    """Return, for each trained parameter, the sum of relative L1 distances of its entries, and their number.

    Summed over parameters and divided by the number of entries it is ``average_relative_l1`` of the weights.

    >>> layer_divergence(nn.Linear(2, 1), nn.Linear(2, 1))["weight"][1]
    2
    """
    found = {}
    pairs = zip(baseline.named_parameters(), other.parameters(), strict=True)
    for name, a, b in ((name, a, b) for (name, a), b in pairs if a.requires_grad):
        x, y = (torch.view_as_real(t) if t.is_complex() else t for t in (a.detach(), b.detach()))
        x, y = x.double(), y.double()
        size = x.abs().add_(y.abs())
        ratio = x.sub_(y).abs_().div_(size).masked_fill_(size == 0, 0.0)
        found[name] = (2 * float(ratio.sum()), ratio.numel())
    return found


def _relative_l2(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    size = float(a.norm() + b.norm())
    return 2 * float((a - b).norm()) / size if size else 0.0


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
        The outcome of each copy, divergence curves in total and by layer, and the numerical settings.

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
    streams = RandomStreams.now()
    try:
        torch.manual_seed(seed)
        probe = SensitivityProbe(model_fn(), optimizer_fn, perturbations, every=min(every, steps))
        for inputs, targets in _batches(data, steps):

            def loss_of(model: nn.Module, x: Tensor = inputs, y: Tensor = targets) -> Tensor:
                return loss_fn(model(x), y)

            # Not `step`, which puts the streams back: random layers must draw anew in every step.
            probe._advance(partial(probe.copies.step, loss_of))
        return probe.report(evaluate)
    finally:
        streams.restore()


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
