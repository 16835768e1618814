"""F4: with many duplicated examples gradient clustering beats the doubled batch."""

from functools import partial

from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.paper.calibration import estimate_images
from variance.paper.curves import flatten, plot_training, ratio_at_end, stack
from variance.paper.trajectory import TrainingConfig, image_runs


def compute(config: TrainingConfig, run: Run) -> Result:
    """Train on data with duplicates and compare gradient clustering with the doubled batch."""
    found = image_runs(config, run, controls=["GC-chance"])
    columns = stack(found[config.learning_rates[0]])
    measurements = {
        "gc_over_sg2": ratio_at_end(columns, "GC", "SG-2B"),
        "chance_over_sg2": ratio_at_end(columns, "GC-chance", "SG-2B"),
        "gc_over_sg": ratio_at_end(columns, "GC", "SG-B"),
    }
    return Result(measurements, flatten(found))


estimate, plot = estimate_images, partial(plot_training, title="F4: variance with duplicated examples")
