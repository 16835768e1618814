"""Curvature of the loss with respect to the network's output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from chaos.o2grad.generic import dense_hessian

Loss = Callable[[Tensor, Tensor], Tensor]


def output_hessian(loss: Loss, output: Tensor, y: Tensor) -> Tensor:
    """Hessian of the batch loss in output space.

    Args:
        loss: ``loss(output, target)`` returning a scalar.
        output: Network output (batch, ...).
        y: Targets.

    Returns:
        (batch, C, C) where the samples are known not to interact, else the full (batch C, batch C) matrix.

    Source: softmax cross-entropy has ``diag(p) - p p'`` per sample; label smoothing does not change it.
    """
    batch = len(output)
    if _is_plain_cross_entropy(loss, output, y):
        reduction = loss.reduction if isinstance(loss, nn.CrossEntropyLoss) else "mean"
        p = output.softmax(1)
        blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return blocks / batch if reduction == "mean" else blocks
    if isinstance(loss, nn.MSELoss):
        size = output[0].numel()
        scale = 2 / (batch * size) if loss.reduction == "mean" else 2.0
        return scale * torch.eye(size, dtype=output.dtype, device=output.device).expand(batch, -1, -1)
    return dense_hessian(lambda o: loss(o.view_as(output), y), output.reshape(-1), chunk=512)


def check_scalar(value: Tensor) -> Tensor:
    """Refuse a loss per sample.

    Raises:
        ValueError: If the value is not a scalar.
    """
    if value.ndim:
        raise ValueError(
            f"The loss has shape {tuple(value.shape)}; curvature needs a scalar: "
            "use reduction='mean' or 'sum' instead of 'none'."
        )
    return value


def _is_plain_cross_entropy(loss: Loss, output: Tensor, y: Tensor) -> bool:
    if output.ndim != 2 or y.ndim != 1 or y.is_floating_point():
        return False
    if loss is functional.cross_entropy:
        return not bool((y == -100).any())
    return (
        type(loss) is nn.CrossEntropyLoss and loss.weight is None and not bool((y == loss.ignore_index).any())
    )


#: Rows per product of :func:`sandwich`: enough to keep the processor busy, few enough to skip half the work.
_PANEL = 192


def sandwich(jacobian: Tensor, curvature: Tensor, lower: Tensor | None = None) -> Tensor:
    """The symmetric matrix ``J' A J`` summed over the batch.

    Only the lower triangle is multiplied out, panel by panel, and then mirrored.

    Args:
        jacobian: (batch, p, C).
        curvature: Output Hessian, as :func:`output_hessian` gives it.
        lower: A (p, p) matrix of which the lower triangle is added; overwritten by the result.

    Example:
        >>> sandwich(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0]]]))
        tensor([[ 3.,  6.],
                [ 6., 12.]])
    """
    batch, p, size = jacobian.shape
    columns = jacobian.transpose(0, 1).reshape(p, batch * size)
    if curvature.ndim == 3:
        weighted = (jacobian @ curvature).transpose(0, 1).reshape(p, batch * size)
    else:
        weighted = columns @ curvature
    out = jacobian.new_zeros(p, p) if lower is None else lower
    for start in range(0, p, _PANEL):
        stop = min(start + _PANEL, p)
        out[start:stop, :stop].addmm_(weighted[start:stop], columns[:stop].T)
        out[:start, start:stop] = out[start:stop, :start].T
        square = out[start:stop, start:stop].tril()
        out[start:stop, start:stop] = square + square.tril(-1).T
    return out
