"""Which continuous model follows a step of descent on a network, below and at the edge of stability?

Every model starts at the parameters of the step and flows for the time of one step. The principal flow is
integrated in complex arithmetic, so the network is made of analytic functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dd_two_player.flows import integrate
from dd_two_player.paper.data import load_samples
from dd_two_player.paper.device import computing
from dd_two_player.paper.flow_config import ContinuousModelsConfig
from dd_two_player.principal_flow import (
    gradient_descent,
    gradient_flow,
    igr_flow,
    principal_coefficient,
    principal_field,
)
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

REGIMES = ("below", "edge")
MODELS = ("gradient flow", "IGR flow", "principal flow", "principal flow, half the rate")
NUM_EXAMPLES, NUM_CLASSES = 200, 3
MAX_EVALUATIONS = 300


def compute(config: ContinuousModelsConfig, run: Run) -> Result:
    """Descend at both rates and measure the models' errors and the predicted sign of the loss's change."""
    measured: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for regime, rate in zip(REGIMES, config.learning_rates, strict=True):
        found = [run.piece(f"{regime}/seed={s}", partial(_descend, config, rate, s)) for s in config.seeds]
        errors = np.array([one["errors"] for one in found])  # (seed, point, model)
        logs = np.log10(errors)
        arrays |= {f"{regime}/errors": errors, f"{regime}/scaled": np.array([one["scaled"] for one in found])}
        arrays[f"{regime}/loss"] = np.array([one["loss"] for one in found])
        for name, model in (("gradient_flow", 0), ("igr", 1)):
            measured[f"{regime}_gain_over_{name}"] = np.median(
                logs[..., model] - logs[..., 2], axis=1
            ).tolist()
        measured[f"{regime}_half_gain_over_igr"] = np.median(logs[..., 1] - logs[..., 3], axis=1).tolist()
        measured[f"{regime}_agreement"] = [_agreement(one["slope"], one["change"]) for one in found]
        measured[f"{regime}_agreement_shuffled"] = [
            _agreement(generator(seed, "shuffled").permutation(one["slope"]), one["change"])
            for seed, one in zip(config.seeds, found, strict=True)
        ]
        measured[f"{regime}_followed"] = np.isfinite(errors[..., 2]).mean(axis=1).tolist()
        measured[f"{regime}_largest_scaled"] = [float(one["scaled"].max()) for one in found]
    return Result(measured, arrays)


def _descend(config: ContinuousModelsConfig, rate: float, seed: int) -> dict[str, np.ndarray]:
    with computing(config.device, "float64"):
        loss, start = _network(config, seed)
        path = gradient_descent(loss, rate, start, config.num_steps)
        if not np.isfinite(path).all():
            raise FloatingPointError(f"seed {seed} diverges at learning rate {rate:g}; lower learning_rates.")
        points = np.linspace(0, config.num_steps - 1, config.num_points).astype(int)
        losses = np.asarray(jax.jit(jax.vmap(loss))(jnp.asarray(path)))
        gradients = np.asarray(jax.jit(jax.vmap(jax.grad(loss)))(jnp.asarray(path[:-1])))
        hessian = jax.jit(jax.hessian(loss))
        scaled, slope = [], []
        for x, g in zip(path[:-1], gradients, strict=True):
            values, vectors = np.linalg.eigh(np.asarray(hessian(x)))
            scaled.append(rate * values[-1])
            slope.append(float(principal_coefficient(rate * values).real @ (vectors.T @ g) ** 2))
        fields = (
            gradient_flow(loss),
            igr_flow(loss, rate),
            principal_field(loss, rate),
            principal_field(loss, rate / 2),
        )
        starts = np.asarray(path), np.asarray(path, complex)
        ends = np.array(
            [[_end(field, starts[model > 1][i], rate) for model, field in enumerate(fields)] for i in points]
        )
        lengths = np.linalg.norm(path[points + 1] - path[points], axis=1)
    return {
        "errors": np.linalg.norm(ends - path[points + 1][:, None], axis=2) / lengths[:, None],
        "scaled": np.array(scaled),
        "slope": np.array(slope),
        "change": np.diff(losses),
        "loss": losses,
    }


def _end(field: Callable[[Any], Any], start: np.ndarray, rate: float) -> np.ndarray:
    """Return where a flow is after the time of one step, at infinity where it cannot be followed so far."""
    try:
        path = integrate(field, start, [rate], rtol=1e-5, atol=1e-8, max_evaluations=MAX_EVALUATIONS)
    except FloatingPointError:  # an eigenvalue passes 1 / rate, where the principal flow is singular
        return np.full(start.shape, np.inf)
    return np.real(path[0])  # descent is real


def _network(config: ContinuousModelsConfig, seed: int) -> tuple[Callable[[Any], Any], np.ndarray]:
    """Return the loss of a two-layer tanh network on three digits, by squares, and a start."""
    samples = load_samples("digits")
    chosen = np.flatnonzero(samples.labels < NUM_CLASSES)[:NUM_EXAMPLES]
    images = samples.scaled(chosen).reshape(len(chosen), -1).astype(float)
    images -= images.mean(axis=0)
    features = images @ np.linalg.svd(images, full_matrices=False)[2][: config.num_features].T
    inputs, targets = features / features.std(), np.eye(NUM_CLASSES)[samples.labels[chosen]]
    shapes = ((config.num_features, config.width), (config.width, NUM_CLASSES))
    sizes = np.cumsum([shapes[0][0] * shapes[0][1], config.width, shapes[1][0] * shapes[1][1]])

    def loss(x: Any) -> Any:
        first, bias, second, shift = jnp.split(x, sizes)
        outputs = jnp.tanh(inputs @ first.reshape(shapes[0]) + bias) @ second.reshape(shapes[1]) + shift
        return ((outputs - targets) ** 2).sum(1).mean()

    stream = generator(seed, "continuous-models")
    weights = [stream.standard_normal(shape) / shape[0] ** 0.5 for shape in shapes]
    zeros = np.zeros(config.width), np.zeros(NUM_CLASSES)
    return loss, np.concatenate([weights[0].ravel(), zeros[0], weights[1].ravel(), zeros[1]])


def _agreement(slope: np.ndarray, change: np.ndarray) -> float:
    """Return how often the sign is right, rising and falling steps weighing alike; NaN without one kind."""
    rising = change > 0
    if rising.all() or not rising.any():
        return float("nan")
    return float(((slope[rising] > 0).mean() + (slope[~rising] <= 0).mean()) / 2)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def plot(result: Result) -> Any:
    """Draw the errors of the models over the step, below and at the edge, and the sharpness under them."""
    figure, axes = new_figure(2, 2, figsize=(7.2, 5.8), sharey="row")
    for ax in axes[1]:
        ax.remove()
    sharpness = figure.add_subplot(axes[0, 0].get_gridspec()[1, :])
    titles = ("Below the edge of stability", "At the edge of stability")
    for ax, regime, title in zip(axes[0], REGIMES, titles, strict=True):
        errors = result.arrays[f"{regime}/errors"]
        steps = np.linspace(0, result.arrays[f"{regime}/scaled"].shape[1] - 1, errors.shape[1])
        for model in range(3):
            ax.semilogy(steps, _finite(np.median(errors[..., model], axis=0)), "o-", label=MODELS[model])
        ax.set(title=title, xlabel="step")
        sharpness.plot(result.arrays[f"{regime}/scaled"][0], label=title.lower())
    axes[0, 0].set_ylabel("error of one step / its length")
    label_curves(axes[0, 1])
    sharpness.axhline(2, color="0.6", linestyle="--")
    sharpness.set(title="Learning rate times sharpness (dashed: 2), first seed", xlabel="step")
    sharpness.legend()
    return figure
