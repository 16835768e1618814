"""Curvature of the loss with respect to the network's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chaos.o2grad.generic import dense_hessian
from chaos.o2grad.parts import is_plain

Loss = Callable[..., Tensor]


def output_hessian(loss: Loss, output: Tensor, y: Any) -> Tensor:
    """Hessian of the batch loss in output space.

    Args:
        loss: ``loss(output, target)`` returning a scalar.
        output: Network output (batch, ...).
        y: Targets, ``None`` where the loss takes the output only.

    Returns:
        (batch, C, C) where the samples are known not to interact, else (batch, C, batch, C).

    Source: softmax cross-entropy has ``diag(p) - p p'`` per sample; label smoothing does not change it.
    """
    batch = len(output) if output.ndim else 1
    if _is_plain_cross_entropy(loss, output, y):
        reduction = loss.reduction if isinstance(loss, nn.CrossEntropyLoss) else "mean"
        p = output.softmax(1)
        blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return blocks / batch if reduction == "mean" else blocks
    if type(loss) is nn.MSELoss and is_plain(loss) and output.shape == y.shape:
        size = output.numel() // batch
        scale = 2 / (batch * size) if loss.reduction == "mean" else 2.0
        return scale * torch.eye(size, dtype=output.dtype, device=output.device).expand(batch, -1, -1)
    targets = () if y is None else (y,)
    coupled = dense_hessian(lambda o: loss(o.view_as(output), *targets), output.reshape(-1))
    return coupled.view(batch, -1, batch, output.numel() // batch)


def _is_plain_cross_entropy(loss: Loss, output: Tensor, y: Any) -> bool:
    if not isinstance(y, Tensor) or output.ndim != 2 or y.ndim != 1 or y.is_floating_point():
        return False
    if loss is functional.cross_entropy:
        return not bool((y == -100).any())
    return (
        type(loss) is nn.CrossEntropyLoss
        and is_plain(loss)
        and loss.weight is None
        and not bool((y == loss.ignore_index).any())
    )
