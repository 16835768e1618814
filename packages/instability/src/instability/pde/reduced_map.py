"""The one-dimensional map hidden in the one-layer network on a checkerboard: the package's exact oracle.

On a checkerboard every patch is plus or minus the same kernel-size checkerboard ``s``, so ``M = t s^T`` and
the network sees a kernel ``w`` only through ``c = <s, w>``. Gradient descent then splits exactly:

- the part of ``w`` orthogonal to ``s`` is multiplied by ``1 - learning_rate * weight_decay`` in each step;
- ``c <- c - learning_rate * (residual(p) * K * p'(c) + weight_decay * c)`` with ``K = kernel_size**2`` and
  ``p(c) = f_plus r(c) + f_minus r(-c)``, ``f_plus`` the share of positions where the patch is ``+s``.

All functions take and return arrays as well as floats, one entry per learning rate or start.

Source: derived for this package; it reduces Eq. (8) of Sun et al. 2022 without approximation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from instability.pde.convolution import checkerboard
from instability.pde.one_layer import check_label

__all__ = ["ReducedMap", "log_growth", "signal_coefficient", "split_kernel"]

Value = float | Float[np.ndarray, "*shape"]


def signal_coefficient(kernel: Float[np.ndarray, "k k"]) -> float:
    """Return ``c = <s, w>`` with the checkerboard ``s``, ``s[0, 0] = +1``.

    >>> signal_coefficient(np.array([[1.0, 2.0], [3.0, 4.0]]))
    0.0
    """
    return float(np.sum(checkerboard(*kernel.shape, first=1.0) * kernel))


def split_kernel(kernel: Float[np.ndarray, "k k"]) -> tuple[float, float]:
    """Return ``c`` and the squared norm of the part of the kernel orthogonal to ``s``."""
    s = checkerboard(*kernel.shape, first=1.0)
    c = signal_coefficient(kernel)
    return c, float(np.sum((kernel - c / s.size * s) ** 2))


@dataclass(frozen=True)
class ReducedMap:
    """Exact dynamics of ``c`` under gradient descent with batch 1 on a checkerboard.

    Args:
        kernel_size: side of the kernel.
        image_size: side of the checkerboard.
        weight_decay: ``alpha``.
        label: 0 or 1.
        beta: slope of the Swish.

    >>> paper = ReducedMap(kernel_size=32, image_size=256, weight_decay=20.0)
    >>> c = paper.fixed_point()
    >>> round(c, 6), round(float(paper.sharpness(c)), 3)
    (3.865255, 61.997)
    """

    kernel_size: int
    image_size: int
    weight_decay: float
    label: int = 1
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_label(self.label)
        if self.kernel_size > self.image_size:
            raise ValueError(f"kernel_size {self.kernel_size} is larger than image_size {self.image_size}.")

    @property
    def num_taps(self) -> int:
        """``K``, the number of weights."""
        return self.kernel_size**2

    @property
    def positive_share(self) -> float:
        """Share of positions whose patch is ``+s``; the first position's is ``-s``."""
        positions = (self.image_size - self.kernel_size + 1) ** 2
        return (positions // 2) / positions

    def logit(self, c: Value) -> Value:
        """Return ``p(c) = c (T / 2 + f_plus - 1/2)`` with ``T = tanh(beta c / 2)``."""
        return c * self._mean_sigmoid(c)

    def logit_slope(self, c: Value) -> Value:
        """Return ``p'(c)``."""
        return self._mean_sigmoid(c) + self.beta * c / 4 * (1 - self._tanh(c) ** 2)

    def logit_curvature(self, c: Value) -> Value:
        """Return ``p''(c)``."""
        tanh = self._tanh(c)
        return self.beta / 2 * (1 - tanh**2) * (1 - self.beta * c * tanh / 2)

    def loss(self, c: Value, orthogonal_norm_squared: Value = 0.0) -> Value:
        """Return the full loss of a kernel with this ``c`` and this squared norm of its orthogonal part."""
        sign = -1 if self.label == 1 else 1
        decay = self.weight_decay / 2 * (orthogonal_norm_squared + c**2 / self.num_taps)
        return np.logaddexp(0.0, sign * self.logit(c)) + decay

    def step(self, c: Value, learning_rate: Value) -> Value:
        """Return ``c`` after one step of gradient descent."""
        gradient = self._residual(c) * self.num_taps * self.logit_slope(c) + self.weight_decay * c
        return c - learning_rate * gradient

    def sharpness(self, c: Value) -> Value:
        """Return the curvature along ``s / |s|``, weight decay included; the map's slope is ``1 - lr * it``.

        ``K (S (1 - S) p'^2 + (S - y) p'') + alpha`` with ``S = sigmoid(p)``.
        """
        s = _sigmoid(self.logit(c))
        curvature = s * (1 - s) * self.logit_slope(c) ** 2 + self._residual(c) * self.logit_curvature(c)
        return self.num_taps * curvature + self.weight_decay

    def trajectory(
        self, start: Value, learning_rate: Value, num_steps: int
    ) -> Float[np.ndarray, "step *shape"]:
        """Return ``c`` at steps 0, 1, ..., ``num_steps``; it runs off to infinity where descent diverges."""
        shape = np.broadcast_shapes(np.shape(start), np.shape(learning_rate))
        path = np.empty((num_steps + 1, *shape))
        path[0] = start
        with np.errstate(over="ignore", invalid="ignore"):
            for n in range(num_steps):
                path[n + 1] = self.step(path[n], learning_rate)
        return path

    def lyapunov_exponent(
        self, learning_rate: Value, *, start: float = 1.0, num_steps: int = 20_000, transient: int = 1_000
    ) -> Value:
        """Return the mean of ``log|1 - lr * sharpness(c_t)|`` along the orbit; NaN where it diverges.

        Positive: copies that differ by rounding separate exponentially. Negative: they forget the difference.

        Args:
            learning_rate: one or many.
            start: first ``c``.
            num_steps: steps averaged over.
            transient: steps made before.
        """
        rates = np.asarray(learning_rate, dtype=np.float64)
        with np.errstate(all="ignore"):
            c = self.trajectory(start, rates, transient)[-1]
            total = np.zeros(rates.shape)
            for _ in range(num_steps):
                total += np.log(np.abs(1 - rates * self.sharpness(c)))
                c = self.step(c, rates)
        # Beyond |c| = 1e8 the orbit is in the linear regime of weight decay alone and on its way to infinity.
        exponent = np.where(np.abs(c) < 1e8, total / num_steps, np.nan)
        return float(exponent) if exponent.ndim == 0 else exponent

    def fixed_point(self, sign: int = 1) -> float:
        """Return the ``c`` of the given sign at which the gradient vanishes, by bisection.

        The two differ in magnitude when the number of positions is odd, because one sign of patch occurs once
        more.

        Raises:
            ValueError: only ``c = 0`` is left, because of the label or of a strong weight decay.
        """
        if float(self.sharpness(0.0)) >= 0:
            if self.label == 0:
                raise ValueError(
                    "label 0 pulls the prediction down and c to 0: there is no other fixed point, at any "
                    "weight decay. Use label 1."
                )
            largest = self.weight_decay - float(self.sharpness(0.0))
            raise ValueError(
                f"weight_decay {self.weight_decay:g} holds c at 0 (the curvature there is not negative): "
                f"there is no other fixed point. Pass less than {largest:g}."
            )
        low, high = 1e-6, 1e3
        for _ in range(200):
            middle = (low + high) / 2
            moves_out = sign * float(self.step(sign * middle, 1.0)) > middle
            low, high = (middle, high) if moves_out else (low, middle)
        return sign * (low + high) / 2

    def _tanh(self, c: Value) -> Value:
        return np.tanh(self.beta / 2 * np.asarray(c))

    def _mean_sigmoid(self, c: Value) -> Value:
        return self._tanh(c) / 2 + self.positive_share - 0.5

    def _residual(self, c: Value) -> Value:
        logit = self.logit(c)
        return -_sigmoid(-logit) if self.label == 1 else _sigmoid(logit)


def log_growth(
    sharpness: Float[np.ndarray, "*run step"], learning_rate: Value
) -> Float[np.ndarray, "*run step"]:
    """Return the predicted log of ``|delta_t / delta_0|``: the running sum of ``log|1 - lr * sharpness|``.

    Source: linearisation of the update around an orbit, ``delta_{t+1} = (1 - lr * sharpness_t) delta_t``.

    >>> log_growth(np.array([30.0, 30.0]), 0.1).round(6).tolist()  # each step doubles the difference
    [0.693147, 1.386294]
    """
    return np.cumsum(np.log(np.abs(1 - learning_rate * sharpness)), axis=-1)


def _sigmoid(x: Value) -> Value:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x)))
