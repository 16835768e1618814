"""What is done differently from the paper and its published code, numbered."""

from __future__ import annotations

from gdyn_reproduce.registry import Deviation

DEVIATIONS = (
    Deviation(
        "D1",
        "per-example estimators with batch norm",
        "batch statistics",
        "running statistics (frozen)",
        "examples keep gradients of their own; mean gradients differ slightly from training-mode ones",
    ),
    Deviation(
        "D2",
        "statistics",
        "two sets of draws and constants 1e-7, 1e-10",
        "exact or unbiased by default (exact in F6, F7 and F9 at paper scale, too); the original's as "
        "mode=reference, which F1 to F5 and F10 use at paper scale",
        "removes the noise floor and the dependence on the scale of the loss",
    ),
    Deviation(
        "D3",
        "snapshots",
        "after the update of their step",
        "before it (snapshot_timing=after restores)",
        "one step of difference",
    ),
    Deviation(
        "D4",
        "SVRG snapshot",
        "training mode with dropout and augmentation",
        "evaluation mode, fixed data, also for the gradients of the batch",
        "the control variate has mean zero, so the estimate is unbiased",
    ),
    Deviation(
        "D5",
        "per-example gradients in clustering",
        "scaled by the batch mean",
        "sum reduction",
        "a short last batch counts like any other",
    ),
    Deviation(
        "D6",
        "distances",
        "rounded to multiples of 1e-7",
        "not rounded",
        "no artificial ties for small gradients",
    ),
    Deviation(
        "D7",
        "random feature rows",
        "torch's default (norm about 0.58)",
        "unit norm, as the text says (unit_rows=false restores)",
        "variance is scaled by about 3",
    ),
    Deviation(
        "D8",
        "batches in exact mode",
        "the stream of training, continued",
        "the first batch of a new sampler, without replacement, for every estimator",
        "none: all batches of a sampler have the same law",
    ),
    Deviation(
        "D9",
        "distortion in F8",
        "rank-1 distortion",
        "exact stratified variance of the same clusters",
        "no error from the rank-1 centres; the original's axis labels are swapped",
    ),
    Deviation(
        "D10",
        "first centres",
        "uniform numbers of one scale",
        "factors of random examples",
        "fewer empty clusters after the first pass",
    ),
)
