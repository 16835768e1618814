"""Pytest support shared by all packages: real data, registries, options that count, runs that are killed.

Tests that need real data skip with a reason.

In a package's ``tests/conftest.py``::

    from gdyn_reproduce.testing import pytest_runtest_setup  # noqa: F401

and on the test ``@pytest.mark.data("usps")``. (Importing the hook, unlike ``pytest_plugins``, also
works where the conftest is not the top-level one.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gdyn_reproduce import _help
from gdyn_reproduce.data import is_available
from gdyn_reproduce.records import Record, hash_arrays, plain
from gdyn_reproduce.registry import Figure, resolve
from gdyn_reproduce.runs import OPTIONS, Run, configure


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked ``data(name)`` unless `name` lies in the data folder."""
    for marker in item.iter_markers("data"):
        for name in marker.args:
            if not is_available(name):
                folder = os.environ.get("GDYN_DATA_DIR")
                where = f"not in GDYN_DATA_DIR={folder}" if folder else "GDYN_DATA_DIR is not set"
                pytest.skip(f"needs the data set {name}: {where}")


def check_registry(package: str) -> None:
    """Check that names in a registry resolve, presets fit, keys are explained, and listing is light.

    Args:
        package: Import name of the package.
    """
    paper, commands = resolve(f"{package}.paper:PAPER"), resolve(f"{package}.paper.cli:COMMANDS")
    for figure in paper.figures:
        module = resolve(figure.module)
        assert callable(module.compute), figure.id
        assert callable(module.plot), figure.id
        assert "smoke" in figure.presets, figure.id
        assert "quick" in figure.presets or not figure.in_default, figure.id
        for preset in figure.presets:
            _unread(figure, configure(figure, preset))
        assert paper.claims_of(figure.id), figure.id
    assert all(claim.because and claim.source for claim in paper.claims)
    for command in commands:
        assert callable(resolve(command.run)), command.name
    for settings in {resolve(item.config) for item in (*paper.figures, *commands)}:
        for line in _help.keys(settings).splitlines():
            assert re.search(r"  \S|\(.+\)$", line.strip()), f"{settings.__name__} does not explain {line}"
    frameworks = {"torch", "jax", "scipy", "sklearn", "hydra", "matplotlib"}
    code = f"import sys, {package}.paper, {package}.cli; print({frameworks} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()", found.stdout


@contextlib.contextmanager
def every_option_counts(figure: Figure) -> Iterator[None]:
    """Check that a run of the figure inside the block reads every option that is not declared unread.

    Args:
        figure: What runs inside, at its preset ``smoke``.
    """
    module, reads = resolve(figure.module), set[str]()
    compute = module.compute
    with mock.patch.object(module, "compute", lambda config, run: compute(_recording(config, reads), run)):
        yield
    config = configure(figure, "smoke")
    silent = {item.name for item in dataclasses.fields(config)} - reads - {*OPTIONS, *_unread(figure, config)}
    assert not silent, f"{figure.id} never reads {', '.join(sorted(silent))}; declare them as Figure.unread"


def check_unread(figure: Figure, record: Record, scratch: Path) -> None:
    """Check that the options that are declared unread change no number of a smoke run.

    Args:
        figure: What is run anew, with all those options changed.
        record: Its run at the preset ``smoke``.
        scratch: An empty folder.
    """
    config = configure(figure, "smoke")
    unread = _unread(figure, config)
    for key in unread:
        value = getattr(config, key)
        other = (
            not value if isinstance(value, bool) else 2 * value + 1 if isinstance(value, int | float) else "x"
        )
        object.__setattr__(config, key, other)  # without the checks: what nothing reads may be anything
    if unread:
        with Run(scratch, {}, record.header) as run:
            result = resolve(figure.module).compute(config, run)
        assert plain(result.measurements) == plain(record.measurements), f"{figure.id} reads one of {unread}"
        assert hash_arrays(result.arrays) == record.arrays_sha256, f"{figure.id} reads one of {unread}"


