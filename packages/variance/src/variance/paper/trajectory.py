"""One training run with statistics of several estimators along it: what most figures are made of."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from gdyn_common.seeding import named_seed
from gdyn_reproduce.data import Dataset, load_dataset
from gdyn_reproduce.data.catalogue import data_folder
from gdyn_reproduce.runs import Run
from variance.data import DatasetPopulation, IndexedDataset, Population, TensorPopulation, shift_and_flip
from variance.estimators import SGB, GradientEstimator
from variance.losses import cross_entropy
from variance.measurement import Measurement, Mode
from variance.objective import Objective, Point
from variance.paper.checks import require
from variance.paper.compute import ComputeOptions
from variance.paper.estimators import estimators_for
from variance.paper.image_folder import ImageFolder
from variance.paper.models import build
from variance.paper.optimizer import Optimizer
from variance.paper.training import Timing, Trainer
from variance.stream import DataStream


@dataclass
class NetworkConfig(ComputeOptions):
    """An image classifier and its training by SGD.

    Attributes:
        model: Name in `variance.paper.models`.
        classes: Number of classes.
        corrupt_percent: Percentage of labels replaced by random ones.
        duplicates: Empty, or [n, times]: n examples appended `times` times.
        augment: Random shifts and mirroring.
        max_size: Use a random subset of this size; 0 for all.
        momentum: Heavy-ball momentum.
        weight_decay: Coefficient of |theta|^2 / 2.
        batch_size: B; SG-2B uses twice as many.
        clusters: K.
        cluster_iterations: Passes per clustering.
    """

    dataset: str = "mnist"
    data_root: str | None = None
    download: bool = False
    model: str = "mnist-mlp"
    classes: int = 10
    corrupt_percent: float = 0.0
    duplicates: list[int] = field(default_factory=list)
    augment: bool = False
    max_size: int = 0
    momentum: float = 0.5
    weight_decay: float = 5e-4
    batch_size: int = 128
    num_steps: int = 50_000
    clusters: int = 128
    cluster_iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_steps >= 1 and self.batch_size >= 1, "num_steps and batch_size must be at least 1.")
        require(self.clusters >= 1, f"clusters={self.clusters} must be at least 1.")
        require(len(self.duplicates) in (0, 2), f"duplicates={self.duplicates}: empty or [n, times].")
        require(
            not (self.download and self.dataset == "imagenet"),
            "download=true: the images of dataset=imagenet are behind a login; put one folder per class into "
            "imagenet/train below data_root.",
        )

    def note_data(self, run: Run) -> None:
        """Record which data a run is made of, known by their hashes; ImageNet's are not."""
        if self.dataset != "imagenet":
            run.note(data=self.training_set().provenance())

    def training_set(self) -> Dataset:
        """Return the images for training and their labels, as stored.

        Example:
            >>> NetworkConfig(dataset="digits").training_set().x.shape[1:]
            (8, 8)
        """
        return load_dataset(self.dataset, "train", self.data_root, self.download)


@dataclass
class ImageConfig(NetworkConfig):
    """A classifier with estimators measured beside its training.

    Attributes:
        drop_at: Steps at which the learning rate is divided by 10.
        estimators: What is measured; names as in `variance.paper.estimators`.
        mode: exact, unbiased or reference.
        num_draws: Draws per set, unless exact.
        measure_every: Steps between measurements.
        first_measure: Step of the first measurement.
        snapshot_every: Steps between SVRG snapshots and clusterings.
        first_snapshot: Step of the first snapshot.
        frequent_every: Steps between cheap updates (online clustering).
        kahan: Compensated sums of centres.
    """

    drop_at: list[int] = field(default_factory=list)
    estimators: list[str] = field(default_factory=lambda: ["SG-B", "SG-2B", "SVRG", "GC"])
    mode: str = "reference"
    num_draws: int = 50
    measure_every: int = 500
    first_measure: int = 10
    snapshot_every: int = 2000
    first_snapshot: int = 10
    frequent_every: int = 10
    kahan: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.measure_every >= 1, f"measure_every={self.measure_every} must be at least 1.")
        require(
            self.mode in ("exact", "unbiased", "reference"),
            f"mode={self.mode}: exact, unbiased or reference.",
        )
        require(
            self.mode == "exact" or self.num_draws >= 3,
            f"num_draws={self.num_draws}: at least 3, below that the noise floor is undefined.",
        )
        require(
            self.first_measure >= self.first_snapshot
            or not any(name.startswith(("SVRG", "GC")) for name in self.estimators),
            f"first_measure={self.first_measure} lies before first_snapshot={self.first_snapshot}; SVRG and "
            "GC need it.",
        )


@dataclass
class TrainingConfig(ImageConfig):
    """One run per learning rate and seed."""

    learning_rates: list[float] = field(default_factory=lambda: [0.02])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            min(self.learning_rates, default=0) > 0, f"learning_rates={self.learning_rates} must be positive."
        )


