"""Gallery: what the clusters of a trained network's gradients contain, and their two-dimensional map.

A row per cluster, the examples nearest to its centre first. The map is t-SNE (van der Maaten and Hinton 2008)
of the distances between gradients where scikit-learn is installed, else two principal components.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gdyn_common.seeding import named_seed
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.gradient_clustering import BatchClustering, ClusteringOptions
from variance.gradient_clustering.centres import squared_distances
from variance.objective import Point
from variance.paper.checks import require
from variance.paper.trajectory import NetworkConfig, follow, setting_for, trainer_for
from variance.per_example import quantities

SHOWN = 12
"""Examples per cluster in the picture."""


@dataclass
class GalleryConfig(NetworkConfig):
    """Clusters of the gradients of a trained classifier.

    Attributes:
        learning_rate: Learning rate of the training before clustering.
        num_steps: Training steps before clustering.
    """

    dataset: str = "digits"
    model: str = "digits-mlp"
    corrupt_percent: float = 10.0
    learning_rate: float = 0.02
    batch_size: int = 64
    num_steps: int = 400
    clusters: int = 16
    cluster_iterations: int = 5
    seeds: list[int] = field(default_factory=lambda: list(range(10)))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clusters >= 2, f"clusters={self.clusters}: a gallery needs at least 2.")


def compute(config: GalleryConfig, run: Run) -> Result:
    """Train on partly random labels, cluster, and compare the clusters with labels and with corruption."""
    config.note_data(run)
    seeds = run.progress(config.seeds, "seeds")
    pieces = [run.piece(f"seed={seed}", partial(_clusters, config, seed)) for seed in seeds]
    names = ("purity", "chance_purity", "corrupted_share", "chance_corrupted_share", "loss_contrast")
    measurements = {name: [float(piece[name]) for piece in pieces] for name in names}
    for name in ("purity", "another_chance_purity"):
        ratios = [float(piece[name] / piece["chance_purity"]) for piece in pieces]
        measurements[f"{name}_over_chance"] = ratios
    return Result(measurements, pieces[0])


def _clusters(config: GalleryConfig, seed: int) -> dict[str, np.ndarray]:
    setting = setting_for(config, seed, config.learning_rate)
    population, objective = setting.population, setting.objective
    follow(trainer_for(setting), config.num_steps)
    point = Point.of(setting.model).copy()
    everything = population.fetch(torch.arange(len(population)))
    found = objective.capture(point, everything, weights_only=True)
    clustering = BatchClustering(
        config.clusters, seed=named_seed(seed, "clusters"), options=ClusteringOptions(chunk=config.batch_size)
    )
    result = clustering.fit(
        lambda rows: objective.capture(point, population.fetch(rows), weights_only=True),
        len(population),
        config.cluster_iterations,
    )
    ids, labels = result.assignment, everything.targets.cpu()
    losses = found.losses.cpu()
    distances = squared_distances(found, result.centres, clustering.options)
    distances = distances.cpu().gather(1, ids.unsqueeze(1)).squeeze(1)
    members = [(ids == k).nonzero()[:, 0] for k in ids.unique()]
    shown = torch.cat([some[distances[some].argsort()[:SHOWN]] for some in members])
    corrupted = torch.from_numpy(getattr(population, "corrupted", np.zeros(len(population), dtype=bool)))
    source = torch.Generator().manual_seed(seed)
    shuffled, again = (ids[torch.randperm(len(ids), generator=source)] for _ in range(2))
    by_loss = torch.stack([losses[ids == k].mean() for k in ids.unique()])
    return {
        "assignment": ids.numpy(),
        "labels": labels.numpy(),
        "corrupted": corrupted.numpy(),
        "losses": losses.numpy(),
        "shown": shown.numpy(),
        "images": everything.inputs.cpu()[shown].mean(1).numpy(),
        **_map(quantities.gram(found).cpu(), seed),
        "purity": np.array(purity(ids, labels)),
        "chance_purity": np.array(purity(shuffled, labels)),
        "another_chance_purity": np.array(purity(again, labels)),
        "corrupted_share": np.array(_richest(ids, corrupted)),
        "chance_corrupted_share": np.array(_richest(shuffled, corrupted)),
        "loss_contrast": np.array(float(by_loss.max() / by_loss.min().clamp_min(1e-12))),
    }


def purity(assignment: Tensor, labels: Tensor) -> float:
    """Return the share of examples that carry the most frequent label of their cluster.

    Example:
        >>> purity(torch.tensor([0, 0, 0, 1]), torch.tensor([2, 2, 1, 0]))
        0.75
    """
    kept = [torch.bincount(labels[assignment == k]).max() for k in assignment.unique()]
    return float(torch.stack(kept).sum()) / len(labels)


def _richest(assignment: Tensor, marked: Tensor) -> float:
    """Return the largest share of marked examples in any cluster."""
    return max(float(marked[assignment == k].float().mean()) for k in assignment.unique())


def _map(gram: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Return two coordinates per example from inner products of gradients, and whether t-SNE made them."""
    centred = (
        gram.double() - gram.double().mean(0) - gram.double().mean(1, keepdim=True) + gram.double().mean()
    )
    values, vectors = torch.linalg.eigh(centred)
    coordinates = (vectors * values.clamp_min(0).sqrt()).flip(1)[:, :50].numpy()
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        return {"map": coordinates[:, :2], "is_tsne": np.array(False)}
    scale = np.sqrt(np.square(coordinates).sum(1).mean()) or 1.0
    embedded = TSNE(2, perplexity=min(30.0, (len(gram) - 1) / 3), init="pca", random_state=seed % 2**32)
    found = np.asarray(embedded.fit_transform(coordinates / scale), dtype=np.float64)
    return {"map": found, "is_tsne": np.array(True)}


