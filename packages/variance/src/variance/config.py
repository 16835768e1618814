"""Configurations of the experiments, with the paper's values as defaults."""

from dataclasses import dataclass, field

from gdyn_reproduce.runs import RunOptions


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_seeds(seeds: list[int]) -> None:
    _require(
        bool(seeds) and len(set(seeds)) == len(seeds), f"seeds={seeds}: give at least one, all different."
    )


@dataclass
class TrainingConfig(RunOptions):
    """An image classifier trained by SGD while estimators are measured beside it.

    Attributes:
        dataset: Name in `gdyn_reproduce.data`.
        model: Name in `variance.models`.
        classes: Number of classes.
        learning_rates: One run per value and seed.
        drop_at: Steps at which the learning rate is divided by 10.
        momentum: Heavy-ball momentum.
        weight_decay: Coefficient of |theta|^2 / 2.
        batch_size: B; SG-2B uses twice as many.
        num_steps: Training steps.
        estimators: What is measured: SG-B, SG-2B, SVRG, GC, GC-online.
        mode: exact, unbiased or reference.
        num_draws: Draws per set, unless exact.
        measure_every: Steps between measurements.
        first_measure: Step of the first measurement.
        snapshot_every: Steps between SVRG snapshots and clusterings.
        first_snapshot: Step of the first snapshot.
        frequent_every: Steps between cheap updates (online clustering).
        clusters: K.
        cluster_iterations: Passes per clustering.
        kahan: Compensated sums of centres.
        corrupt_percent: Percentage of labels replaced by random ones.
        duplicates: Empty, or [n, times]: n examples appended `times` times.
        augment: Random shifts and mirroring.
        max_size: Use a random subset of this size; 0 for all.
        seeds: Seeds.
    """

    dataset: str = "mnist"
    model: str = "mnist-mlp"
    classes: int = 10
    learning_rates: list[float] = field(default_factory=lambda: [0.02])
    drop_at: list[int] = field(default_factory=list)
    momentum: float = 0.5
    weight_decay: float = 5e-4
    batch_size: int = 128
    num_steps: int = 50_000
    estimators: list[str] = field(default_factory=lambda: ["SG-B", "SG-2B", "SVRG", "GC"])
    mode: str = "reference"
    num_draws: int = 50
    measure_every: int = 500
    first_measure: int = 10
    snapshot_every: int = 2000
    first_snapshot: int = 10
    frequent_every: int = 10
    clusters: int = 128
    cluster_iterations: int = 10
    kahan: bool = False
    corrupt_percent: float = 0.0
    duplicates: list[int] = field(default_factory=list)
    augment: bool = False
    max_size: int = 0
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _require(
            min(self.learning_rates, default=0) > 0, f"learning_rates={self.learning_rates} must be positive."
        )
        _require(self.num_steps >= 1 and self.batch_size >= 1, "num_steps and batch_size must be at least 1.")
        _require(self.measure_every >= 1, f"measure_every={self.measure_every} must be at least 1.")
        _require(self.clusters >= 1, f"clusters={self.clusters} must be at least 1.")
        _require(
            self.mode in ("exact", "unbiased", "reference"),
            f"mode={self.mode}: exact, unbiased or reference.",
        )
        _require(
            self.mode == "exact" or self.num_draws >= 3,
            f"num_draws={self.num_draws}: at least 3, below that the noise floor is undefined.",
        )
        _require(len(self.duplicates) in (0, 2), f"duplicates={self.duplicates}: empty or [n, times].")
        _require(
            self.first_measure >= self.first_snapshot
            or not {"SVRG", "GC", "GC-online"} & set(self.estimators),
            f"first_measure={self.first_measure} lies before first_snapshot={self.first_snapshot}; SVRG and "
            "GC need it.",
        )


@dataclass
class RandomFeaturesConfig(RunOptions):
    """Random features over ratios h_s / N, learning rates and duplicate fractions.

    Attributes:
        ratios: Over-parametrisation hidden / N.
        learning_rates: Learning rates.
        hidden: Trained features h_s.
        input_dim: Dimension of the inputs.
        teacher_width: Hidden units of the teacher.
        unit_rows: Feature rows of unit norm (the paper's text) or torch's default (the published runs).
        duplicate_fractions: Fractions of the data that repeat `duplicate_points` points.
        duplicate_points: Number of repeated points.
        batch_size: B.
        num_steps: Training steps.
        weight_decay: Coefficient of |theta|^2 / 2.
        measure_every: Steps between measurements.
        first_measure: First measurement and first snapshot.
        snapshot_every: Steps between snapshots.
        clusters: K.
        cluster_iterations: Passes per clustering.
        seeds: Seeds.
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
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _require(min(self.ratios, default=0) > 0, f"ratios={self.ratios} must be positive.")
        _require(len(self.ratios) >= 2, f"ratios={self.ratios}: at least two, the figure compares them.")
        smallest = round(self.hidden / max(self.ratios))
        _require(
            self.clusters <= smallest,
            f"clusters={self.clusters} exceed the {smallest} examples of the largest ratio.",
        )
        inside = all(0 <= fraction < 1 for fraction in self.duplicate_fractions)
        _require(inside, f"duplicate_fractions={self.duplicate_fractions} must lie in [0, 1).")


@dataclass
class ClusterCountConfig(RunOptions):
    """Distortion against the number of clusters.

    Attributes:
        dataset: Name in `gdyn_reproduce.data`.
        model: Name in `variance.models`.
        classes: Number of classes.
        learning_rate: Learning rate of the training before clustering.
        momentum: Heavy-ball momentum.
        weight_decay: Coefficient of |theta|^2 / 2.
        batch_size: B.
        num_steps: Training steps before clustering.
        counts: Values of K.
        cluster_iterations: Passes per clustering (the first pass only assigns to initial centres).
        seeds: Seeds.
    """

    dataset: str = "mnist"
    model: str = "mnist-cnn"
    classes: int = 10
    learning_rate: float = 0.02
    momentum: float = 0.5
    weight_decay: float = 5e-4
    batch_size: int = 128
    num_steps: int = 1000
    counts: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128, 256])
    cluster_iterations: int = 2
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _require(
            self.counts[:1] == [1],
            f"counts={self.counts} must start with 1, the distortion D0 of one cluster.",
        )


@dataclass
class LinearRegressionConfig(RunOptions):
    """Noisy linear regression, each estimator driving its own run.

    Attributes:
        dim: Dimension d.
        num_examples: N.
        signal_to_noise: Norm of the true weights over the standard deviation of the noise.
        learning_rate: Learning rate.
        batch_size: B.
        num_steps: Training steps.
        switch_at: Step from which the estimator drives; SG-B before.
        measure_every: Steps between measurements.
        snapshot_every: Steps between snapshots.
        clusters: K.
        cluster_iterations: Passes per clustering.
        seeds: Seeds.
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
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _require(
            0 < self.switch_at < self.num_steps, f"switch_at={self.switch_at} must lie inside num_steps."
        )
        _require(self.clusters <= self.num_examples, f"clusters={self.clusters} exceed num_examples.")


