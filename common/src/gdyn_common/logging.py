"""Metrics of a run: JSON lines on disk always, other services if asked.

A metric is a number; its step counts updates. The services are extras, ``gdyn-common[tensorboard]``
and so on, imported when opened. None of them can fail a run: the first error is reported once and
the sink is dropped. An error of the JSON-lines file itself is raised, since it is the record.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

from gdyn_common.errors import UnknownNameError, printable, unknown
from gdyn_common.storage import atomic_file, naming, open_regular

_MAX_LINE = 1 << 24
_BLOCK = 1 << 16
_REPEAT = "Repair that and start the command again"
# As in the records of runs; the second spelling is that of files written earlier.
_NON_FINITE = {text: float(text) for text in ("nan", "inf", "-inf", "NaN", "Infinity", "-Infinity")}
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Receives metrics."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record metrics, numbers or zero-dimensional arrays, of a step."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics as Python numbers and strings."""
    plain = {}
    for key, value in metrics.items():
        if getattr(value, "shape", ()) not in ((), (1,)):
            raise ValueError(f"metric {key!r} has shape {tuple(value.shape)}; log one number per metric.")
        plain[key] = value.item() if hasattr(value, "item") else value
    return plain


class JsonLines:
    """Appends one JSON object per call to a file, flushed, so that a kill loses at most one line.

    NaN and infinities, which JSON does not know, are written as the strings ``"nan"``, ``"inf"`` and
    ``"-inf"``, as in the records of runs; `read_jsonl` turns them back.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> tracker = JsonLines(path)
    >>> tracker.log(0, {"loss": 2.5})
    >>> tracker.log(1, {"loss": float("inf")})
    >>> tracker.close()
    >>> list(read_jsonl(path))
    [{'step': 0, 'loss': 2.5}, {'step': 1, 'loss': inf}]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open_whole_lines(path)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            ValueError: If a metric is no single number, or called ``step``, or the step is no whole number.
            OSError: If the line cannot be written, or the file was removed meanwhile.
        """
        if "step" in metrics:
            raise ValueError("'step' is the name of the counter; call the metric otherwise.")
        given: Any = step
        if not isinstance(given, SupportsIndex) and not (isinstance(given, float) and given.is_integer()):
            raise ValueError(f"step is {step!r}; it counts steps, so it must be a whole number.")
        record = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in _plain(metrics).items()
        }
        line = json.dumps({"step": int(step), **record}, allow_nan=False) + "\n"
        _append(self._file, line.encode(), self.path)

    def rewind(self, step: int, **fields: Any) -> None:
        """Drop the lines from `step` on, before a loop resumes there.

        Args:
            step: First step to be logged anew.
            fields: Drop only lines with these values, for example ``seed=0``.

        Raises:
            ValueError: If a line is no record with a step.
        """

        def stays(record: Mapping[str, Any]) -> bool:
            return record["step"] < step or any(record.get(key) != value for key, value in fields.items())

        keep = bytearray(stays(record) for record in _records(self.path))
        if all(keep):
            return
        first = keep.index(False)
        if not any(keep[first:]):  # they are the end of the file, which a kill or a full disk cannot spoil
            with open_regular(self.path) as lines:
                end = sum(len(next(lines)) for _ in range(first))
            with naming(self.path, "written", _REPEAT):
                os.ftruncate(self._file.fileno(), end)
            return
        with open_regular(self.path) as lines, atomic_file(self.path) as kept:
            kept.writelines(line for line, stay in zip(lines, keep, strict=False) if stay)
        self._file.close()
        self._file = _open_whole_lines(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open_whole_lines(path: Path) -> io.FileIO:
    """Open a file for appending, without the unfinished line that a kill may have left at its end."""
    with naming(path, "written", _REPEAT):
        file = io.FileIO(path, "a+")
    end = size = os.fstat(file.fileno()).st_size
    while end:
        start = max(0, end - _BLOCK)
        newline = os.pread(file.fileno(), end - start, start).rfind(b"\n")
        end = start + newline + 1 if newline >= 0 else start
        if newline >= 0:
            break
    if end < size:
        with naming(path, "written", _REPEAT):
            os.ftruncate(file.fileno(), end)
    return file


def _append(file: io.FileIO, line: bytes, path: Path) -> None:
    """Write a whole line or none."""
    end = os.fstat(file.fileno()).st_size
    try:
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError(errno.ENOENT, "it was replaced while it was in use")
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), end)
        with naming(path, "written", _REPEAT):
            raise


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of the complete lines, one in memory at a time."""
    with open_regular(path) as file:
        for number in itertools.count(1):
            line = file.readline(_MAX_LINE)
            if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                return  # the end, or what a kill left of a line
            try:
                record = json.loads(line.decode())
                if type(record["step"]) not in (int, float):
                    raise ValueError
            except (ValueError, TypeError, KeyError, RecursionError):
                start = printable(line[:60].decode(errors="replace").strip())
                raise ValueError(
                    f"{path}, line {number} is no record with a step: {start!r}; delete the line or the file."
                ) from None
            yield record


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file; an unfinished last line, left by a kill, is skipped.

    Takes no more memory than the longest line.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If any other line is no JSON object with a step.
    """
    for record in _records(path):
        yield {
            key: _NON_FINITE.get(value, value) if isinstance(value, str) else value
            for key, value in record.items()
        }


