"""Gradient clustering over a whole population: one pass per iteration.

The assignment of a mini-batch is final once made, so the next centres are accumulated in the same pass; only
members of a split cluster are visited again.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from variance.errors import ConfigError, require_count, require_word
from variance.gradient_clustering.centres import (
    Centres,
    ClusteringOptions,
    RunningSums,
    factor_power,
    squared_distances,
)
from variance.gradient_clustering.initialisation import CaptureAt, Initialisation, initial_centres
from variance.losses import LossFunction, require_equally_many, require_finite, take
from variance.per_example.capturing import Capture, capture
from variance.randomness import Seed, generator_of
from variance.state import Stateful

Weighting = Literal["none", "sequential", "frozen"]
PASS_EXAMPLES = 128
"""Examples per pass through the network where chunks are smaller; distances do not depend on the weights."""
WIDE_PASS_EXAMPLES = 2048
"""The same where all layers have one position, so that nothing grows but activations."""


@dataclass(frozen=True, repr=False)
class Clustering:
    """Result of `cluster`.

    Attributes:
        assignments: Cluster of every example after each iteration.
        distortions: Summed distance at assignment time; with `sequential` weights, summed weighted distance.
        centres: Centres after the last iteration.
        num_splits: Clusters re-filled because they fell below `min_size`.
    """

    assignments: Int[Tensor, "iterations n"]
    distortions: Float[Tensor, "iterations"]
    centres: Centres
    num_splits: int = 0

    @property
    def assignment(self) -> Int[Tensor, "n"]:
        """Assignment of the last iteration."""
        return self.assignments[-1]

    @property
    def sizes(self) -> Int[Tensor, "k"]:
        """Cluster sizes of the last iteration."""
        return torch.bincount(self.assignment, minlength=len(self.centres))

    def __repr__(self) -> str:
        few, many = self.sizes.aminmax()
        first, last = self.distortions[[0, -1]].tolist()
        return (
            f"Clustering({len(self.assignment)} examples in {len(self.centres)} clusters of {few} to {many}, "
            f"distortion {first:.4g} to {last:.4g}, iterations {len(self.assignments)}, "
            f"splits {self.num_splits})"
        )


def cluster(
    model: nn.Module,
    loss: LossFunction,
    x: Any,
    y: Any,
    num_clusters: int,
    *,
    init: Initialisation | Centres | Int[Tensor, "k"] | list[int] = "data",
    weighting: Weighting = "sequential",
    iterations: int = 3,
    options: ClusteringOptions | None = None,
    seed: Seed = 0,
) -> Clustering:
    """Cluster the examples of a data set by their gradients.

    Args:
        model: Any module with Linear or Conv layers.
        loss: Loss, per example or reducing.
        x: Inputs, examples first: a tensor, a tuple of arguments or a mapping of keywords.
        y: Targets, likewise, or None.
        num_clusters: K, between 1 and the number of examples.
        init: First centres, see `initial_centres`.
        weighting: Factor w_k of the distance. `none`: 1. `sequential`: 1 + examples assigned to k so far in
            this iteration, fixed within a chunk; balances itself and is what stratified sampling wants.
            `frozen`: sizes of the previous iteration; unstable (clusters empty out and swap), for study only.
        iterations: Passes over the data.
        options: What is clustered, in which order, and how centres are represented.
        seed: Seed of initialisation, order and splits.

    Raises:
        ConfigError: Impossible options.
        NonFiniteGradient: A loss or distance is NaN or infinite; nothing is clustered.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> x, y = torch.tensor([[1.0], [1.1], [-1.0], [-1.1]]), torch.zeros(4).long()
        >>> found = cluster(model, nn.functional.cross_entropy, x, y, 2, init=[0, 2])
        >>> found.assignment.tolist()
        [0, 0, 1, 1]
    """
    batch = BatchClustering(num_clusters, options, weighting=weighting, seed=seed)
    num_examples = require_equally_many(x, y)

    def capture_at(indices: Tensor) -> Capture:
        return capture(model, loss, *take((x, y), indices), weights_only=True, indices=indices)

    with torch.inference_mode(False):
        return batch.fit(capture_at, num_examples, iterations, init)


class BatchClustering(Stateful):
    """The clustering loop behind `cluster` and the clustered estimator; keeps centres between calls.

    Args:
        num_clusters: K.
        options: What is clustered.
        weighting: See `cluster`.
        seed: Seed or generator.
    """

    STATE = ("generator", "centres")
    KINDS = (("centres", Centres),)

    def __init__(
        self,
        num_clusters: int,
        options: ClusteringOptions | None = None,
        *,
        weighting: Weighting = "sequential",
        seed: Seed = 0,
    ) -> None:
        require_count("num_clusters", num_clusters)
        require_word("weighting", weighting, get_args(Weighting))
        self.num_clusters, self.options, self.weighting = (
            num_clusters,
            options or ClusteringOptions(),
            weighting,
        )
        self.min_size, self.chunk = self.options.min_size, self.options.chunk
        self.generator = generator_of(seed)
        self.centres: Centres | None = None

    def fit(
        self,
        capture_at: CaptureAt,
        num_examples: int,
        iterations: int,
        init: Initialisation | Centres | Int[Tensor, "k"] | list[int] = "data",
    ) -> Clustering:
        """Run `iterations` passes from `init` (or from the previous centres where `init` is "data").

        Raises:
            ConfigError: Fewer examples than clusters, or no iteration.
        """
        if num_examples < 1:
            raise ConfigError("the data set is empty; there is nothing to cluster.")
        if self.num_clusters > num_examples:
            raise ConfigError(
                f"num_clusters {self.num_clusters} exceeds the {num_examples} examples; use fewer clusters."
            )
        require_count("iterations", iterations)
        if self.centres is None or init != "data":
            self.centres = initial_centres(
                init, capture_at, num_examples, self.num_clusters, self.options, self.generator
            )
        scales = self._scales(capture_at, num_examples)
        weights = torch.ones(self.num_clusters)
        assignments, distortions, splits = [], [], 0
        for _ in range(iterations):
            order = (
                self.generator.permutation(num_examples) if self.options.shuffle else np.arange(num_examples)
            )
            assignment, distortion, sums = self._assign(capture_at, torch.from_numpy(order), weights, scales)
            splits += self._split(capture_at, assignment, distortion, sums)
            sizes = torch.bincount(assignment, minlength=self.num_clusters)
            self.centres = sums.means(sizes)
            if self.weighting == "frozen":
                weights = sizes.clamp_min(1).double()
            assignments.append(assignment)
            distortions.append(distortion.sum())
        return Clustering(torch.stack(assignments), torch.stack(distortions), self.centres, splits)

    def assign(self, capture_at: CaptureAt, num_examples: int) -> Int[Tensor, "n"]:
        """Assign every example to its nearest centre, unweighted, without changing anything."""
        assert self.centres is not None
        scales = self._scales(capture_at, num_examples)
        found = [
            squared_distances(capture_at(indices), self.centres, self.options, scales).argmin(1)
            for indices in torch.arange(num_examples).split(self.chunk)
        ]
        return torch.cat(found)

    def _scales(self, capture_at: CaptureAt, num_examples: int) -> dict[str, tuple[Tensor, Tensor]] | None:
        if not self.options.whiten:
            return None
        total: dict[str, tuple[Tensor, Tensor]] = {}
        for indices in torch.arange(num_examples).split(self.chunk):
            for name, (a, b) in factor_power(capture_at(indices), self.options).items():
                total[name] = (total[name][0] + a, total[name][1] + b) if name in total else (a, b)
        scales = {}
        for name, powers in total.items():
            roots = [(power / num_examples).sqrt() for power in powers]
            scales[name] = (
                torch.where(roots[0] > 0, roots[0], 1.0),
                torch.where(roots[1] > 0, roots[1], 1.0),
            )
        return scales

    def _assign(
        self,
        capture_at: CaptureAt,
        order: Int[Tensor, "n"],
        weights: Float[Tensor, "k"],
        scales: dict[str, tuple[Tensor, Tensor]] | None,
    ) -> tuple[Int[Tensor, "n"], Float[Tensor, "k"], RunningSums]:
        """Assign all examples; return ids, distortion by cluster and the sums of the new centres."""
        assert self.centres is not None
        assignment = torch.empty_like(order)
        distortion = torch.zeros(self.num_clusters, dtype=torch.float64)
        counts = torch.zeros(self.num_clusters, dtype=torch.long)
        sums = RunningSums(self.num_clusters, self.options)
        size, ahead = PASS_EXAMPLES, order
        while len(ahead):
            indices, ahead = ahead.tensor_split((self.chunk * max(1, size // self.chunk),))
            found = capture_at(indices)
            if all(layer.num_positions == 1 for layer in self.options.select(found).values()):
                size = WIDE_PASS_EXAMPLES
            distances = squared_distances(found, self.centres, self.options, scales).cpu()
            require_finite(distances, "the distance to the centres", indices)
            if self.weighting == "sequential":
                ids = _balanced(distances, counts, self.chunk, 1 + self.options.size_regularisation)
            else:
                ids = (distances * weights.to(distances.dtype)).argmin(1)
            assignment[indices] = ids
            distortion.index_add_(0, ids, distances.gather(1, ids.unsqueeze(1)).squeeze(1).double())
            sums.add(found, ids.to(found.losses.device))
        return assignment, distortion, sums

    def _split(self, capture_at: CaptureAt, assignment: Tensor, distortion: Tensor, sums: RunningSums) -> int:
        """Refill the smallest cluster from the worst when it is below `min_size`; change the arguments."""
        sizes = torch.bincount(assignment, minlength=self.num_clusters)
        smallest = int(sizes.argmin())
        eligible = (sizes >= max(self.min_size, 2)) & (torch.arange(self.num_clusters) != smallest)
        if int(sizes[smallest]) >= self.min_size or not bool(eligible.any()):
            return 0
        worst = int(torch.where(eligible, distortion, -1.0).argmax())
        members = (assignment == worst).nonzero().flatten()
        moved = members[torch.from_numpy(self.generator.permutation(len(members))[: len(members) // 2])]
        for indices in moved.split(self.chunk):
            found = capture_at(indices)
            sums.add(found, torch.full_like(indices, worst), sign=-1.0)
            sums.add(found, torch.full_like(indices, smallest))
        assignment[moved] = smallest
        return 1


def _balanced(
    distances: Float[Tensor, "n k"], counts: Int[Tensor, "k"], chunk: int, prior: float
) -> Int[Tensor, "n"]:
    """Assign chunk by chunk with weights prior + counts; weigh `distances` and advance `counts` in place."""
    chosen = []
    for part in distances.split(chunk):
        part *= counts + prior
        chosen.append(part.argmin(1))
        counts += torch.bincount(chosen[-1], minlength=len(counts))
    return torch.cat(chosen)
