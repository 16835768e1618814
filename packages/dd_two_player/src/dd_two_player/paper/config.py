"""Configurations of commands and experiments, with the published keys where there are any."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gdyn_common.errors import unknown
from gdyn_common.storage import read_json, reading
from gdyn_reproduce.keys import build
from gdyn_reproduce.runs import RunOptions

__all__ = ["EvalConfig", "TrainConfig", "load_config"]

DTYPES = ("float32", "float64")
TERM_KEYS = ("self_norm", "other_norm", "other_dot_prod")


def require(name: str, value: object, good: bool, allowed: str) -> None:
    """Raise one line naming the key, what was given and what is allowed."""
    if not good:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}.")


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse an unknown name with the nearest match."""
    if value not in allowed:
        raise ValueError(unknown(name, value, allowed))


@dataclass
class TermsConfig:
    """One number per regularisation term.

    Attributes:
        self_norm: Weight of the squared norm of the player's own gradient.
        other_norm: Of the squared norm of the other player's gradient.
        other_dot_prod: Of the inner product of both losses' gradients in the other's parameters.
    """

    self_norm: float = 0.0
    other_norm: float = 0.0
    other_dot_prod: float = 0.0


@dataclass
class PlayersConfig:
    """The terms of both players.

    Attributes:
        disc: Of the discriminator.
        gen: Of the generator.
    """

    disc: TermsConfig = field(default_factory=TermsConfig)
    gen: TermsConfig = field(default_factory=TermsConfig)


@dataclass
class GradRegularizesConfig:
    """Regularisation with the published keys.

    Attributes:
        dd_coeffs_multiplier: Multipliers of the drift coefficients: -1 cancels, 0 leaves, 1 doubles.
        explicit_non_dd_coeffs: Coefficients that do not depend on learning rates.
        rk_after_explicit_coeffs: Runge-Kutta: explicit terms added once after the stages.
    """

    dd_coeffs_multiplier: PlayersConfig = field(default_factory=PlayersConfig)
    explicit_non_dd_coeffs: PlayersConfig = field(default_factory=PlayersConfig)
    rk_after_explicit_coeffs: PlayersConfig = field(default_factory=PlayersConfig)


@dataclass
class OptimizerConfig:
    """One player's optimiser.

    Attributes:
        name: ``sgd``, ``adam``, any other optimiser of optax, or your own ``module:name``.
        lr: Learning rate of one update.
        momentum: Of ``sgd``.
        b1: Of ``adam``.
        b2: Of ``adam``.
        clip: Bound on the entries of the gradient, or null.
        num_updates: Updates per step; more than one only when alternating.
        options: Further arguments of an optimiser of optax or of your own.
        rate_schedule: Factors of this player's rate, as `UpdatesConfig.rate_schedule` of both.
    """

    name: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.0
    b1: float = 0.5
    b2: float = 0.999
    clip: float | None = None
    num_updates: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    rate_schedule: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require("lr", self.lr, 0 < self.lr < float("inf"), "positive and finite")
        require("num_updates", self.num_updates, self.num_updates >= 1, "integers of at least 1")


@dataclass
class OptimizersConfig:
    """Both players' optimisers.

    Attributes:
        disc: Of the discriminator.
        gen: Of the generator.
    """

    disc: OptimizerConfig = field(default_factory=OptimizerConfig)
    gen: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class NetsConfig:
    """Networks.

    Attributes:
        disc: CifarDiscriminator, MnistDiscriminator, MLP, or your own ``module:name``.
        gen: CifarGenerator, MnistGenerator, MLP (images), PointMLP (mixtures), or your own.
        hidden: Widths of the hidden layers of MLPs.
        num_latents: Dimension of the latents.
        spectral_norm: On the discriminator's weights: apply, no_op (track only) or none.
        convolution: auto, lax or slices.
    """

    disc: str = "MLP"
    gen: str = "MLP"
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    num_latents: int = 16
    spectral_norm: str = "none"
    convolution: str = "auto"

    def __post_init__(self) -> None:
        choice("spectral_norm", self.spectral_norm, ("apply", "no_op", "none"))
        choice("convolution", self.convolution, ("auto", "lax", "slices"))
        require("num_latents", self.num_latents, self.num_latents >= 1, "integers of at least 1")
        require("hidden", self.hidden, all(n >= 1 for n in self.hidden), "positive widths")


@dataclass
class LossesConfig:
    """Losses of `dd_two_player.gans.losses` or your own ``module:name``.

    Attributes:
        disc: Of the discriminator.
        gen: Of the generator.
        gradient_penalty: Weight of the WGAN penalty.
    """

    disc: str = "discriminator_goodfellow_loss"
    gen: str = "generator_saturating_loss"
    gradient_penalty: float = 0.0

    def __post_init__(self) -> None:
        require(
            "gradient_penalty", self.gradient_penalty, 0 <= self.gradient_penalty < float("inf"), "0 or more"
        )


@dataclass
class UpdatesConfig:
    """Who moves when.

    Attributes:
        scheme: simultaneous, alternating or runge_kutta.
        first: disc or gen moves first when alternating.
        rk_order: 1, 2 or 4.
        rk_fresh_stages: Every stage draws its own batches.
        rk_shared_rate: Intermediate points of both players use the discriminator's rate, as published.
        shared_batch: Both players see the same batch.
        convention: Of the drift coefficients: paper, joint or original.
        estimator: Published name of the regularisers' estimator.
        rate_schedule: From each step on, both rates are multiplied by its factor and by those before it;
            on the command line ``updates.rate_schedule={500:4.0}``.
    """

    scheme: str = "simultaneous"
    first: str = "disc"
    rk_order: int = 4
    rk_fresh_stages: bool = True
    rk_shared_rate: bool = False
    shared_batch: bool = False
    convention: str = "paper"
    estimator: str = "unbiased_estimate_fn_lowest_variance"
    rate_schedule: dict[int, float] = field(default_factory=dict)


