"""Stratified sampling from clusters: weights, exact variances, allocations and the sampler.

Cluster k holds N_k of N examples; M clusters are not empty. All variances are traces (summed over
coordinates).
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from variance.errors import ConfigError, require_count, require_number, require_word
from variance.losses import require_finite
from variance.randomness import Seed, generator_of
from variance.sampling.index_samplers import Draw
from variance.state import Stateful

Allocation = Literal["equal", "proportional", "neyman"]


def check_assignment(
    assignment: Int[Tensor, "n"], num_clusters: int | None = None, num_examples: int | None = None
) -> Tensor:
    """Return the assignment as int64 after checking ids and length.

    Raises:
        ValueError: Wrong length, empty, negative ids or ids beyond `num_clusters - 1`.
    """
    ids = torch.as_tensor(assignment)
    if ids.ndim != 1 or len(ids) == 0 or ids.is_floating_point() or ids.is_complex():
        raise ValueError(
            f"assignment has shape {tuple(ids.shape)} and dtype {ids.dtype}; pass one integer per example."
        )
    if num_examples is not None and len(ids) != num_examples:
        raise ValueError(
            f"assignment has {len(ids)} entries for {num_examples} examples; cluster again after the data "
            "changed."
        )
    if num_clusters is not None:
        require_count("num_clusters", num_clusters)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (num_clusters is not None and high >= num_clusters):
        allowed = "0 or more" if num_clusters is None else f"0 to {num_clusters - 1}"
        raise ValueError(f"assignment holds cluster ids from {low} to {high}; allowed are {allowed}.")
    return ids.long()


def cluster_sizes(assignment: Int[Tensor, "n"]) -> Int[Tensor, "k"]:
    """Return N_k for k = 0 .. largest id."""
    return torch.bincount(check_assignment(assignment))


def stratified_weights(assignment: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the loss weight M N_k / N of every example, when each non-empty cluster is drawn equally often.

    Example:
        >>> stratified_weights(torch.tensor([0, 0, 0, 2]))
        tensor([1.5000, 1.5000, 1.5000, 0.5000], dtype=torch.float64)
    """
    ids = check_assignment(assignment)
    sizes = cluster_sizes(ids).double()
    return (sizes > 0).sum() * sizes[ids] / len(ids)


def cluster_variances(
    per_example_gradients: Float[Tensor, "n p"], assignment: Int[Tensor, "n"]
) -> Float[Tensor, "k"]:
    """Return S_k^2, the mean squared distance of members to their mean (0 for one or no member).

    Raises:
        ValueError: Gradients that are no matrix of one row per example.
        NonFiniteGradient: A gradient is NaN or infinite.
    """
    g = torch.as_tensor(per_example_gradients).detach()
    if g.ndim != 2 or g.is_complex():
        raise ValueError(
            f"per_example_gradients has shape {tuple(g.shape)} and dtype {g.dtype}; it must be (examples, "
            "parameters) and real."
        )
    require_finite(g, "the gradient")
    ids = check_assignment(assignment, num_examples=len(g)).to(g.device)
    sizes = cluster_sizes(ids)
    pieces = list(zip(g.split(4096), ids.split(4096), strict=True))
    means = g.new_zeros(len(sizes), g.shape[1], dtype=torch.float64)
    for rows, own in pieces:
        means.index_add_(0, own, rows.double())
    means /= sizes.clamp_min(1).unsqueeze(1)
    distances = torch.cat([(rows - means[own]).square().sum(1) for rows, own in pieces])
    total = distances.new_zeros(len(sizes)).index_add_(0, ids, distances)
    return torch.where(sizes > 1, total / sizes.clamp_min(1), 0.0)


def clustering_objective(per_example_gradients: Float[Tensor, "n p"], assignment: Int[Tensor, "n"]) -> float:
    """Return sum_k N_k sum_{i in k} ||g_i - mu_k||^2, which is N^2 times the one-draw-per-cluster variance.

    Example:
        >>> clustering_objective(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))
        4.0
    """
    sizes = cluster_sizes(torch.as_tensor(assignment))
    return float((sizes.double() ** 2 * cluster_variances(per_example_gradients, assignment).double()).sum())


