"""Gradient variance in deep learning: per-example gradients, statistics, clustering, sampling.

* noise of a model's gradients: `measure_model`, `GradientMonitor`, `Measurement`, `statistics`
* gradients of single examples: `per_example`
* clusters and samplers: `cluster`, `exact_moves`, `StratifiedSampler`, `ImportanceSampler`
* gradient estimators and what they need: `SGB`, `SVRG`, `GC`, `KFAC`, ...; `Objective`, `Point`, `DataStream`

Names are imported on first use. `variance.paper` holds the paper's figures and is not needed for any of them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