@dataclass
class PlaneConfig(RunOptions):
    """Gradient clusters of logistic regression in the plane.

    Attributes:
        points_per_blob: Examples per blob.
        separation: Half the distance between blob centres.
        noise_labels: Labels flipped at random.
        num_steps: Training steps before clustering.
        learning_rate: Learning rate.
        clusters: K.
        seeds: Seeds.
    """

    points_per_blob: int = 60
    separation: float = 1.0
    noise_labels: int = 12
    num_steps: int = 200
    learning_rate: float = 0.1
    clusters: int = 4
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)


@dataclass
class GalleryConfig(RunOptions):
    """Clusters of the gradients of a trained classifier.

    Attributes:
        dataset: Name in `gdyn_reproduce.data`.
        model: Name in `variance.models`.
        classes: Number of classes.
        corrupt_percent: Percentage of labels replaced by random ones.
        max_size: Use a random subset of this size; 0 for all.
        learning_rate: Learning rate of the training before clustering.
        batch_size: B.
        num_steps: Training steps before clustering.
        clusters: K.
        cluster_iterations: Passes of the clustering.
        seeds: Seeds.
    """

    dataset: str = "digits"
    model: str = "digits-mlp"
    classes: int = 10
    corrupt_percent: float = 10.0
    max_size: int = 0
    learning_rate: float = 0.02
    batch_size: int = 64
    num_steps: int = 400
    clusters: int = 16
    cluster_iterations: int = 5
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _require(self.num_steps >= 1, f"num_steps={self.num_steps} must be at least 1.")
        _require(self.clusters >= 2, f"clusters={self.clusters}: a gallery needs at least 2.")


@dataclass
class NonInterferenceConfig(RunOptions):
    """Weights with and without measuring.

    Attributes:
        num_steps: Training steps.
        dropout: Dropout probability of the network.
        seeds: Seeds.
    """

    num_steps: int = 200
    dropout: float = 0.3
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)


@dataclass
class NoiseFloorConfig(RunOptions):
    """Normalised variance of pure noise against the number of draws.

    Attributes:
        draws: Values of m.
        coordinates: Number of coordinates.
        deviation: Standard deviation of the noise.
        seeds: Seeds.
    """

    draws: list[int] = field(default_factory=lambda: [5, 10, 20, 50])
    coordinates: int = 20_000
    deviation: float = 1.0
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _require(
            min(self.draws, default=0) >= 4, f"draws={self.draws}: at least 4 (the mean of the floor exists)."
        )


@dataclass
class TrainConfig(TrainingConfig):
    """One training run from the command line, on the embedded digits by default.

    Attributes:
        dataset: Name in `gdyn_reproduce.data`.
        model: Name in `variance.models`.
        learning_rate: Learning rate.
        seed: Seed.
    """

    dataset: str = "digits"
    model: str = "digits-mlp"
    learning_rate: float = 0.02
    batch_size: int = 64
    num_steps: int = 1000
    mode: str = "exact"
    clusters: int = 64
    cluster_iterations: int = 3
    measure_every: int = 100
    snapshot_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        self.learning_rates, self.seeds = [self.learning_rate], [self.seed]
        super().__post_init__()


@dataclass
class GridConfig(RunOptions):
    """A file of runs.

    Attributes:
        file: YAML file with a grid.
        executor: serial, joblib (processes on this machine) or submitit (SLURM arrays).
        jobs: Processes, or array tasks that may be active at once.
        partition: SLURM partition.
        minutes: SLURM time limit.
    """

    file: str = ""
    executor: str = "serial"
    jobs: int = 1
    partition: str = ""
    minutes: int = 60

    def __post_init__(self) -> None:
        _require(
            self.executor in ("serial", "joblib", "submitit"),
            f"executor={self.executor}: serial, joblib, submitit.",
        )
        _require(self.jobs >= 1, f"jobs={self.jobs} must be at least 1.")


@dataclass
class CollectConfig(RunOptions):
    """Tidy table of finished runs.

    Attributes:
        folder: Where runs lie.
        table: CSV file to write; the screen where empty.
    """

    folder: str = "runs"
    table: str = ""