def stratified_variance(
    per_example_gradients: Float[Tensor, "n p"],
    assignment: Int[Tensor, "n"],
    *,
    draws_per_cluster: int = 1,
    replacement: bool = True,
) -> float:
    """Return the trace of the covariance of the stratified estimate, exactly.

    Args:
        per_example_gradients: Gradient of every example.
        assignment: Cluster of every example.
        draws_per_cluster: Draws n from each non-empty cluster.
        replacement: Without it, n is capped at N_k and each term carries (N_k - n)/(N_k - 1).

    Returns:
        sum_k (N_k/N)^2 S_k^2 / n.

    Raises:
        ConfigError: `draws_per_cluster` below 1.

    Example:
        >>> stratified_variance(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))  # (2/3)^2 * 1
        0.4444444444444444
    """
    require_count("draws_per_cluster", draws_per_cluster)
    sizes = cluster_sizes(torch.as_tensor(assignment)).double()
    spread = cluster_variances(per_example_gradients, assignment).double().cpu()
    terms = (sizes / sizes.sum()) ** 2 * spread
    if replacement:
        return float(terms.sum()) / draws_per_cluster
    draws = sizes.clamp(min=1, max=draws_per_cluster)
    return float((terms / draws * (sizes - draws) / (sizes - 1).clamp_min(1)).sum())


def neyman_fractions(
    per_example_gradients: Float[Tensor, "n p"], assignment: Int[Tensor, "n"]
) -> Float[Tensor, "m"]:
    """Return the optimal share of draws N_k S_k / sum N_k S_k of each non-empty cluster, in id order.

    All shares are equal where every cluster has zero spread.
    """
    sizes = cluster_sizes(torch.as_tensor(assignment)).double()
    scores = (sizes * cluster_variances(per_example_gradients, assignment).double().cpu().sqrt())[sizes > 0]
    return scores / scores.sum() if scores.sum() > 0 else torch.full_like(scores, 1 / len(scores))


def neyman_variance(
    per_example_gradients: Float[Tensor, "n p"], assignment: Int[Tensor, "n"], batch_size: int = 1
) -> float:
    """Return the variance (sum_k N_k S_k / N)^2 / B of the optimal allocation of B draws (Neyman 1934).

    Raises:
        ConfigError: `batch_size` below 1.
    """
    require_count("batch_size", batch_size)
    sizes = cluster_sizes(torch.as_tensor(assignment)).double()
    spread = cluster_variances(per_example_gradients, assignment).double().cpu().sqrt()
    return float((sizes * spread).sum() / sizes.sum()) ** 2 / batch_size


