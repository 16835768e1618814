"""The linearised PDE of the one-layer network, whose stability can be read off its spectrum.

``w <- w - lr (a/2 (mean(I) + beta M^T M w) + alpha w)`` with the residual ``a = yhat - y`` frozen. An
eigenvector of ``M^T M`` is multiplied by ``1 - lr (alpha - mu)`` in each step, ``mu = |a| beta / 2`` times
its eigenvalue: weight decay must be large enough to tame the signal and small enough for the step size.

Source: Eq. (9), Sec. 5.2 of Sun et al. 2022 (Fig. 3, Table 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from instability.pde.descent import PUBLISHED, DescentOptions, Observer, Simulation, descend, replicas
from instability.pde.one_layer import Normalization

__all__ = ["simulate"]


def simulate(
    image: Float[np.ndarray, "height width"],
    kernel: Float[np.ndarray, "k k"],
    *,
    learning_rates: float | Sequence[float] = 1e-8,
    weight_decays: float | Sequence[float],
    perturbations: int | Sequence[int] = (1,),
    num_steps: int = 1000,
    label: int = 1,
    normalize: Normalization = "sum",
    observe: Observer | None = None,
    options: DescentOptions = PUBLISHED,
) -> Simulation:
    """Simulate the linear PDE for several runs from one kernel; the recorded data loss is the full network's.

    Args:
        image: single-channel input.
        kernel: common start, square.
        learning_rates: time steps; numbers broadcast, sequences zip with the two below.
        weight_decays: ``alpha``.
        perturbations: integers ``k``: update ``w - (lr k) (g / k)``.
        num_steps: updates to make.
        label: 0 or 1; the residual is frozen at the prediction 1/2 minus the label.
        normalize: ``"sum"`` or ``"mean"`` over positions, see ``OneLayerNetwork.evaluate_linear``.
        observe: called after every step with all kernels.
        options: momentum, slope of the Swish, what is recorded as loss, ...

    Returns:
        Losses ``(runs, num_steps)`` and the final kernels.

    >>> from instability.pde.convolution import checkerboard
    >>> from instability.pde.nonlinear import initial_kernel
    >>> decays = [0.9 * 676, 1.1 * 676]  # alpha_min is 0.25 * 13**2 * 4**2 = 676 here
    >>> settings = {"learning_rates": 1e-3, "weight_decays": decays, "num_steps": 100}
    >>> result = simulate(checkerboard(16), initial_kernel(4), **settings)
    >>> (result.losses[:, -1] < result.losses[:, 0]).tolist()  # below it the signal grows, above it dies out
    [False, True]
    """
    settings = replicas(learning_rates, weight_decays, perturbations)
    if normalize not in ("sum", "mean"):
        raise ValueError(f"Unknown normalize {normalize!r}. Allowed: 'sum', 'mean'.")
    network = options.network(image, kernel, label)
    field = partial(network.evaluate_linear, frozen_residual=0.5 - label, normalize=normalize)
    return descend(field, kernel, settings, num_steps, options=options, observe=observe)
