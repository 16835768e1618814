"""F10: the abstract's claims on learning rate, average variance and normalised variance."""

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from variance.paper.calibration import estimate_images
from variance.paper.curves import flatten, plot_training, stack, tail_mean
from variance.paper.trajectory import TrainingConfig, image_runs


def compute(config: TrainingConfig, run: Run) -> Result:
    """Train at several learning rates and compare variances at the end."""
    if len(config.learning_rates) < 2:
        raise ValueError("learning_rates needs at least two values; F10 compares them.")
    found = image_runs(config, run)
    columns = {rate: stack(pieces) for rate, pieces in found.items()}
    rates = sorted(columns, reverse=True)
    statistic = "SG-B.norm_var_trace" if "SG-B.norm_var_trace" in columns[rates[0]] else "SG-B.norm_var"
    ends = np.stack([tail_mean(columns[rate]["SG-B.avg_var"]) for rate in rates])
    norm = np.stack([columns[rate][statistic] for rate in rates])
    measurements = {
        "rises_as_rate_falls": (np.diff(ends, axis=0) > 0).all(0).tolist(),
        "norm_var_declines": (norm[..., -1] < norm[..., 0]).all(0).tolist(),
        "norm_var_end": tail_mean(norm).mean(0).tolist(),
        "variance_spread": (ends[-1] / ends[0]).tolist(),
    }
    return Result(measurements, flatten(found))


def estimate(config: TrainingConfig) -> Estimate:
    """Return the expected cost."""
    return estimate_images(config)


def plot(result: Result) -> Figure:
    """Draw both variances."""
    return plot_training(result, "F10")
