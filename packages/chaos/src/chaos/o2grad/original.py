"""The original library's entry points, as thin adapters of :class:`LossSurface`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chaos.o2grad.losses import Loss
from chaos.o2grad.surface import LossSurface


class O2Model(nn.Module):
    """A module with its criterion, as in the original library.

    Example:
        >>> model = O2Model(nn.Linear(2, 2), nn.CrossEntropyLoss())
        >>> model.get_hessian_from_input(torch.ones(3, 2), torch.tensor([0, 1, 0])).shape
        torch.Size([6, 6])
    """

    def __init__(self, model: nn.Module, criterion: Loss) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the module."""
        out: Tensor = self.model(x)
        return out

    def get_hessian_from_input(
        self,
        x: Tensor,
        y: Tensor,
        as_type: str = "dense",
        diagonal_blocks: bool = False,
        per_batch: bool = True,
        rows: slice | None = None,
    ) -> Any:
        """Hessian of the criterion at the current parameters; see :func:`get_hessian`."""
        return get_hessian(self.model, x, y, self.criterion, as_type, diagonal_blocks, per_batch, rows)


def get_hessian(
    module: nn.Module,
    input: Tensor,
    target: Tensor,
    criterion: Loss,
    as_type: str = "dense",
    diagonal_blocks: bool = False,
    per_batch: bool = True,
    rows: slice | None = None,
) -> Any:
    """Hessian of a criterion in the requested form.

    Args:
        module: Any module.
        input: Batch of inputs.
        target: Batch of targets.
        criterion: Scalar loss.
        as_type: ``"dense"``, ``"sparse"`` or ``"blocks"`` (nested mapping by parameter names).
        diagonal_blocks: Return only the diagonal block of each parameter, as a dict.
        per_batch: ``False`` returns one Hessian per sample, stacked.
        rows: Return only these rows (dense).
    """
    surface = LossSurface(module, criterion)
    if rows is not None:
        return surface.hessian_rows(None, input, target, rows)
    if diagonal_blocks:
        return {name: H.dense() for name, H in surface.block_diagonal(None, input, target).items()}
    if per_batch:
        return surface.hessian(None, input, target).to(as_type)
    forms = [H.to(as_type) for H in surface.hessian_per_sample(None, input, target)]
    return forms if as_type == "blocks" else torch.stack(forms)  # type: ignore[arg-type]
