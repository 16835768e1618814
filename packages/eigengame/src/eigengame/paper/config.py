"""Configuration of every experiment and command; field descriptions are the ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field

from gdyn_reproduce.runs import RunOptions


def _check_seeds(seeds: list[int]) -> None:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={seeds} must be one or more different integers.")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive.")


@dataclass
class SyntheticConfig(RunOptions):
    """Known spectra, exact products.

    Attributes:
        dim: Size of the matrix; all its eigenvectors are sought.
        spectra: linear, exponential.
        methods: mu, alpha, gha, oja, mu projected.
        learning_rates: Each method takes the one with the longest streak on held-out matrices.
        held_out: Number of held-out matrices.
        num_steps: Steps.
        num_points: Points of the curves.
        seeds: Seeds of matrices and starting vectors.
    """

    dim: int = 50
    spectra: list[str] = field(default_factory=lambda: ["linear", "exponential"])
    methods: list[str] = field(default_factory=lambda: ["mu", "alpha", "gha", "oja", "mu projected"])
    learning_rates: list[float] = field(default_factory=lambda: [1e-3, 1e-4, 1e-5, 1e-6])
    held_out: int = 10
    num_steps: int = 1000
    num_points: int = 50
    seeds: list[int] = field(default_factory=lambda: list(range(10)))

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _check_positive(
            dim=self.dim, held_out=self.held_out, num_steps=self.num_steps, num_points=self.num_points
        )


@dataclass
class ImagesConfig(RunOptions):
    """Minibatches of images.

    Attributes:
        dataset: digits, mnist, fashion_mnist or another name of the loader.
        num_components: Number of components sought.
        batch_sizes: Rows per step.
        methods: mu, alpha, gha, oja.
        rate_factors: Candidate learning rates, times the automatic one of the batch size.
        momentum: Nesterov momentum.
        num_samples: Samples shown to each method; steps are this over the batch size.
        max_steps: Upper limit of the steps.
        num_points: Points of the curves.
        seeds: Seeds of starting vectors and batches; learning rates are chosen on another one.
    """

    dataset: str = "mnist"
    num_components: int = 16
    batch_sizes: list[int] = field(default_factory=lambda: [1024, 256, 32])
    methods: list[str] = field(default_factory=lambda: ["mu", "alpha", "gha", "oja"])
    rate_factors: list[float] = field(default_factory=lambda: [0.3, 1.0, 3.0])
    momentum: float = 0.9
    num_samples: int = 3_000_000
    max_steps: int = 6000
    num_points: int = 40
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _check_positive(
            num_components=self.num_components,
            num_samples=self.num_samples,
            max_steps=self.max_steps,
            num_points=self.num_points,
        )
        if not self.batch_sizes or min(self.batch_sizes) < 1 or not self.rate_factors:
            raise ValueError("batch_sizes and rate_factors need at least one positive entry each.")


@dataclass
class BiasConfig(RunOptions):
    """Averaged directions of equal parts of one batch against the direction of the whole.

    Attributes:
        num_samples: Size of the batch.
        dim: Dimension.
        num_components: Number of players.
        parts: Numbers of equal parts; each must divide num_samples.
        seeds: Seeds of data and vectors.
    """

    num_samples: int = 40
    dim: int = 50
    num_components: int = 10
    parts: list[int] = field(default_factory=lambda: [1, 2, 4, 10, 40])
    seeds: list[int] = field(default_factory=lambda: list(range(1000)))

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        for parts in self.parts:
            if parts < 1 or self.num_samples % parts:
                raise ValueError(f"parts={parts} does not divide num_samples={self.num_samples}.")


@dataclass
class LandscapeConfig(RunOptions):
    """Utility of a child around a rotated parent, exact and averaged over minibatches.

    Attributes:
        variances: Three eigenvalues of the covariance.
        parent_degrees: Rotations of the parent.
        batch_size: Rows of a minibatch.
        num_batches: Minibatches averaged.
        num_angles: Points of the child's half circle.
        seeds: Seeds of the data.
    """

    variances: list[float] = field(default_factory=lambda: [3.0, 1.2, 1.0])
    parent_degrees: list[float] = field(default_factory=lambda: [-20.0, -10.0, 0.0, 10.0, 20.0])
    batch_size: int = 4
    num_batches: int = 50_000
    num_angles: int = 721
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        if len(self.variances) != 3:
            raise ValueError(f"variances={self.variances} must be three numbers.")


@dataclass
class DataParallelConfig(RunOptions):
    """More copies of the players, each with its own samples.

    Attributes:
        dim: Dimension.
        num_components: Number of players.
        batch_per_copy: Rows that each copy sees per step.
        copies: Numbers of copies.
        rate_factor: Learning rate times the top eigenvalue.
        num_steps: Steps.
        tail: Share of the steps, at the end, over which distances are averaged.
        seeds: Seeds of vectors and samples.
    """

    dim: int = 256
    num_components: int = 16
    batch_per_copy: int = 8
    copies: list[int] = field(default_factory=lambda: [1, 4, 8])
    rate_factor: float = 0.1
    num_steps: int = 3000
    tail: float = 0.2
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        _check_positive(num_steps=self.num_steps, rate_factor=self.rate_factor, tail=self.tail)


@dataclass
class ActivationsConfig(RunOptions):
    """Activations of a random convolutional network as a pytree.

    Attributes:
        num_images: Images passed through the network.
        image_size: Side of the images.
        width: Channels of the first layer.
        num_components: Number of components.
        batch_size: Rows per step.
        num_steps: Steps.
        rate_factor: Learning rate times the top eigenvalue.
        features: Devices over which the coordinates of vectors and activations are split.
        seeds: Seeds of network, vectors and batches.
    """

    num_images: int = 2048
    image_size: int = 32
    width: int = 32
    num_components: int = 8
    batch_size: int = 128
    num_steps: int = 1000
    rate_factor: float = 0.5
    features: int = 1
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)


@dataclass
class ClusteringConfig(RunOptions):
    """Spectral clustering of a graph of blocks from minibatches of edges.

    Attributes:
        blocks: Number of blocks, one more edge between each pair.
        nodes: Nodes per block.
        batches_per_pass: A minibatch holds the edges divided by this.
        rate_factor: Step size times lambda_star.
        num_steps: Steps.
        num_points: Points of the curve.
        seeds: Seeds of graph, vectors and minibatches.
    """

    blocks: int = 8
    nodes: int = 50
    batches_per_pass: int = 10
    rate_factor: float = 1.0
    num_steps: int = 1000
    num_points: int = 10
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)


@dataclass
class CCAConfig(RunOptions):
    """Canonical correlations of two views.

    Attributes:
        dataset: Images whose left and right halves are the real pair of views.
        num_samples: Samples of the synthetic views.
        num_components: Components of the synthetic views (their number of latents).
        image_components: Components of the image halves.
        full_steps: Full-batch steps.
        batch_size: Rows of each of the two independent minibatches.
        batch_steps: Minibatch steps.
        epsilon: Ridge added to B for the image halves (blank pixels), in units of the mean variance.
        seeds: Seeds of data and vectors.
    """

    dataset: str = "digits"
    num_samples: int = 2048
    num_components: int = 4
    image_components: int = 4
    full_steps: int = 2000
    batch_size: int = 64
    batch_steps: int = 5000
    epsilon: float = 0.1
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)


@dataclass
class PlsIcaConfig(RunOptions):
    """Partial least squares and independent components, full batch.

    Attributes:
        num_samples: Samples of the two views.
        pls_components: Components compared with the exact ones.
        pls_steps: Steps.
        ica_samples: Samples of the mixed sources.
        ica_steps: Steps.
        seeds: Seeds of data and vectors.
    """

    num_samples: int = 512
    pls_components: int = 6
    pls_steps: int = 6000
    ica_samples: int = 2000
    ica_steps: int = 3000
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)


@dataclass
class FitConfig(RunOptions):
    """Top components of a file, streamed; resumes after an interruption.

    Attributes:
        data: Samples on rows in a .npy file (read as a memory map), or in the only array of a .npz.
        k: Number of components.
        batch_size: Rows per step.
        epochs: Passes over the file.
        algorithm: mu, alpha, gha or oja.
        learning_rate: A number, or 0 for automatic.
        momentum: Nesterov momentum.
        center: Subtract the running mean.
        seed: Seed of starting vectors and of the order of the rows.
        checkpoint_every: Steps between checkpoints.
        out: Folder that receives components.npz and the checkpoint.
    """

    data: str = ""
    k: int = 8
    batch_size: int = 256
    epochs: int = 1
    algorithm: str = "mu"
    learning_rate: float = 0.0
    momentum: float = 0.9
    center: bool = True
    seed: int = 0
    checkpoint_every: int = 500
    out: str = "eigengame-fit"

    def __post_init__(self) -> None:
        _check_positive(k=self.k, batch_size=self.batch_size, epochs=self.epochs, every=self.checkpoint_every)
        if self.algorithm not in ("mu", "alpha", "gha", "oja"):
            raise ValueError(f"algorithm={self.algorithm!r}; allowed are mu, alpha, gha, oja.")


@dataclass
class EvalConfig(RunOptions):
    """Fitted components against an exact solver or a file.

    Attributes:
        components: components.npz written by fit.
        data: The data file, for the exact solver.
        against: exact, or a .npy file with the true vectors on rows.
    """

    components: str = ""
    data: str = ""
    against: str = "exact"


@dataclass
class EmbedConfig(RunOptions):
    """Spectral embedding of a graph.

    Attributes:
        edges: Endpoints, two integers per row: .npy, or text with blanks or commas.
        k: Number of vectors.
        steps: Steps.
        batch_size: Edges per step; 0 uses all.
        learning_rate: Step size times lambda_star.
        seed: Seed of starting vectors and minibatches.
        out: File that receives the embedding (.npy).
    """

    edges: str = ""
    k: int = 8
    steps: int = 1000
    batch_size: int = 0
    learning_rate: float = 1.0
    seed: int = 0
    out: str = "embedding.npy"

    def __post_init__(self) -> None:
        _check_positive(k=self.k, steps=self.steps, learning_rate=self.learning_rate)
