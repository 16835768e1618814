"""F10: the abstract's claims on learning rate, average variance and normalised variance."""

from functools import partial

import numpy as np
from scipy.stats import spearmanr

from gdyn_common.seeding import generator
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.paper.calibration import estimate_images
from variance.paper.curves import flatten, plot_training, stack, tail_mean
from variance.paper.trajectory import TrainingConfig, image_runs

SHUFFLES = 500
"""Random orders of the speeds, whose mean is the control."""


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
        "rise_per_rate": (ends[1:] / ends[:-1]).min(0).tolist(),
        "rise_at_one_rate": (ends[0] / np.roll(ends[0], 1)).tolist(),
        "norm_var_change": (norm[..., -1] / norm[..., 0]).max(0).tolist(),
        "norm_var_change_of_neighbours": (norm[..., 1:] / norm[..., :-1]).mean((0, 2)).tolist(),
        **_correlations(
            np.stack([columns[rate]["loss"] for rate in rates]),
            norm,
            np.stack([columns[rate]["SG-B.avg_var"] for rate in rates]),
        ),
        "norm_var_end": tail_mean(norm).mean(0).tolist(),
        "variance_spread": (ends[-1] / ends[0]).tolist(),
    }
    return Result(measurements, flatten(found))


def _correlations(loss: np.ndarray, norm: np.ndarray, average: np.ndarray) -> dict[str, list[float]]:
    """Return rank correlations with the speed of convergence, over all rates and intervals of a seed.

    The loss of measurement i is the mean of the steps before it, so the speed around it is the fall of the
    logarithm from there to measurement i + 1. All arrays are (rates, seeds, measurements).
    """
    speed = -np.diff(np.log(loss), axis=-1)
    found: dict[str, list[float]] = {
        name: []
        for name in ("normalised_correlation", "average_correlation", "advantage", "advantage_shuffled")
    }
    for seed in range(loss.shape[1]):
        s, n, a = (values[:, seed].ravel() for values in (speed, norm[..., :-1], average[..., :-1]))
        of_norm, of_average = (float(spearmanr(s, values).statistic) for values in (n, a))
        found["normalised_correlation"].append(of_norm)
        found["average_correlation"].append(of_average)
        found["advantage"].append(abs(of_norm) - abs(of_average))
        source = generator(seed, "shuffled speeds")
        shuffled = [source.permutation(s) for _ in range(SHUFFLES)]
        differences = [
            abs(spearmanr(one, n).statistic) - abs(spearmanr(one, a).statistic) for one in shuffled
        ]
        found["advantage_shuffled"].append(float(np.mean(differences)))
    return found


estimate, plot = estimate_images, partial(plot_training, title="F10: variance by learning rate")
