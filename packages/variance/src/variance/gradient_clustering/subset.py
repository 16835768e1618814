"""Exact clustering of a random subset, and of everything else by the nearest centre.

For populations whose Gram matrix does not fit: the subset is clustered by exact moves, its mean gradients are
the centres.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from variance.errors import ConfigError, require_count
from variance.gradient_clustering.centres import ClusteringOptions, RunningSums, squared_distances
from variance.gradient_clustering.exact import exact_moves_gram, require_gram_fits
from variance.gradient_clustering.initialisation import spread_out
from variance.losses import LossFunction, require_equally_many, take
from variance.per_example.capturing import Capture, capture
from variance.per_example.quantities import weight_gram
from variance.randomness import Seed, generator_of


@torch.inference_mode(False)
def cluster_subset(
    model: nn.Module,
    loss: LossFunction,
    x: Any,
    y: Any,
    num_clusters: int,
    *,
    subset_size: int,
    sweeps: int = 5,
    chunk: int = 128,
    max_bytes: int = 2 * 2**30,
    seed: Seed = 0,
) -> Int[Tensor, "n"]:
    """Cluster all examples by the weight gradients of a random subset.

    Memory for the subset's Gram matrix, and for one mean gradient per cluster.

    Args:
        model: Any module with Linear or Conv layers.
        loss: Loss, per example or reducing.
        x: Inputs, examples first: a tensor, a tuple of arguments or a mapping of keywords.
        y: Targets, likewise, or None.
        num_clusters: K.
        subset_size: Examples clustered exactly, from K to all of them.
        sweeps: Passes of exact moves over the subset, from a k-means++ start.
        chunk: Examples per pass when the others are assigned.
        max_bytes: Limit of the subset's Gram matrix.
        seed: Seed of the subset and of the start.

    Returns:
        Cluster of every example; within the subset that of the exact moves.

    Raises:
        ConfigError: Impossible sizes, or a subset whose Gram matrix exceeds `max_bytes`.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [1.1], [5.0], [5.1]])
        >>> ids = cluster_subset(model, lambda o, t: (o - t).sum(), x, torch.zeros(4, 1), 2, subset_size=3)
        >>> bool(ids[0] == ids[1] and ids[2] == ids[3] and ids[0] != ids[2])
        True
    """
    num_examples = require_equally_many(x, y)
    require_count("num_clusters", num_clusters)
    require_count("subset_size", subset_size)
    require_count("chunk", chunk)
    if not 1 <= num_clusters <= subset_size <= num_examples:
        raise ConfigError(
            f"num_clusters {num_clusters}, subset_size {subset_size} and the {num_examples} examples must "
            "rise in this order."
        )
    require_gram_fits(subset_size, max_bytes)
    options, generator = ClusteringOptions(form="mean"), generator_of(seed)
    order = torch.from_numpy(generator.permutation(num_examples))
    inside, outside = order[:subset_size].sort().values, order[subset_size:].sort().values

    def capture_at(rows: Tensor) -> Capture:
        return capture(model, loss, *take((x, y), rows), weights_only=True, indices=rows)

    found = capture_at(inside)
    gram = torch.stack([weight_gram(layer) for layer in options.select(found).values()]).sum(0)
    seeds = torch.from_numpy(spread_out(gram, num_clusters, generator))
    start = (gram.diagonal()[seeds] - 2 * gram[:, seeds]).argmin(1)
    ids = exact_moves_gram(gram, start, sweeps, num_clusters=num_clusters).assignments[-1]
    sums = RunningSums(num_clusters, options)
    sums.add(found, ids)
    sizes = torch.bincount(ids, minlength=num_clusters)
    centres = sums.means(sizes)
    assignment = torch.empty(num_examples, dtype=torch.long)
    assignment[inside] = ids
    for rows in outside.split(chunk) if len(outside) else ():
        distances = squared_distances(capture_at(rows), centres, options)
        assignment[rows] = distances.masked_fill(sizes == 0, torch.inf).argmin(1)
    return assignment
