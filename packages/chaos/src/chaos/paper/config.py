"""Configuration of every figure; field descriptions are the ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field

from gdyn_reproduce.runs import RunOptions

DATASETS = ("usps", "fmnist", "digits", "digits16", "synthetic")
NORMALIZATIONS = ("standard", "center", "unit")
ARMS = ("sgd", "chaotic", "pos", "neg", "random")


@dataclass
class ImagesConfig(RunOptions):
    """The images, and how they are scaled.

    Attributes:
        dataset: usps, fmnist (resized to 16 x 16), digits, digits16 or synthetic.
        normalize: standard (mean and deviation of the training set), center (mean only) or unit ([0, 1]).
        dtype: float64 or float32.
        device: cpu, cuda or cuda:1.
    """

    dataset: str = "digits"
    normalize: str = "standard"
    data_root: str | None = None
    download: bool = False
    batch_size: int = 8
    dtype: str = "float64"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for key, allowed in (
            ("dataset", DATASETS),
            ("normalize", NORMALIZATIONS),
            ("dtype", ("float64", "float32")),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)} is unknown. Allowed: {', '.join(allowed)}.")


@dataclass
class StudyConfig(ImagesConfig):
    """What all figures share: a two-layer network on small images.

    Attributes:
        inter_dim: Hidden units.
        activation: relu, sigmoid, tanh or gelu.
        learning_rate: Of SGD and CGD.
        seeds: One run per seed and arm.
        evaluate_every: Steps between evaluations on the test set.
    """

    inter_dim: int = 8
    activation: str = "relu"
    learning_rate: float = 0.01
    num_steps: int = 800
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    evaluate_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")
        for key in ("inter_dim", "num_steps", "evaluate_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1.")


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
