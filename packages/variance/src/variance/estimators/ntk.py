"""Direction preconditioned by the Gram matrix of the mini-batch (empirical tangent kernel)."""

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from variance.errors import require_number
from variance.estimators.base import Direction, GradientEstimator
from variance.objective import Batch, Objective, Point
from variance.per_example import quantities


class NTK(GradientEstimator):
    """Gradient of (1^T K^-1) losses / B with K = Gram + damping (optionally Gram / B + damping).

    Args:
        objective: The function whose gradient is estimated; batch norm uses its running statistics.
        damping: Added to the diagonal.
        divide_by_batch: Divide the Gram matrix by B.
    """

    name = "NTK"

    def __init__(self, objective: Objective, *, damping: float = 1e-3, divide_by_batch: bool = False) -> None:
        super().__init__(objective)
        require_number("damping", damping, above=0)  # the Gram matrix may be singular
        self.damping, self.divide_by_batch = damping, divide_by_batch

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        kernel = quantities.gram(self.objective.capture(point, batch))
        if self.divide_by_batch:
            kernel = kernel / len(batch)
        weights = inverse_row_sums(kernel, self.damping) * batch.weights.to(kernel)
        weighted = Batch(batch.inputs, batch.targets, batch.indices, weights)
        values, _ = self.objective.gradient(point, weighted, training=False)
        with torch.enable_grad():  # a model may differentiate in its forward pass
            loss = float(self.objective.losses(point, batch, training=False).detach().mean())
        return Direction(values, loss)


def inverse_row_sums(kernel: Float[Tensor, "n n"], damping: float) -> Float[Tensor, "n"]:
    """Return (kernel + damping)^-1 1 by Cholesky, or by eigenvalues where rounding makes it indefinite.

    Example:
        >>> inverse_row_sums(torch.eye(2), 1.0)
        tensor([0.5000, 0.5000])
    """
    n = len(kernel)
    damped = kernel + damping * torch.eye(n, dtype=kernel.dtype, device=kernel.device)
    factor, failure = torch.linalg.cholesky_ex(damped)
    ones = kernel.new_ones(n, 1)
    if int(failure) == 0:
        return torch.cholesky_solve(ones, factor).squeeze(1)
    values, vectors = torch.linalg.eigh(damped)
    solved: Tensor = vectors @ ((vectors.T @ ones) / values.clamp_min(damping).unsqueeze(1))
    return solved.squeeze(1)
