"""F5: few clusters for many classes gain little; SVRG is worse before a drop of the rate and better after."""

from functools import partial

from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.paper.calibration import estimate_images
from variance.paper.curves import flatten, plot_training, ratio_at_end, stack
from variance.paper.trajectory import TrainingConfig, image_runs

MANY = 32
"""Clusters of the control: several per class of the scaled-down run."""


def compute(config: TrainingConfig, run: Run) -> Result:
    """Train with a drop of the learning rate and compare SVRG with SG-B on both sides of it."""
    if not config.drop_at:
        raise ValueError("drop_at is empty; F5 compares before and after a drop of the learning rate.")
    found = image_runs(config, run, controls=[f"GC-{MANY}"])
    columns = stack(found[config.learning_rates[0]])
    steps = columns["steps"]
    ratio = columns["SVRG.avg_var"] / columns["SG-B.avg_var"]
    before = (steps > config.drop_at[0] / 2) & (steps < config.drop_at[0])
    last = steps > (config.drop_at[-1] + config.num_steps) / 2
    sg = columns["SG-B.avg_var"]
    measurements = {
        "svrg_over_sg_before": ratio[:, before].mean(1).tolist(),
        "svrg_over_sg_after": ratio[:, last].mean(1).tolist(),
        "gc_over_sg": ratio_at_end(columns, "GC", "SG-B"),
        "many_over_sg": ratio_at_end(columns, f"GC-{MANY}", "SG-B"),
        "variance_rise": (sg[:, last].mean(1) / sg[:, before].mean(1)).tolist(),
        "rise_between_neighbours": (sg[:, last][:, 1:] / sg[:, last][:, :-1]).mean(1).tolist(),
    }
    return Result(measurements, flatten(found))


estimate, plot = estimate_images, partial(plot_training, title="F5: variance on a larger set of images")
