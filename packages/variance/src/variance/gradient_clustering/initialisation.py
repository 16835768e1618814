"""Where the first centres come from."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from variance.errors import ConfigError
from variance.gradient_clustering.centres import Centres, ClusteringOptions, RunningSums
from variance.per_example import quantities
from variance.per_example.capturing import Capture

CaptureAt = Callable[[Int[Tensor, "n"]], Capture]
"""Captures the examples with the given indices, weight layers only."""
Initialisation = Literal["data", "kmeans++", "uniform"]


def initial_centres(
    init: Initialisation | Centres | Int[Tensor, "k"] | list[int],
    capture_at: CaptureAt,
    num_examples: int,
    num_clusters: int,
    options: ClusteringOptions,
    generator: np.random.Generator,
) -> Centres:
    """Return the first centres.

    Args:
        init: Ready centres; indices of K examples; "data" (K random examples); "kmeans++" (spread out, exact
            distances on a random subset of at most max(1024, 4 K) examples); "uniform" (uniform [0, 1)/(i +
            o) per factor, whatever the scale of the data, as the original does).
        capture_at: Captures examples by index.
        num_examples: Population size.
        num_clusters: K.
        options: Form of the centres.
        generator: Random source.

    Raises:
        ConfigError: Unknown name, or centres of another K.
    """
    if isinstance(init, Centres):
        if len(init) != num_clusters:
            raise ConfigError(f"init holds {len(init)} centres, num_clusters is {num_clusters}.")
        return init
    if isinstance(init, str):
        if init == "uniform":
            return _uniform(capture_at(torch.tensor([0])), num_clusters, options, generator)
        if init == "data":
            indices = torch.from_numpy(generator.choice(num_examples, num_clusters, replace=False))
        elif init == "kmeans++":
            subset = generator.permutation(num_examples)[: max(1024, 4 * num_clusters)]
            chosen = spread_out(
                quantities.gram(capture_at(torch.from_numpy(subset))), num_clusters, generator
            )
            indices = torch.from_numpy(subset[chosen])
        else:
            raise ConfigError(f"init is '{init}'; allowed are data, kmeans++, uniform, K indices or Centres.")
    else:
        indices = torch.as_tensor(init).long()
        fits = indices.shape == (num_clusters,) and len(indices.unique()) == num_clusters
        if not fits or int(indices.min()) < 0 or int(indices.max()) >= num_examples:
            raise ConfigError(
                f"init needs {num_clusters} different indices in 0..{num_examples - 1}, got "
                f"{indices.tolist()[:8]}."
            )
    sums = RunningSums(num_clusters, replace(options, global_mean=0.0))
    sums.add(capture_at(indices), torch.arange(num_clusters))
    return sums.means(torch.ones(num_clusters, dtype=torch.long))


def spread_out(gram: Float[Tensor, "n n"], count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose `count` points by k-means++ (Arthur and Vassilvitskii 2007) from their Gram matrix.

    Where fewer than `count` points are distinct, the rest are drawn uniformly from those not yet chosen.
    """
    matrix = gram.double().cpu().numpy()
    norms = matrix.diagonal()
    chosen = [int(generator.integers(len(matrix)))]
    nearest = np.full(len(matrix), np.inf)
    for _ in range(count - 1):
        last = chosen[-1]
        nearest = np.minimum(nearest, np.maximum(norms - 2 * matrix[last] + norms[last], 0))
        nearest[chosen] = 0
        free = np.setdiff1d(np.arange(len(matrix)), chosen)
        total = nearest.sum()
        chosen.append(
            int(generator.choice(len(matrix), p=nearest / total) if total > 0 else generator.choice(free))
        )
    return np.array(chosen)


def _uniform(example: Capture, k: int, options: ClusteringOptions, generator: np.random.Generator) -> Centres:
    if options.form != "product":
        raise ConfigError("init='uniform' needs form='product'.")
    centres = Centres()
    like = example.losses
    for name, layer in options.select(example).items():
        o, i = layer.weight_shape
        i += bool(options.include_bias and layer.parameter("bias"))
        centres.inputs[name] = torch.from_numpy(generator.random((k, i)) / (i + o)).to(like)
        centres.outputs[name] = torch.from_numpy(generator.random((k, o)) / (i + o)).to(like)
    return centres
