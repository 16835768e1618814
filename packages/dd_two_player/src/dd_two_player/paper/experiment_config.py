"""Configurations of the experiments, one dataclass per module of `experiments`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dd_two_player.gans.mixtures import STANDARD_DEVIATION
from dd_two_player.paper.config import DTYPES, NetsConfig, choice, require
from gdyn_reproduce.runs import RunOptions


def _require_counts(config: RunOptions, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(name, value, value >= 1, "integers of at least 1")


def _require_positive(config: RunOptions, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(name, value, 0 < value < float("inf"), "positive and finite")


def _require_rates(name: str, values: Sequence[float], count: int = 1) -> None:
    good = len(values) >= count and all(0 < value < float("inf") for value in values)
    require(name, list(values), good, f"{count} or more numbers, positive and finite")


@dataclass
class LinearGameConfig(RunOptions):
    """The linear game.

    Attributes:
        damping: ``e`` of both players.
        learning_rate: ``h`` of both players.
        num_steps: Steps drawn.
    """

    damping: float = 0.09
    learning_rate: float = 0.2
    num_steps: int = 200

    def __post_init__(self) -> None:
        require("damping", self.damping, 0 <= self.damping < float("inf"), "0 or more")
        _require_positive(self, "learning_rate")
        _require_counts(self, "num_steps")


@dataclass
class DiracGanConfig(RunOptions):
    """DiracGAN.

    Attributes:
        learning_rate: Of both players.
        horizon: Time over which flows are compared.
        horizon_points: Points drawn.
        num_steps: Steps of the long comparison.
        strength: Of consensus optimisation and SGA.
    """

    learning_rate: float = 0.1
    horizon: float = 10.0
    horizon_points: int = 200
    num_steps: int = 1000
    strength: float = 0.3

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate", "horizon", "strength")
        _require_counts(self, "horizon_points", "num_steps")


@dataclass
class TrackingConfig(RunOptions):
    """Tracking errors.

    Attributes:
        learning_rates: On DiracGAN, equal rates.
        horizon: Time on DiracGAN.
        small_rates: Of the first player on random games; their inverses are whole.
        ratio: Second player's rate over the first's.
        seeds: Of the random games.
    """

    learning_rates: list[float] = field(default_factory=lambda: [0.2, 0.1, 0.05])
    horizon: float = 4.0
    small_rates: list[float] = field(default_factory=lambda: [0.05, 0.025, 0.0125])
    ratio: float = 0.4
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _require_rates("learning_rates", self.learning_rates, 2)
        _require_rates("small_rates", self.small_rates, 2)
        whole = all(abs(round(1 / rate) - 1 / rate) < 1e-6 for rate in self.small_rates)
        require("small_rates", self.small_rates, whole, "numbers whose inverses are whole")
        _require_positive(self, "horizon", "ratio")


@dataclass
class LocalErrorConfig(RunOptions):
    """Local errors.

    Attributes:
        learning_rates: Of the first player.
        ratio: Second player's rate over the first's.
        seeds: Of the random games.
    """

    learning_rates: list[float] = field(default_factory=lambda: [0.01, 0.005, 0.0025])
    ratio: float = 0.4
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _require_rates("learning_rates", self.learning_rates, 2)
        _require_positive(self, "ratio")


@dataclass
class QuadraticConfig(RunOptions):
    """The quadratic of the principal flow's illustration, at a stable and a divergent rate.

    Attributes:
        eigenvalues: Of its Hessian.
        start: Where gradient descent begins, a number per eigenvalue.
    """

    eigenvalues: list[float] = field(default_factory=lambda: [2.0, 0.02])
    start: list[float] = field(default_factory=lambda: [-0.35, -0.2])
    learning_rates: list[float] = field(default_factory=lambda: [0.9, 1.05])
    num_steps: list[int] = field(default_factory=lambda: [10, 5])

    def __post_init__(self) -> None:
        for name in ("learning_rates", "num_steps"):
            value = getattr(self, name)
            good = len(value) == 2 and all(0 < v < float("inf") for v in value)
            require(name, value, good, "two positive numbers: a stable case and a divergent one")
        good = len(self.start) == len(self.eigenvalues) >= 1
        require("start", self.start, good, f"{len(self.eigenvalues)} numbers, one per eigenvalue")


@dataclass
class FlowOrdersConfig(RunOptions):
    """Orders of the continuous models on random losses."""

    learning_rates: list[float] = field(default_factory=lambda: [0.04, 0.02, 0.01])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _require_rates("learning_rates", self.learning_rates, 2)


@dataclass
class DalStudyConfig(RunOptions):
    """DAL against a fixed rate.

    Attributes:
        sharpness: Largest eigenvalue of the quadratic.
        learning_rate: Fixed rate on the quadratic, above ``2 / sharpness``.
        quadratic_steps: Steps on the quadratic.
        network_rate: Fixed rate of the network.
        network_steps: Steps of the network.
        cap: Largest rate of DAL.
        width: Hidden units.
        num_examples: Training examples, full batch.
        seeds: Of the weights.
        device: Where to compute; by default where JAX does.
        dtype: float32 or float64.
    """

    sharpness: float = 10.0
    learning_rate: float = 0.25
    quadratic_steps: int = 60
    network_rate: float = 3.0
    network_steps: int = 300
    cap: float = 5.0
    width: int = 32
    num_examples: int = 256
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)
        _require_positive(self, "sharpness", "learning_rate", "network_rate", "cap")
        _require_counts(self, "quadratic_steps", "network_steps", "width", "num_examples")


@dataclass
class GanStudyConfig(RunOptions):
    """GANs trained side by side: methods, learning rates, seeds.

    Attributes:
        dataset: Images with labels.
        arms: Methods, see `dd_two_player.paper.gan_study.arms_of`; the first one is the reference.
        disc_rates: Learning rates of the discriminator, paired with ``gen_rates``.
        gen_rates: Learning rates of the generator.
        adam_rate: Rate of both players for the arm ``adam``.
        strength: Of consensus optimisation and SGA.
        seeds: Of weights, latents and batches.
        vmapped: Train all seeds of a setting in one compiled program, or one after the other.
        num_steps: Steps, counted in gradients per player (a Runge-Kutta step of order 4 counts four).
        batch_size: Examples per update.
        chunk: Steps between two saved states.
        nets: Networks.
        estimator: Of the regularisers.
        convention: Of the drift coefficients.
        eval_samples: Samples of the Frechet distance.
        classifier_steps: Training steps of the scoring classifier.
        device: Where to compute; by default where JAX does.
    """

    dataset: str = "digits"
    arms: list[str] = field(default_factory=lambda: ["plain", "cancel", "sga"])
    disc_rates: list[float] = field(default_factory=lambda: [0.1])
    gen_rates: list[float] = field(default_factory=lambda: [0.1])
    adam_rate: float = 1e-3
    strength: float = 0.1
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    vmapped: bool = True
    num_steps: int = 400
    batch_size: int = 64
    chunk: int = 200
    nets: NetsConfig = field(default_factory=lambda: NetsConfig(hidden=[64, 64]))
    estimator: str = "biased_estimate_general_grad_fn"
    convention: str = "joint"
    eval_samples: int = 1000
    classifier_steps: int = 1500
    data_root: str | None = None
    download: bool = False
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)
        require("arms", list(self.arms), len(self.arms) >= 1, "one method or more, the reference first")
        if len(self.disc_rates) != len(self.gen_rates):
            raise ValueError(
                f"disc_rates has {len(self.disc_rates)} entries, gen_rates {len(self.gen_rates)}; "
                "they are paired."
            )
        if self.dataset in STANDARD_DEVIATION:
            raise ValueError(f"dataset is {self.dataset!r}; the scores of a study need images, see `toy`.")
        _require_rates("disc_rates", self.disc_rates)
        _require_rates("gen_rates", self.gen_rates)
        _require_positive(self, "adam_rate", "strength")
        _require_counts(self, "num_steps", "batch_size", "chunk", "classifier_steps")
        require("eval_samples", self.eval_samples, self.eval_samples >= 2, "integers of at least 2")
