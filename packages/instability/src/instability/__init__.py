"""Rounding-error instabilities in training deep networks, and the PDE analysis that explains them.

Source: Sun, Lao, Sundaramoorthi, Yezzi, *Surprising Instabilities in Training Deep Networks and a Theoretical
Analysis*, NeurIPS 2022.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instability.copies import Copies
    from instability.lyapunov import lyapunov_estimate
    from instability.metrics import (
        accuracy_spread,
        average_relative_l1,
        disagreement,
        equal_fraction,
        first_step_above,
        growth_rate,
        max_abs,
        moving_average,
        relative_l2,
        ulp_distance,
    )
    from instability.perturbed_sgd import PerturbedSGD, perturb_optimizer
    from instability.reduced_map import ReducedMap
    from instability.rounding import Cast, RoundingPerturbation, ScaleDivide, StochasticUlp, perturb_update
    from instability.sensitivity import SensitivityProbe, SensitivityReport, numerical_sensitivity
    from instability.sharpness import hessian_vector_product, sharpness
    from instability.stability import linear_thresholds, max_stable_sharpness, stability_ratio

__all__ = [  # noqa: RUF022  # grouped by subject
    # perturbing an optimiser
    "PerturbedSGD",
    "perturb_optimizer",
    "perturb_update",
    "RoundingPerturbation",
    "ScaleDivide",
    "StochasticUlp",
    "Cast",
    # probing a model
    "numerical_sensitivity",
    "SensitivityProbe",
    "SensitivityReport",
    "Copies",
    # stability
    "linear_thresholds",
    "max_stable_sharpness",
    "stability_ratio",
    "sharpness",
    "hessian_vector_product",
    "lyapunov_estimate",
    "ReducedMap",
    # distances between copies
    "average_relative_l1",
    "max_abs",
    "relative_l2",
    "ulp_distance",
    "equal_fraction",
    "disagreement",
    "moving_average",
    "first_step_above",
    "growth_rate",
    "accuracy_spread",
]

# `list` and `show` must answer at once, so torch is imported only when a name is used.
_MODULES = {
    "copies": ("Copies",),
    "lyapunov": ("lyapunov_estimate",),
    "metrics": (
        "average_relative_l1",
        "max_abs",
        "relative_l2",
        "ulp_distance",
        "equal_fraction",
        "disagreement",
        "moving_average",
        "first_step_above",
        "growth_rate",
        "accuracy_spread",
    ),
    "perturbed_sgd": ("PerturbedSGD", "perturb_optimizer"),
    "reduced_map": ("ReducedMap",),
    "rounding": ("Cast", "RoundingPerturbation", "ScaleDivide", "StochasticUlp", "perturb_update"),
    "sensitivity": ("SensitivityProbe", "SensitivityReport", "numerical_sensitivity"),
    "sharpness": ("hessian_vector_product", "sharpness"),
    "stability": ("linear_thresholds", "max_stable_sharpness", "stability_ratio"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'instability' has no attribute {name!r}")
    return getattr(import_module(f"instability.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
