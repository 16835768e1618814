"""Logistic functions whose rounding does not depend on where in an array an element sits.

Vectorised ``torch.sigmoid``, ``softplus`` and ``silu`` treat the tail of an array with scalar code that
differs from the SIMD code in the last bit. Two copies of the same number then give different results, which
is exactly what this package must never do by accident. The forms below go through ``tanh``, or through Python
scalars, and were never seen to do so.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Swish", "binary_cross_entropy", "residual", "sigmoid", "softplus", "stable_sigmoid", "swish"]


def stable_sigmoid(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``1 / (1 + exp(-x))`` as ``(1 + tanh(x / 2)) / 2``.

    >>> stable_sigmoid(torch.tensor([0.0, 1000.0, -1000.0])).tolist()
    [0.5, 1.0, 0.0]
    """
    return 0.5 * (1 + torch.tanh(0.5 * x))


def swish(z: Float[Tensor, "*shape"], beta: float = 1.0) -> Float[Tensor, "*shape"]:
    """Return ``z * sigmoid(beta * z)``."""
    return z * stable_sigmoid(beta * z)


class Swish(nn.Module):
    """Swish activation ``z * sigmoid(beta * z)``; the paper's networks use beta = 5, nearly a ReLU.

    >>> Swish(beta=5.0)(torch.tensor([-10.0, 0.0, 10.0])).tolist()
    [-0.0, 0.0, 10.0]
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation."""
        return swish(z, self.beta)

    def extra_repr(self) -> str:
        """Show beta in ``print(model)``."""
        return f"beta={self.beta:g}"


def sigmoid(x: float) -> float:
    """Return the logistic function of a Python float; never overflows.

    >>> sigmoid(0.0), sigmoid(-1000.0)
    (0.5, 0.0)
    """
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    e = math.exp(x)
    return e / (1 + e)


def softplus(x: float) -> float:
    """Return ``log(1 + exp(x))`` of a Python float; never overflows.

    >>> softplus(1000.0), softplus(0.0) == math.log(2)
    (1000.0, True)
    """
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def binary_cross_entropy(logit: float, label: int) -> float:
    """Return ``-log(probability of label)`` for ``probability of 1 = sigmoid(logit)``.

    >>> binary_cross_entropy(1000.0, 1), binary_cross_entropy(1000.0, 0)
    (0.0, 1000.0)
    """
    return softplus(-logit) if label == 1 else softplus(logit)


def residual(logit: float, label: int) -> float:
    """Return ``sigmoid(logit) - label``, the derivative of ``binary_cross_entropy``, without cancellation."""
    return -sigmoid(-logit) if label == 1 else sigmoid(logit)
