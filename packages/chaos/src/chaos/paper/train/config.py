"""The option table of the published ``train.py``: same names, same defaults, every one of them read."""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos.paper.config import ImagesConfig

PERTURB_STRATEGIES = ("max_chaos", "randn_chaos", "max_convergence", "randn_convergence", "randn", "all")
LOGGERS = ("jsonl", "tensorboard", "neptune", "wandb")


@dataclass
class LoggingConfig:
    """What is measured and stored, and how often.

    Attributes:
        log_eigenthings: Hessian eigenvalues, local exponents, gradient overlaps.
        log_lyapunov: Exponents of the tangent matrix.
        log_subsim: Similarity of Hessian subspaces with those at t_hessian_subsim.
        t_hessian_subsim: Steps whose Hessian subspaces are compared with later ones; null takes t_lya_subsim.
        log_lyapunov_subsim: Similarity of subspaces of the tangent matrix with those at t_lya_subsim.
        t_lya_subsim: Steps t_0 whose subspaces are compared with later ones.
        log_freq: Steps between measurements.
        lyapunov_freq: Steps between decompositions of the tangent matrix; 0 makes about 50 per run.
        recurrence: exact, or published (the original's momentum recurrence).
        plot_eigs_every: Steps between plots of the Hessian's spectrum; 0 for none.
        plot_mats_every: Steps between images of the Hessian; 0 for none.
        plot_trajectories: Draw the distances of perturbed models.
        save_trajectories: Store the distances of perturbed models.
        save_eigenthings: Store the pairs of the tangent matrix after training.
        save_lyapunov_at: Epoch (from 0) after which they are stored.
        lyapunov_perturb_eigs: File of pairs that gives the directions of the perturbations.
        lyapunov_perturb_vecs: File of vectors, with lyapunov_perturb_vals.
        lyapunov_perturb_vals: File of eigenvalues of Y'Y, with lyapunov_perturb_vecs.
        save_hessian_dist_every: Steps between stored Hessian spectra; 0 for none.
        signal_noise_window: Steps of the window for the gradient's signal-to-noise ratio; 0 for none.
        logger_type: jsonl, tensorboard, neptune or wandb; the JSON lines are always written.
        project: Name of the project at a service; its token comes from the environment.
        offline: Keep the service local.
        tags: Words stored with the run.
    """

    log_eigenthings: bool = True
    log_lyapunov: bool = True
    log_subsim: bool = False
    t_hessian_subsim: list[float] | None = None
    log_lyapunov_subsim: bool = False
    t_lya_subsim: list[float] | None = None
    log_freq: int = 1
    lyapunov_freq: int = 0
    recurrence: str = "exact"
    plot_eigs_every: int = 0
    plot_mats_every: int = 0
    plot_trajectories: bool = False
    save_trajectories: bool = False
    save_eigenthings: bool = False
    save_lyapunov_at: int | None = None
    lyapunov_perturb_eigs: str | None = None
    lyapunov_perturb_vecs: str | None = None
    lyapunov_perturb_vals: str | None = None
    save_hessian_dist_every: int = 0
    signal_noise_window: int = 0
    logger_type: str = "jsonl"
    project: str = "gdyn-chaos"
    offline: bool = False
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.log_freq < 1:
            raise ValueError(f"logging.log_freq={self.log_freq} must be at least 1.")
        for key in ("lyapunov_freq", "plot_eigs_every", "plot_mats_every", "save_hessian_dist_every"):
            if getattr(self, key) < 0:
                raise ValueError(f"logging.{key}={getattr(self, key)} must be 0 (off) or a number of steps.")
        if self.signal_noise_window < 0 or self.signal_noise_window == 1:
            raise ValueError(
                f"logging.signal_noise_window={self.signal_noise_window} must be 0 or at least 2."
            )
        if self.logger_type not in LOGGERS:
            raise ValueError(
                f"logging.logger_type={self.logger_type} is unknown. Allowed: {', '.join(LOGGERS)}."
            )
        if self.recurrence not in ("exact", "published"):
            raise ValueError(f"logging.recurrence={self.recurrence} is unknown. Allowed: exact, published.")
        if (self.lyapunov_perturb_vecs is None) != (self.lyapunov_perturb_vals is None):
            raise ValueError("logging.lyapunov_perturb_vecs and logging.lyapunov_perturb_vals go together.")
        if self.log_lyapunov_subsim and not self.t_lya_subsim:
            raise ValueError("logging.log_lyapunov_subsim needs steps: logging.t_lya_subsim=[10,1e+4].")
        if self.log_subsim and not (self.t_hessian_subsim or self.t_lya_subsim):
            raise ValueError("logging.log_subsim needs steps: logging.t_hessian_subsim=[10,1e+4].")

    @property
    def needs_tangent(self) -> bool:
        """Whether anything asks for the tangent matrix."""
        asked = self.log_lyapunov or self.log_lyapunov_subsim or self.save_eigenthings
        return asked or self.save_lyapunov_at is not None

    @property
    def needs_hessian(self) -> bool:
        """Whether anything asks for Hessians."""
        drawn = self.plot_eigs_every or self.plot_mats_every or self.save_hessian_dist_every
        return self.log_eigenthings or self.log_subsim or bool(drawn) or self.needs_tangent


