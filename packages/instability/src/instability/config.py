"""Configuration of every figure, table and command; field descriptions are the ``--help``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gdyn_reproduce.runs import RunOptions


@dataclass
class Fig1Config(RunOptions):
    """Heat equation.

    Attributes:
        time_steps: The stable and the unstable step size, with dx = 1.
        num_points: Points, both fixed ends included.
        stable_times: Times at which the stable profile is drawn.
        unstable_times: Times at which the unstable profile is drawn.
        legacy_times: Draw the steps that the original script draws under these labels (one later).
    """

    time_steps: list[float] = field(default_factory=lambda: [0.4, 0.8])
    num_points: int = 31
    stable_times: list[float] = field(default_factory=lambda: [0.8, 2.4, 4.0, 100.0, 200.0, 800.0])
    unstable_times: list[float] = field(default_factory=lambda: [0.8, 2.4, 4.0])
    legacy_times: bool = False

    def __post_init__(self) -> None:
        if len(self.time_steps) != 2 or min(self.time_steps) <= 0:
            raise ValueError(
                f"time_steps={self.time_steps} must be two positive numbers, stable and unstable."
            )
        if not self.stable_times or not self.unstable_times:
            raise ValueError("stable_times and unstable_times need at least one time each.")
        if self.num_points < 3:
            raise ValueError(f"num_points={self.num_points} must be at least 3.")


@dataclass
class OneLayerConfig(RunOptions):
    """What the experiments on the one-layer network share.

    Attributes:
        image: checkerboard, noise, or the path of a .npy matrix.
        image_size: Side of a generated image.
        kernel_size: Side of the kernel.
        label: 0 or 1.
        num_steps: Gradient steps.
        seed: Seed of the first kernel (legacy NumPy stream; the original's is 7).
        method: fft or direct convolution.
        dtype: float64 or float32.
    """

    image: str = "checkerboard"
    image_size: int = 256
    kernel_size: int = 32
    label: int = 1
    num_steps: int = 1000
    seed: int = 7
    method: str = "fft"
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or (
            self.image in ("checkerboard", "noise") and self.kernel_size > self.image_size
        ):
            raise ValueError(
                f"kernel_size={self.kernel_size} must lie between 1 and image_size={self.image_size}."
            )
        if self.label not in (0, 1):
            raise ValueError(f"label={self.label} must be 0 or 1.")
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1.")
        if self.method not in ("fft", "direct"):
            raise ValueError(f"method={self.method} is unknown. Allowed: fft, direct.")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype={self.dtype} is unknown. Allowed: float64, float32.")


@dataclass
class LinearConfig(OneLayerConfig):
    """Linear PDE (figure 3 and table 2).

    Attributes:
        weight_decays: Weight decays, some below, inside and above the stable interval.
        learning_rate: Step size.
        normalize: sum (the paper's constants) or mean over positions.
        loss: consistent, or mixed as the original scripts record it.
    """

    weight_decays: list[float] = field(
        default_factory=lambda: [1.1e7, 1.2e7, 1.3e7, 1.9e8, 2.0e8, 2.1e8, 2.2e8]
    )
    learning_rate: float = 1e-8
    normalize: str = "sum"
    loss: str = "consistent"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rates("weight_decays", self.weight_decays, zero=True)
        _check_rates("learning_rate", [self.learning_rate])
        if self.normalize not in ("sum", "mean"):
            raise ValueError(f"normalize={self.normalize} is unknown. Allowed: sum, mean.")
        if self.loss not in ("consistent", "mixed"):
            raise ValueError(f"loss={self.loss} is unknown. Allowed: consistent, mixed.")


@dataclass
class Fig4LeftConfig(OneLayerConfig):
    """Losses of the non-linear PDE.

    Attributes:
        learning_rates: Step sizes.
        weight_decay: Coefficient of the weights in the gradient.
    """

    learning_rates: list[float] = field(
        default_factory=lambda: [0.01, 0.03, 0.05, 0.07, 0.09, 0.1, 0.11, 0.13]
    )
    weight_decay: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rates("learning_rates", self.learning_rates)
        _check_rates("weight_decay", [self.weight_decay], zero=True)
        _check_checkerboard(self.image)


@dataclass
class Fig4RightConfig(OneLayerConfig):
    """Divergence of two copies of the non-linear PDE.

    Attributes:
        learning_rates: Step sizes whose copies the paper compares, and two controls.
        weight_decay: Coefficient of the weights in the gradient.
        perturbations: The integers k; null controls k = 1 and k = 2 are added.
        seeds: Seeds of the first kernel; they replace `seed`.
        window: Steps averaged for the drawn curves.
    """

    learning_rates: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09])
    weight_decay: float = 20.0
    perturbations: list[int] = field(default_factory=lambda: [1, 3, 5, 7])
    seeds: list[int] = field(default_factory=lambda: [7])
    window: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rates("learning_rates", self.learning_rates)
        _check_rates("weight_decay", [self.weight_decay], zero=True)
        _check_checkerboard(self.image)
        check_perturbations(self.perturbations)
        _check_not_empty("seeds", self.seeds)
        if not 1 <= self.window < self.num_steps:
            raise ValueError(
                f"window={self.window} must lie between 1 and num_steps - 1 = {self.num_steps - 1}."
            )


@dataclass
class ReducedMapConfig(RunOptions):
    """Exact one-dimensional map of the non-linear PDE on a checkerboard.

    Attributes:
        image_size: Side of the checkerboard.
        kernel_size: Side of the kernel.
        weight_decay: Coefficient of the weights in the gradient.
        learning_rates: Step sizes of the table.
        num_steps: Steps over which exponents are averaged.
        resolution: Step sizes of the bifurcation diagram.
    """

    image_size: int = 256
    kernel_size: int = 32
    weight_decay: float = 20.0
    learning_rates: list[float] = field(
        default_factory=lambda: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.105]
    )
    num_steps: int = 20_000
    resolution: int = 600

    def __post_init__(self) -> None:
        _check_rates("learning_rates", self.learning_rates)
        if self.num_steps < 1 or self.resolution < 2:
            raise ValueError("num_steps must be at least 1 and resolution at least 2.")


@dataclass
class NetworkConfig(RunOptions):
    """Data and network of the experiments on deep networks.

    Attributes:
        dataset: cifar10, fashion_mnist, mnist, digits, textures32, ...
        root: Data folder; default is the environment variable GDYN_DATA_DIR.
        download: Allow fetching missing data.
        train_size: Training images, 0 for all.
        random_labels: Share of training labels replaced at random.
        model: resnet (by depth), vgg16, or tiny (one stage of narrow blocks, for 8x8 images).
        depth: Depth of resnet, 6n + 2.
        tiny_blocks: Blocks of tiny.
        tiny_width: Channels of tiny.
        activation: relu or swish.
        batch_size: Images in one update.
        learning_rate: At the start.
        momentum: Momentum factor.
        nesterov: Use Nesterov momentum.
        weight_decay: Coefficient of the weights in the gradient.
        seeds: Seeds of initialisation and batches.
        dtype: float32 or float64.
        device: cpu or cuda.
    """

    dataset: str = "cifar10"
    root: str | None = None
    download: bool = False
    train_size: int = 0
    random_labels: float = 0.0
    model: str = "resnet"
    depth: int = 56
    tiny_blocks: int = 6
    tiny_width: int = 8
    activation: str = "swish"
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 5e-4
    seeds: list[int] = field(default_factory=lambda: [7])
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.model not in ("resnet", "vgg16", "tiny"):
            raise ValueError(f"model={self.model} is unknown. Allowed: resnet, vgg16, tiny.")
        if self.activation not in ("relu", "swish"):
            raise ValueError(f"activation={self.activation} is unknown. Allowed: relu, swish.")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype={self.dtype} is unknown. Allowed: float64, float32.")
        _check_rates("learning_rate", [self.learning_rate])
        _check_not_empty("seeds", self.seeds)
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")


@dataclass
class Table1Config(NetworkConfig):
    """Spread of final accuracies over perturbations and over seeds.

    Attributes:
        activations: Activations to train with; they replace `activation`.
        perturbations: The integers k; null controls run beside the first seed.
        epochs: Passes over the data.
        milestones: Epochs at which the learning rate is divided by 10.
        last: Final epochs whose accuracies are averaged.
    """

    activations: list[str] = field(default_factory=lambda: ["relu", "swish"])
    perturbations: list[int] = field(default_factory=lambda: [1, 3, 5, 7, 9, 11])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6])
    epochs: int = 200
    milestones: list[int] = field(default_factory=lambda: [40, 80, 120, 160])
    last: int = 10
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_empty("activations", self.activations)
        check_perturbations(self.perturbations)
        if not 1 <= self.last <= self.epochs:
            raise ValueError(f"last={self.last} must lie between 1 and epochs={self.epochs}.")


@dataclass
class Fig2Config(NetworkConfig):
    """Divergence of two copies against scaled iteration.

    Attributes:
        divisors: The learning rate is divided by each of these in turn; sample j is after j * n updates.
        scaled_iterations: Samples per curve.
        perturbation: The integer k of the second copy.
        layer: Parameter to compare; empty for all of them.
    """

    divisors: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32, 320, 3200, 32000])
    scaled_iterations: int = 100
    perturbation: int = 3
    layer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_empty("divisors", self.divisors)
        if min(self.divisors) < 1 or self.scaled_iterations < 1:
            raise ValueError("divisors and scaled_iterations must be at least 1.")


@dataclass
class PrecisionConfig(NetworkConfig):
    """The same copies in several floating types.

    Attributes:
        dtypes: Floating types of weights and arithmetic.
        perturbation: The integer k of the second copy.
        num_steps: Updates.
        measure_every: Updates between measurements.
    """

    dtypes: list[str] = field(default_factory=lambda: ["float64", "float32", "bfloat16"])
    perturbation: int = 3
    num_steps: int = 300
    measure_every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.dtypes:
            if name not in ("float64", "float32", "bfloat16"):
                raise ValueError(f"dtypes holds {name!r}. Allowed: float64, float32, bfloat16.")


@dataclass
class SharpnessConfig(NetworkConfig):
    """Sharpness along training against its stable maximum.

    Attributes:
        num_steps: Updates.
        measure_every: Updates between measurements.
        learning_rates: Learning rates to train with; they replace `learning_rate`.
    """

    num_steps: int = 200
    measure_every: int = 20
    learning_rates: list[float] = field(default_factory=lambda: [0.05, 0.2])

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rates("learning_rates", self.learning_rates)


@dataclass
class ThresholdsConfig(RunOptions):
    """Stability bounds of a setting.

    Attributes:
        image: checkerboard, noise, or the path of a .npy matrix.
        image_size: Side of a generated image.
        kernel_size: Side of the kernel.
        learning_rate: Step size.
        weight_decay: Weight decay of the non-linear PDE, for its bounds on the step size.
        label: 0 or 1.
        beta: Slope of the Swish.
        normalize: sum or mean over positions.
    """

    image: str = "checkerboard"
    image_size: int = 256
    kernel_size: int = 32
    learning_rate: float = 1e-8
    weight_decay: float = 20.0
    label: int = 1
    beta: float = 1.0
    normalize: str = "sum"

    def __post_init__(self) -> None:
        if self.label not in (0, 1):
            raise ValueError(f"label={self.label} must be 0 or 1.")
        _check_rates("weight_decay", [self.weight_decay], zero=True)


@dataclass
class SensitivityConfig(NetworkConfig):
    """Rounding sensitivity of a built-in model.

    Attributes:
        perturbations: The integers k; the first must be 1.
        num_steps: Updates.
        every: Updates between measurements.
    """

    dataset: str = "digits"
    train_size: int = 1200
    model: str = "tiny"
    batch_size: int = 32
    momentum: float = 0.9
    nesterov: bool = True
    perturbations: list[int] = field(default_factory=lambda: [1, 1, 2, 3, 5])
    num_steps: int = 200
    every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perturbations(self.perturbations)
        if self.num_steps < 1 or self.every < 1:
            raise ValueError("num_steps and every must be at least 1.")


@dataclass
class TrainConfig(NetworkConfig):
    """One training run.

    Attributes:
        perturbation: The integer k of the update; 1 is plain SGD.
        epochs: Passes over the data.
        milestones: Epochs at which the learning rate is divided by 10.
    """

    dataset: str = "digits"
    train_size: int = 1200
    model: str = "tiny"
    batch_size: int = 32
    momentum: float = 0.9
    nesterov: bool = True
    perturbation: int = 1
    epochs: int = 8
    milestones: list[int] = field(default_factory=lambda: [6])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perturbations([1, self.perturbation])
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs} must be at least 1.")


@dataclass
class AccuracySpreadConfig(RunOptions):
    """Mean and spread of accuracies in files.

    Attributes:
        files: .npy or .npz files, each a (perturbation, seed, epoch) array, or run folders of table1.
        last: Final epochs that are averaged.
    """

    files: list[str] = field(default_factory=list)
    last: int = 10

    def __post_init__(self) -> None:
        _check_not_empty("files", self.files)


def check_perturbations(perturbations: list[int]) -> None:
    """Raise ValueError unless the list starts with the baseline 1 and holds integers from 1 on."""
    _check_not_empty("perturbations", perturbations)
    if perturbations[0] != 1 or min(perturbations) < 1:
        raise ValueError(f"perturbations={perturbations} must start with the baseline 1 and hold ints >= 1.")


def _check_not_empty(name: str, values: Sequence[object]) -> None:
    if not values:
        raise ValueError(f"{name} is empty; give at least one.")


def _check_rates(name: str, values: list[float], *, zero: bool = False) -> None:
    _check_not_empty(name, values)
    if min(values) < 0 or (min(values) == 0 and not zero):
        raise ValueError(f"{name}={values} must be {'not negative' if zero else 'positive'}.")


def _check_checkerboard(image: str) -> None:
    if image != "checkerboard":
        raise ValueError(
            f"image={image}: this figure is compared with the exact reduced map, which exists for "
            "image=checkerboard only. For other images use instability.nonlinear_pde.simulate."
        )
