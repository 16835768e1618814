"""The paper's one-layer network: correlation, Swish, mean, logistic output, for one image and one label.

``z = M w``, ``p = mean(z sigmoid(beta z))``, loss = binary cross-entropy of ``sigmoid(p)`` plus
``weight_decay / 2 |w|^2``. Its two gradient fields are the right-hand sides of the paper's PDEs.

Source: Sec. 5.1, Eqs. (8) and (9) of Sun et al. 2022.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instability.pde.activations import binary_cross_entropy, residual
from instability.pde.convolution import Method, ValidCorrelation

__all__ = ["LINEAR_RESIDUAL", "Normalization", "OneLayerNetwork", "check_kernel", "check_label"]

Normalization = Literal["sum", "mean"]

LINEAR_RESIDUAL = -0.5
"""``prediction - label`` at which the linear PDE is frozen: label 1, prediction 1/2."""


def check_label(label: object) -> int:
    """Return ``label`` as an int if it is 0 or 1, else raise ValueError."""
    if isinstance(label, bool) or label not in (0, 1):
        raise ValueError(f"label must be 0 or 1, got {label!r}.")
    return 1 if label == 1 else 0


def check_kernel(kernel: np.ndarray) -> int:
    """Return the side of a square kernel, or raise ValueError."""
    shape = np.shape(kernel)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"kernel has shape {shape}; pass a square matrix.")
    return int(shape[0])


class OneLayerNetwork:
    """Loss and gradient fields of the network on one image.

    The gradients below are those of the data loss alone; weight decay adds ``weight_decay * w``.

    Args:
        image: the single-channel input.
        kernel_size: side of the square kernel.
        label: 0 or 1.
        beta: slope of the Swish.
        method: how to correlate, see ``ValidCorrelation``.
        dtype: floating type of the kernels.

    >>> from instability.pde.convolution import checkerboard
    >>> network = OneLayerNetwork(checkerboard(8), kernel_size=2)
    >>> round(network.evaluate(torch.zeros(2, 2, dtype=torch.float64))[0], 6)  # log 2 at w = 0
    0.693147
    """

    def __init__(
        self,
        image: Float[np.ndarray, "height width"],
        kernel_size: int,
        *,
        label: int = 1,
        beta: float = 1.0,
        method: Method = "fft",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.label = check_label(label)
        self.beta = beta
        self.correlation = ValidCorrelation(image, kernel_size, method=method, dtype=dtype)
        self._image_mean = float(self.correlation.image.mean())
        self._windowed_mean = self.correlation.windowed_mean()
        self._activation = torch.empty(self.correlation.output_shape, dtype=dtype)
        self._sigmoid = torch.empty_like(self._activation)

    def evaluate(self, kernel: Float[Tensor, "k k"]) -> tuple[float, Float[Tensor, "k k"]]:
        """Return the data loss and its gradient ``(sigmoid(p) - y) / N * M^T r'(M w)``, Eq. (8).

        ``r'(z) = s + beta z s (1 - s)`` with ``s = sigmoid(beta z)``.
        """
        z = self.correlation.apply(kernel)
        activation, s = self._activate(z)
        p = float(activation.mean())
        slope = activation.addcmul_(activation, s, value=-1).mul_(self.beta).add_(s)
        gradient = self.correlation.transpose(slope).mul_(
            residual(p, self.label) / self.correlation.num_positions
        )
        return binary_cross_entropy(p, self.label), gradient

    def evaluate_linear(
        self,
        kernel: Float[Tensor, "k k"],
        *,
        frozen_residual: float = LINEAR_RESIDUAL,
        normalize: Normalization = "sum",
    ) -> tuple[float, Float[Tensor, "k k"]]:
        """Return the full network's data loss and the linear field ``a/2 (mean(I) + beta M^T M w)``, Eq. (9).

        The activation's slope is replaced by ``1/2 + beta z / 2`` and the residual by the constant ``a``.

        Args:
            kernel: the weights.
            frozen_residual: ``a``, prediction minus label.
            normalize: ``"sum"`` adds over positions and uses the mean of the whole image for every tap, as
                the paper's constants of about 1e7 need; ``"mean"`` divides by the number of positions and
                uses, for each tap, the mean of the pixels it passes over, which is the consistent
                linearisation of ``evaluate``.
        """
        z = self.correlation.apply(kernel)
        p = float(self._activate(z)[0].mean())
        curvature = self.correlation.transpose(z).mul_(self.beta)
        if normalize == "mean":
            field = curvature.div_(self.correlation.num_positions).add_(self._windowed_mean)
        else:
            field = curvature.add_(self._image_mean)
        return binary_cross_entropy(p, self.label), field.mul_(frozen_residual / 2)

    def _activate(self, z: Float[Tensor, "rows columns"]) -> tuple[Tensor, Tensor]:
        """``z s`` and ``s = sigmoid(beta z)``, in two buffers that the next call overwrites.

        ``1 / (1 + exp(-x))`` has no cancellation and ends at 0 where ``exp`` overflows.
        """
        torch.mul(z, -self.beta, out=self._sigmoid).exp_().add_(1).reciprocal_()
        return torch.mul(z, self._sigmoid, out=self._activation), self._sigmoid