@dataclass
class ModelConfig:
    """The network.

    Attributes:
        name: mlp or cnn.
        activation: relu, sigmoid, tanh or gelu.
        inter_dim: Hidden units of the mlp.
        base_channels: Channels of the cnn's first layer.
        block_cnt: Convolutions before the cnn's first pooling.
        batch_norm: Batch norm after each activation.
    """

    name: str = "mlp"
    activation: str = "relu"
    inter_dim: int = 20
    base_channels: int = 4
    block_cnt: int = 1
    batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.name not in ("mlp", "cnn"):
            raise ValueError(f"model.name={self.name} is unknown. Allowed: mlp, cnn.")
        if self.activation not in ("relu", "sigmoid", "tanh", "gelu"):
            raise ValueError(
                f"model.activation={self.activation} is unknown. Allowed: relu, sigmoid, tanh, gelu."
            )
        for key in ("inter_dim", "base_channels", "block_cnt"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1.")


@dataclass
class OptimConfig:
    """The optimiser; see :class:`chaos.cgd.CGD`.

    Attributes:
        name: sgd or cgd.
        momentum: Of either.
        lr: Learning rate.
        k: Prune at most k directions; null prunes the whole set.
        prune_global: Prune fixed directions of the tangent matrix.
        prune_global_checkpoint: File of pairs for prune_global; null trains a first run that makes them.
        prune_set: chaotic, pos or neg.
        prune_k: top_abs or rand.
        prune_start: First step that prunes.
        noise: Noise instead of zero in the pruned directions.
        noise_fac: Its standard deviation; null takes the mean of |g_i|.
    """

    name: str = "sgd"
    momentum: float = 0.0
    lr: float = 0.001
    k: int | None = None
    prune_global: bool = False
    prune_global_checkpoint: str | None = None
    prune_set: str = "chaotic"
    prune_k: str = "top_abs"
    prune_start: int = 0
    noise: bool = False
    noise_fac: float | None = None

    def __post_init__(self) -> None:
        for key, allowed in (
            ("name", ("sgd", "cgd")),
            ("prune_set", ("chaotic", "pos", "neg")),
            ("prune_k", ("top_abs", "rand")),
        ):
            if (given := getattr(self, key)) not in allowed:
                raise ValueError(f"optim.{key}={given} is unknown. Allowed: {', '.join(allowed)}.")
        if self.lr <= 0:
            raise ValueError(f"optim.lr={self.lr} must be positive.")


@dataclass
class TrainConfig(ImagesConfig):
    """One training run of the paper's kind.

    Attributes:
        max_epochs: Epochs.
        num_steps: Steps, instead of epochs.
        parallel: Models in one run, the first unperturbed.
        perturb_strat: max_chaos, randn_chaos, max_convergence, randn_convergence, randn or all.
        perturb_eps: Sizes of the perturbations.
        eps_eigh: Shift that stabilises the eigensolver.
        eigenthings_path: File of pairs for perturbations or global pruning.
        seed: null draws one and prints it.
        debug: Embedded digits of USPS shape, 3 training and 2 validation batches per epoch.
        checkpoint_every: Steps between checkpoints.
        logging: What is measured and stored.
        model: The network.
        optim: The optimiser.
    """

    dataset: str = "usps"
    max_epochs: int = 40
    num_steps: int | None = None
    parallel: int = 1
    perturb_strat: str | None = None
    perturb_eps: list[float] = field(default_factory=lambda: [1e-1])
    eps_eigh: float = 0.0
    eigenthings_path: str | None = None
    seed: int | None = None
    debug: bool = False
    checkpoint_every: int = 500
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("max_epochs", "parallel", "checkpoint_every", "num_steps"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1.")
        if self.eps_eigh < 0:
            raise ValueError(f"eps_eigh={self.eps_eigh} must not be negative.")
        if self.perturb_strat is not None and self.perturb_strat not in PERTURB_STRATEGIES:
            raise ValueError(
                f"perturb_strat={self.perturb_strat} is unknown. Allowed: {', '.join(PERTURB_STRATEGIES)}."
            )
        if not self.perturb_eps or min(self.perturb_eps) <= 0:
            raise ValueError(f"perturb_eps={self.perturb_eps} must be positive sizes.")
        if self.parallel > 1 and self.perturb_strat is None:
            raise ValueError("parallel > 1 trains perturbed models: name a perturb_strat, for example 'all'.")
        if (
            self.optim.prune_global
            and not (self.optim.prune_global_checkpoint or self.eigenthings_path)
            and not self.logging.log_lyapunov
        ):
            raise ValueError(
                "optim.prune_global needs directions: give optim.prune_global_checkpoint=FILE, or leave "
                "logging.log_lyapunov on, so that a first run makes them."
            )
