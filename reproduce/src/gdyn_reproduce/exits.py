"""Exit codes, and how errors become them."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from gdyn_reproduce.registry import program

DONE, UNEXPECTED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 70, 130
_SEVERITY = (DONE, UNEXPECTED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED)


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
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return task()
    except KeyboardInterrupt:
        print("Interrupted. The same command resumes where it stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough
        sys.stderr.close()
        return DONE
    except Exception as error:
        message = _told_to_user(error, package)
        if message is None:
            traceback.print_exc()
            print(
                f"This is a bug in {program(package)}. Please report it with the lines above.",
                file=sys.stderr,
            )
            return INTERNAL_ERROR
        print(f"{program(package)}: {message}", file=sys.stderr)
        return BAD_INPUT


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _told_to_user(error: Exception, package: str) -> str | None:
    """Return the line for an error about the input, ``None`` for a bug.

    An error is about the input when this project raised it on purpose (its last frame is a ``raise``
    of ours), when the operating system refused a file, or when Hydra refused an override.
    """
    origin = type(error).__module__.partition(".")[0]
    if origin in ("hydra", "omegaconf"):
        reason = f": {_first_line(error.__cause__)}" if error.__cause__ else ""
        return _first_line(error) + reason
    if isinstance(error, OSError) or (_raised_by(error, {package, "gdyn_common", "gdyn_reproduce"})):
        return " ".join(str(error).split())
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _raised_by(error: Exception, packages: set[str]) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames or isinstance(error, AssertionError):
        return False
    module = frames[-1][0].f_globals.get("__name__", "").partition(".")[0]
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return module in packages and line.lstrip().startswith("raise")
