"""The package's own commands."""

from dataclasses import dataclass

from gdyn_common.storage import remove_folder
from gdyn_reproduce.records import Header, Result
from gdyn_reproduce.runs import Run, config_hash, dump_yaml, settings
from variance.paper.checks import require
from variance.paper.trajectory import ImageConfig, image_run


@dataclass
class TrainConfig(ImageConfig):
    """One training run from the command line, on the embedded digits by default.

    Attributes:
        dataset: Name in `gdyn_reproduce.data`.
        model: Name in `variance.paper.models`.
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
        super().__post_init__()
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive.")


def train(config: TrainConfig) -> None:
    """Train one network and print what was measured; the run folder resumes after an interruption."""
    from pathlib import Path

    from gdyn_reproduce.provenance import package_version
    from variance.paper import PAPER

    version = package_version("variance")
    folder = Path(config.out) / "variance" / "train" / config_hash(settings(config), version)
    if config.dry_run:
        print(f"train would write {folder}\n{dump_yaml(settings(config))}")
        return
    print(f"train -> {folder}", flush=True)
    header = Header(
        "variance",
        version,
        PAPER.title,
        "train",
        "",
        "one training run",
        "variance.paper.commands",
        "train",
        "smoke",
    )
    if config.overwrite:
        remove_folder(folder)
    with Run(folder, settings(config), header) as run:
        found = run.piece("run", lambda: image_run(config, config.learning_rate, config.seed, run))
        last = {
            name: float(values[-1])
            for name, values in found.items()
            if name.endswith(("avg_var", "noise_scale"))
        }
        run.finish(Result(last, found), ())
    for name, value in last.items():
        print(f"  {name:<24}{value:.4g}")
