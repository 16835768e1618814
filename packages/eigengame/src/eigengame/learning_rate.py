"""Step sizes relative to the data: "auto" = c / lambda_1, with lambda_1 estimated on the first batch.

Normalisation makes the unprojected step a shifted power iteration, so only the product of step size
and top eigenvalue matters and one constant c serves data of any scale. Small batches are noisier and
want a smaller c.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["auto_constant", "auto_learning_rate", "largest_eigenvalue"]


def largest_eigenvalue(rows: NDArray, *, center: bool = True, iterations: int = 10) -> float:
    """Return the top eigenvalue of the covariance of the rows by power iteration, a lower bound.

    Example:
        >>> round(largest_eigenvalue(np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 6)
        4.5
    """
    X = np.asarray(rows)
    if center:
        X = X - X.mean(axis=0)
    norms = np.linalg.norm(X, axis=1)
    direction = X[np.argmax(norms)]
    value = 0.0
    for _ in range(iterations):
        length = float(np.linalg.norm(direction))
        if not np.isfinite(length) or length == 0:
            return 0.0
        direction = X.T @ (X @ (direction / length)) / X.shape[0]
        value = float(np.linalg.norm(direction))
    return value


def auto_constant(batch_size: int, momentum: float) -> float:
    """Return c of "auto" for a batch size and momentum.

    1 at 256 rows with momentum 0.9, falling linearly below; without momentum up to ten times that,
    capped at 3, since momentum 0.9 multiplies the effective step by ten.

    Example:
        >>> auto_constant(256, 0.9), auto_constant(32, 0.9)
        (1.0, 0.125)
    """
    return min(1.0, batch_size / 256) * min(0.1 / (1 - momentum), 3.0) if momentum < 0.9 else min(
        1.0, batch_size / 256
    )


def auto_learning_rate(rows: NDArray, momentum: float, *, center: bool = True) -> float:
    """Return c / lambda_1 for the given first batch; 1 for data without variance.

    Example:
        >>> auto_learning_rate(np.zeros((4, 2)), 0.9)
        1.0
    """
    value = largest_eigenvalue(rows, center=center)
    return auto_constant(rows.shape[0], momentum) / value if value > 0 else 1.0
