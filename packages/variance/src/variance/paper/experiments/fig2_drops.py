"""F2: variance rises in training, and normalised variance jumps when the learning rate drops."""

from functools import partial

import numpy as np

from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.paper.calibration import estimate_images
from variance.paper.curves import flatten, plot_training, stack, tail_mean
from variance.paper.trajectory import TrainingConfig, image_runs


def compute(config: TrainingConfig, run: Run) -> Result:
    """Train with a drop, and compare before and after it."""
    if not config.drop_at:
        raise ValueError("drop_at is empty; F2 compares before and after a drop of the learning rate.")
    found = image_runs(config, run)
    columns = stack(found[config.learning_rates[0]])
    steps, drop = columns["steps"], config.drop_at[0]
    statistic = "SG-B.norm_var_trace" if "SG-B.norm_var_trace" in columns else "SG-B.norm_var"
    norm, average = columns[statistic], columns["SG-B.avg_var"]
    before, after = steps < drop, steps > drop
    early = (steps > 0.1 * drop) & (steps < 0.5 * drop)
    late = (steps >= 0.7 * drop) & before
    first = steps <= drop / 2
    half = before & ~first
    left = steps - drop > 0.5 * (config.num_steps - drop)
    rise = average[:, late].mean(1) / average[:, early].mean(1)
    measurements = {
        "norm_var_jump": _jump(norm, before, after).tolist(),
        "norm_var_end": tail_mean(norm).tolist(),
        "variance_rise": np.asarray(rise).tolist(),
        "jump_without_drop": _jump(norm, first, half).tolist(),
        "norm_var_before": norm[:, before].mean(1).tolist(),
        "rise_after_drop": (average[:, left].mean(1) / average[:, after & ~left].mean(1)).tolist(),
    }
    return Result(measurements, flatten(found))


def _jump(values: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the mean of the first three values after a moment less that of the last three before it."""
    return np.asarray(values[:, after][:, :3].mean(1) - values[:, before][:, -3:].mean(1))


estimate, plot = estimate_images, partial(plot_training, title="F2: variance where the learning rate drops")
