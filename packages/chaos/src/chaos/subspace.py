"""Similarity of subspaces and of eigenbases."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from chaos.o2grad.singular import thin_svd

#: Deviation from orthonormality above which a basis is orthonormalised, with a warning.
ORTHONORMAL_TOLERANCE = 1e-6

DISSIMILARITIES = ("l2", "l1", "ce", "bce")


def subspace_similarity(A: Float[Tensor, "n a"], B: Float[Tensor, "n b"]) -> float:
    """Mean squared cosine between subspaces, ``|A'B|_F^2 / min(a, b)``.

    Args:
        A: Orthonormal columns.
        B: Orthonormal columns.

    Returns:
        1 exactly when one subspace contains the other, 0 when they are orthogonal; NaN (with a warning)
        when one is empty. Two random subspaces have :func:`random_similarity` in expectation.

    Raises:
        ValueError: If the ambient dimensions differ, or a basis is no matrix of real, finite columns.

    Source: Sec. 4 of Herrmann et al. 2022.

    Example:
        >>> eye = torch.eye(4, dtype=torch.float64)
        >>> subspace_similarity(eye[:, :2], eye[:, 1:4])
        0.5
    """
    A, B = _as_columns(A), _as_columns(B)
    if A.shape[0] != B.shape[0]:
        raise ValueError(f"The bases live in dimensions {A.shape[0]} and {B.shape[0]}; they must agree.")
    A, B = _orthonormal(A), _orthonormal(B)
    smaller = min(A.shape[1], B.shape[1])
    if smaller == 0:
        warnings.warn("A subspace is empty, so its similarity is undefined (NaN).", stacklevel=2)
        return float("nan")
    return float((A.T @ B).square().sum() / smaller)


def random_similarity(a: int, b: int, n: int) -> float:
    """Expected similarity of random subspaces of dimensions a and b in n dimensions.

    Raises:
        ValueError: If a dimension lies outside 1 to n.

    Example:
        >>> random_similarity(4, 6, 12)
        0.5
    """
    if not 1 <= min(a, b) <= max(a, b) <= n:
        raise ValueError(f"a is {a} and b is {b}; dimensions of subspaces lie between 1 and n = {n}.")
    return max(a, b) / n


def eigenbasis_dissimilarity(
    U: Float[Tensor, "n m"],
    W: Float[Tensor, "n m"],
    kind: str = "l2",
    weights: tuple[Float[Tensor, " m"], Float[Tensor, " m"]] | None = None,
) -> float:
    """How far two ordered eigenbases are from being the same, up to signs.

    With cosines ``c_ij = |u_i' w_j|`` the mean over all pairs of ``|delta_ij - c_ij|^p`` (``l1``, ``l2``),
    of ``-delta_ij log softmax_j(c_ij)`` (``ce``: cosines are taken as logits of the match), or of the binary
    cross entropy (``bce``), cosines clamped to [0, 1].

    Args:
        U: Eigenvectors as columns.
        W: Eigenvectors as columns.
        kind: One of ``l2, l1, ce, bce``.
        weights: Non-negative weights of the columns; pair (i, j) weighs ``su_i sv_j``.

    Raises:
        ValueError: For another kind, or shapes that differ.

    Example:
        >>> eigenbasis_dissimilarity(torch.eye(3), -torch.eye(3))
        0.0
    """
    if kind not in DISSIMILARITIES:
        raise ValueError(f"Unknown kind {kind!r}; choose one of {', '.join(DISSIMILARITIES)}.")
    U, W = _as_columns(U), _as_columns(W)
    if U.shape != W.shape:
        raise ValueError(
            f"The bases have shapes {tuple(U.shape)} and {tuple(W.shape)}; they must agree, "
            "since column i is compared with column i."
        )
    cosines = (U.T @ W).abs()
    delta = torch.eye(*cosines.shape, dtype=cosines.dtype, device=cosines.device)
    if kind in ("l1", "l2"):
        terms = (delta - cosines).abs() ** (2 if kind == "l2" else 1)
    else:
        clamped = cosines.clamp(0, 1)
        if kind == "bce":
            terms = torch.nn.functional.binary_cross_entropy(clamped, delta, reduction="none")
        else:
            terms = -delta * cosines.log_softmax(1)
    if weights is not None:
        terms = terms * weights[0][:, None] * weights[1][None, :]
    return float(terms.mean())


def _as_columns(basis: Tensor) -> Tensor:
    """Columns in float64, in which all types can be compared.

    Raises:
        ValueError: If they are no real columns, or not finite.
    """
    basis = torch.as_tensor(basis)
    if basis.ndim != 2 or basis.is_complex() or not bool(basis.isfinite().all()):
        raise ValueError(
            f"A basis has shape {tuple(basis.shape)} and type {basis.dtype}; pass real, finite columns."
        )
    return basis.double()


def _orthonormal(basis: Tensor) -> Tensor:
    if basis.shape[1] == 0:
        return basis
    gram = basis.T @ basis
    deviation = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max()
    if deviation <= ORTHONORMAL_TOLERANCE:
        return basis
    warnings.warn(
        f"Columns are not orthonormal (deviation {float(deviation):.2g}); "
        "using an orthonormal basis of their span.",
        stacklevel=3,
    )
    U, sigma, _ = thin_svd(basis)  # columns may depend on each other
    spanned: Tensor = U[:, sigma > max(basis.shape) * torch.finfo(basis.dtype).eps * sigma[0]]
    return spanned
