"""A sweep through a real SLURM of one node, started here; skipped where it cannot start."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contents import contents, difference

pytestmark = pytest.mark.timeout(3600)  # submitit asks ever more seldom, up to minutes apart

CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}
SlurmctldPort={port}
SlurmdPort={next_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=2
NodeName={host} CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=60
"""
GRID = "figure: F8\npreset: smoke\ngrid:\n  seeds: [[0], [1]]\n"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd; yields the environment in which the cluster is found."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install munge slurmctld slurmd slurm-client")
    if os.geteuid() != 0:
        pytest.skip("only root can start slurmd")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    configuration = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(folder=folder, host=host, port=port, next_port=port + 1, cpus=os.cpu_count())
    configuration.write_text(text)
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    munge = [f"--{name}={folder / file}" for name, file in
             (("socket", "munge.socket"), ("key-file", "munge.key"), ("pid-file", "munge.pid"),
              ("log-file", "munge.log"), ("seed-file", "munge.seed"))]  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            with (folder / f"{command[0]}.out").open("wb") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in _run(["sinfo", "-h", "-o", "%T"], environment):
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
                logs = "; ".join(path.read_text()[-200:] for path in folder.glob("*.out"))
                pytest.skip(f"SLURM does not start here: {' '.join(logs.split())}")
            time.sleep(1)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()


def _run(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _sweep(grid: Path, executor: str, out: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "variance",
        "grid",
        str(grid),
        f"executor={executor}",
        "jobs=2",
        f"out={out}",
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_requeued_job_of_a_sweep_gives_the_same_bits(slurm, tmp_path, tally):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    whole = _sweep(grid, "serial", tmp_path / "whole", slurm)
    output, _ = whole.communicate(timeout=1800)
    assert whole.returncode in (0, 1), output
    swept = _sweep(grid, "submitit", tmp_path / "swept", slurm)
    deadline = time.monotonic() + 300
    while not (jobs := _run(["squeue", "-h", "-t", "R", "-r", "-o", "%i"], slurm).split()):
        assert swept.poll() is None, swept.communicate()[0]
        assert time.monotonic() < deadline, "no job has started"
        time.sleep(0.2)
    while swept.poll() is None and not list((tmp_path / "swept").rglob("config.yaml")):
        time.sleep(0.05)
    requeued = subprocess.run(["scontrol", "requeue", jobs[0]], env=slurm, capture_output=True, check=False)
    output, _ = swept.communicate(timeout=1800)
    # The sweep tells that a job was interrupted; SLURM starts that job again by itself after two minutes.
    assert swept.returncode in (whole.returncode, 130), output
    assert requeued.returncode == 0, requeued.stderr
    while _run(["squeue", "-h"], slurm).strip():
        assert time.monotonic() < deadline + 300, "the requeued job does not end"
        time.sleep(1)
    results = [
        {name: item for name, item in contents(tmp_path / out / "variance").items() if "figure." not in name}
        for out in ("whole", "swept")
    ]
    assert difference(*results) == ""
    again = _sweep(grid, "submitit", tmp_path / "swept", slurm)
    output, _ = again.communicate(timeout=1800)
    assert again.returncode == whole.returncode, output
    assert "2 of them before" in output, output  # nothing that SLURM finished is done again
    tally("requeued jobs of SLURM", "variance")
