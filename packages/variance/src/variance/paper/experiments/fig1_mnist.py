"""F1: average variance of four estimators over training; order SVRG, GC, SG-2B, SG-B."""

from functools import partial

from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.paper.calibration import estimate_images
from variance.paper.curves import flatten, is_ordered, plot_training, ratio_at_end, stack, tail_mean
from variance.paper.trajectory import TrainingConfig, image_runs


def compute(config: TrainingConfig, run: Run) -> Result:
    """Train, measure, and read the order at the end."""
    found = image_runs(config, run, controls=["GC-chance"])
    columns = stack(found[config.learning_rates[0]])
    ends = {name: tail_mean(columns[f"{name}.avg_var"]).tolist() for name in config.estimators}
    measurements = {
        "order_at_end": is_ordered(columns, ["SVRG", "GC", "SG-2B", "SG-B"]),
        "gc_over_sg": ratio_at_end(columns, "GC", "SG-B"),
        "svrg_over_sg": ratio_at_end(columns, "SVRG", "SG-B"),
        "order_chance": is_ordered(columns, ["SVRG", "GC-chance", "SG-2B", "SG-B"]),
        "chance_over_sg": ratio_at_end(columns, "GC-chance", "SG-B"),
        **{f"avg_var_{name}": values for name, values in ends.items()},
        **{f"first_{name}": columns[f"{name}.avg_var"][:, 0].tolist() for name in ("SG-B", "GC")},
    }
    return Result(measurements, flatten(found))


estimate, plot = (
    estimate_images,
    partial(plot_training, title="F1: variance of estimators in training"),
)
