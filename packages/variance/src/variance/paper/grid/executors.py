"""Run the commands of a grid: one after another, in processes, or as SLURM array tasks."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdyn_common.storage import atomic_write
from variance.errors import ConfigError
from variance.paper.grid.expansion import expand, run_name, varied_keys

LOG_TAIL_LINES = 8


@dataclass(frozen=True)
class Job:
    """One run of a grid.

    Attributes:
        name: Running number and varied keys.
        arguments: Arguments of `python -m variance`.
        folder: Receives log and the marker `done`.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether a finished run of exactly these arguments is stored."""
        marker = self.folder / "done"
        return marker.is_file() and marker.read_text() == json.dumps(self.arguments)


@dataclass(frozen=True)
class Outcome:
    """Exit code of a job, and the end of its log."""

    job: Job
    code: int
    tail: str = ""
    skipped: bool = False


def jobs_for(grid: dict[str, Any], out: str) -> list[Job]:
    """Return the jobs of a loaded grid file.

    Args:
        grid: From `load_grid`.
        out: Folder of all runs.
    """
    configurations = expand(grid["grid"])
    varied = varied_keys(configurations, grid["exclude_from_name"])
    jobs = []
    for number, configuration in enumerate(configurations):
        name = run_name(configuration, varied, number)
        folder = Path(out) / "grids" / str(grid["figure"]) / name
        overrides = [f"{key}={_override(value)}" for key, value in configuration.items()]
        arguments = ("run", str(grid["figure"]), f"preset={grid['preset']}", *overrides, f"out={out}")
        jobs.append(Job(name, arguments, folder))
    return jobs


def _override(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(_override(item) for item in value)}]" if isinstance(value, list) else str(value)


def run_job(job: Job) -> Outcome:
    """Run one job unless it is done; a run whose claims came out otherwise (exit code 1) is done as well."""
    if job.is_done:
        return Outcome(job, 0, skipped=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    log = job.folder / "log.txt"
    with log.open("w") as file:
        command = [sys.executable, "-m", "variance", *job.arguments]
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode
    if code in (0, 1):
        atomic_write(job.folder / "done", json.dumps(job.arguments))
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    return Outcome(job, code, tail)


def run_jobs(
    jobs: Sequence[Job], executor: str = "serial", workers: int = 1, *, partition: str = "", minutes: int = 60
) -> list[Outcome]:
    """Run all jobs and return their outcomes in order; a failing job does not stop the others.

    Args:
        jobs: What to run.
        executor: `serial`, `joblib` (processes) or `submitit` (SLURM array).
        workers: Processes, or array tasks active at the same time.
        partition: SLURM partition.
        minutes: SLURM time limit per job.

    Raises:
        ConfigError: Unknown executor, or SLURM is not there.
    """
    if executor == "serial":
        return [run_job(job) for job in jobs]
    if executor == "joblib":
        from joblib import Parallel, delayed

        return list(Parallel(n_jobs=workers)(delayed(run_job)(job) for job in jobs))
    if executor != "submitit":
        raise ConfigError(f"executor is '{executor}'; allowed are serial, joblib, submitit.")
    return _submit(jobs, workers, partition, minutes)


def _submit(jobs: Sequence[Job], workers: int, partition: str, minutes: int) -> list[Outcome]:
    import shutil

    try:
        import submitit
    except ModuleNotFoundError:
        raise ConfigError(
            "executor=submitit needs the package submitit: pip install 'gdyn-variance[sweep]'."
        ) from None
    cluster = os.environ.get("GDYN_SUBMITIT_CLUSTER", "slurm")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("executor=submitit found no SLURM (no sbatch on PATH); use executor=joblib jobs=N.")
    executor = submitit.AutoExecutor(folder=str(jobs[0].folder.parent / "submitit"), cluster=cluster)
    executor.update_parameters(timeout_min=minutes)
    if cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=workers, slurm_partition=partition or None)
    return [job.result() for job in executor.map_array(run_job, list(jobs))]
