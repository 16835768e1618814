"""F3: with corrupted labels gradient clustering is stable and lies between SG-B and SG-2B."""

from functools import partial

import numpy as np

from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.paper.calibration import estimate_images
from variance.paper.curves import flatten, plot_training, ratio_at_end, stack
from variance.paper.trajectory import TrainingConfig, image_runs


def compute(config: TrainingConfig, run: Run) -> Result:
    """Train on corrupted labels and compare gradient clustering with plain batches."""
    found = image_runs(config, run, controls=["GC-chance"])
    columns = stack(found[config.learning_rates[0]])
    gc, chance, sg = (columns[f"{name}.avg_var"] for name in ("GC", "GC-chance", "SG-B"))
    late = slice(gc.shape[1] // 3, None)
    measurements = {
        "gc_over_sg": ratio_at_end(columns, "GC", "SG-B"),
        "svrg_over_sg": ratio_at_end(columns, "SVRG", "SG-B"),
        "chance_over_sg": ratio_at_end(columns, "GC-chance", "SG-B"),
        "chance_worst": np.max(chance[:, late] / sg[:, late], axis=1).tolist(),
        "gc_worst": np.max(gc[:, late] / sg[:, late], axis=1).tolist(),
        "variance_rise": (sg[:, -3:].mean(1) / sg[:, 1:4].mean(1)).tolist(),
    }
    return Result(measurements, flatten(found))


estimate, plot = estimate_images, partial(plot_training, title="F3: variance with random labels")
