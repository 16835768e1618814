"""How much memory one dense matrix may take, and where it comes from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Bytes a single dense matrix may take before it is refused.
DEFAULT_BUDGET = 4 << 30

_INSTEAD = "Use hvp, top_eigenpairs or block_diagonal, restrict layers=, or pass a larger memory_budget."


def check_budget(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    budget: int = DEFAULT_BUDGET,
    instead: str = _INSTEAD,
) -> None:
    """Refuse a matrix that would not fit.

    Args:
        rows: Its rows.
        columns: Its columns.
        dtype: Type of its entries.
        budget: Bytes it may take.
        instead: What to do, for the message.

    Raises:
        ValueError: With the bytes needed and the alternatives.

    Example:
        >>> check_budget(10, 10, torch.float64, budget=800)
    """
    needed = rows * columns * dtype.itemsize
    if needed > budget:
        raise ValueError(
            f"A {rows} x {columns} matrix of {str(dtype).removeprefix('torch.')} needs {needed:,} bytes; the "
            f"memory budget is {budget:,}. {instead}"
        )


def new_matrix(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return a matrix with arbitrary entries, of the type and the device of another tensor.

    On a CPU in memory of NumPy, which asks Linux for large pages: fresh memory then costs a quarter.

    Example:
        >>> new_matrix(2, 3, torch.zeros(1, dtype=torch.float64)).shape
        torch.Size([2, 3])
    """
    if like.device.type != "cpu":
        return like.new_empty(rows, columns)
    return torch.from_numpy(np.empty((rows, columns), str(like.dtype).removeprefix("torch.")))
