"""Local error of four continuous models of gradient descent on random smooth losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dd_two_player.flows import integrate
from dd_two_player.paper.experiment_config import FlowOrdersConfig
from dd_two_player.principal_flow import (
    gradient_descent,
    gradient_flow,
    igr_flow,
    integrate_principal_flow,
    third_order_flow,
)
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

MODELS = ("gradient_flow", "igr", "principal", "third_order")


def compute(config: FlowOrdersConfig, run: Run) -> Result:
    """Fit the order of the local error of each model, per seed."""
    rates = np.asarray(config.learning_rates)
    errors = np.zeros((len(MODELS), len(config.seeds), rates.size))
    with jax.enable_x64(True):
        for i, seed in enumerate(config.seeds):
            loss, start = _random_loss(seed)
            for k, h in enumerate(rates):
                reached = gradient_descent(loss, h, start, 1)[-1]
                flows = {
                    "gradient_flow": integrate(gradient_flow(loss), start, [h])[0],
                    "igr": integrate(igr_flow(loss, h), start, [h])[0],
                    "principal": integrate_principal_flow(loss, h, start, [h])[0].real,
                    "third_order": integrate(third_order_flow(loss, h), start, [h])[0],
                }
                errors[:, i, k] = [np.linalg.norm(flows[name] - reached) for name in MODELS]
    slopes = np.polyfit(np.log(rates), np.log(errors).reshape(-1, rates.size).T, 1)[0]
    orders = slopes.reshape(len(MODELS), len(config.seeds))
    measured = {f"order_{name}": row.tolist() for name, row in zip(MODELS, orders, strict=True)}
    return Result(measured, {"rates": rates, "errors": errors})


def plot(result: Result) -> Any:
    """Draw the geometric mean of the errors against the rate."""
    figure, axes = new_figure()
    names = {"gradient_flow": "gradient flow", "igr": "IGR flow", "third_order": "third-order flow"}
    for name, errors in zip(MODELS, result.arrays["errors"], strict=True):
        axes.loglog(
            result.arrays["rates"],
            np.exp(np.log(errors).mean(0)),
            "o-",
            label=names.get(name, f"{name} flow"),
        )
    axes.set(
        title="Error of one step of each continuous model", xlabel="learning rate", ylabel="error of one step"
    )
    label_curves(axes)
    return figure


def _random_loss(seed: int, dim: int = 3) -> tuple[Any, np.ndarray]:
    stream = generator(seed, "flow-orders")
    mix, shift = stream.standard_normal((2, dim, dim)) / dim**0.5, stream.standard_normal(dim)

    def loss(x: Any) -> Any:
        return jnp.sin(mix[0] @ x + shift).sum() + 0.5 * ((mix[1] @ x) ** 2).sum()

    return loss, 0.5 * stream.standard_normal(dim)
