"""Gradient descent of the one-layer network: the paper's non-linear PDE, whose instability is restrained.

``dK/dt = -(yhat - y) [r'(I * K) correlated with I, restricted to the window] - alpha K``, discretised with
time step = learning rate. Above ``2 / sharpness`` the non-linearity bends the blow-up back into a bounded
motion, which for some rates is chaotic and amplifies rounding error to order one.

Source: Eq. (8), Secs. 5.1 and 5.3 of Sun et al. 2022 (Fig. 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instability.pde.descent import PUBLISHED, DescentOptions, Observer, Simulation, descend, replicas
from instability.pde.one_layer import OneLayerNetwork

__all__ = ["descent_map", "initial_kernel", "simulate"]


def initial_kernel(kernel_size: int, seed: int = 7) -> Float[np.ndarray, "k k"]:
    """Return the paper's start: standard normal entries of NumPy's legacy generator.

    >>> initial_kernel(32)[0, :2]
    array([ 1.6905257 , -0.46593737])
    """
    return np.random.RandomState(seed).randn(kernel_size, kernel_size)  # the published stream


def simulate(
    image: Float[np.ndarray, "height width"],
    kernel: Float[np.ndarray, "k k"],
    *,
    learning_rates: float | Sequence[float],
    weight_decays: float | Sequence[float] = 20.0,
    perturbations: int | Sequence[int] = (1,),
    num_steps: int = 1000,
    label: int = 1,
    observe: Observer | None = None,
    options: DescentOptions = PUBLISHED,
) -> Simulation:
    """Simulate the non-linear PDE for several runs from one kernel.

    Args:
        image: single-channel input.
        kernel: common start, square.
        learning_rates: time steps; numbers broadcast, sequences zip with the two below.
        weight_decays: ``alpha``.
        perturbations: integers ``k``: update ``w - (lr k) (g / k)``.
        num_steps: updates to make.
        label: 0 or 1.
        observe: called after every step with all kernels.
        options: momentum, slope of the Swish, floating type, ...

    Returns:
        Losses ``(runs, num_steps)`` at ``w_t`` before each update, and the final kernels.

    >>> from instability.pde.convolution import checkerboard
    >>> settings = {"learning_rates": [0.5, 1.0], "weight_decays": 0.3, "num_steps": 50}
    >>> result = simulate(checkerboard(16), initial_kernel(4), **settings)
    >>> result
    2 runs of 50 steps; last losses 0.2841, 0.2841
    >>> result.losses.shape, bool((result.losses[:, -1] < result.losses[:, 0]).all())
    ((2, 50), True)
    """
    settings = replicas(learning_rates, weight_decays, perturbations)
    network = options.network(image, kernel, label)
    return descend(network.evaluate, kernel, settings, num_steps, options=options, observe=observe)


def descent_map(
    network: OneLayerNetwork, learning_rate: float, weight_decay: float
) -> Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]:
    """Return one step of plain descent as a map of ``{"x": kernel}``, for ``lyapunov_exponents``.

    It holds for every image; on a checkerboard the exponent is that of ``ReducedMap``.

    On an empty image nothing but weight decay acts: a factor of ``1 - 0.5 * 1``.

    >>> step = descent_map(OneLayerNetwork(np.zeros((8, 8)), 2), learning_rate=0.5, weight_decay=1.0)
    >>> step({"x": torch.ones(2, 2, dtype=torch.float64)}, 0)["x"].unique().tolist()
    [0.5]
    """

    def step(state: Mapping[str, Tensor], _: int) -> dict[str, Tensor]:
        kernel = state["x"]
        z = network.correlation.apply(kernel)
        s = torch.sigmoid(network.beta * z)
        slope = s + network.beta * z * s * (1 - s)
        prediction = torch.sigmoid((z * s).mean())
        gradient = network.correlation.transpose(slope) * (prediction - network.label)
        gradient = gradient / network.correlation.num_positions + weight_decay * kernel
        return {"x": kernel - learning_rate * gradient}

    return step