@dataclass
class TrainConfig(RunOptions):
    """One GAN training run.

    Attributes:
        experiment: Name of the run's folder; ``experiment=NAME`` also loads that published configuration.
        dataset: digits, digits16, mog16, ring8, textures32, mnist, fashion_mnist, cifar10 and others, or
            ``module:name`` of your own function: samples ``(n, ...)`` as a network should see them.
        batch_size: Over all devices.
        num_steps: Steps in all; raising it continues a finished run.
        device: Where to compute; by default where JAX does.
        device_count: Devices that share each batch.
        dtype: float32 or float64.
        optimizers: Both players'.
        nets: Networks.
        losses: Losses.
        updates: Who moves when.
        grad_regularizes: Regularisation.
        restore_path: Start from this checkpoint (file or run folder) instead of a new draw.
        log_every: Steps per line of metrics.jsonl.
        checkpoint_every: Steps per checkpoint.
        sample_every: Steps per picture of samples; 0 for none.
        eval_every: Steps per score for the best checkpoint; 0 for none.
        eval_samples: Samples per score.
        classifier: Of the scores, see ``eval``; none for no scores. Mixtures are scored by their modes.
        continue_on_nan: Go on after a loss that is not finite.
    """

    experiment: str = "digits"
    dataset: str = "digits"
    data_root: str | None = None
    download: bool = False
    batch_size: int = 64
    num_steps: int = 1000
    seed: int = 0
    device: str | None = None
    device_count: int = 1
    dtype: str = "float32"
    optimizers: OptimizersConfig = field(default_factory=OptimizersConfig)
    nets: NetsConfig = field(default_factory=NetsConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    updates: UpdatesConfig = field(default_factory=UpdatesConfig)
    grad_regularizes: GradRegularizesConfig = field(default_factory=GradRegularizesConfig)
    restore_path: str | None = None
    log_every: int = 100
    checkpoint_every: int = 250
    sample_every: int = 500
    eval_every: int = 500
    eval_samples: int = 1000
    classifier: str = "auto"
    continue_on_nan: bool = False

    def __post_init__(self) -> None:
        """Check counts and combinations that need no framework."""
        choice("dtype", self.dtype, DTYPES)
        for name in ("batch_size", "num_steps", "device_count", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            require(name, value, value >= 1, "integers of at least 1")
        for name in ("sample_every", "eval_every", "seed"):
            value = getattr(self, name)
            require(name, value, value >= 0, "integers of at least 0")
        if self.batch_size % self.device_count:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by device_count {self.device_count}."
            )
        if self.batch_size % 2 and self.updates.estimator.startswith("unbiased"):
            raise ValueError(
                f"batch_size is {self.batch_size}; estimator {self.updates.estimator} splits the batch and "
                "needs an even one."
            )
        multipliers = self.grad_regularizes.dd_coeffs_multiplier
        if self.updates.scheme == "runge_kutta" and any(
            getattr(player, term) for player in (multipliers.disc, multipliers.gen) for term in TERM_KEYS
        ):
            raise ValueError(
                "dd_coeffs_multiplier needs the drift of gradient descent; updates.scheme=runge_kutta has "
                "another one. Use explicit_non_dd_coeffs or rk_after_explicit_coeffs."
            )


@dataclass
class EvalConfig(RunOptions):
    """Metrics of a checkpoint.

    Attributes:
        restore_path: Checkpoint file or run folder; by default the newest run of ``experiment``.
        experiment: Which runs to look for when no path is given.
        classifier: auto (trained here on the data; of mixtures the modes), PATH of a SavedModel, or
            tfgan_inception:PATH.
        num_samples: Per split.
        num_splits: Mean and standard deviation are over these.
        reference: Folder of images, or npz with ``mean`` and ``covariance``; the training data by default.
        save_samples: File for the samples (npz), if wanted.
        which: best or last checkpoint of a run folder.
        batch_size: Samples per call of generator and classifier.
        device: Where to compute; by default where JAX does.
    """

    restore_path: str | None = None
    experiment: str = "digits"
    classifier: str = "auto"
    num_samples: int = 1000
    num_splits: int = 5
    reference: str | None = None
    save_samples: str | None = None
    which: str = "last"
    batch_size: int = 100
    seed: int = 0
    data_root: str | None = None
    download: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_splits", "batch_size"):
            value = getattr(self, name)
            require(name, value, value >= 1, "integers of at least 1")
        choice("which", self.which, ("best", "last"))


def load_config(path: Path) -> TrainConfig:
    """Read the configuration that a run folder was trained with."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; a checkpoint needs the config.json of its run folder."
        )
    stored = read_json(path)
    with reading(path):
        if "${" in json.dumps(stored):  # it would be looked up here: a file must not read the environment
            raise ValueError("it holds an interpolation")
        owners = [stored["updates"], *stored["optimizers"].values()]
        schedules = [{int(k): v for k, v in owner.pop("rate_schedule", {}).items()} for owner in owners]
        config = build(TrainConfig, stored)
        assert isinstance(config, TrainConfig)
        config.updates.rate_schedule, *own = schedules
        config.optimizers.disc.rate_schedule, config.optimizers.gen.rate_schedule = own
        return config
