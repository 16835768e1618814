"""Exact clustering with full-rank centres: single moves that lower the size-weighted objective.

objective = sum_k N_k sum_{i in k} ||g_i - mu_k||^2 = sum_k (N_k Q_k - ||s_k||^2), with Q_k = sum ||g_i||^2
and s_k = sum g_i over members. Moving one example changes two terms in closed form, so the objective never
increases. Both back ends need inner products <g_i, s_k> only: of materialised gradients, or of a Gram matrix.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from variance.errors import ConfigError, NonFiniteGradient, require_count, require_number
from variance.sampling.stratified import check_assignment

RELATIVE_GAIN = 1e-12
"""A move must gain more than this share of sum_k N_k Q_k, so that rounding never moves anything."""


@dataclass(frozen=True, repr=False)
class ExactMoves:
    """Assignments and objectives, the start first and then after each sweep."""

    assignments: Int[Tensor, "sweeps_plus_1 n"]
    objectives: Float[Tensor, "sweeps_plus_1"]

    def __repr__(self) -> str:
        first, last = self.objectives[[0, -1]].tolist()
        examples, sweeps = self.assignments.shape[1], len(self.assignments) - 1
        return f"ExactMoves({examples} examples, objective {first:.4g} to {last:.4g}, sweeps {sweeps})"


class _Clusters:
    """Sizes N_k, energies Q_k and squared sums ||s_k||^2, updated in closed form."""

    def __init__(self, norms: np.ndarray, ids: np.ndarray, num_clusters: int, inner: np.ndarray) -> None:
        self.sizes = np.bincount(ids, minlength=num_clusters).astype(float)
        self.energies = np.bincount(ids, weights=norms, minlength=num_clusters)
        self.squared_sums = np.bincount(ids, weights=inner, minlength=num_clusters)

    @property
    def gross(self) -> float:
        return float((self.sizes * self.energies).sum())

    @property
    def objective(self) -> float:
        return float((self.sizes * self.energies - self.squared_sums).sum())

    def best_move(self, norm: float, inner: np.ndarray, own: int) -> tuple[int, float]:
        """Return the best cluster and the change of the objective; `inner` holds <g_i, s_k>."""
        terms = self.sizes * self.energies - self.squared_sums
        with_it = (self.sizes + 1) * (self.energies + norm) - (self.squared_sums + 2 * inner + norm)
        without = (self.sizes[own] - 1) * (self.energies[own] - norm) - (
            self.squared_sums[own] - 2 * inner[own] + norm
        )
        change = with_it - terms + (without - terms[own])
        change[own] = 0.0
        best = int(change.argmin())
        return best, float(change[best])

    def move(self, norm: float, inner: np.ndarray, old: int, new: int) -> None:
        self.squared_sums[old] += norm - 2 * inner[old]
        self.squared_sums[new] += norm + 2 * inner[new]
        self.sizes[old] -= 1
        self.sizes[new] += 1
        self.energies[old] -= norm
        self.energies[new] += norm


def exact_moves(
    per_example_gradients: Float[Tensor, "n p"],
    assignment: Int[Tensor, "n"],
    sweeps: int,
    *,
    num_clusters: int | None = None,
) -> ExactMoves:
    """Improve a clustering by single moves in index order, on materialised gradients.

    Args:
        per_example_gradients: Gradient of every example.
        assignment: Start.
        sweeps: Passes over all examples.
        num_clusters: K; the largest id plus one by default.

    Returns:
        Assignments and objectives; ties go to the lowest cluster id.

    Raises:
        ValueError: The assignment does not fit.
        NonFiniteGradient: A gradient is NaN or infinite.

    Example:
        >>> g = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> exact_moves(g, torch.tensor([0, 1, 0, 1]), sweeps=2).assignments[-1]
        tensor([0, 0, 1, 1])
    """
    g = torch.as_tensor(per_example_gradients).detach().cpu().double().numpy()
    ids, k = _start(assignment, len(g), num_clusters)
    sums = np.zeros((k, g.shape[1]))
    np.add.at(sums, ids, g)
    norms = np.einsum("np,np->n", g, g)
    _require_finite(norms)

    def inner(i: int) -> Any:
        return sums @ g[i]

    def moved(i: int, old: int, new: int) -> None:
        sums[old] -= g[i]
        sums[new] += g[i]

    return _sweep(norms, ids, k, sweeps, np.einsum("np,np->n", g, sums[ids]), inner, moved)


def exact_moves_gram(
    gram: Float[Tensor, "n n"],
    assignment: Int[Tensor, "n"],
    sweeps: int,
    *,
    num_clusters: int | None = None,
    max_bytes: int = 2 * 2**30,
) -> ExactMoves:
    """Improve a clustering as `exact_moves` does, from the Gram matrix of the gradients alone.

    Args:
        gram: Inner products, for example from `variance.per_example.gram`; no (n, p) matrix is ever formed.
        assignment: Start.
        sweeps: Passes over all examples.
        num_clusters: K; the largest id plus one by default.
        max_bytes: Refuse matrices larger than this.

    Raises:
        ConfigError: The matrix exceeds `max_bytes`.
    """
    require_gram_fits(len(gram), max_bytes)
    if gram.ndim != 2 or len(gram) != gram.shape[1]:
        raise ConfigError(f"gram has shape {tuple(gram.shape)}; pass inner products of all pairs.")
    inner_products = torch.as_tensor(gram).detach().cpu().double()
    matrix, norms = inner_products.numpy(), inner_products.diagonal().numpy().copy()
    _require_finite(norms)
    _require_finite(inner_products.sum(1).numpy())
    ids, k = _start(assignment, len(matrix), num_clusters)
    products = np.zeros((len(matrix), k))  # <g_i, s_k>
    for cluster in range(k):
        products[:, cluster] = matrix[:, ids == cluster].sum(1)

    def inner(i: int) -> Any:
        return products[i]

    def moved(i: int, old: int, new: int) -> None:
        products[:, old] -= matrix[:, i]
        products[:, new] += matrix[:, i]

    return _sweep(norms, ids, k, sweeps, products[np.arange(len(ids)), ids], inner, moved)


def require_gram_fits(num_examples: int, max_bytes: int) -> None:
    """Refuse a Gram matrix that would not fit.

    Raises:
        ConfigError: 4 N^2 bytes (float32) exceed `max_bytes`.
    """
    require_number("max_bytes", max_bytes, 0, math.inf)
    needed = 4 * num_examples**2
    if needed > max_bytes:
        raise ConfigError(
            f"the Gram matrix of N={num_examples} examples needs {needed} bytes, above the limit of "
            f"{max_bytes}. Cluster a random subset exactly and assign the rest to the nearest centre "
            "(cluster_subset), or raise max_bytes."
        )


def _start(assignment: Tensor, num_examples: int, num_clusters: int | None) -> tuple[np.ndarray, int]:
    ids = check_assignment(assignment, num_clusters, num_examples).cpu().numpy().copy()
    return ids, num_clusters or int(ids.max()) + 1


def _require_finite(norms: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise NonFiniteGradient(
            f"gradients of {len(bad)} examples are NaN or infinite (examples {bad[:8].tolist()}); remove "
            "them."
        )


def _sweep(
    norms: np.ndarray,
    ids: np.ndarray,
    k: int,
    sweeps: int,
    own_inner: np.ndarray,
    inner: Callable[[int], Any],
    moved: Callable[[int, int, int], None],
) -> ExactMoves:
    require_count("sweeps", sweeps, 0)
    clusters = _Clusters(norms, ids, k, own_inner)
    assignments, objectives = [ids.copy()], [clusters.objective]
    for _ in range(sweeps):
        for i, norm in enumerate(norms):
            products = inner(i)
            new, change = clusters.best_move(float(norm), products, int(ids[i]))
            if change < -RELATIVE_GAIN * clusters.gross:
                clusters.move(float(norm), products.copy(), int(ids[i]), new)
                moved(i, int(ids[i]), new)
                ids[i] = new
        assignments.append(ids.copy())
        objectives.append(clusters.objective)
    return ExactMoves(torch.from_numpy(np.stack(assignments)), torch.tensor(objectives, dtype=torch.float64))
