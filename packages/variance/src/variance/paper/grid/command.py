"""The commands `grid` and `collect`."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gdyn_common.errors import unknown
from gdyn_common.storage import atomic_write
from gdyn_reproduce.records import csv_table, load_runs
from gdyn_reproduce.registry import program, resolve
from gdyn_reproduce.runs import RunOptions
from variance.errors import ConfigError
from variance.paper.checks import require
from variance.paper.grid.executors import jobs_for, run_jobs
from variance.paper.grid.expansion import expand, load_grid


@dataclass
class CollectConfig(RunOptions):
    """Tidy table of finished runs.

    Attributes:
        folder: Where runs lie.
        table: CSV file to write; the screen where empty.
    """

    folder: str = "runs"
    table: str = ""


@dataclass
class GridConfig(RunOptions):
    """A file of runs.

    Attributes:
        file: YAML file with a grid.
        executor: serial, joblib (processes on this machine) or submitit (SLURM arrays).
        jobs: Processes, or array tasks that may be active at once.
        partition: SLURM partition.
        minutes: SLURM time limit.
    """

    file: str = ""
    executor: str = "serial"
    jobs: int = 1
    partition: str = ""
    minutes: int = 60

    def __post_init__(self) -> None:
        require(
            self.executor in ("serial", "joblib", "submitit"),
            f"executor={self.executor}: serial, joblib, submitit.",
        )
        require(self.jobs >= 1, f"jobs={self.jobs} must be at least 1.")


def run_grid(config: GridConfig) -> int:
    """Run every configuration of a grid file, report failures at the end, and return the worst exit code."""
    if not config.file:
        raise ConfigError("grid needs a file: gdyn-variance grid packages/variance/grids/F6.yaml")
    grid = load_grid(config.file)
    _require_known(grid)
    jobs = jobs_for(grid, config.out)
    if config.dry_run:
        for job in jobs:
            print(shlex.join([program("variance"), *job.arguments]))
        return 0
    outcomes = run_jobs(
        jobs, config.executor, config.jobs, partition=config.partition, minutes=config.minutes
    )
    failed = [outcome for outcome in outcomes if outcome.code not in (0, 1)]
    skipped = sum(outcome.skipped for outcome in outcomes)
    print(
        f"{len(outcomes)} runs: {len(outcomes) - len(failed)} done ({skipped} of them before), "
        f"{len(failed)} failed"
    )
    for outcome in failed:
        print(f"{outcome.job.name} exited with {outcome.code}; the end of {outcome.job.folder / 'log.txt'}:")
        print(outcome.tail)
    return max((outcome.code for outcome in outcomes), default=0)


def _require_known(grid: dict[str, Any]) -> None:
    """Refuse a figure, preset or key that no run would accept, before any of them starts."""
    from variance.paper import PAPER

    figure = PAPER.figure(str(grid["figure"]))
    if grid["preset"] not in figure.presets:
        raise ConfigError(unknown("preset", str(grid["preset"]), figure.presets))
    keys = [field.name for field in fields(resolve(figure.config))]
    for key in {key: None for configuration in expand(grid["grid"]) for key in configuration}:
        if key not in keys:
            raise ConfigError(f"figure {figure.id}: {unknown('key', key, keys)}")


def collect(config: CollectConfig) -> None:
    """Print or write one row per finished run."""
    folder = Path(config.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} not found; give the folder that `out=` named.")
    rows = load_runs(folder)
    if not rows:
        raise FileNotFoundError(f"folder {folder} holds no finished run.")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = csv_table([columns, *([row.get(key, "") for key in columns] for row in rows)])
    if config.table:
        atomic_write(Path(config.table), text)
        print(f"{len(rows)} runs -> {config.table}")
    else:
        print(text, end="")
