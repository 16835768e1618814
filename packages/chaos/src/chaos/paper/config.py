"""Configuration of every figure; field descriptions are the ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field

from gdyn_reproduce.runs import RunOptions

DATASETS = ("usps", "fmnist", "digits", "digits16", "synthetic")
NORMALIZATIONS = ("standard", "center", "unit")
ARMS = ("sgd", "chaotic", "pos", "neg", "random")


@dataclass
class DataConfig:
    """Where the images come from and how they are scaled.

    Attributes:
        normalize: standard (mean and deviation of the training set), center (mean only) or unit ([0, 1]).
        root: Folder of data sets; empty means GDYN_DATA_DIR.
    """

    normalize: str = "standard"
    root: str = ""

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(
                f"data.normalize={self.normalize} is unknown. Allowed: {', '.join(NORMALIZATIONS)}."
            )


@dataclass
class StudyConfig(RunOptions):
    """What all figures share: a two-layer network on small images.

    Attributes:
        dataset: usps, fmnist, digits, digits16 or synthetic.
        data: Scaling and folder.
        inter_dim: Hidden units.
        activation: relu, sigmoid, tanh or gelu.
        batch_size: Samples per step.
        learning_rate: Of SGD and CGD.
        num_steps: Steps of each run.
        seeds: One run per seed and arm.
        evaluate_every: Steps between evaluations on the test set.
        dtype: float64 or float32.
    """

    dataset: str = "digits"
    data: DataConfig = field(default_factory=DataConfig)
    inter_dim: int = 8
    activation: str = "relu"
    batch_size: int = 8
    learning_rate: float = 0.01
    num_steps: int = 800
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    evaluate_every: int = 50
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset={self.dataset} is unknown. Allowed: {', '.join(DATASETS)}.")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype={self.dtype} is unknown. Allowed: float64, float32.")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")
        for key in ("inter_dim", "batch_size", "num_steps", "evaluate_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1.")
        if not self.seeds:
            raise ValueError("seeds is empty; pass at least one, for example seeds=[0,1,2].")


@dataclass
class Fig1Config(StudyConfig):
    """Pruned training.

    Attributes:
        arms: Which of sgd, chaotic, pos, neg and random (as many random directions as chaotic ones) to run.
    """

    arms: list[str] = field(default_factory=lambda: list(ARMS))

    def __post_init__(self) -> None:
        super().__post_init__()
        for arm in self.arms:
            if arm not in ARMS:
                raise ValueError(f"arms holds {arm!r}. Allowed: {', '.join(ARMS)}.")


@dataclass
class Fig2aConfig(StudyConfig):
    """Pruning that starts late.

    Attributes:
        seeds: One run per seed and arm; a median takes five.
        starts: Steps at which the pruning of chaotic directions starts; SGD runs beside them.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    starts: list[int] = field(default_factory=lambda: [100, 250, 500])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.starts or min(self.starts) < 0 or sorted(self.starts) != list(self.starts):
            raise ValueError(f"starts={self.starts} must be steps >= 0 in ascending order.")


@dataclass
class Fig2bConfig(StudyConfig):
    """Exponents over training.

    Attributes:
        at: Steps at which the tangent matrix is decomposed.
    """

    at: list[int] = field(default_factory=lambda: [50, 100, 200, 400, 800])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at or min(self.at) < 1 or max(self.at) > self.num_steps:
            raise ValueError(f"at={self.at} must hold steps between 1 and num_steps={self.num_steps}.")


@dataclass
class Fig3Config(StudyConfig):
    """Perturbed trainings.

    Attributes:
        num_steps: Steps of each run.
        seeds: One set of perturbations per seed; orders of single draws vary, so there are ten.
        tangent_steps: Steps of the tangent matrix that gives the directions.
        distance: Norm of every perturbation.
        measure_every: Steps between measured distances.
    """

    num_steps: int = 2000
    seeds: list[int] = field(default_factory=lambda: [*range(10)])
    tangent_steps: int = 500
    distance: float = 0.1
    measure_every: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance <= 0:
            raise ValueError(f"distance={self.distance} must be positive.")
        if self.tangent_steps < 1 or self.measure_every < 1:
            raise ValueError("tangent_steps and measure_every must be at least 1.")
