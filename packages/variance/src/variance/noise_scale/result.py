"""The noise scale of a model, as measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gdyn_common.display import Axes, Figure, Shown, axes_for
from variance.noise_scale.norms import NormNoise
from variance.statistics import told


@dataclass(frozen=True, repr=False)
class NoiseScale(Shown):
    """Noise scale of a model over some steps.

    Attributes:
        noise_scale: Variance of one example's gradient over the squared norm of its mean, in examples (NaN
            where the latter is not positive).
        low: Lower end of the 95 % interval.
        high: Upper end; infinite where a gradient of zero cannot be excluded.
        trace_cov: Variance of one example's gradient.
        grad_norm_sq: Squared norm of the mean gradient, unbiased.
        by_parameter: Noise scale by parameter name.
        num_steps: Steps behind it.
        num_skipped: Steps left out: unequal micro-batches, or gradients that are not finite.
        norms: The same in `l1` and `nuclear` norm, where they were measured.
    """

    noise_scale: float
    low: float
    high: float
    trace_cov: float
    grad_norm_sq: float
    by_parameter: Mapping[str, float]
    num_steps: int
    num_skipped: int = 0
    norms: Mapping[str, NormNoise] = field(default_factory=dict)

    def summary(self) -> str:
        """Return one sentence."""
        return told(self.noise_scale, self.low, self.high, f"{self.num_steps} steps")

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name: `noise_scale/<parameter>`, and those of a norm behind `l1/`."""
        found: dict[str, float] = {}
        parts: dict[str, NoiseScale | NormNoise] = {"": self}
        parts |= {f"{name}/": part for name, part in self.norms.items()}
        for prefix, part in parts.items():
            found |= {f"{prefix}{k}": float(v) for k, v in vars(part).items() if isinstance(v, float | int)}
            found |= {f"{prefix}noise_scale/{name}": value for name, value in part.by_parameter.items()}
        return found


def plot_noise_scales(
    axes: Axes | None, xlabel: str, steps: Sequence[int], scales: Iterable[tuple[float, float, float]]
) -> Figure:
    """Draw noise scales over a training, each with its interval, and return the figure.

    Args:
        axes: Axes of matplotlib to draw into; None makes a new figure.
        xlabel: What `steps` counts.
        steps: Place of each scale.
        scales: Value, lower and upper end of each; an infinite end reaches the top of the picture, and
            where the value is NaN only the interval is drawn.
    """
    axes, found = axes_for(axes), np.array(list(scales)).reshape(-1, 3)
    known = found[np.isfinite(found) & (found > 0)]
    limits = (known.min() / 2, known.max() * 2) if known.size else (0.5, 2.0)
    axes.vlines(steps, *found[:, 1:].clip(*limits).T, linewidth=1)
    axes.plot(steps, found[:, 0], "o")
    axes.set(title="Noise scale during training (95 % intervals)", yscale="log", ylim=limits)
    axes.set(xlabel=xlabel, ylabel="noise scale in examples")
    axes.yaxis.set_major_formatter("{x:,g}")
    return axes.figure
