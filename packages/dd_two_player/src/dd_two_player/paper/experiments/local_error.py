"""Local error of one step against the modified flow, for every convention and scheme."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dd_two_player.drift import drift_coefficients
from dd_two_player.flows import integrate, modified_field, step_map
from dd_two_player.paper.experiment_config import LocalErrorConfig
from dd_two_player.toy_games import random_smooth_game
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

SETTINGS: tuple[tuple[str, str, tuple[int, int]], ...] = (
    ("simultaneous", "disc", (1, 1)),
    ("alternating", "disc", (1, 1)),
    ("alternating", "gen", (1, 1)),
    ("alternating", "disc", (2, 1)),
    ("alternating", "gen", (3, 2)),
)
CONVENTIONS = ("none", "paper", "joint", "original")
START = (np.array([0.3, -0.2]), np.array([0.4, 0.1]))


def compute(config: LocalErrorConfig, run: Run) -> Result:
    """Fit the order of the local error for every setting, convention and random game."""
    rates = np.asarray(config.learning_rates)
    orders = np.zeros((len(CONVENTIONS), len(SETTINGS), len(config.seeds)))
    with jax.enable_x64(True):
        for i, convention in enumerate(CONVENTIONS):
            for j, setting in enumerate(SETTINGS):
                for k, seed in enumerate(config.seeds):
                    errors = [_error(seed, convention, setting, h, config.ratio) for h in rates]
                    orders[i, j, k] = np.polyfit(np.log(rates), np.log(errors), 1)[0]
    single = [j for j, (_, _, n) in enumerate(SETTINGS) if n == (1, 1)]
    several = [j for j, (_, _, n) in enumerate(SETTINGS) if n != (1, 1)]
    measured: dict[str, Any] = {
        "order_none": orders[0].mean(0).tolist(),
        "order_paper": orders[1].mean(0).tolist(),
        "order_joint": orders[2].mean(0).tolist(),
        "order_original_single_updates": orders[3][single].mean(0).tolist(),
        "order_original_several_updates": orders[3][several].mean(0).tolist(),
    }
    return Result(measured, {"orders": orders})


def plot(result: Result) -> Any:
    """Draw the orders by setting."""
    figure, axes = new_figure(figsize=(7.2, 4.0))
    orders = result.arrays["orders"]
    for number, (convention, values) in enumerate(zip(CONVENTIONS, orders, strict=True)):
        shift = 0.12 * (number - 1.5)
        label = "without drift" if convention == "none" else f"drift, {convention} convention"
        axes.plot(np.arange(len(SETTINGS)) + shift, values.mean(1), "o", label=label)
    labels = []
    for scheme, first, n in SETTINGS:
        turn = "" if scheme == "simultaneous" else f"\n{first} first"
        labels.append(f"{scheme}\n{n[0]}, {n[1]} updates{turn}")
    axes.set_xticks(range(len(SETTINGS)), labels)
    axes.set(
        title="Order in the learning rate of the error of one step",
        ylabel="order",
        ylim=(1.5, 3.75),
    )
    axes.legend(ncols=2, loc="upper center")
    return figure


def _error(
    seed: int, convention: str, setting: tuple[str, str, tuple[int, int]], h: float, ratio: float
) -> float:
    scheme, first, updates = setting
    game, lrs = random_smooth_game(seed), (h, ratio * h)
    total = (updates[0] * lrs[0], updates[1] * lrs[1])
    step = step_map(game, lrs, num_updates=updates, scheme=scheme, first=first)
    reached = np.concatenate(step(START))
    drift = None
    if convention != "none":
        drift = drift_coefficients(lrs, updates, scheme, first, convention)
    if convention in ("paper", "original"):  # each player is read at its own time
        field = modified_field(game, drift, rates=(1.0, 1.0))
        flow = np.concatenate(
            [integrate(field, START, [total[0]])[0, :2], integrate(field, START, [total[1]])[0, 2:]]
        )
    else:
        flow = integrate(modified_field(game, drift, rates=total), START, [1.0])[0]
    return float(np.linalg.norm(reached - flow))
