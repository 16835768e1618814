"""F6 and F7: variance against over-parametrisation with random features, without and with duplicates."""

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from gdyn_common.seeding import named_seed
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from variance.data import TensorPopulation
from variance.losses import cross_entropy
from variance.objective import Objective
from variance.paper.calibration import occurrences, seconds_of
from variance.paper.checks import require
from variance.paper.compute import ComputeOptions
from variance.paper.curves import COLOURS
from variance.paper.estimators import estimators_for
from variance.paper.models import mlp
from variance.paper.problems import random_features
from variance.paper.training import Timing, Trainer
from variance.paper.trajectory import Setting, follow, trainer_for

ESTIMATORS = ("SG-B", "SG-2B", "SVRG", "GC")
CONTROL = "GC-chance"
TIMED = 1000
"""Largest dimension of inputs and teacher at which the cost is measured; their product scales it."""


@dataclass
class RandomFeaturesConfig(ComputeOptions):
    """Random features over ratios h_s / N, learning rates and duplicate fractions.

    Attributes:
        ratios: Over-parametrisation hidden / N.
        hidden: Trained features h_s.
        input_dim: Dimension of the inputs.
        teacher_width: Hidden units of the teacher.
        unit_rows: Feature rows of unit norm (the paper's text) or torch's default (the published runs).
        duplicate_fractions: Fractions of the data that repeat `duplicate_points` points.
        duplicate_points: Number of repeated points.
        weight_decay: Coefficient of |theta|^2 / 2.
        measure_every: Steps between measurements.
        first_measure: First measurement and first snapshot.
        snapshot_every: Steps between snapshots.
        clusters: K.
        cluster_iterations: Passes per clustering.
    """

    ratios: list[float] = field(default_factory=lambda: [0.1, 0.5, 1, 1.5, 2, 2.5, 3, 5, 10])
    learning_rates: list[float] = field(default_factory=lambda: [0.1, 0.01, 0.001])
    hidden: int = 1000
    input_dim: int = 100
    teacher_width: int = 100
    unit_rows: bool = True
    duplicate_fractions: list[float] = field(default_factory=lambda: [0.0])
    duplicate_points: int = 5
    batch_size: int = 10
    num_steps: int = 5000
    weight_decay: float = 1e-4
    measure_every: int = 100
    first_measure: int = 10
    snapshot_every: int = 1000
    clusters: int = 10
    cluster_iterations: int = 3
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        super().__post_init__()
        require(min(self.ratios, default=0) > 0, f"ratios={self.ratios} must be positive.")
        require(len(self.ratios) >= 2, f"ratios={self.ratios}: at least two, the figure compares them.")
        smallest = round(self.hidden / max(self.ratios))
        require(
            self.clusters <= smallest,
            f"clusters={self.clusters} exceed the {smallest} examples of the largest ratio.",
        )
        inside = all(0 <= fraction < 1 for fraction in self.duplicate_fractions)
        require(inside, f"duplicate_fractions={self.duplicate_fractions} must lie in [0, 1).")


def compute(config: RandomFeaturesConfig, run: Run) -> Result:
    """Train the top layer for every ratio, learning rate, duplicate fraction and seed."""
    shape = (
        len(config.duplicate_fractions),
        len(config.learning_rates),
        len(config.ratios),
        len(config.seeds),
    )
    means, peaks = ({name: np.zeros(shape) for name in (*ESTIMATORS, CONTROL)} for _ in range(2))
    # Learning rates innermost: they share their data, whose teacher is most of the work at 10 000 inputs.
    indices = sorted(np.ndindex(shape), key=lambda index: (index[0], index[2:], index[1]))
    for index in run.progress(indices, "training runs"):
        fraction, rate = config.duplicate_fractions[index[0]], config.learning_rates[index[1]]
        ratio, seed = config.ratios[index[2]], config.seeds[index[3]]
        name = f"fraction={fraction}/learning_rate={rate}/ratio={ratio}/seed={seed}"
        piece = run.piece(name, partial(_train, config, fraction, rate, ratio, seed, run, name))
        late = slice(round(0.3 * len(piece["steps"])), None)
        for estimator in means:
            means[estimator][index] = piece[f"{estimator}.avg_var"][late].mean()
            peaks[estimator][index] = piece[f"{estimator}.avg_var"][late].max()
    axes = {
        "ratios": np.array(config.ratios),
        "learning_rates": np.array(config.learning_rates),
        "fractions": np.array(config.duplicate_fractions),
    }
    arrays = axes | {f"mean|{n}": v for n, v in means.items()} | {f"max|{n}": v for n, v in peaks.items()}
    return Result(_measure(config, means), arrays)


