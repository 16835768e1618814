"""Ad-hoc sampling by loss or gradient norm at equal budget, beside unbiased samplers cheap and dear.

A *budget* counts gradients of single examples: those of the training batches, and those that a sampler looks
at to renew itself (a forward pass counts for a third). Snoozing and dropping look at nothing but the batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from gdyn_common.seeding import generator as seeded
from gdyn_common.seeding import named_seed
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.estimators.clustered import stratified_statistics
from variance.estimators.sg import population_moments
from variance.gradient_clustering import BatchClustering, ClusteringOptions
from variance.paper.checks import require
from variance.paper.trajectory import NetworkConfig, setting_for, trainer_for
from variance.per_example import quantities
from variance.sampling import ImportanceSampler, StratifiedSampler, UniformSampler
from variance.sampling.index_samplers import IndexSampler
from variance.sampling.rounds import RoundSampler
from variance.sampling.schedulers import ExponentialSnooze, LinearRank, MinimumVariance, Scheduler
from variance.sampling.scores import ScoreMemory
from variance.statistics import batch_mean_factor

IDEAS = ("snooze by loss", "snooze by norm", "drop by loss", "minimum variance")
SCHEDULERS = ("snooze by loss", "drop by loss", "minimum variance")
"""One idea for each scheduler: on random scores it does not matter which it was to read."""
UNBIASED = ("label strata", "label and loss strata", "importance by norm", "clusters", "chance strata")
LOOKS = {"label and loss strata": 1 / 3, "importance by norm": 1.0}
"""What it costs an unbiased sampler to look at one example, in gradients; clusters: one per pass."""
EXTRA = 0.1
"""Added to norms, in units of their mean: importance weights stay below 11."""


@dataclass
class AdHocConfig(NetworkConfig):
    """Training with every sampler at the budget of plain batches.

    Attributes:
        num_steps: Steps of plain batches; others take as many as their budget pays for.
        snapshot_every: Steps between two renewals of a sampler.
        clusters: K, a multiple of the number of classes.
    """

    dataset: str = "digits"
    model: str = "digits-mlp"
    learning_rate: float = 0.05
    batch_size: int = 60
    num_steps: int = 500
    snapshot_every: int = 250
    clusters: int = 60
    cluster_iterations: int = 3
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.clusters >= 1 and self.clusters % self.classes == 0,
            f"clusters={self.clusters} must be a multiple of classes={self.classes}.",
        )
        require(self.num_steps >= 2, f"num_steps={self.num_steps} must be at least 2.")


def compute(config: AdHocConfig, run: Run) -> Result:
    """Train with every sampler; measure the variance of the unbiased ones halfway through plain training."""
    config.note_data(run)
    names = ["uniform", *IDEAS, *(f"{name}, random scores" for name in SCHEDULERS), *UNBIASED]
    loss, variance = np.zeros((len(names), len(config.seeds))), np.zeros((len(UNBIASED), len(config.seeds)))
    for column, seed in enumerate(run.progress(config.seeds, "seeds")):
        for row, name in enumerate(names):
            piece = run.piece(f"seed={seed}/{name}", partial(_Training.trained, config, name, seed))
            loss[row, column] = piece["loss"]
        found = run.piece(f"seed={seed}/variance", partial(_variances, config, seed))
        variance[:, column] = [found[name] for name in UNBIASED]
    of = dict(zip(names, loss / loss[0], strict=True))
    left = dict(zip(UNBIASED, variance, strict=True))
    cheapest = np.min([left[name] for name in UNBIASED[:3]], axis=0)
    measurements = {
        "worst_idea": np.max([of[name] for name in IDEAS], axis=0).tolist(),
        "worst_random": np.max([of[f"{name}, random scores"] for name in SCHEDULERS], axis=0).tolist(),
        "clusters_over_cheapest": (left["clusters"] / cheapest).tolist(),
        "chance_over_cheapest": (left["chance strata"] / cheapest).tolist(),
        "clusters_at_budget": (of["clusters"] / np.min([of[name] for name in UNBIASED[:3]], axis=0)).tolist(),
        **{f"loss of {name}": values.tolist() for name, values in of.items()},
        **{f"variance of {name}": values.tolist() for name, values in left.items()},
    }
    return Result(measurements, {"names": np.array(names), "loss": loss, "variance": variance})


class _Training:
    """One network on its way, and the sampler of its batches."""

    def __init__(self, config: AdHocConfig, seed: int) -> None:
        self.config, self.seed, self.step = config, seed, 0
        setting = setting_for(config, seed, config.learning_rate)
        self.optimizer = trainer_for(setting).optimizer
        self.point, self.objective, self.population = (
            self.optimizer.point,
            setting.objective,
            setting.population,
        )

    @classmethod
    def trained(cls, config: AdHocConfig, name: str, seed: int) -> dict[str, np.ndarray]:
        """Return the mean loss over all examples once the budget is spent."""
        training = cls(config, seed)
        idea, _, is_random = name.partition(", ")
        if idea in IDEAS:
            training.follow(*training.scheduled(idea, is_random=bool(is_random)))
        else:
            training.follow(lambda: training.sampler(name))
        return {"loss": training.losses().mean().double().cpu().numpy()}

    def follow(
        self,
        renewed: Callable[[], tuple[IndexSampler, float]],
        seen: Callable[[Tensor], None] | None = None,
        budget: float | None = None,
    ) -> None:
        """Train until the budget is spent; `seen` is told the indices of every batch."""
        config = self.config
        left = config.num_steps * config.batch_size if budget is None else budget
        while left >= config.batch_size:
            if self.step % config.snapshot_every == 0:
                sampler, cost = renewed()
                left -= cost
            draw = sampler.draw(config.batch_size)
            batch = self.population.fetch(draw.indices)
            if seen is not None:
                seen(draw.indices)
            batch = type(batch)(batch.inputs, batch.targets, batch.indices, draw.weights)
            self.optimizer.apply(self.objective.gradient(self.point, batch)[0])
            left -= config.batch_size
            self.step += 1

    def scheduled(self, idea: str, *, is_random: bool) -> tuple[Any, Any]:
        """Return the sampler of a scheduler, and what remembers the scores of the batches it has drawn."""
        config, n = self.config, len(self.population)
        memory, least = ScoreMemory(n), min(n, config.batch_size)
        scheduler: Scheduler = {
            "snooze": lambda: ExponentialSnooze(n, threshold="median", value=0.5, min_examples=least),
            "drop": lambda: LinearRank(n, shares=(0.0, 0.5), num_rounds=10, min_examples=least),
            "minimum": lambda: MinimumVariance(n, rate=0.1, max_wait=8, min_examples=least),
        }[idea.split()[0]]()
        kind = "random" if is_random else "norm" if idea == "snooze by norm" else "loss"
        source = torch.Generator().manual_seed(named_seed(self.seed, "random scores"))
        sampler = RoundSampler(scheduler, memory, named_seed(self.seed, "order"))

        def seen(indices: Tensor) -> None:
            if kind == "loss":
                scores = self.losses(indices)
            elif kind == "random":
                scores = torch.rand(len(indices), generator=source)
            else:
                scores = quantities.squared_norms(self._capture(indices)).sqrt()
            sampler.update(indices, scores.cpu())

        return (lambda: (sampler, 0.0)), seen

    def sampler(self, name: str) -> tuple[Any, float]:
        """Return an unbiased sampler made for this point, and what it costs to make, in gradients."""
        n, seed = len(self.population), named_seed(self.seed, "order", self.step)
        if name == "uniform":
            return UniformSampler(n, seed), 0.0
        if name == "importance by norm":
            norms = torch.cat([quantities.squared_norms(found).sqrt() for found in self._captures()])
            return ImportanceSampler(norms + EXTRA * norms.mean(), seed), LOOKS[name] * n
        if name in ("clusters", "chance strata"):
            options = ClusteringOptions(chunk=self.config.batch_size)
            clustering = BatchClustering(
                self.config.clusters, options, seed=named_seed(self.seed, "clusters")
            )
            ids = clustering.fit(self._capture, n, self.config.cluster_iterations).assignment
            if name == "chance strata":
                ids = ids[torch.from_numpy(seeded(self.seed, "chance", self.step).permutation(n))]
            return StratifiedSampler(ids, seed), float(self.config.cluster_iterations * n)
        labels = self.population.fetch(torch.arange(n)).targets.cpu()
        if name == "label strata":
            return StratifiedSampler(labels, seed), 0.0
        return StratifiedSampler(self._ranked(labels), seed), LOOKS[name] * n

    def _ranked(self, labels: Tensor) -> Tensor:
        """Return strata of equally many examples of one label with similar losses."""
        losses, ids = self.losses().cpu(), torch.empty_like(labels)
        ranks = self.config.clusters // self.config.classes
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            ordered = members[losses[members].argsort()]
            ids[ordered] = label * ranks + torch.arange(len(members)) * ranks // len(members)
        return ids

    def losses(self, rows: Tensor | None = None) -> Float[Tensor, "n"]:
        """Return the losses of some examples, all by default."""
        rows = torch.arange(len(self.population)) if rows is None else rows
        with torch.no_grad():
            return self.objective.losses(self.point, self.population.fetch(rows), training=False)

    def _capture(self, rows: Tensor) -> Any:
        return self.objective.capture(self.point, self.population.fetch(rows))

    def _captures(self) -> Iterator[Any]:
        return (self._capture(rows) for rows in torch.arange(len(self.population)).split(512))

    def variance(self, name: str) -> float:
        """Return the exact variance of a batch of an unbiased sampler, over that of plain batches."""
        size, n = self.config.batch_size, len(self.population)
        mean, diagonal = population_moments(self.objective, self.point, self.population)
        plain = float(diagonal.sum()) * batch_mean_factor(n, size, replacement=False)
        sampler, _ = self.sampler(name)
        if isinstance(sampler, StratifiedSampler):
            found = stratified_statistics(self.objective, self.point, self.population, sampler, size)
            return found.avg_var * len(mean) / plain
        squares = torch.cat([quantities.squared_norms(found) for found in self._captures()]).double().cpu()
        second = float((squares / torch.from_numpy(sampler.probabilities)).sum()) / n**2
        return (second - float(mean.square().sum())) / size / plain


def _variances(config: AdHocConfig, seed: int) -> dict[str, np.ndarray]:
    training = _Training(config, seed)
    budget = config.num_steps // 2 * config.batch_size
    training.follow(lambda: training.sampler("uniform"), budget=budget)
    return {name: np.array(training.variance(name)) for name in UNBIASED}


def plot(result: Result) -> Figure:
    """Draw the final loss at equal budget, and the variance that unbiased samplers leave, one dot a seed."""
    a = result.arrays
    figure, axes = new_figure(2, 1, figsize=(6.4, 6.4), gridspec_kw={"height_ratios": [2.2, 1]})
    panels = (
        (axes[0], list(a["names"])[1:], a["loss"][1:] / a["loss"][0], "Training loss at equal budget"),
        (axes[1], list(UNBIASED), a["variance"], "Variance of a batch"),
    )
    for ax, names, values, title in panels:
        for row, ratios in enumerate(values):
            ax.plot(ratios, np.full(len(ratios), row), "o", color="C0", alpha=0.6)
        ax.axvline(1.0, color="k", linestyle=":")
        ax.set(xscale="log", title=f"{title}, plain batches = 1", yticks=range(len(names)), yticklabels=names)
        ax.invert_yaxis()
    return figure
