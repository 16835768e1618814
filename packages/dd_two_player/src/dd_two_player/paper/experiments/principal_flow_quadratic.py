"""On a quadratic the principal flow is gradient descent, oscillations and divergence included."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dd_two_player.flows import integrate
from dd_two_player.paper.experiment_config import QuadraticConfig
from dd_two_player.principal_flow import (
    gradient_descent,
    gradient_flow,
    igr_flow,
    quadratic_principal_flow,
)
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

CASES = ("stable", "divergent")


def compute(config: QuadraticConfig, run: Run) -> Result:
    """Compare the end points of gradient descent and three flows at two learning rates."""
    hessian, start = np.diag(config.eigenvalues), np.asarray(config.start)
    measured: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    with jax.enable_x64(True):
        values = jnp.asarray(config.eigenvalues)

        def loss(x: Any) -> Any:
            return (values * x**2).sum() / 2

        cases = zip(CASES, config.learning_rates, config.num_steps, strict=True)
        for case, rate, steps in cases:
            times = rate * np.arange(steps + 1.0)
            fine = np.linspace(0, times[-1], 200)
            descent = gradient_descent(loss, rate, start, steps)
            principal = quadratic_principal_flow(hessian, rate, start, times)
            others = {
                "igr": integrate(igr_flow(loss, rate), start, fine),
                "gradient_flow": integrate(gradient_flow(loss), start, fine),
            }
            measured[f"{case}_descent_first"] = float(descent[-1, 0])
            measured[f"{case}_descent_second"] = float(descent[-1, 1])
            measured[f"{case}_principal_error"] = float(np.abs(principal.real - descent).max())
            measured[f"{case}_imaginary_at_steps"] = float(np.abs(principal.imag).max())
            for name, path in others.items():
                measured[f"{case}_{name}_first"] = float(abs(path[-1, 0]))
            arrays |= {f"{case}_times": times, f"{case}_descent": descent, f"{case}_fine": fine}
            arrays[f"{case}_principal"] = quadratic_principal_flow(hessian, rate, start, fine).real
            arrays |= {f"{case}_{name}": path for name, path in others.items()}
    return Result(measured, arrays)


def plot(result: Result) -> Any:
    """Draw the first coordinate over time for both learning rates."""
    figure, axes = new_figure(1, 2, figsize=(8.2, 3.4))
    for ax, case in zip(axes, CASES, strict=True):
        times, fine = result.arrays[f"{case}_times"], result.arrays[f"{case}_fine"]
        ax.plot(times, result.arrays[f"{case}_descent"][:, 0], "o", label="gradient descent")
        ax.plot(fine, result.arrays[f"{case}_principal"][:, 0], label="principal flow (real part)")
        ax.plot(fine, result.arrays[f"{case}_igr"][:, 0], label="IGR flow")
        ax.plot(fine, result.arrays[f"{case}_gradient_flow"][:, 0], "--", label="gradient flow")
        ax.set(title=f"Descent at a {case} learning rate", xlabel="time", ylabel="first coordinate")
    axes[0].legend()
    return figure
