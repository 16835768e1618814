"""Gallery: gradient clusters of logistic regression on four blobs in the plane.

The data are symmetric in sign: an example of one class on the left and one of the other class on the right
have the *same* gradient b a^T, while their factors a and b cancel. Centres that are products of mean factors
are therefore close to zero here, all distances alike, and clusters no better than random ones; centres that
are mean gradients find the structure. Both are shown.
"""

import itertools
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gdyn_common.seeding import generator, named_seed
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance import per_example
from variance.gradient_clustering import ClusteringOptions, cluster
from variance.gradient_clustering.centres import CentreForm
from variance.losses import cross_entropy
from variance.paper.compute import ComputeOptions
from variance.paper.problems import four_blobs
from variance.sampling import stratified_variance

FORMS: tuple[CentreForm, ...] = ("mean", "product")


@dataclass
class PlaneConfig(ComputeOptions):
    """Gradient clusters of logistic regression in the plane.

    Attributes:
        points_per_blob: Examples per blob.
        separation: Half the distance between blob centres.
        noise_labels: Labels flipped at random.
        num_steps: Training steps before clustering.
        clusters: K.
    """

    points_per_blob: int = 60
    separation: float = 1.0
    noise_labels: int = 12
    num_steps: int = 200
    learning_rate: float = 0.1
    clusters: int = 4
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


def compute(config: PlaneConfig, run: Run) -> Result:
    """Train, cluster gradients, and compare the stratified variance with that of uniform sampling."""
    pieces = [run.piece(f"seed={seed}", partial(_clusters, config, seed)) for seed in config.seeds]
    names = {"ratio|mean": "stratified_over_uniform", "ratio|product": "product_over_uniform"}
    names |= {"ratio|chance": "chance_over_uniform"}
    names |= {name: name for name in ("flipped_apart", "chosen_apart")}
    measurements = {ours: [float(piece[key]) for piece in pieces] for key, ours in names.items()}
    return Result(measurements, pieces[0])


def _clusters(config: PlaneConfig, seed: int) -> dict[str, np.ndarray]:
    x, y = four_blobs(config.points_per_blob, separation=config.separation, seed=named_seed(seed, "points"))
    flipped = torch.from_numpy(generator(seed, "flips").permutation(len(x))[: config.noise_labels])
    y[flipped] = 1 - y[flipped]
    x, y = config.tensor(x), config.tensor(y)
    is_flipped = torch.zeros(len(x), dtype=torch.bool)
    is_flipped[flipped] = True
    model = _trained(config, x, y, seed)
    g = per_example.gradients(model, cross_entropy, x, y)
    norms = g.norm(dim=1)
    found = {
        "points": x.cpu().numpy(),
        "labels": y.cpu().numpy(),
        "flipped": is_flipped.numpy(),
        "gradients": g.cpu().numpy(),
        "flipped_apart": _apart(norms, is_flipped),
        "chosen_apart": _apart(norms, is_flipped[generator(seed, "other flips").permutation(len(x))]),
    }
    spread = float((g - g.mean(0)).square().sum(1).mean())
    for form in FORMS:
        clusters = cluster(
            model,
            cross_entropy,
            x,
            y,
            config.clusters,
            iterations=8,
            init="kmeans++",
            seed=seed,
            options=ClusteringOptions(form=form, chunk=16),
        )
        uniform = spread / int((clusters.sizes > 0).sum())
        found[f"assignment|{form}"] = clusters.assignment.numpy()
        found[f"ratio|{form}"] = np.array(stratified_variance(g, clusters.assignment) / uniform)
        if form == "mean":
            dealt = clusters.assignment[generator(seed, "chance").permutation(len(x))]
            found["ratio|chance"] = np.array(stratified_variance(g, dealt) / uniform)
    return found


def _apart(norms: Tensor, chosen: Tensor) -> np.ndarray:
    """Return the mean norm of the chosen examples in units of that of the others."""
    return np.array(float(norms[chosen].mean() / norms[~chosen].mean()))


def _trained(config: PlaneConfig, x: Tensor, y: Tensor, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "init"))
        model = config.network(torch.nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    for _ in range(config.num_steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    return model


def plot(result: Result) -> Figure:
    """Draw examples in input space and in the plane of their two leading gradient components."""
    a = result.arrays
    figure, axes = new_figure(2, 2)
    axis_names = {
        "inputs": ("first input", "second input"),
        "gradients": ("first principal direction", "second"),
    }
    gradients = a["gradients"] - a["gradients"].mean(0)
    plane = gradients @ np.linalg.svd(gradients, full_matrices=False)[2][:2].T
    for row, form in zip(axes, FORMS, strict=True):
        ids = a[f"assignment|{form}"]
        for ax, points, space in zip(row, (a["points"], plane), ("inputs", "gradients"), strict=True):
            for k, label in itertools.product(np.unique(ids), (0, 1)):
                chosen = (ids == k) & (a["labels"] == label)
                ax.scatter(*points[chosen].T, marker="o^"[label], s=14, color=f"C{k}")
            ax.scatter(*points[a["flipped"]].T, facecolors="none", edgecolors="k", s=50)
            ax.set(
                title=f"{space.capitalize()}, centres: {form}",
                xlabel=axis_names[space][0],
                ylabel=axis_names[space][1],
            )
        row[1].annotate(
            f"variance left: {float(a[f'ratio|{form}']):.2f}",
            (0.98, 0.02),
            xycoords="axes fraction",
            ha="right",
        )
    figure.suptitle("Colour: cluster; shape: label; circle: flipped label", x=0.01, ha="left", fontsize=10)
    return figure
