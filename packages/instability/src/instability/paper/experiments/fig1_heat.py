"""Figure 1: the explicit heat equation, stable and unstable."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run, RunOptions
from instability.pde import heat

GROWTH_STEPS = 200


@dataclass
class Fig1Config(RunOptions):
    """Heat equation.

    Attributes:
        time_steps: The stable and the unstable step size, with dx = 1.
        num_points: Points, both fixed ends included.
        stable_times: Times at which the stable profile is drawn.
        unstable_times: Times at which the unstable profile is drawn.
        legacy_times: Draw the steps that the original script draws under these labels (one later).
    """

    time_steps: list[float] = field(default_factory=lambda: [0.4, 0.8])
    num_points: int = 31
    stable_times: list[float] = field(default_factory=lambda: [0.8, 2.4, 4.0, 100.0, 200.0, 800.0])
    unstable_times: list[float] = field(default_factory=lambda: [0.8, 2.4, 4.0])
    legacy_times: bool = False

    def __post_init__(self) -> None:
        if len(self.time_steps) != 2 or min(self.time_steps) <= 0:
            raise ValueError(
                f"time_steps={self.time_steps} must be two positive numbers, stable and unstable."
            )
        if not self.stable_times or not self.unstable_times:
            raise ValueError("stable_times and unstable_times need at least one time each.")
        if self.num_points < 3:
            raise ValueError(f"num_points={self.num_points} must be at least 3.")


def compute(config: Fig1Config, run: Run) -> Result:
    """Step both panels, compare with the sine series, and measure the growth of the unstable one."""
    steps = [
        _steps(times, time_step, config.legacy_times)
        for times, time_step in zip(
            (config.stable_times, config.unstable_times), config.time_steps, strict=True
        )
    ]
    num_steps = max(*steps[0], *steps[1], GROWTH_STEPS)
    stable, unstable = config.time_steps
    # Each panel twice, at the ends and in the middle: equal rows are the null control of a vectorised solver.
    profiles = run.piece(
        "profiles",
        lambda: {
            "u": heat.solve_heat(
                [stable, unstable, unstable, stable], config.num_points, num_steps, allow_unstable=True
            )
        },
    )["u"]
    tops = np.abs(profiles).max(axis=2)
    amplitudes = tops[1]
    exact = [
        heat.solve_exactly(dt, config.num_points, s) for dt, s in zip(config.time_steps, steps, strict=True)
    ]
    errors = [
        float(np.abs(profiles[i, s] - e).max() / np.abs(e).max())
        for i, (s, e) in enumerate(zip(steps, exact, strict=True))
    ]
    return Result(
        measurements={
            "stable_decays": bool((np.diff(tops[0]) <= 0).all()),
            "unstable_decays": bool((np.diff(tops[1]) <= 0).all()),
            "stable_growth": float(tops[0, GROWTH_STEPS] / tops[0, GROWTH_STEPS - 1]),
            "unstable_growth": float(amplitudes[GROWTH_STEPS] / amplitudes[GROWTH_STEPS - 1]),
            "finite_limit": heat.finite_limit(config.num_points),
            "oracle_error": max(errors),
            "controls": bool(
                np.array_equal(profiles[0], profiles[3], equal_nan=True)
                and np.array_equal(profiles[1], profiles[2], equal_nan=True)
            ),
        },
        arrays={
            "stable": profiles[0, steps[0]],
            "stable_times": np.array(steps[0]) * stable,
            "unstable": profiles[1, steps[1]],
            "unstable_times": np.array(steps[1]) * unstable,
            "start": heat.tent(config.num_points),
            "time_steps": np.array(config.time_steps),
        },
    )


def plot(result: Result) -> Figure:
    """Draw the profiles, each labelled with its true time."""
    figure, axes = new_figure(1, 2)
    arrays = result.arrays
    for axis, name, time_step in zip(axes, ("stable", "unstable"), arrays["time_steps"], strict=True):
        axis.plot(arrays["start"], color="0.6", linestyle="--", label="t = 0")
        for colour, time, profile in zip(COLOURS, arrays[f"{name}_times"], arrays[name], strict=False):
            axis.plot(profile, color=colour, label=f"t = {time:g}")
        side = "below" if time_step <= heat.VON_NEUMANN_LIMIT else "above"
        axis.set(xlabel="x", title=f"Time step {time_step:g}, {side} the bound 0.5")
    axes[0].set_ylabel("temperature u")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def _steps(times: list[float], time_step: float, legacy: bool) -> list[int]:
    return [heat.legacy_step(t, time_step) if legacy else round(t / time_step) for t in times]
