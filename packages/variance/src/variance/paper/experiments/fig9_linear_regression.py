"""F9: noisy linear regression; every estimator drives its own run from a common start."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from gdyn_common.seeding import named_seed
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from variance.losses import half_squared_error
from variance.objective import Batch, Objective, Point
from variance.paper.calibration import seconds_of
from variance.paper.checks import require
from variance.paper.compute import ComputeOptions
from variance.paper.curves import COLOURS, tail_mean
from variance.paper.estimators import estimators_for
from variance.paper.problems import linear_regression
from variance.paper.training import Timing
from variance.paper.trajectory import Setting, follow, trainer_for

ESTIMATORS = ("SG-B", "SG-2B", "SVRG", "GC")


@dataclass
class LinearRegressionConfig(ComputeOptions):
    """Noisy linear regression, each estimator driving its own run.

    Attributes:
        dim: Dimension d.
        num_examples: N.
        signal_to_noise: Norm of the true weights over the standard deviation of the noise.
        switch_at: Step from which the estimator drives; SG-B before.
        measure_every: Steps between measurements.
        snapshot_every: Steps between snapshots.
        clusters: K.
        cluster_iterations: Passes per clustering.
    """

    dim: int = 1000
    num_examples: int = 500
    signal_to_noise: float = 10.0
    learning_rate: float = 5e-5
    batch_size: int = 10
    num_steps: int = 100_000
    switch_at: int = 1000
    measure_every: int = 100
    snapshot_every: int = 1000
    clusters: int = 10
    cluster_iterations: int = 10
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.switch_at < self.num_steps, f"switch_at={self.switch_at} must lie inside num_steps.")
        require(self.clusters <= self.num_examples, f"clusters={self.clusters} exceed num_examples.")


def compute(config: LinearRegressionConfig, run: Run) -> Result:
    """Train with every estimator and compare losses above the least-squares minimum, and variances."""
    jobs = [(name, seed) for name in ESTIMATORS for seed in config.seeds]
    pieces = {
        job: run.piece(f"{job[0]}/seed={job[1]}", partial(_train, config, job[0], job[1], run))
        for job in run.progress(jobs, "training runs")
    }
    arrays: dict[str, np.ndarray] = {"steps": pieces[jobs[0]]["steps"]}
    for name in ESTIMATORS:
        for column in ("excess", f"{name}.avg_var"):
            key = f"{name}|{column.rpartition('.')[2]}"
            arrays[key] = np.stack([pieces[(name, seed)][column] for seed in config.seeds])
    arrays["GC-chance|avg_var"] = np.stack([pieces["GC", seed]["GC-chance.avg_var"] for seed in config.seeds])
    names, plain = ("SVRG", "GC", "SG-2B", "SG-B"), [0, 2, 3]
    variance = np.stack([tail_mean(arrays[f"{name}|avg_var"]) for name in names])
    excess = np.stack([tail_mean(arrays[f"{name}|excess"]) for name in names])
    at_start = np.stack([arrays[f"{name}|excess"][:, 0] for name in names])
    chance = tail_mean(arrays["GC-chance|avg_var"])
    measurements = {
        "variance_order": _rises(variance).tolist(),
        "loss_order": _rises(excess).tolist(),
        "plain_order": (_rises(variance[plain]) & _rises(excess[plain])).tolist(),
        "variance_order_chance": _rises(np.stack([variance[0], chance, *variance[2:]])).tolist(),
        "loss_order_at_start": _rises(at_start).tolist(),
        "plain_order_at_start": _rises(at_start[plain]).tolist(),
        "chance_over_sg": (chance / variance[3]).tolist(),
        "gc_over_sg": (variance[1] / variance[3]).tolist(),
        "excess_sg": excess[3].tolist(),
        "excess_gc": excess[1].tolist(),
    }
    return Result(measurements, arrays)


def _rises(values: np.ndarray) -> np.ndarray:
    return np.asarray((np.diff(values, axis=0) > 0).all(0))


def _setting(config: LinearRegressionConfig, seed: int) -> Setting:
    problem = linear_regression(
        config.num_examples,
        config.dim,
        signal_to_noise=config.signal_to_noise,
        seed=named_seed(seed, "problem"),
    )
    line = nn.Linear(config.dim, 1, bias=False)
    nn.init.zeros_(line.weight)
    population, model = config.population(problem), config.network(line)
    timing = Timing(
        infrequent_every=config.snapshot_every,
        first_infrequent=config.switch_at,
        measure_every=config.measure_every,
        first_measure=config.switch_at,
    )
    objective = Objective(model, half_squared_error)
    return Setting(
        model, objective, population, config.batch_size, lambda step: config.learning_rate, timing=timing,
        seed=seed,
    )  # fmt: skip


def _train(config: LinearRegressionConfig, name: str, seed: int, run: Run) -> dict[str, np.ndarray]:
    setting = _setting(config, seed)
    objective, population = setting.objective, setting.population
    estimators = estimators_for(
        [name, "GC-chance"] if name == "GC" else [name],
        objective,
        clusters=config.clusters,
        iterations=config.cluster_iterations,
        batch_size=config.batch_size,
        seed=seed,
    )
    warm = trainer_for(setting)
    warm.run(config.switch_at)
    trainer = trainer_for(setting, estimators, estimators[0])
    trainer.step_count = config.switch_at
    everything = population.fetch(torch.arange(len(population)))
    minimum = _least_squares(everything.inputs, everything.targets)
    measure = trainer.measurement
    assert measure is not None

    def with_excess(step: int, point: Point) -> dict[str, float]:
        return measure(step, point) | {"excess": _mean_loss(objective, point, everything) - minimum}

    trainer.measurement = with_excess
    return follow(trainer, config.num_steps, run, f"{name}/seed={seed}")


def _mean_loss(objective: Objective, point: Point, everything: Batch) -> float:
    with torch.no_grad():
        return float(objective.losses(point, everything, training=False).double().mean())


def _least_squares(x: torch.Tensor, y: torch.Tensor) -> float:
    solution = torch.linalg.lstsq(x.double(), y.double(), driver="gelsd").solution
    return float(half_squared_error(x.double() @ solution, y.double()).mean())


def estimate(config: LinearRegressionConfig) -> Estimate:
    """Return the expected cost; steps dominate, and SVRG's count twice."""
    step = seconds_of(trainer_for(_setting(config, config.seeds[0])).step, 50)
    memory = 4.0 * config.num_examples * config.dim
    return Estimate((len(ESTIMATORS) + 1) * len(config.seeds) * config.num_steps * step, memory)


def plot(result: Result) -> Figure:
    """Draw excess loss and variance; long curves as means over windows, longer than SVRG's period."""
    from variance.paper.curves import is_zero

    figure, axes = new_figure(1, 2)
    window = max(1, len(result.arrays["steps"]) // 60)
    kept = len(result.arrays["steps"]) // window * window
    steps = result.arrays["steps"][:kept].reshape(-1, window).mean(1)
    for name in ESTIMATORS:
        for ax, column in zip(axes, ("excess", "avg_var"), strict=True):
            values = result.arrays[f"{name}|{column}"].mean(0)[:kept].reshape(-1, window).mean(1)
            drawn = ~is_zero(values[None])
            ax.semilogy(steps[drawn], values[drawn], label=name, color=COLOURS[name])
    axes[0].set(xlabel="step", title="Loss above the minimum")
    axes[1].set(xlabel="step", title="Average variance")
    for ax in axes:
        label_curves(ax)
    return figure
