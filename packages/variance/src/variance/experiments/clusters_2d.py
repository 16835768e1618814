"""Gallery: gradient clusters of logistic regression on four blobs in the plane."""

from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from gdyn_common.plotting import new_figure
from gdyn_common.records import Result
from gdyn_common.runs import Run
from gdyn_common.seeding import generator, named_seed
from variance import per_example
from variance.config import PlaneConfig
from variance.gradient_clustering import cluster
from variance.losses import cross_entropy
from variance.problems import four_blobs
from variance.sampling import stratified_variance


def compute(config: PlaneConfig, run: Run) -> Result:
    """Train, cluster gradients, and compare the stratified variance with that of uniform sampling."""
    ratios: list[float] = []
    purity: list[float] = []
    arrays: dict[str, np.ndarray] = {}
    for seed in config.seeds:
        piece = run.piece(f"seed={seed}", partial(_clusters, config, seed))
        ratios.append(float(piece["ratio"]))
        purity.append(float(piece["flipped_apart"]))
        arrays = arrays or piece
    return Result({"stratified_over_uniform": ratios, "flipped_apart": purity}, arrays)


def _clusters(config: PlaneConfig, seed: int) -> dict[str, np.ndarray]:
    x, y = four_blobs(config.points_per_blob, separation=config.separation, seed=named_seed(seed, "points"))
    flipped = torch.from_numpy(generator(seed, "flips").permutation(len(x))[: config.noise_labels])
    y[flipped] = 1 - y[flipped]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "init"))
        model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    for _ in range(config.num_steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    found = cluster(
        model, cross_entropy, x, y, config.clusters, iterations=8, init="kmeans++", seed=seed, chunk=16
    )
    g = per_example.gradients(model, cross_entropy, x, y)
    used = int((found.sizes > 0).sum())
    uniform = float((g - g.mean(0)).square().sum(1).mean()) / used
    is_flipped = torch.zeros(len(x), dtype=torch.bool)
    is_flipped[flipped] = True
    own = found.assignment[:, None] == found.assignment[None, :]
    mixed = (own & (is_flipped[:, None] != is_flipped[None, :])).any(1)[is_flipped].float().mean()
    norms = g.norm(dim=1)
    share = norms[is_flipped].mean() / norms[~is_flipped].mean()
    return {
        "points": x.numpy(),
        "labels": y.numpy(),
        "flipped": is_flipped.numpy(),
        "assignment": found.assignment.numpy(),
        "gradients": g.numpy(),
        "ratio": np.array(stratified_variance(g, found.assignment) / uniform),
        "flipped_apart": np.array(float(share)),
        "flipped_mixed": np.array(float(mixed)),
    }


def plot(result: Result) -> Figure:
    """Draw examples in input space and in the plane of their two leading gradient components."""
    a = result.arrays
    figure, axes = new_figure(1, 2)
    gradients = a["gradients"] - a["gradients"].mean(0)
    plane = gradients @ np.linalg.svd(gradients, full_matrices=False)[2][:2].T
    for ax, points, title in zip(
        axes, (a["points"], plane), ("inputs", "gradients (two components)"), strict=True
    ):
        for k in np.unique(a["assignment"]):
            for label, marker in ((0, "o"), (1, "^")):
                chosen = (a["assignment"] == k) & (a["labels"] == label)
                ax.scatter(
                    *points[chosen].T,
                    marker=marker,
                    s=18,
                    color=f"C{k}",
                    label=f"{k}" if label == 0 else None,
                )
        ax.scatter(*points[a["flipped"]].T, facecolors="none", edgecolors="k", s=60, label="flipped label")
        ax.set_title(title)
    axes[0].legend(title="cluster")
    return figure
