"""The package's own commands."""

from dataclasses import dataclass, field

import torch

from gdyn_reproduce.records import Header, Result
from gdyn_reproduce.runs import Run, dump_yaml, folder_of, settings, start_anew
from variance.objective import Objective
from variance.paper.checks import require
from variance.paper.curves import flatten
from variance.paper.estimators import estimators_for, has_exact
from variance.paper.trajectory import TrainingConfig, image_runs


@dataclass
class TrainConfig(TrainingConfig):
    """Training runs from the command line, on the embedded digits by default.

    Attributes:
        model: Name in `variance.paper.models`.
        driver: The estimator whose directions train; momentum methods want frequent_every=1.
    """

    dataset: str = "digits"
    model: str = "digits-mlp"
    driver: str = "SG-B"
    learning_rates: list[float] = field(default_factory=lambda: [0.02])
    batch_size: int = 64
    num_steps: int = 1000
    mode: str = "exact"
    clusters: int = 64
    cluster_iterations: int = 3
    measure_every: int = 100
    snapshot_every: int = 500
    seeds: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        super().__post_init__()
        estimators_for(  # refuses unknown names
            [*self.estimators, self.driver],
            Objective(torch.nn.Identity(), torch.nn.functional.cross_entropy),
            clusters=self.clusters,
            iterations=self.cluster_iterations,
            batch_size=self.batch_size,
            seed=0,
        )
        inexact = [name for name in self.estimators if self.mode == "exact" and not has_exact(name)]
        require(
            not inexact,
            f"mode=exact has no closed form for {', '.join(inexact)}; pass mode=unbiased or mode=reference.",
        )
        require(
            self.first_snapshot == 0 or not self.driver.startswith(("SVRG", "GC")),
            f"driver={self.driver} needs a snapshot before the first step; pass first_snapshot=0.",
        )


def train(config: TrainConfig) -> None:
    """Train and print what was measured last, per seed; the run folder resumes after an interruption."""
    from gdyn_reproduce.provenance import package_version
    from variance.paper import PAPER

    folder = folder_of("variance", config, "train")
    if config.dry_run:
        print(f"train would write {folder}\n{dump_yaml(settings(config))}")
        return
    print(f"train -> {folder}", flush=True)
    header = Header(
        "variance",
        package_version("variance"),
        PAPER.title,
        "train",
        "",
        "training runs",
        "variance.paper.commands",
        "train",
        "smoke",
    )
    if config.overwrite:
        start_anew(folder)
    with Run(folder, settings(config), header) as run:
        found = flatten(image_runs(config, run, driver=config.driver))
        last = {
            name if len(config.learning_rates) > 1 else name.partition("|")[2]: values[:, -1].tolist()
            for name, values in found.items()
            if name.endswith(("avg_var", "noise_scale"))
        }
        run.finish(Result(last, found), ())
    for name, values in last.items():
        print(f"  {name:<28}" + " ".join(f"{value:.4g}" for value in values))
