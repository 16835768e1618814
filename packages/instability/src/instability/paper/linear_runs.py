"""Runs of the linear PDE as figure 3 and table 2 need them: with null controls and measured growth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch

from instability.paper.config import OneLayerConfig, check_rates
from instability.paper.images import make_image
from instability.pde import linear as linear_pde
from instability.pde.nonlinear import initial_kernel
from instability.pde.one_layer import Normalization
from instability.stability import LinearThresholds, linear_thresholds, signal_eigenvalues

__all__ = ["MARGIN", "predicted_growth", "residual", "simulate", "thresholds"]

MARGIN = 1e-7
"""Growth per step below which a run counts as not growing; at a threshold itself the factor is exactly 1."""


@dataclass
class LinearConfig(OneLayerConfig):
    """Linear PDE (figure 3 and table 2).

    Attributes:
        weight_decays: Weight decays, some below, inside and above the stable interval.
        normalize: sum (the paper's constants) or mean over positions.
        loss: consistent, or mixed as the original scripts record it.
    """

    weight_decays: list[float] = field(
        default_factory=lambda: [1.1e7, 1.2e7, 1.3e7, 1.9e8, 2.0e8, 2.1e8, 2.2e8]
    )
    learning_rate: float = 1e-8
    normalize: str = "sum"
    loss: str = "consistent"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("weight_decays", self.weight_decays, zero=True)
        check_rates("learning_rate", [self.learning_rate])
        self.only_seed()
        self.options(loss=self.loss)
        if self.normalize not in ("sum", "mean"):
            raise ValueError(f"normalize={self.normalize} is unknown. Allowed: sum, mean.")


def thresholds(config: LinearConfig) -> LinearThresholds:
    """Return the exact stability interval of the configured setting."""
    image = make_image(config.image, config.image_size, config.only_seed())
    return linear_thresholds(
        image,
        config.kernel_size,
        config.learning_rate,
        residual=residual(config),
        normalize=cast("Normalization", config.normalize),
    )


def residual(config: LinearConfig) -> float:
    """Return the frozen residual, the prediction 1/2 minus the label."""
    return 0.5 - config.label


def predicted_growth(config: LinearConfig) -> np.ndarray:
    """Return, for each weight decay, the largest ``|1 - lr (alpha + a mu / 2)|`` over the spectrum of M'M."""
    image = make_image(config.image, config.image_size, config.only_seed())
    ends: np.ndarray = np.array(
        signal_eigenvalues(image, config.kernel_size, normalize=cast("Normalization", config.normalize))
    )
    decays = np.array(config.weight_decays)[:, None]
    growth = np.abs(1 - config.learning_rate * (decays + residual(config) / 2 * ends))
    return np.asarray(growth.max(axis=1))


def simulate(config: LinearConfig, weight_decay: float) -> dict[str, np.ndarray | bool | float]:
    """Simulate ``k = 1, 1, 2``; return losses, final growth of the weights per step, and the controls."""
    norms: list[float] = []

    def observe(_: int, kernels: torch.Tensor) -> None:
        norms.append(float(kernels[0].norm()))

    result = linear_pde.simulate(
        make_image(config.image, config.image_size, config.only_seed()),
        initial_kernel(config.kernel_size, config.only_seed()),
        learning_rates=config.learning_rate,
        weight_decays=weight_decay,
        num_steps=config.num_steps,
        label=config.label,
        perturbations=(1, 1, 2),
        normalize=cast("Normalization", config.normalize),
        observe=observe,
        options=config.options(loss=config.loss),
    )
    window = max(1, config.num_steps // 20)
    return {
        "losses": result.losses[0],
        "growth": float((norms[-1] / norms[-1 - window]) ** (1 / window)),
        "controls": bool((result.kernels == result.kernels[:1]).all()),
    }