def _train(
    config: RandomFeaturesConfig, fraction: float, rate: float, ratio: float, seed: int, run: Run, name: str
) -> dict[str, np.ndarray]:
    return follow(_trainer(config, fraction, rate, ratio, seed), config.num_steps, run, name)


@lru_cache(maxsize=1)
def _population(
    hidden: int,
    input_dim: int,
    teacher_width: int,
    unit_rows: bool,
    ratio: float,
    duplicates: tuple[int, float] | None,
    seed: int,
) -> TensorPopulation:
    return random_features(
        round(hidden / ratio),
        hidden=hidden,
        input_dim=input_dim,
        teacher_width=teacher_width,
        unit_rows=unit_rows,
        duplicates=duplicates,
        seed=named_seed(seed, "problem"),
    )


def _trainer(config: RandomFeaturesConfig, fraction: float, rate: float, ratio: float, seed: int) -> Trainer:
    duplicates = (config.duplicate_points, fraction) if fraction else None
    sizes = (config.hidden, config.input_dim, config.teacher_width)
    population = config.population(_population(*sizes, config.unit_rows, ratio, duplicates, seed))
    model = config.network(mlp(config.hidden, 2))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    objective = Objective(model, cross_entropy)
    timing = Timing(
        infrequent_every=config.snapshot_every,
        first_infrequent=config.first_measure,
        measure_every=config.measure_every,
        first_measure=config.first_measure,
    )
    setting = Setting(
        model, objective, population, config.batch_size, lambda step: rate, 0.0, config.weight_decay, timing,
        seed=seed,
    )  # fmt: skip
    estimators = estimators_for(
        (*ESTIMATORS, CONTROL),
        objective,
        clusters=config.clusters,
        iterations=config.cluster_iterations,
        batch_size=config.batch_size,
        seed=seed,
    )
    return trainer_for(setting, estimators)


def _measure(
    config: RandomFeaturesConfig, means: dict[str, np.ndarray]
) -> dict[str, list[float] | list[bool]]:
    sg, gc, svrg, chance = (means[name] for name in ("SG-B", "GC", "SVRG", CONTROL))
    low, high = int(np.argmin(config.ratios)), int(np.argmax(config.ratios))
    rates = np.argsort(config.learning_rates)[::-1]
    last = sg[-1][rates]  # (rates falling, ratios, seeds)
    found: dict[str, list[float] | list[bool]] = {
        **{
            f"fall_at_{rate:g}": (sg[0, i, low] / sg[0, i, high]).tolist()
            for i, rate in enumerate(config.learning_rates)
        },
        "fall_at_one_ratio": (sg[0, 0, low] / np.roll(sg[0, 0, low], 1)).tolist(),
        "gc_over_sg": (gc / sg)[0].mean((0, 1)).tolist(),
        "gc_over_sg2": (gc / means["SG-2B"])[-1].mean((0, 1)).tolist(),
        "chance_over_sg": (chance / sg)[0, :, low].mean(0).tolist(),
        "chance_over_sg2": (chance / means["SG-2B"])[-1].mean((0, 1)).tolist(),
        "chance_below_svrg_at_high_ratio": np.asarray((chance < svrg)[-1, :, high].all(0)).tolist(),
        "svrg_over_sg_small_ratio": (svrg / sg)[0, :, low].mean(0).tolist(),
        "gc_below_svrg_at_high_ratio": np.asarray((gc < svrg)[-1, :, high].all(0)).tolist(),
    }
    if len(rates) > 1:
        gap = last[-1] / last[0]
        found["rise_per_rate"] = (last[1:] / last[:-1])[:, high].min(0).tolist()
        found["rise_at_one_rate"] = (last[0, high] / np.roll(last[0, high], 1)).tolist()
        found["gap_growth"] = (gap[high] / gap[low]).tolist()
        found["gap_growth_at_one_ratio"] = (gap[high] / np.roll(gap[high], 1)).tolist()
    return found


