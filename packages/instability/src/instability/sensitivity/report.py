"""What became of copies that differ by rounding."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from gdyn_common.display import Axes, Figure, Shown, axes_for
from instability.metrics import first_step_above

__all__ = ["CopyOutcome", "SensitivityReport"]


@dataclass(frozen=True)
class CopyOutcome:
    """What became of one copy.

    Attributes:
        k: its perturbation.
        is_control: whether it must equal the baseline bit for bit (a second 1, or a power of two).
        injected: whether any trained weight or buffer ever differed from the baseline's.
        nonfinite_at: first step after which a weight was not finite, or -1.
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


@dataclass(frozen=True, repr=False)
class SensitivityReport(Shown):
    """What the copies did.

    Attributes:
        copies: one outcome for each copy; the first is the baseline.
        steps: the steps at which the divergence was measured.
        divergence: average relative L1 between the trained weights of each copy and the baseline's; NaN from
            where one of them is not finite.
        by_layer: the same for each trained parameter by its name, (copy, record).
        outputs: relative distance of the outputs on the probe batch, (copy, record), if one was given.
        effects: relative distance of the outputs if that parameter alone is the farthest copy's, by name.
            Far below its own distance: it moved in a direction that cannot matter.
        broken_control_at: first measured step at which a null control differed, or -1. If there is one, the
            model or the machine is not deterministic, and nothing else in the report means anything.
        left_at: number of steps after which the baseline first was not the user's own model, or -1. If there
            is one, the loop does more than the copies were shown: clipping, a hook, another random number.
        visible: the level that counts as visible.
        settings: dtype, threads, versions and flags.
    """

    copies: tuple[CopyOutcome, ...]
    steps: np.ndarray
    divergence: Float[np.ndarray, "copy record"]
    by_layer: dict[str, np.ndarray] = field(repr=False)
    outputs: Float[np.ndarray, "copy record"] | None
    effects: dict[str, float] = field(repr=False)
    broken_control_at: int
    left_at: int
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

    def starts(self) -> list[tuple[str, int]]:
        """Return trained parameters with the first measured step at which a copy's was visible, in order."""
        first = {n: first_step_above(curve.max(axis=0), self.visible) for n, curve in self.by_layer.items()}
        return sorted(
            ((name, int(self.steps[record])) for name, record in first.items() if record >= 0),
            key=lambda item: item[1],
        )

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw how far each perturbed copy is from the baseline at each step, and return the figure.

        Args:
            axes: axes of matplotlib to draw into; ``None`` makes a new figure.
        """
        axes = axes_for(axes)
        for outcome, curve in zip(self.copies[1:], self.divergence[1:], strict=True):
            if not outcome.is_control:
                axes.semilogy(self.steps, np.where(curve > 0, curve, np.nan), label=f"k = {outcome.k}")
        axes.axhline(self.visible, color="0.5", linestyle="--", linewidth=0.8)
        axes.set(
            title="Distance from the unperturbed run (dashed: visible)",
            xlabel="step",
            ylabel="average relative L1",
        )
        axes.legend()
        return axes.figure

    def to_dict(self) -> dict[str, Any]:
        """Return the outcomes and settings as plain data."""
        copies = [asdict(outcome) for outcome in self.copies]
        return {"copies": copies, "left_at": self.left_at, "settings": dict(self.settings)}

    def summary(self) -> str:
        """Return the report as a few lines of text."""
        controls = "yes"
        if not any(outcome.is_control for outcome in self.copies):
            controls = "none was run; pass a second 1 and a power of two"
        elif not self.controls_hold:
            controls = f"NO, not deterministic (from step {self.broken_control_at})"
        lines = [
            f"{len(self.copies)} copies, {int(self.steps[-1])} steps, {self.settings['dtype']}, "
            f"{self.settings['threads']} thread(s)",
            "null controls exactly equal: " + controls,
        ]
        if self.left_at >= 0:
            lines.append(
                f"the baseline left your model after step {self.left_at}: your loop does more or less than "
                "it saw; call the probe once before each update of your own"
            )
        if self.nonfinite_at >= 0:
            lines.append(f"the unperturbed run is not finite from step {self.nonfinite_at}: it diverged")
        lines += [outcome.line(self.visible) for outcome in self.perturbed]
        effects = {name: f" (outputs {effect:.2g})" for name, effect in self.effects.items()}
        moved = [f"{n} {level:.2g}{effects.get(n, '')}" for n, level in self.layers() if level > 0][:3]
        if moved:
            lines.append("moved most: " + ", ".join(moved))
        if starts := self.starts()[:3]:
            lines.append("visible first: " + ", ".join(f"{name} at step {step}" for name, step in starts))
        if self.outputs is not None:
            lines.append(f"outputs on the probe batch: {self.outputs[:, -1].max():.3g} apart (relative L2)")
        if self.scores is not None:
            lines.append(f"scores {np.round(self.scores, 4).tolist()}, spread {self.score_spread:.3g}")
        return "\n".join(lines)
