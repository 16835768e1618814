"""Where a number came from: versions, machine, threads, time and memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_LIBRARIES = ("numpy", "scipy", "torch", "jax", "jaxlib", "optax", "dm-haiku", "scikit-learn", "matplotlib")


def package_version(package: str) -> str:
    """Return the installed version of a package of this project, ``"0"`` when run from the source tree."""
    try:
        return importlib.metadata.version(f"gdyn-{package.replace('_', '-')}")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def collect(wall_time_s: float) -> dict[str, Any]:
    """Describe this process and machine, for ``provenance.json``."""
    import resource  # POSIX only, like the memory figure it gives

    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "wall_time_s": round(wall_time_s, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
        "versions": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


def commit() -> str | None:
    """Return the commit of the checkout this code runs from, marked when files differ from it.

    There is none for code that is installed, even where that lies inside another project's repository.
    """
    here = Path(__file__)
    # Git sets these for its hooks; they name the repository of whoever commits.
    names = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
    environment = {name: value for name, value in os.environ.items() if name not in names}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    with contextlib.suppress(OSError, IndexError):
        text = Path("/proc/cpuinfo").read_text()
        return str(re.findall(r"model name\s*:\s*(.+)", text)[0])
    return platform.processor()
