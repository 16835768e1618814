"""Does the power of DAL trade stability for test accuracy, and does DAL save a sweep of rates?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dd_two_player.paper.device import computing
from dd_two_player.paper.digits_network import DigitsNetwork, descend, digits_network
from dd_two_player.paper.flow_config import DalSweepConfig
from dd_two_player.principal_flow import dal, exact_hvp
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

TAIL = 10
"""The test accuracy of a run is the mean over this many last steps."""


def compute(config: DalSweepConfig, run: Run) -> Result:
    """Train every seed with every rate, fixed and drift adjusted."""
    with computing(config.device, config.dtype):
        return _compute(config, run)


def _compute(config: DalSweepConfig, run: Run) -> Result:
    network = digits_network(config.num_examples, config.width)
    arms = {f"rate={rate:g}": (rate, 0.0) for rate in config.learning_rates}
    arms |= {f"dal={power:g}": (config.learning_rates[0], power) for power in config.powers}
    arrays = {}
    for name, (rate, power) in arms.items():
        for curve, values in run.piece(name, partial(_train, network, config, rate, power)).items():
            arrays[f"{name}/{curve}"] = values
    accuracy = {name: arrays[f"{name}/accuracy"] for name in arms}
    rises = {name: arrays[f"{name}/rises"] for name in arms}
    careful, bold = (f"dal={power:g}" for power in config.powers)
    best = max((name for name in arms if name.startswith("rate")), key=lambda name: accuracy[name].mean())
    measured: dict[str, Any] = {"best_fixed_rate": arms[best][0]}
    for name in arms:
        measured[f"accuracy/{name}"], measured[f"rises/{name}"] = (
            accuracy[name].tolist(),
            rises[name].tolist(),
        )
    for key, high, low in (
        ("stability", rises[bold], rises[careful]),
        ("stability_itself", np.roll(rises[careful], 1), rises[careful]),
        ("test", accuracy[bold], accuracy[careful]),
        ("test_itself", np.roll(accuracy[careful], 1), accuracy[careful]),
        ("against_best", accuracy[careful], accuracy[best]),
        (
            "against_worst",
            np.min([accuracy[n] for n in arms if n.startswith("rate")], axis=0),
            accuracy[best],
        ),
    ):
        measured[key] = (high - low).tolist()
    return Result(measured, arrays | {"rates": np.asarray(config.learning_rates)})


def _train(
    network: DigitsNetwork, config: DalSweepConfig, rate: float, power: float
) -> dict[str, np.ndarray]:
    optimizer = dal(exact_hvp(network.loss), learning_rate=rate, power=power, cap=config.cap)
    train = descend(
        network.loss, optimizer, config.num_steps, lambda params: {"accuracy": network.accuracy(params)}
    )
    curves = [train(network.start(seed)) for seed in config.seeds]
    losses = np.array([curve["loss"] for curve in curves])
    return {
        "accuracy": np.array([curve["accuracy"][-TAIL:].mean() for curve in curves], float),
        "rises": (~(np.diff(losses, axis=1) <= 0)).mean(axis=1),  # a loss that is not finite counts as a rise
        "loss": np.mean(losses, axis=0),
    }


def plot(result: Result) -> Any:
    """Draw the test accuracy over the fixed rate, beside DAL's, and the training losses."""
    figure, (left, right) = new_figure(1, 2, figsize=(8.2, 3.4))
    arms = [name.rpartition("/")[0] for name in result.arrays if name.endswith("/loss")]
    rates = result.arrays["rates"]
    fixed = np.array([result.arrays[f"{n}/accuracy"] for n in arms if n.startswith("rate")])
    left.errorbar(rates, fixed.mean(1), fixed.std(1), marker="o", color="C0", label="fixed rate")
    for number, name in enumerate((n for n in arms if n.startswith("dal")), 1):
        label = name.replace("dal=", "DAL-")
        left.axhline(result.arrays[f"{name}/accuracy"].mean(), color=f"C{number}", label=label)
        right.semilogy(result.arrays[f"{name}/loss"], color=f"C{number}", label=label)
    best = f"rate={result.measurements['best_fixed_rate']:g}"
    right.semilogy(
        result.arrays[f"{best}/loss"], color="C0", label=best.replace("rate=", "best fixed rate, ")
    )
    left.set(
        xscale="log", title="Test accuracy after a sweep", xlabel="fixed learning rate", ylabel="accuracy"
    )
    left.legend()
    right.set(title="Training loss, mean over seeds", xlabel="step")
    label_curves(right)
    return figure
