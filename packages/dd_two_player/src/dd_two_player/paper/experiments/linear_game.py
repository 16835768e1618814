"""The rotational linear game: flow, modified flows and discrete paths; traces, radii and thresholds."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dd_two_player.drift import drift_coefficients
from dd_two_player.flows import discrete_path, integrate, jacobian, modified_field, step_map
from dd_two_player.paper.experiment_config import LinearGameConfig
from dd_two_player.toy_games import linear_game, linear_game_thresholds
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

SCHEMES = ("simultaneous", "alternating")


def compute(config: LinearGameConfig, run: Run) -> Result:
    """Measure stability of the flow, the modified flows and the maps; bisect the true thresholds."""
    with jax.enable_x64(True):
        game, h = linear_game((config.damping, config.damping)), config.learning_rate
        start, times = (1.0, 0.5), np.arange(config.num_steps + 1.0)
        measured: dict[str, Any] = {"trace_flow": _trace(modified_field(game))}
        arrays = {"times": times, "flow": integrate(modified_field(game, rates=(h, h)), start, times)}
        for scheme in SCHEMES:
            drift = drift_coefficients((h, h), scheme=scheme)
            step = step_map(game, (h, h), scheme=scheme)
            measured[f"trace_{scheme}"] = _trace(modified_field(game, drift, rates=(1.0, 1.0)))
            measured[f"radius_{scheme}"] = _radius(step)
            arrays[f"modified_{scheme}"] = integrate(modified_field(game, drift, rates=(h, h)), start, times)
            arrays[f"path_{scheme}"] = discrete_path(step, start, config.num_steps)

        def modified_is_stable(rate: float) -> bool:
            return _trace(modified_field(game, drift_coefficients((rate, rate)), rates=(1.0, 1.0))) < 0

        def map_is_stable(rate: float) -> bool:
            return _radius(step_map(game, (rate, rate))) < 1

        measured["threshold_modified"] = _bisect(modified_is_stable)
        measured["threshold_discrete"] = _bisect(map_is_stable)
        formula = linear_game_thresholds(config.damping)
        measured["thresholds_match_formula"] = bool(
            np.allclose(formula, [measured["threshold_modified"], measured["threshold_discrete"]], atol=1e-9)
        )
        gentle = linear_game((0.2, 0.2))
        measured["both_converge_with_damping_0.2"] = all(
            _radius(step_map(gentle, (h, h), scheme=scheme)) < 1 for scheme in SCHEMES
        )
    return Result(measured, arrays)


def plot(result: Result) -> Any:
    """Draw both schemes with the flow and the modified flow."""
    figure, axes = new_figure(1, 2, figsize=(8, 4))
    for ax, scheme in zip(axes, SCHEMES, strict=True):
        for name, style, label in (
            (f"modified_{scheme}", "-", "modified flow"),
            (f"path_{scheme}", ".", "gradient descent"),
            ("flow", "--", "flow"),
        ):
            ax.plot(*result.arrays[name].T, style, markersize=4, linewidth=1, label=label)
        ax.set(
            title=f"{scheme.capitalize()} updates", xlabel="discriminator", ylabel="generator", aspect="equal"
        )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _trace(field: Any) -> float:
    return float(np.trace(jacobian(field, (0.0, 0.0))))


def _radius(step: Any) -> float:
    return float(np.abs(np.linalg.eigvals(jacobian(step, (0.0, 0.0)))).max())


def _bisect(is_stable: Any, low: float = 1e-3, high: float = 1.0) -> float:
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if is_stable(middle) else (low, middle)
    return (low + high) / 2
