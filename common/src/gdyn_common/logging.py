"""Metrics of a run: JSON lines on disk always, other services if asked.

A metric is a number; its step counts updates. The services are extras, ``gdyn-common[tensorboard]``
and so on, imported when opened. None of them can fail a run: the first error is reported once and
the sink is dropped. An error of the JSON-lines file itself is raised, since it is the record.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
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

    NaN and infinities, which JSON does not know, are written as the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``; `read_jsonl` turns them back.

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
        _cut_unfinished_line(path)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line."""
        if "step" in metrics:
            raise ValueError("'step' is the name of the counter; call the metric otherwise.")
        record = {
            key: repr(value).replace("nan", "NaN").replace("inf", "Infinity")
            if isinstance(value, float) and not math.isfinite(value)
            else value
            for key, value in _plain(metrics).items()
        }
        self._file.write(json.dumps({"step": int(step), **record}, allow_nan=False) + "\n")
        self._file.flush()

    def rewind(self, step: int, **fields: Any) -> None:
        """Drop the lines from `step` on, before a loop resumes there.

        Args:
            step: First step to be logged anew.
            fields: Drop only lines with these values, for example ``seed=0``.
        """
        self._file.close()
        kept = [
            line
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            if (record := json.loads(line))["step"] < step
            or any(record.get(key) != value for key, value in fields.items())
        ]
        scratch = self.path.with_name(self.path.name + ".tmp")
        scratch.write_text("".join(kept), encoding="utf-8")
        scratch.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut_unfinished_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file; an unfinished last line, left by a kill, is skipped.

    Raises:
        ValueError: If any other line is no JSON object.
    """
    *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
    del unfinished  # empty after a complete last line
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            items = record.items()
        except (ValueError, AttributeError):
            raise ValueError(f"{path}, line {number} is no JSON object: {line[:60]!r}") from None
        yield {
            key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in items
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


class Neptune:
    """Sends scalars to neptune; offline, into a folder ``.neptune`` of the working directory."""

    def __init__(self, project: str, offline: bool) -> None:
        import neptune

        mode = "offline" if offline else "async"  # the token comes from NEPTUNE_API_TOKEN
        self._run = neptune.init_run(project=project, mode=mode)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append to one series per numeric metric."""
        for key, value in _numbers(metrics):
            self._run[key].append(value, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.stop()


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


SERVICES: dict[str, Callable[[Path, str, bool], Tracker]] = {
    "tensorboard": lambda folder, project, offline: TensorBoard(folder),
    "neptune": lambda folder, project, offline: Neptune(project, offline),
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
        unknown = [name for name in services if name not in SERVICES]
        if unknown:
            raise ValueError(f"Unknown logging service {unknown[0]!r}; there are {', '.join(SERVICES)}.")
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