def estimate(config: RandomFeaturesConfig) -> Estimate:
    """Return the expected cost: plain steps, and snapshots with measurements in proportion to the data."""
    middle = sorted(config.ratios)[len(config.ratios) // 2]
    sizes = {name: min(getattr(config, name), TIMED) for name in ("input_dim", "teacher_width")}
    small = dataclasses.replace(config, **sizes)
    trainer = _trainer(small, 0.0, config.learning_rates[0], middle, config.seeds[0])
    of_small = (small.hidden, small.input_dim, small.teacher_width, small.unit_rows, middle, None)
    one = seconds_of(lambda: _population.__wrapped__(*of_small, config.seeds[0]), 1)
    growth = config.input_dim * config.teacher_width / (small.input_dim * small.teacher_width)
    data = one * middle * growth  # of a problem with as many examples as features
    step = seconds_of(trainer.step, 20)
    timing = trainer.timing
    point, population = trainer.optimizer.point.copy(), trainer.stream.population

    def snapshot() -> None:
        for estimator in trainer.beside:
            estimator.on_infrequent(0, point, population)

    each = (
        seconds_of(snapshot, 1),
        seconds_of(lambda: trainer.measurement and trainer.measurement(0, point), 1),
    )
    measurements, snapshots = occurrences(timing, config.num_steps)
    relative = sum(middle / other for other in config.ratios)
    problems = len(config.seeds) * len(config.duplicate_fractions)
    runs = problems * len(config.learning_rates)
    plain = config.num_steps * len(config.ratios) * step
    seconds = runs * (plain + relative * (snapshots * each[0] + measurements * each[1]))
    n = config.hidden / min(config.ratios)
    inputs = 8.0 * config.input_dim * (n + max(config.hidden, config.teacher_width))
    return Estimate(
        seconds + problems * data * sum(1 / other for other in config.ratios),
        inputs + 12.0 * n * config.hidden,
    )


def plot(result: Result) -> Figure:
    """Draw variance against ratio, a row per fraction of duplicates; with one rate all in one row."""
    a = result.arrays
    rates, fractions = a["learning_rates"], a["fractions"]
    turned = len(rates) == 1
    rows, columns = (len(rates), len(fractions)) if turned else (len(fractions), len(rates))
    figure, axes = new_figure(
        rows, columns, squeeze=False, figsize=(2.4 * columns + 1.4, 3.3 * rows), sharey="row"
    )
    for (i, fraction), (j, rate) in ((x, y) for x in enumerate(fractions) for y in enumerate(rates)):
        ax = axes[j, i] if turned else axes[i, j]
        for name in ESTIMATORS:
            ax.plot(a["ratios"], a[f"mean|{name}"][i, j].mean(-1), "o-", label=name, color=COLOURS[name])
        duplicates = f"{fraction:.0%} duplicates".replace("%", " %") if fraction else "No duplicates"
        ax.set(xscale="log", yscale="log", title=duplicates if turned else f"Learning rate {rate:g}")
    for ax in axes[-1]:
        ax.set_xlabel("features / examples")
    for ax in axes[:, 0]:
        ax.set_ylabel("average variance")
    label_curves(axes[0, -1])
    return figure