def _unread(figure: Figure, config: Any) -> list[str]:
    """Return the options that are declared unread beside the others of a configuration."""
    keys = [key for rule in figure.unread if not rule.read(config) for key in rule.keys]
    assert all(key.partition(".")[0] in vars(config) for rule in figure.unread for key in rule.keys), (
        figure.id
    )
    return keys


_COPIES = ("dataclasses.replace", "dataclasses._replace")


def _recording(config: Any, reads: set[str]) -> Any:
    """Return a copy of a configuration that notes which of its fields are read.

    Checks of its values at construction are no reads, nor is a copy of all of them. What is read of a copy
    by `dataclasses.replace` counts, but for what was replaced.
    """
    kind, carried = type(config), set[str]()
    names = {item.name for item in dataclasses.fields(config)}

    def caller() -> str:
        frame = sys._getframe(2)
        return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"

    def build(self: Any, *arguments: Any, **values: Any) -> None:
        kind.__init__(self, *arguments, **values)
        vars(self)["_own"] = set(carried) if caller() in _COPIES else names
        carried.clear()

    def read(self: Any, name: str) -> Any:
        if name in object.__getattribute__(self, "__dict__").get("_own", ()):
            if caller() in _COPIES:
                carried.add(name)
            elif not caller().startswith("dataclasses."):
                reads.add(name)
        return object.__getattribute__(self, name)

    recorder = type(kind.__name__, (kind,), {"__init__": build, "__getattribute__": read})
    return recorder(**{name: getattr(config, name) for name in names})


def check_killed_runs_resume(
    package: str,
    arguments: Iterable[str],
    scratch: Path,
    *,
    after_files: Iterable[int],
    timeout_s: float = 120,
    result: str = "result.json",
) -> None:
    """Kill a run at several points and check that starting it again gives the same result.

    Args:
        package: Import name of the package; its command line is run with ``python -m``.
        arguments: For example ``["run", "fig1", "preset=smoke"]``.
        scratch: An empty folder.
        after_files: The run is killed once that many pieces and checkpoints have been written, one
            kill per entry; 0 kills it while it starts.
        timeout_s: Limit for each single run.
        result: Name of the file that a finished run leaves and that is compared.
    """
    whole = _start(package, arguments, scratch / "whole")
    assert whole.wait(timeout_s) == 0, "the uninterrupted run failed"
    (expected,) = (scratch / "whole").rglob(result)
    for index, count in enumerate(after_files):
        out = scratch / f"killed{index}"
        child = _start(package, arguments, out)
        _wait_for_files(child, out, count, timeout_s)
        child.send_signal(signal.SIGKILL)
        child.wait(timeout_s)
        assert not list(out.rglob(result)), f"finished before {count} files; kill earlier"
        assert _start(package, arguments, out).wait(timeout_s) == 0, "the resumed run failed"
        (actual,) = out.rglob(result)
        assert actual.read_bytes() == expected.read_bytes(), f"killed after {count} files: results differ"


def _start(package: str, arguments: Iterable[str], out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", package, *arguments, f"out={out}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for_files(child: subprocess.Popen[bytes], out: Path, count: int, timeout_s: float) -> None:
    """Wait until the run has written `count` pieces or checkpoints; a rewritten checkpoint counts anew."""
    seen: set[tuple[Path, int]] = set()
    deadline = time.monotonic() + timeout_s
    while child.poll() is None and len(seen) < count:
        assert time.monotonic() < deadline, f"only {len(seen)} of {count} files after {timeout_s} s"
        for path in [*out.rglob("pieces/*.npz"), *out.rglob("checkpoints/*.npz")]:
            try:
                seen.add((path, path.stat().st_mtime_ns))
            except FileNotFoundError:  # replaced at this moment
                continue
        time.sleep(0.005)