class StratifiedSampler(Stateful):
    """Draw indices cluster by cluster, with weights that keep the estimate unbiased.

    `equal`: rounds, each a random permutation of the non-empty clusters. Other allocations fill a
    batch by systematic sampling with the given shares, then permute its slots. Members are drawn without
    replacement, and reshuffled where fewer are left than a batch takes. A round with too little left for a
    batch is dropped, too, so all batches of one size have the same law. An example of cluster k has weight
    (N_k/N)/share_k, so every slot is unbiased on its own and B need not be a multiple of M.

    Args:
        assignment: Cluster of every example.
        seed: Seed or generator of this sampler.
        allocation: Share of draws per cluster: equal, proportional to N_k, or Neyman's N_k S_k.
        spreads: S_k by cluster id; needed by `neyman`.
        floor: Smallest share of any cluster under `neyman`, as a fraction of 1/M (a cluster that is never
            drawn biases).
        within_cluster: Draw from this cluster only, with weight 1 (a diagnosis; biased).
        robust: `(low, high)` factors of N_k: `low` at N_k = 0, 1 at N/M, `high` at N, linear between
            (biased).
        imbalance: Weight M/N for every example, whatever the size of its cluster (deliberately biased).

    Example:
        >>> sampler = StratifiedSampler(torch.tensor([0, 0, 0, 1]), seed=0)
        >>> draw = sampler.draw(2)  # one of each cluster
        >>> sorted(draw.weights.tolist())
        [0.5, 1.5]
    """

    STATE = ("_generator", "_members", "_sizes", "_cursor", "_pending", "_shares", "_weights")

    def __init__(
        self,
        assignment: Int[Tensor, "n"],
        seed: Seed = 0,
        *,
        allocation: Allocation = "equal",
        spreads: Float[Tensor, "k"] | None = None,
        floor: float = 0.1,
        within_cluster: int | None = None,
        robust: tuple[float, float] | None = None,
        imbalance: bool = False,
    ) -> None:
        require_word("allocation", allocation, get_args(Allocation))
        require_number("floor", floor, 0)
        if within_cluster is not None:
            require_count("within_cluster", within_cluster, 0)
        for factor in robust if robust is not None else ():
            require_number("a factor of robust", factor, 0)
        self._generator = generator_of(seed)
        self._allocation, self._floor = allocation, floor
        self._within, self._robust, self._imbalance = within_cluster, robust, imbalance
        self.set_assignment(assignment, spreads)

    def set_assignment(self, assignment: Int[Tensor, "n"], spreads: Float[Tensor, "k"] | None = None) -> None:
        """Start over with a new clustering; the generator carries on."""
        ids = check_assignment(assignment).cpu().numpy()
        self.assignment = torch.from_numpy(ids)
        sizes = np.bincount(ids)
        if self._within is not None and not (0 <= self._within < len(sizes) and sizes[self._within]):
            raise ConfigError(
                f"within_cluster {self._within} is empty or unknown; clusters are 0 to {len(sizes) - 1}."
            )
        shuffled = self._generator.permutation(len(ids))
        narrow = ids[shuffled].astype(
            np.int16 if len(sizes) < 2**15 else np.int64
        )  # 16 bits take the radix sort
        self._members = shuffled[np.argsort(narrow, kind="stable")]
        self._sizes = sizes
        self._arrange()
        self._cursor = np.zeros(len(sizes), dtype=np.int64)
        self._pending = np.empty(0, dtype=np.int64)
        self._shares = self._shares_of(sizes[self._clusters], spreads)
        self._weights = np.zeros(len(sizes))
        self._weights[self._clusters] = self._cluster_weights()

    def _arrange(self) -> None:
        self.num_examples = len(self._members)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._clusters = np.flatnonzero(self._sizes) if self._within is None else np.array([self._within])

    def _shares_of(self, sizes: np.ndarray, spreads: Tensor | None) -> Any:
        m = len(sizes)
        if self._allocation == "equal":
            return np.full(m, 1 / m)
        if self._allocation == "proportional":
            return sizes / sizes.sum()
        if spreads is None:
            raise ConfigError("allocation 'neyman' needs spreads=S_k by cluster id (see cluster_variances).")
        known = torch.as_tensor(spreads).detach().double().cpu().numpy()
        if known.shape != self._sizes.shape or not (np.isfinite(known) & (known >= 0)).all():
            raise ConfigError(
                f"spreads are {known.tolist()[:8]}; they must be finite, not negative, and one for each of "
                f"the cluster ids 0 to {len(self._sizes) - 1}."
            )
        scores = sizes * known[self._clusters]
        if scores.sum() == 0:
            return np.full(m, 1 / m)
        shares = np.maximum(scores / scores.sum(), self._floor / m)
        if not (shares > 0).all():
            raise ConfigError(
                f"floor {self._floor} leaves clusters without spread undrawn, which biases; raise it."
            )
        return shares / shares.sum()

    def _cluster_weights(self) -> Any:
        sizes = self._sizes[self._clusters].astype(float)
        n, m = self.num_examples, len(sizes)
        if self._within is not None:
            return np.ones(m)
        if self._imbalance:
            return np.full(m, m / n)
        if self._robust is not None:
            low, high = self._robust
            sizes = sizes * np.interp(sizes, [0, n / m, n], [low, 1.0, high])
        return sizes / n / self._shares

    @property
    def weights(self) -> Float[Tensor, "k"]:
        """Loss weight by cluster id; 0 for empty clusters."""
        return torch.from_numpy(self._weights)

    def law(self, count: int) -> tuple[Float[Tensor, "m"], Float[Tensor, "m m"], Float[Tensor, "m"]]:
        """Return the law of the numbers n_k of draws per non-empty cluster in a batch of `count` draws.

        Returns:
            E[n_k]; the covariance of the n_k; and the expected variance of the sum of the draws within
            cluster k in units of S_k^2. Members are drawn without replacement until exhausted: of n = a
            N_k + b draws a full rounds do not vary, and the rest gives b (N_k - b)/(N_k - 1).

        Raises:
            ConfigError: `count` below 1.
        """
        require_count("count", count)
        count = int(count)
        sizes = self._sizes[self._clusters].astype(float)
        m = len(sizes)
        if self._allocation == "equal":
            whole, extra = divmod(count, m)
            share = extra / m
            outcomes = np.array([np.full(m, whole), np.full(m, whole + 1)], dtype=float)
            chances = np.array([1 - share, share])
            covariance = share * (1 - share) * (np.eye(m) * m - 1) / max(m - 1, 1)
        else:  # one random offset decides all numbers, see `_slots`: go through its intervals
            ends = np.cumsum(self._shares) * count
            offsets = np.unique(np.concatenate([[0.0, 1.0], ends - np.floor(ends)]).clip(0, 1))
            chances, middles = np.diff(offsets), (offsets[1:] + offsets[:-1]) / 2
            reached = np.ceil(ends[None, :-1] - middles[:, None]).clip(0, count)
            outcomes = np.diff(np.pad(reached, ((0, 0), (1, 1)), constant_values=(0, count)), axis=1)
            deviations = outcomes - chances @ outcomes
            covariance = (deviations * chances[:, None]).T @ deviations
        rest = outcomes % sizes
        within = chances @ (rest * (sizes - rest) / np.maximum(sizes - 1, 1))
        return torch.from_numpy(chances @ outcomes), torch.from_numpy(covariance), torch.from_numpy(within)

    @property
    def clusters(self) -> Int[Tensor, "m"]:
        """Ids of the clusters that are drawn from."""
        return torch.from_numpy(self._clusters)

    def draw(self, count: int) -> Draw:
        """Draw `count` indices with their weights."""
        require_count("count", count)
        count = int(count)
        slots = self._slots(count)
        order = np.argsort(slots, kind="stable")
        ordered = slots[order]
        used, counts = np.unique(ordered, return_counts=True)
        for k in used[self._cursor[used] + counts > self._sizes[used]]:
            if self._cursor[k]:
                self._reshuffle(int(k))
                self._cursor[k] = 0
        first = np.searchsorted(ordered, ordered)
        position = self._cursor[ordered] + np.arange(count) - first
        sizes = self._sizes[ordered]
        picked = np.empty(count, dtype=np.int64)
        fits = position < sizes
        picked[fits] = self._members[self._starts[ordered[fits]] + position[fits]]
        for slot in np.flatnonzero(~fits):
            k, rest = ordered[slot], position[slot] % sizes[slot]
            if rest == 0:
                self._reshuffle(int(k))
            picked[slot] = self._members[self._starts[k] + rest]
        # A cursor equal to N_k means exhausted; the next draw then reshuffles.
        ahead = self._cursor[used] + counts
        self._cursor[used] = np.where(ahead > self._sizes[used], (ahead - 1) % self._sizes[used] + 1, ahead)
        indices = np.empty(count, dtype=np.int64)
        indices[order] = picked
        return Draw(torch.from_numpy(indices), torch.from_numpy(self._weights[slots]))

    def _slots(self, count: int) -> Any:
        m = len(self._clusters)
        if self._allocation != "equal":
            grid = (self._generator.random() + np.arange(count)) / count
            chosen = np.searchsorted(np.cumsum(self._shares), grid, side="right").clip(max=m - 1)
            return self._generator.permutation(self._clusters[chosen])
        if len(self._pending) < count:
            rounds = [self._generator.permutation(self._clusters) for _ in range(-(-count // m))]
            self._pending = np.concatenate(rounds)
        slots, self._pending = self._pending[:count], self._pending[count:]
        return slots

    def _reshuffle(self, k: int) -> None:
        block = slice(self._starts[k], self._starts[k] + self._sizes[k])
        self._members[block] = self._generator.permutation(self._members[block])

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._arrange()
        ids = np.empty(self.num_examples, dtype=np.int64)
        ids[self._members] = np.repeat(np.arange(len(self._sizes)), self._sizes)
        self.assignment = torch.from_numpy(ids)
