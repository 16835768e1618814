"""The package's own commands."""

from gdyn_common.storage import remove_folder
from gdyn_reproduce.records import Header, Result
from gdyn_reproduce.runs import Run, config_hash, dump_yaml, settings
from variance.config import TrainConfig


def train(config: TrainConfig) -> None:
    """Train one network and print what was measured; the run folder resumes after an interruption."""
    from pathlib import Path

    from gdyn_reproduce.provenance import package_version
    from variance.paper import PAPER
    from variance.trajectory import image_run

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
        "variance.commands",
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
