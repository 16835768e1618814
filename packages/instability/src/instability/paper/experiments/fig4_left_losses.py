"""Figure 4, left: losses of the non-linear PDE that settle, stay restrained, or blow up."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from instability.paper.calibration import one_layer_cost
from instability.paper.config import OneLayerConfig, check_checkerboard, check_rates
from instability.paper.images import make_image
from instability.pde import nonlinear as nonlinear_pde
from instability.pde.reduced_map import ReducedMap, split_kernel

COMPARED_STEPS = 30
BOUNDED = 10.0
"""Largest loss over the first one that counts as bounded; a loss that diverges gains a factor of 1e79."""


@dataclass
class Fig4LeftConfig(OneLayerConfig):
    """Losses of the non-linear PDE.

    Attributes:
        weight_decay: Coefficient of the weights in the gradient.
    """

    learning_rates: list[float] = field(
        default_factory=lambda: [0.01, 0.03, 0.05, 0.07, 0.09, 0.1, 0.11, 0.13]
    )
    weight_decay: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("learning_rates", self.learning_rates)
        check_rates("weight_decay", [self.weight_decay], zero=True)
        check_checkerboard(self.image)
        self.only_seed()


def compute(config: Fig4LeftConfig, run: Run) -> Result:
    """Simulate every learning rate with its null controls, beside the exact reduced map."""
    reduced = ReducedMap(config.kernel_size, config.image_size, config.weight_decay, config.label)
    rates = np.array(config.learning_rates)
    runs = [
        run.piece(f"learning_rate={rate:g}", partial(_simulate, config, rate))
        for rate in run.progress(config.learning_rates, "learning rates")
    ]
    losses = np.array([r["losses"] for r in runs])
    c, orthogonal = split_kernel(nonlinear_pde.initial_kernel(config.kernel_size, config.only_seed()))
    exact = np.array([_reduced_losses(reduced, c, orthogonal, rate, config.num_steps) for rate in rates])
    edge, decay_bound = 2 / float(reduced.sharpness(reduced.fixed_point())), 2 / config.weight_decay
    settled = float(reduced.loss(reduced.fixed_point()))
    settles = np.abs(losses[:, -50:] - settled).max(axis=1) < 1e-6
    bounded = np.isfinite(losses[:, -1]) & (losses.max(axis=1) <= BOUNDED * losses[:, 0])
    below, beyond = rates < edge, rates > decay_bound * (1 + 1e-12)
    regular = np.flatnonzero(~(reduced.lyapunov_exponent(rates, num_steps=3000) > 0))
    early = slice(0, min(COMPARED_STEPS, config.num_steps))
    errors = np.abs(losses[regular, early] / exact[regular, early] - 1)
    middle = ~below & ~beyond
    return Result(
        measurements={
            "edge_of_stability": edge,
            "largest_bounded_rate": float(rates[bounded].max()),
            "small_rates_settle": bool(settles[below].all()),
            "middle_rates_restrained": bool((bounded & ~settles)[middle].all()),
            "large_rates_diverge": bool((~bounded)[beyond].all()),
            "middle_rates_settle": bool(settles[middle].all()),
            "small_rates_restrained": bool((bounded & ~settles)[below].all()),
            "middle_rates_diverge": bool((~bounded)[middle].all()),
            "largest_settling_rate": float(rates[settles].max(initial=0.0)),
            "reduced_error": float(np.nanmax(errors, initial=0.0)),
            "controls": all(bool(r["controls"]) for r in runs),
        },
        arrays={"losses": losses, "learning_rates": rates, "bounds": np.array([edge, decay_bound])},
    )


def estimate(config: Fig4LeftConfig) -> Estimate:
    """Time a step and count three copies for each learning rate."""
    return one_layer_cost(config, 3 * len(config.learning_rates))


def plot(result: Result) -> Figure:
    """Draw the losses on logarithmic axes; from iteration 60 on the range of those that oscillate."""
    arrays = result.arrays
    edge, decay_bound = arrays["bounds"]
    figure, axis = new_figure(figsize=(6.4, 4.2))
    low, high = np.nanmin(arrays["losses"]) / 2, arrays["losses"][:, 0].max() * 1e3
    drawn = np.minimum(arrays["losses"], 10 * high)
    at = np.arange(1, drawn.shape[1] + 1)
    early = at <= 60
    for colour, rate, losses in zip(COLOURS, arrays["learning_rates"], drawn, strict=False):
        style = "-" if rate < edge else "--" if rate <= decay_bound else ":"
        late = losses[~early]
        oscillates = late.size and np.nanmax(late) > 1.05 * np.nanmin(late) and rate <= decay_bound
        line = np.where(early, losses, np.nan) if oscillates else losses
        axis.plot(at, line, style, color=colour, label=f"{rate:.3g}", linewidth=1)
        if oscillates:
            axis.fill_between(at[~early], late.min(), late.max(), color=colour, alpha=0.25, linewidth=0)
    axis.set(xlabel="iteration", ylabel="loss", xscale="log", yscale="log")
    axis.set_ylim(low, high)
    figure.suptitle(
        "Loss of one convolutional layer (shaded: range of an oscillation)\n"
        f"dashed: rate above {edge:.3g} = 2 / sharpness; dotted: above {decay_bound:.3g} = 2 / weight decay",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    axis.legend(title="learning rate", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _simulate(config: Fig4LeftConfig, learning_rate: float) -> dict[str, np.ndarray | bool]:
    result = nonlinear_pde.simulate(
        make_image(config.image, config.image_size),
        nonlinear_pde.initial_kernel(config.kernel_size, config.only_seed()),
        learning_rates=learning_rate,
        weight_decays=config.weight_decay,
        num_steps=config.num_steps,
        label=config.label,
        perturbations=(1, 1, 2),
        options=config.options(),
    )
    equal = np.array_equal(result.losses[1:], result.losses[[0, 0]], equal_nan=True)
    return {"losses": result.losses[0], "controls": equal}


def _reduced_losses(
    reduced: ReducedMap, c: float, orthogonal: float, learning_rate: float, num_steps: int
) -> np.ndarray:
    path = reduced.trajectory(c, learning_rate, num_steps - 1)
    shrink = (1 - learning_rate * reduced.weight_decay) ** 2
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(reduced.loss(path, orthogonal * shrink ** np.arange(num_steps)))
