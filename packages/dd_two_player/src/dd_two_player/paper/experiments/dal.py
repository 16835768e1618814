"""A rate above the edge of stability: fixed it diverges or jumps, drift adjusted it does not."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from dd_two_player.paper.device import computing
from dd_two_player.paper.digits_network import descend, digits_network
from dd_two_player.paper.experiment_config import DalStudyConfig
from dd_two_player.principal_flow import dal, exact_hvp
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

LABELS = {"fixed": "fixed rate", "dal_1": "DAL-1", "dal_0.5": "DAL-0.5"}
ARMS = {"fixed": 0.0, "dal_1": 1.0, "dal_0.5": 0.5}


def compute(config: DalStudyConfig, run: Run) -> Result:
    """Run the arms on a quadratic and, over seeds, on a small network."""
    with computing(config.device, config.dtype):
        return _compute(config, run)


def _compute(config: DalStudyConfig, run: Run) -> Result:
    measured: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    values = jnp.asarray([config.sharpness, 1.0])

    def quadratic(x: Any) -> Any:
        return (values * x**2).sum() / 2

    for arm, power in ARMS.items():
        optimizer = dal(exact_hvp(quadratic), learning_rate=config.learning_rate, power=power, cap=config.cap)
        path = descend(quadratic, optimizer, config.quadratic_steps)(jnp.ones(2))["loss"]
        arrays[f"quadratic_{arm}"] = path
        measured[f"quadratic_{arm}_grows"] = grows = bool(not np.isfinite(path[-1]) or path[-1] > path[0])
        measured[f"quadratic_{arm}_bounded"] = not grows
        final, smooth = [], []
        for seed in config.seeds:
            stored = run.piece(f"{arm}/seed={seed}", partial(_network, config, power, seed))
            losses = stored["loss"]
            final.append(float(losses[-10:].mean()))
            smooth.append(float((np.diff(losses) <= 0).mean()))
            arrays[f"network_{arm}_{seed}"] = losses
        measured[f"network_{arm}_final_loss"] = final
        measured[f"network_{arm}_descending_share"] = smooth
    gain = np.subtract(measured["network_dal_1_descending_share"], measured["network_fixed_descending_share"])
    measured["descending_share_gain"] = gain.tolist()
    fixed = np.asarray(measured["network_fixed_descending_share"])
    measured["descending_share_gain_fixed"] = (np.roll(fixed, 1) - fixed).tolist()
    return Result(measured, arrays)


def plot(result: Result) -> Any:
    """Draw losses of the quadratic and of the network."""
    figure, axes = new_figure(1, 2)
    for number, arm in enumerate(ARMS):
        path = result.arrays[f"quadratic_{arm}"]
        axes[0].semilogy(np.where(np.isfinite(path), path, np.nan), label=LABELS[arm])
        runs = [v for name, v in result.arrays.items() if name.rpartition("_")[0] == f"network_{arm}"]
        for seed, losses in enumerate(runs):
            label = "_" if seed else LABELS[arm]
            axes[1].semilogy(losses, color=f"C{number}", linewidth=0.8, label=label)
    axes[0].set(title="Quadratic, beyond 2 / sharpness", xlabel="step", ylabel="loss", ylim=(1, 1e6))
    axes[1].set(title="Two-layer network on digits", xlabel="step")
    for ax in axes:
        label_curves(ax)
    return figure


def _network(config: DalStudyConfig, power: float, seed: int) -> dict[str, np.ndarray]:
    network = digits_network(config.num_examples, config.width)
    optimizer = dal(exact_hvp(network.loss), learning_rate=config.network_rate, power=power, cap=config.cap)
    return descend(network.loss, optimizer, config.network_steps)(network.start(seed))