@dataclass(frozen=True)
class Setting:
    """Everything that defines one run.

    Attributes:
        model: Network, with its initial weights.
        objective: Its losses.
        population: Training data.
        batch_size: B.
        learning_rate: By step.
        momentum: Heavy-ball momentum of the torch optimiser.
        weight_decay: Coefficient of |theta|^2 / 2.
        timing: When snapshots and measurements happen.
        mode: How statistics are measured.
        num_draws: Draws per set, where the mode samples.
        seed: Seed of streams, dropout and snapshots.
    """

    model: nn.Module
    objective: Objective
    population: Population
    batch_size: int
    learning_rate: Callable[[int], float]
    momentum: float = 0.0
    weight_decay: float = 0.0
    timing: Timing = field(default_factory=Timing)
    mode: Mode = "exact"
    num_draws: int = 10
    seed: int = 0


def trainer_for(
    setting: Setting,
    estimators: Sequence[GradientEstimator] = (),
    driver: GradientEstimator | None = None,
) -> Trainer:
    """Return a trainer at step 0, driven by plain batches by default, which measures the estimators given."""
    point = Point.of(setting.model)
    stream = DataStream(setting.population, setting.batch_size, seed=setting.seed)
    torch_optimizer = torch.optim.SGD(
        setting.model.parameters(),
        lr=setting.learning_rate(0),
        momentum=setting.momentum,
        weight_decay=setting.weight_decay,
    )
    measurement = (
        Measurement(estimators, stream, num_draws=setting.num_draws, mode=setting.mode)
        if estimators
        else None
    )
    return Trainer(
        Optimizer(point, torch_optimizer),
        stream,
        driver or SGB(setting.objective),
        measured=estimators,
        measurement=measurement,
        timing=setting.timing,
        schedule=setting.learning_rate,
    )


def follow(
    trainer: Trainer, num_steps: int, run: Run | None = None, name: str = "", *, checkpoint_every: int = 0
) -> dict[str, np.ndarray]:
    """Train and collect measurements, with a checkpoint at every measurement.

    Called again on a new trainer after an interruption, it continues from the last checkpoint, bit for bit.

    Args:
        trainer: At any step.
        num_steps: Steps in all.
        run: Run that stores checkpoints and logs; none where None.
        name: Name of the checkpoint within the run, and of the piece in the log.
        checkpoint_every: Steps between two further checkpoints, where nothing or little is measured; none
            where 0.

    Returns:
        `steps` and one array per metric, named `<estimator>.<statistic>`.
    """
    checkpoint = run.checkpoint(name) if run is not None else None
    steps: list[int] = []
    columns: dict[str, list[float]] = {}
    stored = checkpoint.load() if checkpoint is not None else None
    if stored is not None:
        trainer.load_state_dict(unpack(stored.pop("__trainer__")))
        steps = stored.pop("steps").tolist()
        columns = {name: values.tolist() for name, values in stored.items()}
    if run is not None:
        run.tracker.rewind(trainer.step_count, piece=name)
    while trainer.step_count < num_steps:
        step = trainer.step_count
        metrics = trainer.step()
        if metrics:
            steps.append(step)
            for key, value in metrics.items():
                if not key.endswith("/seconds"):
                    columns.setdefault(column_name(key), []).append(value)
            if run is not None:
                run.tracker.log(step, {"piece": name, **metrics})
        saves = bool(metrics) or (checkpoint_every > 0 and trainer.step_count % checkpoint_every == 0)
        if checkpoint is not None and saves:
            arrays = {key: np.array(values) for key, values in columns.items()}
            checkpoint.save(steps=np.array(steps), __trainer__=pack(trainer.state_dict()), **arrays)
    return {"steps": np.array(steps), **{key: np.array(values) for key, values in columns.items()}}


def column_name(metric: str) -> str:
    """Return the short name of a metric inside one run, where every estimator has one batch size.

    Example:
        >>> column_name("SG-2B[B=128]/avg_var")
        'SG-2B.avg_var'
    """
    estimator, _, statistic = metric.partition("/")
    return f"{estimator.partition('[')[0]}.{statistic}" if statistic else metric


