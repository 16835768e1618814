"""Metrics of spectra under the names of the original logs; every formula is in its own line.

Eigenvalue metrics never modify their inputs. ``h`` is the learning rate, w the eigenvalues of the Hessian,
``(1 - h w)^2`` the local growth factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chaos.exponents import Spectrum
from chaos.o2grad import Eigenpairs, Hessian

_MAX_SPARSITY_ROWS = 512


def hessian_metrics(pairs: Eigenpairs, h: float) -> dict[str, float]:
    """``eigvals/hessian:*`` and ``eigvals/chaos:*``; statistics are over all n eigenvalues."""
    w, n = pairs.values, pairs.n
    mean = float(w.sum()) / n
    growth = (1 - h * w).square()
    largest = float(growth.max()) if len(w) else 1.0
    smallest = float(growth.min()) if len(w) else 1.0
    chaotic = int(pairs.chaotic(h).sum())
    return {
        "eigvals/hessian:max_eig": float(w.max()) if len(w) else 0.0,
        "eigvals/hessian:min_eig": float(w.min()) if len(w) else 0.0,
        "eigvals/hessian:pos_eigs_cnt": int(pairs.positive().sum()),
        "eigvals/hessian:neg_eigs_cnt": int(pairs.negative().sum()),
        "eigvals/hessian:zero_eigs_cnt": pairs.num_zero,
        "eigvals/hessian:nnz_eigs": len(w),
        "eigvals/hessian:pos_chaotic_eigs_cnt": int((w > 2 / h).sum()),
        "eigvals/hessian:eigs_mean": mean,
        "eigvals/hessian:eigs_std": max(float(w.square().sum()) / n - mean**2, 0.0) ** 0.5,
        "eigvals/chaos:max_exp_eig": max(largest, 1.0) if pairs.num_zero else largest,
        "eigvals/chaos:min_exp_eig": min(smallest, 1.0) if pairs.num_zero else smallest,
        "eigvals/chaos:chaotic_cnt": chaotic,
        "eigvals/chaos:edge_chaotic_cnt": pairs.num_zero,
        "eigvals/chaos:non_chaotic_cnt": len(w) - chaotic,
    }


def gradient_metrics(
    hessian: Hessian, pairs: Eigenpairs, g: Tensor, previous: Tensor | None
) -> dict[str, float]:
    """Curvature along the gradient, overlaps with extreme directions, sparsity of the Hessian."""
    norm = float(g.square().sum())
    step = -(-hessian.n // _MAX_SPARSITY_ROWS)
    metrics = {"hessian:sparsity": float((hessian.rows(slice(0, None, step)) == 0).double().mean())}
    if norm > 0:
        metrics["hessian:curvature_along_gradient"] = float(g @ hessian.matvec(g)) / norm
        if len(pairs.values):
            cosines = pairs.coefficients(g).abs() / norm**0.5
            metrics["eigvecs/grad-hessian_max:cos"] = float(cosines[-1])
            metrics["eigvecs/grad-hessian_min:cos"] = float(cosines[0])
    if previous is not None:
        metrics["grad_old-grad:overlap"] = float(torch.cosine_similarity(previous, g, dim=0))
    return metrics


def lyapunov_metrics(spectrum: Spectrum) -> dict[str, float]:
    """``eigvals/lyapunov:*``: growth factors per step are exp(2 lambda)."""
    exponents = spectrum.exponents
    return {
        "eigvals/lyapunov:max_exp_eig": float((2 * exponents[-1]).exp()),
        "eigvals/lyapunov:min_exp_eig": float((2 * exponents[0]).exp()),
        "eigvals/lyapunov:max_exponent": float(exponents[-1]),
        "eigvals/lyapunov:chaotic_cnt": spectrum.chaotic(),
        "eigvals/lyapunov:non_chaotic_cnt": spectrum.contracting(),
        "eigvals/lyapunov:edge_chaotic_cnt": spectrum.edge(),
        "eigvals/lyapunov:unresolved_cnt": spectrum.num_unresolved,
    }


def signal_to_noise(window: Tensor) -> float:
    """``|g mean|^2 / mean |g - mean|^2`` over the rows of a window of gradients."""
    mean = window.mean(0)
    noise = float((window - mean).square().sum(1).mean())
    return float(mean.square().sum()) / noise if noise > 0 else float("inf")