def plot(result: Result) -> Figure:
    """Draw the map beside rows of examples, clusters in order of their mean loss."""
    a = result.arrays
    order = sorted(np.unique(a["assignment"]), key=lambda k: -a["losses"][a["assignment"] == k].mean())
    figure, axes = new_figure(
        1, 2, figsize=(8.4, 0.34 * len(order) + 1.2), gridspec_kw={"width_ratios": [1, 1.1]}
    )
    for rank, k in enumerate(order):
        chosen = a["assignment"] == k
        axes[0].scatter(*a["map"][chosen].T, s=6, color=f"C{rank % 10}")
    axes[0].scatter(*a["map"][a["corrupted"]].T, s=18, facecolors="none", edgecolors="k", linewidths=0.4)
    method = "t-SNE" if a["is_tsne"] else "principal components"
    axes[0].set_title(f"Gradients ({method}) by cluster;\ncircled: the label is random")
    axes[0].set_axis_off()
    side = a["images"].shape[1]
    sheet = np.full((len(order) * (side + 1), SHOWN * (side + 1)), a["images"].min())
    for row, k in enumerate(order):
        for column, image in enumerate(a["images"][a["assignment"][a["shown"]] == k]):
            top, left = row * (side + 1), column * (side + 1)
            sheet[top : top + side, left : left + side] = image
    axes[1].imshow(sheet, cmap="gray_r")
    axes[1].set_title("A row: the digits nearest to a cluster's centre.\nLeft of it: mean loss (size)")
    ticks = [
        f"{a['losses'][a['assignment'] == k].mean():.2g} ({(a['assignment'] == k).sum()})" for k in order
    ]
    axes[1].set_yticks(np.arange(len(order)) * (side + 1) + side / 2, ticks, fontsize=8)
    axes[1].tick_params(length=0)
    axes[1].set(xticks=[])
    axes[1].spines[:].set_visible(False)
    axes[1].grid(False)
    return figure
