"""Singular values and vectors, also where LAPACK's fast driver gives up."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.linalg import svd
from torch import Tensor


def thin_svd(
    A: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "k n"]]:
    """Return U, the singular values in descending order, and V', with k = min(m, n).

    Divide and conquer may not converge in single precision where many singular values are equal or tiny, on
    some processors. QR iteration in double precision, which is slower, then takes its place.

    Raises:
        ValueError: If an entry is not finite.

    Example:
        >>> U, sigma, Vt = thin_svd(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
        >>> sigma.tolist()
        [2.0, 1.0]
    """
    try:
        return torch.linalg.svd(A, full_matrices=False)  # type: ignore[no-any-return]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        wide = A.detach().double().numpy(force=True)
        U, sigma, Vt = svd(wide, full_matrices=False, lapack_driver="gesvd")
        return tuple(torch.from_numpy(part).to(A) for part in (U, sigma, Vt))  # type: ignore[return-value]