def pack(state: object) -> np.ndarray:
    """Return nested tensors and numbers as an array of bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy()


def unpack(packed: np.ndarray) -> dict[str, object]:
    """Return what `pack` stored.

    Raises:
        ValueError: If it is anything but a dictionary of tensors and plain containers.
    """
    try:
        state = torch.load(io.BytesIO(packed.tobytes()), weights_only=True)
    except Exception as error:  # an invalid pickle raises anything
        raise ValueError(f"no packed state: {' '.join(str(error).split())[:100]}") from None
    if not isinstance(state, dict):
        raise ValueError(f"no packed state but a {type(state).__name__}")
    return state


def population_for(config: NetworkConfig, seed: int) -> Population:
    """Return the training data: standardised images, in the variant the configuration asks for.

    Raises:
        ValueError: A variant of ImageNet, whose images are not held in memory.
    """
    has_variant = bool(config.duplicates or config.corrupt_percent or config.max_size)
    if config.dataset == "imagenet":
        require(
            not has_variant,
            "dataset=imagenet has no duplicates, corrupt_percent or max_size; leave them out.",
        )
        folder = data_folder(config.data_root) / "imagenet" / "train"
        return config.population(DatasetPopulation(ImageFolder(folder)))
    base = TensorPopulation(*_images(config.training_set()), shift_and_flip if config.augment else None)
    if not has_variant:
        return config.population(base)
    variant = IndexedDataset(
        base,
        duplicates=(config.duplicates[0], config.duplicates[1]) if config.duplicates else None,
        corrupt_percent=config.corrupt_percent,
        shuffle_ids=True,
        max_size=config.max_size or None,
        seed=named_seed(seed, "variant"),
    )
    return config.population(variant)


def _images(found: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return standardised images with a channel axis, and labels."""
    x = torch.from_numpy(np.asarray(found.x)).float()
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return (x - x.mean()) / x.std(), torch.from_numpy(np.asarray(found.y)).long()


def network_for(config: NetworkConfig, population: Population, seed: int) -> nn.Module:
    """Return the named network, where it fits the data.

    Raises:
        ValueError: Unknown name, inputs of another shape, or more labels than classes.
    """
    model = config.network(build(config.model, config.classes, seed))
    inputs = population.fetch(torch.arange(1)).inputs
    try:
        with torch.no_grad():
            model.eval()(inputs)
    except RuntimeError as error:
        raise ValueError(
            f"model={config.model} cannot take the inputs of shape {tuple(inputs.shape[1:])}: {error}; "
            "choose another model or dataset."
        ) from None
    largest = int(population.targets.max()) if hasattr(population, "targets") else 0
    require(largest < config.classes, f"classes={config.classes}, but labels run up to {largest}.")
    return model.train()


def setting_for(
    config: NetworkConfig,
    seed: int,
    learning_rate: float,
    *,
    drops: Sequence[int] = (),
    timing: Timing | None = None,
    **more: Any,
) -> Setting:
    """Return the training that a configuration describes, at its initial weights."""
    population = population_for(config, seed)
    model = network_for(config, population, seed)
    return Setting(
        model=model,
        objective=Objective(model, cross_entropy),
        population=population,
        batch_size=config.batch_size,
        learning_rate=lambda step: learning_rate * 0.1 ** sum(step >= drop for drop in drops),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        timing=timing or Timing(),
        seed=seed,
        **more,
    )


def timing_for(config: ImageConfig) -> Timing:
    """Return when snapshots and measurements happen."""
    return Timing(
        frequent_every=config.frequent_every,
        infrequent_every=config.snapshot_every,
        first_infrequent=config.first_snapshot,
        measure_every=config.measure_every,
        first_measure=config.first_measure,
    )


def image_run(
    config: ImageConfig,
    learning_rate: float,
    seed: int,
    run: Run,
    *,
    controls: Sequence[str] = (),
    driver: str = "SG-B",
) -> dict[str, np.ndarray]:
    """Train one image classifier as a figure's configuration says and return its measurements.

    `controls` are estimators that are measured beside those of the configuration; `driver` is the one that
    trains.
    """
    setting = setting_for(
        config, seed, learning_rate, drops=list(config.drop_at), timing=timing_for(config), mode=config.mode,
        num_draws=config.num_draws,
    )  # fmt: skip
    names = [*config.estimators, *controls]
    *measured, drives = estimators_for(
        [*names, driver],
        setting.objective,
        clusters=config.clusters,
        iterations=config.cluster_iterations,
        batch_size=config.batch_size,
        seed=seed,
        learning_rate=learning_rate,
        kahan=config.kahan,
    )
    trainer = trainer_for(setting, measured, drives)
    return follow(trainer, config.num_steps, run, f"learning_rate={learning_rate}/seed={seed}")


def image_runs(
    config: TrainingConfig, run: Run, *, controls: Sequence[str] = (), driver: str = "SG-B"
) -> dict[float, list[dict[str, np.ndarray]]]:
    """Return the measurements of every learning rate and seed, one stored piece each."""
    found: dict[float, list[dict[str, np.ndarray]]] = {}
    config.note_data(run)
    jobs = [(rate, seed) for rate in config.learning_rates for seed in config.seeds]
    for rate, seed in run.progress(jobs, "training runs"):
        piece = run.piece(
            f"learning_rate={rate}/seed={seed}",
            partial(image_run, config, rate, seed, run, controls=controls, driver=driver),
        )
        found.setdefault(rate, []).append(piece)
    return found
