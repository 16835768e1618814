"""How far gradient descent is from the flow and from the modified flow, as the learning rate falls."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dd_two_player.drift import Coefficients, PlayerTerms, drift_coefficients
from dd_two_player.flows import discrete_path, integrate, modified_field, step_map
from dd_two_player.paper.experiment_config import TrackingConfig
from dd_two_player.regularization import Regularization
from dd_two_player.toy_games import dirac_gan, random_smooth_game
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

CONVENTIONS = ("none", "paper", "joint")
TERMS = PlayerTerms(self_norm=-1.0, other_dot_prod=-1.0)
LABELS = {"modified": "modified flow, {}", "cancel": "drift cancelled, {}"}
CANCEL_ALL = Regularization(dd_coeffs_multiplier=Coefficients(TERMS, TERMS))


def compute(config: TrackingConfig, run: Run) -> Result:
    """Measure errors on DiracGAN and orders on random games with unequal rates."""
    rates = np.asarray(config.learning_rates)
    with jax.enable_x64(True):
        errors = {"plain": [_dirac_error(h, config.horizon, False) for h in rates]}
        errors["corrected"] = [_dirac_error(h, config.horizon, True) for h in rates]
        measured: dict[str, Any] = {f"order_{name}": _order(rates, e) for name, e in errors.items()}
        for name, values in errors.items():
            measured[f"error_{name}_smallest_rate"] = values[-1]
        arrays = {"rates": rates, **{f"dirac_{k}": np.asarray(v) for k, v in errors.items()}}
        small = np.asarray(config.small_rates)
        for cancel in (False, True):
            for convention in CONVENTIONS:
                per_seed = [
                    [_unequal_error(seed, h, config.ratio, convention, cancel) for h in small]
                    for seed in config.seeds
                ]
                name = f"{'cancel' if cancel else 'modified'}_{convention}"
                measured[f"order_{name}"] = [_order(small, e) for e in per_seed]
                arrays[name] = np.asarray(per_seed)
    return Result(measured, arrays | {"small_rates": small})


def plot(result: Result) -> Any:
    """Draw errors against rates in doubly logarithmic axes."""
    figure, axes = new_figure(1, 2, figsize=(9.2, 3.4))
    for name, label in (("plain", "flow"), ("corrected", "modified flow")):
        axes[0].loglog(result.arrays["rates"], result.arrays[f"dirac_{name}"], "o-", label=label)
    axes[0].set_title("DiracGAN, equal rates")
    for kind, style in (("modified", "-"), ("cancel", "--")):
        for number, convention in enumerate(CONVENTIONS):
            name = f"{kind}_{convention}"
            mean = result.arrays[name].mean(0)
            if name == "cancel_none":  # the same as modified_none: plain descent and the flow
                continue
            label = "flow" if convention == "none" else LABELS[kind].format(convention)
            axes[1].loglog(result.arrays["small_rates"], mean, style, color=f"C{number}", label=label)
    axes[1].set_title("Random games, unequal rates")
    for ax in axes:
        ax.set(xlabel="learning rate", ylabel="tracking error")
    for ax in axes:
        label_curves(ax)
    return figure


def _dirac_error(h: float, horizon: float, corrected: bool) -> float:
    game = dirac_gan()
    end = discrete_path(step_map(game, (h, h)), (1.0, 1.0), round(horizon / h))[-1]
    drift = drift_coefficients((h, h)) if corrected else None
    return float(
        np.linalg.norm(
            end - integrate(modified_field(game, drift, rates=(1.0, 1.0)), (1.0, 1.0), [horizon])[-1]
        )
    )


def _unequal_error(seed: int, h: float, ratio: float, convention: str, cancel: bool) -> float:
    """Return the distance over joint time 1 for rates ``(h, ratio * h)``."""
    game, lrs = random_smooth_game(seed), (h, ratio * h)
    start = (np.array([0.3, -0.2]), np.array([0.4, 0.1]))
    drift: Coefficients | None = None
    added: Coefficients | None = None
    if convention != "none":
        coefficients = drift_coefficients(lrs, convention=convention)
        if cancel:
            added = CANCEL_ALL.coefficients(coefficients)
        else:
            drift = coefficients
    steps = round(1 / h)
    path = discrete_path(step_map(game, lrs, coefficients=added), start, steps)
    flow = integrate(modified_field(game, drift, rates=lrs), start, np.arange(steps + 1.0))
    return float(np.abs(path - flow).max())


def _order(rates: np.ndarray, errors: list[float]) -> float:
    return float(np.polyfit(np.log(rates), np.log(errors), 1)[0])
