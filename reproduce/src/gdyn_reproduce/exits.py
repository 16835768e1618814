"""Exit codes, and how errors become them."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from gdyn_common.errors import printable
from gdyn_reproduce.provenance import package_version
from gdyn_reproduce.registry import program

DONE, UNEXPECTED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 70, 130
_SEVERITY = (DONE, UNEXPECTED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED)

# How NumPy, PyTorch and JAX say it: by class in some versions, by text in others.
_NO_MEMORY = re.compile(r"out of memory|RESOURCE_EXHAUSTED|can't allocate memory|Unable to allocate", re.I)
_NO_DEVICE = re.compile(
    r"not compiled with CUDA|no NVIDIA driver|CUDA driver|invalid device ordinal|No CUDA GPUs|"
    r"Unknown backend|no platforms that are instances|MPS backend|not linked with support for mps",
    re.I,
)


class Parser(argparse.ArgumentParser):
    """Takes ``--version``, and answers a mistake in one line."""

    def __init__(self, *, add_help: bool = True, **options: Any) -> None:
        super().__init__(add_help=add_help, allow_abbrev=False, **options)
        if add_help:
            version = f"%(prog)s {package_version('reproduce')}"
            self.add_argument("--version", action="version", version=version)

    def error(self, message: str) -> NoReturn:
        """Exit with the message and a way on."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; {self.prog} --help says more.\n")


def worst(codes: list[int]) -> int:
    """Return the exit code of several jobs.

    >>> worst([0, 2, 1])
    2
    """
    return max(codes, key=_SEVERITY.index, default=DONE)


def guard(package: str, task: Callable[[], int]) -> int:
    """Run a task and return its exit code; an error becomes one line, a bug its traceback.

    Args:
        package: Import name of the package on whose behalf the task runs.
        task: Returns an exit code.
    """
    try:
        with _termination_interrupts(), _spelling_any_character():
            return task()
    except (KeyboardInterrupt, BrokenPipeError):  # also when whoever reads the output has gone
        print("Interrupted. The same command resumes where it stopped.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message = _told_to_user(error, package)
        if message is None:
            traceback.print_exc()
            print(
                f"This is a bug in {program(package)}. Please report it with the lines above "
                f"{_where(package)}.",
                file=sys.stderr,
            )
            return INTERNAL_ERROR
        print(f"{program(package)}: {printable(message)}", file=sys.stderr)  # it may quote a stranger's file
        return BAD_INPUT


def flushed(code: int) -> int:
    """Return an exit code once standard output is written, or its reader is gone."""
    try:
        if sys.stdout:  # a process may be started without
            sys.stdout.flush()
    except BrokenPipeError:  # Python would complain about it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Treat SIGTERM and a lost terminal like Ctrl-C meanwhile, in the main thread, where nobody else does."""
    main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if main and hasattr(signal, name)]
    caught = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _spelling_any_character() -> Iterator[None]:
    """Spell out meanwhile what standard output has no character for."""
    stream = sys.stdout
    before = getattr(stream, "errors", "")
    # The second is that of a C locale, where it takes no more characters than the first.
    if not isinstance(stream, io.TextIOWrapper) or before not in ("strict", "surrogateescape"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if not stream.closed:
            with suppress(BrokenPipeError):  # it writes what is left; all else is done
                stream.reconfigure(errors=before)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _where(package: str) -> str:
    """Name the page for reports that the installed distribution names, if it names one."""
    try:
        urls = importlib.metadata.metadata(program(package)).get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        urls = []
    pages = dict(url.split(", ", 1) for url in urls)
    return f"at {pages['Issues']}" if "Issues" in pages else "on the issue page of the project"


def _told_to_user(error: Exception, package: str) -> str | None:
    """Return the line for an error about the input or the machine, ``None`` for a bug.

    An error is about the input when this project raised it on purpose (its last frame is a ``raise``
    of ours), when the operating system refused a file, or when Hydra refused an override.
    """
    origin = type(error).__module__.partition(".")[0]
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return (
            f"out of memory ({_first_line(error) or 'no detail'}). Make the run smaller, for example by "
            "preset=quick or a smaller batch_size; dry_run=true computes nothing and tells the cost."
        )
    if _NO_DEVICE.search(str(error)) and origin not in ("hydra", "omegaconf"):
        return f"the device is not there ({_first_line(error)}). Pass device=cpu, or install a build for it."
    if origin in ("hydra", "omegaconf"):
        reason = f": {_first_line(error.__cause__)}" if error.__cause__ else ""
        return _first_line(error) + reason
    if type(error).__name__ == "InvalidParameterError":  # scikit-learn's, of an estimator's settings
        return _first_line(error)
    if isinstance(error, OSError) or _raised_by(error, {package, "gdyn_common", "gdyn_reproduce"}):
        return " ".join(str(error).split())
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _raised_by(error: Exception, packages: set[str]) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames or isinstance(error, AssertionError):
        return False
    known = frames[-1][0].f_globals
    module = getattr(known.get("__spec__"), "name", known.get("__name__", "")).partition(".")[0]
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return module in packages and line.lstrip().startswith("raise")
