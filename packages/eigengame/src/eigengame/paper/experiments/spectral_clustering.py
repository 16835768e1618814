"""Spectral clustering: bottom vectors of a graph's Laplacian from minibatches of edges, then k-means."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from eigengame.core.solver import initial_vectors
from eigengame.estimators.spectral import embed
from eigengame.laplacian import check_edges, top_value_bound
from eigengame.metrics import clustering_accuracy
from eigengame.paper.config import ComputeOptions, on_device, per_seed
from eigengame.paper.synthetic import block_graph
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import COLOURS, band, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run


@dataclass
class ClusteringConfig(ComputeOptions):
    """Spectral clustering of a graph of blocks from minibatches of edges.

    Attributes:
        blocks: Number of blocks, one more edge between each pair.
        nodes: Nodes per block.
        batches_per_pass: A minibatch holds the edges divided by this.
        rate_factor: Step size times lambda_star.
        num_points: Points of the curve.
        seeds: Seeds of graph, vectors and minibatches.
    """

    blocks: int = 8
    nodes: int = 50
    batches_per_pass: int = 10
    rate_factor: float = 1.0
    num_steps: int = 1000
    num_points: int = 10
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@on_device
def compute(config: ClusteringConfig, run: Run) -> Result:
    """Follow the accuracy of k-means on the rows of the embedding."""
    seeds = run.progress(config.seeds, "graphs")
    accuracy = per_seed(run, "", partial(_accuracies, config), seeds)["accuracy"]
    every = config.num_steps // config.num_points
    return Result(
        {"accuracy": accuracy[:, -1].tolist(), "start_accuracy": accuracy[:, 0].tolist()},
        {"accuracy": accuracy, "steps": every * np.arange(config.num_points + 1)},
    )


def plot(result: Result) -> Figure:
    """Draw the accuracy over the steps."""
    figure, axis = new_figure()
    band(axis, result.arrays["steps"], result.arrays["accuracy"], "", COLOURS[0])
    axis.lines[-1].set_marker("o")
    axis.set(
        title="Nodes that k-means puts into the right block, from vectors found edge by edge",
        xlabel="step",
        ylabel="share of nodes",
        xscale="symlog",
        ylim=(0, 1.05),
    )
    return figure


def _accuracies(config: ClusteringConfig, seed: int) -> dict[str, NDArray]:
    graph, labels = block_graph(generator(seed, "graph"), config.blocks, config.nodes)
    edges, num_nodes = check_edges(graph, len(labels))
    bound = top_value_bound(edges, num_nodes)
    key = jax.random.key(seed)
    V = initial_vectors(key, config.blocks, num_nodes, config.dtype)
    accuracies = [_accuracy(V, labels, config.blocks, seed)]
    for _ in range(config.num_points):
        V, key = embed(
            V,
            jnp.asarray(edges),
            jnp.asarray(bound, config.dtype),
            jnp.asarray(config.rate_factor, config.dtype),
            key,
            config.num_steps // config.num_points,
            max(len(edges) // config.batches_per_pass, 1),
        )
        accuracies.append(_accuracy(V, labels, config.blocks, seed))
    return {"accuracy": np.array(accuracies)}


def _accuracy(V: Float[Array, "k nodes"], labels: NDArray, blocks: int, seed: int) -> float:
    found = KMeans(blocks, n_init=10, random_state=seed).fit_predict(np.asarray(V).T)
    return clustering_accuracy(found, labels)
