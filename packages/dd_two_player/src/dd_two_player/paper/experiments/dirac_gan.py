"""DiracGAN: gradient descent spirals out, the modified flow says so, explicit regularisation converges."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np

from dd_two_player.drift import drift_coefficients
from dd_two_player.flows import discrete_path, integrate, modified_field, step_map
from dd_two_player.paper.experiment_config import DiracGanConfig
from dd_two_player.regularization import Regularization
from dd_two_player.toy_games import dirac_gan
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

START = (1.0, 1.0)
LABELS = {
    "long_simultaneous": "simultaneous",
    "long_alternating_disc_first": "alternating, discriminator first",
    "long_alternating_gen_first": "alternating, generator first",
    "long_cancelled": "simultaneous, interaction cancelled",
    "long_consensus": "consensus optimisation",
    "long_sga": "SGA",
}


def compute(config: DiracGanConfig, run: Run) -> Result:
    """Integrate flow and modified flow; run the discrete methods."""
    with jax.enable_x64(True):
        game, h = dirac_gan(), config.learning_rate
        drift = drift_coefficients((h, h))
        times = np.linspace(0, config.horizon, config.horizon_points)
        arrays = {
            "flow": integrate(modified_field(game), START, times),
            "modified": integrate(modified_field(game, drift, rates=(1.0, 1.0)), START, times),
            "path": discrete_path(step_map(game, (h, h)), START, round(config.horizon / h)),
        }
        measured: dict[str, Any] = {f"{name}_norm": _norm(path) for name, path in arrays.items()}
        methods = {
            "simultaneous": (Regularization.leave(), "simultaneous", "disc"),
            "alternating_disc_first": (Regularization.leave(), "alternating", "disc"),
            "alternating_gen_first": (Regularization.leave(), "alternating", "gen"),
            "cancelled": (Regularization.cancel_interaction(), "simultaneous", "disc"),
            "consensus": (Regularization.consensus(config.strength), "simultaneous", "disc"),
            "sga": (Regularization.sga(config.strength), "simultaneous", "disc"),
        }
        for name, (recipe, scheme, first) in methods.items():
            coefficients = recipe.coefficients(drift_coefficients((h, h), (1, 1), scheme, first))
            step = step_map(game, (h, h), scheme=scheme, first=first, coefficients=coefficients)
            path = discrete_path(step, START, config.num_steps)
            arrays[f"long_{name}"] = path
            measured[f"final_{name}"] = _norm(path)
    return Result(measured, arrays)


def plot(result: Result) -> Any:
    """Draw the first turns, and the distance from the equilibrium over all steps."""
    figure, axes = new_figure(1, 2, figsize=(9.6, 3.6))
    for name, style, label in (
        ("modified", "-", "modified flow"),
        ("path", ".", "gradient descent"),
        ("flow", "--", "flow"),
    ):
        axes[0].plot(*result.arrays[name].T, style, markersize=4, linewidth=1, label=label)
    axes[0].set(title="DiracGAN, first turns", xlabel="discriminator", ylabel="generator", aspect="equal")
    styles = itertools.cycle(("-", "-", "--", ":", "-", "--"))  # some curves coincide
    for name, label in LABELS.items():
        axes[1].semilogy(np.linalg.norm(result.arrays[name], axis=1), next(styles), label=label)
    axes[1].set(xlabel="step", title="Distance from the equilibrium", ylim=(1e-3, 5))
    axes[0].legend(loc="center")
    label_curves(axes[1])
    return figure


def _norm(path: np.ndarray) -> float:
    return float(np.linalg.norm(path[-1]))
