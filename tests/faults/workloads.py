"""Small real runs of every package, and how to start them in a forked child."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import injection
import numpy as np
import pytest

from gdyn_reproduce import sources
from gdyn_reproduce.registry import Command, Paper, resolve

_compiled = tempfile.TemporaryDirectory()  # so that a restarted run need not compile again
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": _compiled.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@dataclass(frozen=True)
class Workload:
    """A command of a package that ends in seconds, and writes checkpoints, metrics and results meanwhile."""

    package: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.package} {self.arguments[0]}"


_TRAIN = {
    "chaos": (
        "debug=true max_steps=9 seed=1 logging.logger_type=jsonl model.inter_dim=2 "
        "logging.log_eigenthings=false checkpoint_every=2 batch_size=2"
    ),
    "dd_two_player": (
        "dataset=ring8 nets.gen=PointMLP classifier=modes num_steps=40 batch_size=16 nets.hidden=[8] "
        "log_every=5 checkpoint_every=10 eval_every=10 eval_samples=64 sample_every=0"
    ),
    "variance": (
        "num_steps=40 measure_every=5 snapshot_every=10 first_measure=1 first_snapshot=1 clusters=4 "
        "cluster_iterations=1 max_size=64 batch_size=8 estimators=[SG-B,GC]"
    ),
}
WORKLOADS = (
    *(Workload(package, ("train", *text.split(), "out={out}")) for package, text in _TRAIN.items()),
    Workload(
        "eigengame",
        (
            "fit",
            "dataset={data}",
            "num_components=2",
            "batch_size=32",
            "num_epochs=1",
            "checkpoint_every=2",
            "out={out}",
        ),
    ),
    Workload("instability", ("run", "fig2-right", "preset=smoke", "out={out}")),
)
PACKAGES = tuple(workload.package for workload in WORKLOADS)


@functools.cache
def command_line(package: str) -> tuple[Paper, Sequence[Command]]:
    """Return a package's paper and commands, as its program hands them to the common command line."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    given: list[tuple[Paper, Sequence[Command]]] = []

    def dispatch(paper: Paper, commands: Sequence[Command], argv: list[str]) -> int:
        given.append((paper, commands))
        return 0

    with (
        mock.patch("gdyn_reproduce.cli.dispatch", dispatch),
        mock.patch("sys.argv", [package]),
        pytest.raises(SystemExit),
    ):
        importlib.import_module(f"{package}.cli").main()
    (found,) = given
    return found


@functools.cache
def warm(workload: Workload) -> None:
    """Import here whatever the workload imports, and digest its code, so that no child has to."""
    with tempfile.TemporaryDirectory() as scratch:
        notes = Path(scratch) / "notes"

        def note(folder: Path) -> None:
            leave, digest = os._exit, sources.digest
            before, digested = set(sys.modules), []

            def leave_notes(code: int) -> None:
                modules = [name for name in list(sys.modules) if name not in before]
                notes.write_text(json.dumps([modules, digested]))
                leave(code)

            os._exit = leave_notes
            sources.digest = lambda *names: digested.append(names) or digest(*names)

        result = _attempt(workload, Path(scratch) / "out", note, None, Path(scratch))
        assert result.code in (0, 1), result.err
        modules, digested = json.loads(notes.read_text())
        for name in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        for names in digested:
            sources.digest(*names)


@contextlib.contextmanager
def often_saving():
    """Let experiments that save their state every so many seconds save it at every chance."""
    with contextlib.ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in PACKAGES and hasattr(module, "CHECKPOINT_EVERY_S"):
                patches.enter_context(mock.patch.object(module, "CHECKPOINT_EVERY_S", -1.0))
        yield


@dataclass
class Attempt:
    """What became of one start of a workload: exit code (negative: a signal), and its output."""

    code: int
    out: str
    err: str


def attempt(
    workload: Workload,
    folder: Path,
    prepare: Callable[[Path], object] | None = None,
    *,
    stopped: Callable[[], None] | None = None,
    scratch: Path | None = None,
    fresh: int | None = None,
) -> Attempt:
    """Run a workload in a child process that starts warm: nothing is left to import.

    Args:
        workload: What to run.
        folder: Its ``out``.
        prepare: Called in the child before it starts, with `folder`; installs faults.
        stopped: Called here when the child was stopped by SIGSTOP, before it goes on.
        scratch: Where its output goes; the folder's parent if not given.
        fresh: Start a new interpreter instead, killed at the change of files of this number, if not 0.
    """
    warm(workload)
    return _attempt(workload, folder, prepare, stopped, scratch or folder.parent, fresh)


def _attempt(
    workload: Workload,
    folder: Path,
    prepare: Callable[[Path], object] | None,
    stopped: Callable[[], None] | None,
    scratch: Path,
    fresh: int | None = None,
) -> Attempt:
    paper, commands = command_line(workload.package)
    for command in commands:
        resolve(command.run)
    figures = [figure for figure in paper.figures if figure.id in workload.arguments]
    for figure in figures:
        resolve(figure.module)
    import gdyn_reproduce._hydra
    import gdyn_reproduce.plotting
    import gdyn_reproduce.runs

    scratch.mkdir(parents=True, exist_ok=True)
    data = scratch / "data.npy"
    if not data.exists():
        np.save(data, np.random.default_rng(0).standard_normal((640, 6)).astype(np.float32))
    arguments = [text.format(out=folder, data=data) for text in workload.arguments]
    streams = [scratch / "stdout", scratch / "stderr"]
    jax = sys.modules.get("jax._src.xla_bridge")
    assert not (jax and jax.backends_are_initialized()), "JAX has threads now, which a fork would lose"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, path in enumerate(streams, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            os.chdir(scratch)
            if fresh is not None:
                program = (sys.executable, injection.__file__, str(folder), str(fresh))
                os.execv(sys.executable, (*program, workload.package, *arguments))
            if prepare:
                prepare(folder)
            with often_saving():
                code = gdyn_reproduce.cli.dispatch(paper, commands, arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, os.WUNTRACED)
    while os.WIFSTOPPED(status):
        if stopped:
            stopped()
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, os.WUNTRACED)
    out, err = (path.read_text(errors="replace") for path in streams)
    return Attempt(os.waitstatus_to_exitcode(status), out, err)