class TensorBoard:
    """Writes scalars as TensorBoard events into a folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one event with all numeric metrics."""
        values = [self._summary.Value(tag=key, simple_value=float(value)) for key, value in _numbers(metrics)]
        self._writer.add_event(
            self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        )

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Wandb:
    """Sends scalars to Weights & Biases; offline, into the run's folder."""

    def __init__(self, folder: Path, project: str, offline: bool) -> None:
        import wandb

        mode = "offline" if offline else "online"  # the key comes from WANDB_API_KEY
        self._run = wandb.init(project=project, dir=str(folder), mode=mode)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log the numeric metrics."""
        self._run.log(dict(_numbers(metrics)), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def _numbers(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(key, value) for key, value in _plain(metrics).items() if isinstance(value, int | float)]


def _closed(folder: Path, project: str, offline: bool) -> Tracker:
    raise ConnectionError("its service ended on 2026-03-05; tensorboard and wandb are there")


SERVICES: dict[str, Callable[[Path, str, bool], Tracker]] = {
    "tensorboard": lambda folder, project, offline: TensorBoard(folder),
    "neptune": _closed,
    "wandb": Wandb,
}


class MultiTracker:
    """Hands metrics to a run's JSON-lines file and to services, dropping a service that fails.

    Services keep their local files next to the record.

    Args:
        record: The file; its errors are raised.
        services: Names from `SERVICES`.
        project: Name of the project at a service.
        offline: Whether services stay local. Online ones read their token from the environment.

    Raises:
        ValueError: If a service is unknown. A known one that is not installed is only reported.
    """

    def __init__(
        self, record: JsonLines, services: Sequence[str] = (), *, project: str = "gdyn", offline: bool = True
    ) -> None:
        for name in services:
            if name not in SERVICES:
                raise UnknownNameError(unknown("logging service", name, SERVICES))
        self.record = record
        self._services: dict[str, Tracker] = {}
        for name in services:
            self._guarded(name, partial(self._open, name, record.path.parent, project, offline))

    def _open(self, name: str, folder: Path, project: str, offline: bool) -> None:
        self._services[name] = SERVICES[name](folder, project, offline)

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except ImportError:
            _log.warning("%s is not installed (pip install 'gdyn-common[%s]'); going on without.", name, name)
            self._services.pop(name, None)
        except Exception as error:
            _log.warning("%s failed (%s); metrics go on to %s only.", name, error, self.record.path)
            self._services.pop(name, None)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record metrics everywhere."""
        self.record.log(step, metrics)
        for name, service in list(self._services.items()):
            self._guarded(name, partial(service.log, step, metrics))

    def rewind(self, step: int, **fields: Any) -> None:
        """Rewind the file as `JsonLines.rewind` does; services keep what they were sent."""
        self.record.rewind(step, **fields)

    def close(self) -> None:
        """Close everything."""
        self.record.close()
        for name, service in list(self._services.items()):
            self._guarded(name, service.close)
