"""Run folders: computed once, written atomically, resumed after any interruption.

A run lives in ``<out>/<package>/<figure>/<preset>/<config hash>/``:

=====================  ==========================================================================
``config.yaml``        the resolved configuration
``pieces/*.npz``       independent units of work, each stored as soon as it is done
``checkpoints/*.npz``  state inside a long unit of work
``metrics.jsonl``      logged metrics, one JSON object per line
``arrays.npz``         the plotted numbers
``figure.png/.svg``    the picture, drawn from ``arrays.npz`` only
``result.json``        measurements and verdicts; its presence means the run is finished
``provenance.json``    versions, machine, seeds, data, wall time, peak memory
``code``               digest of the sources that make the numbers, see `gdyn_reproduce.sources`
=====================  ==========================================================================

What other code than today's has made, finished or not, is never mixed in: it is moved to
``<out>/<package>/<figure>/<preset>/.superseded/`` and computed anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from gdyn_common.errors import UnknownNameError, unknown
from gdyn_common.logging import JsonLines
from gdyn_common.storage import (
    RECOMPUTE,
    Arrays,
    Checkpoint,
    FolderLock,
    atomic_write,
    claim_arrays,
    owner,
    read_arrays,
    remove_folder,
    write_arrays,
)
from gdyn_reproduce import provenance, sources
from gdyn_reproduce.claims import Claim, scale_of
from gdyn_reproduce.keys import check
from gdyn_reproduce.records import (
    SUPERSEDED,
    Header,
    Record,
    Result,
    dump_json,
    hash_arrays,
    key_of,
    plain,
    read_numbers,
    read_record,
    value_at,
)
from gdyn_reproduce.records import config_hash as config_hash
from gdyn_reproduce.registry import Figure, Paper, resolve
from gdyn_reproduce.unread import check_read
from gdyn_reproduce.verdicts import MissingMetricError, Verdict, judge, judge_all, make_verdict

Item = TypeVar("Item")

_SECONDS = "__seconds__"
_CODE = "code"


@dataclass
class RunOptions:
    """Options that every command shares; they say where and how, never what is computed.

    Attributes:
        out: Folder that receives the run folders.
        overwrite: Delete a finished or unfinished run of this configuration and start anew.
        dry_run: Print the resolved configuration and the expected cost, compute nothing.
    """

    out: str = "runs"
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Estimate:
    """Expected cost of a run on this machine, from a few calibration steps.

    Attributes:
        seconds: Wall time.
        memory_bytes: Peak memory of the arrays the run holds.
    """

    seconds: float
    memory_bytes: float


class Run:
    """An open run folder, locked against a second process.

    Args:
        folder: The run folder; created if missing.
        config: The values that determine the numbers, as plain data.
        header: What it will be a record of; the digest of its module's code is filled in if it is not
            given.

    Raises:
        BlockingIOError: If another process has this run open.
        OSError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], header: Header) -> None:
        if not header.code:
            header = dataclasses.replace(header, code=sources.digest(header.module))
        self.folder = folder
        self.config = config
        self.header = header
        self._made = _missing(folder)
        self._notes: dict[str, Any] = {"commit": provenance.commit()}  # a checkout may move on meanwhile
        self._started = time.perf_counter()
        self._earlier_seconds = 0.0
        self._reused = 0
        self._name = f"{header.package} {header.figure} {header.preset} {config_hash(config, header.version)}"
        _supersede(folder, header.code)
        self._lock = FolderLock(folder)
        try:
            # First: a folder that holds more and does not say so was left by other code.
            self.save(_CODE, header.code)
            for name in ("pieces", "checkpoints"):
                (folder / name).mkdir(exist_ok=True)
            self.save("config.yaml", dump_yaml(config))
            self.tracker = JsonLines(folder / "metrics.jsonl")
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tracker.close()
        try:
            if error is None:
                self._lock.check()
            elif self._made and not self._holds_work():
                shutil.rmtree(self.folder, ignore_errors=True)  # an input that was refused leaves nothing
                _remove_unused(self._made)
        finally:
            self._lock.close()

    def _holds_work(self) -> bool:
        """Whether the folder holds more than what opening it has written."""
        files = {path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size}
        return not files <= {self.folder / name for name in (_CODE, "config.yaml", ".lock")}

    def piece(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> Arrays:
        """Compute a named unit of work once, and read it from disk ever after.

        Args:
            name: Unique within the run, for example ``"learning_rate=0.05/seed=0"``.
            compute: Returns named arrays; called only if the piece is not stored yet.

        Returns:
            The arrays as stored, so that a resumed run continues from the same bits.
        """
        self._lock.check()
        path = self.folder / "pieces" / f"{_slug(name)}.npz"
        belongs_to = f"{self._name} {name}"
        if path.exists():
            arrays = claim_arrays(read_arrays(path, advice=RECOMPUTE), belongs_to, path)
            if not self._reused:
                made = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
                say(f"resumes: pieces from {made} on, made by the same code {self.header.code}, are reused")
            self._reused += 1
            self._earlier_seconds += float(arrays.pop(_SECONDS))
            return arrays
        started = time.perf_counter()
        arrays = {key: np.asarray(value) for key, value in compute().items()}
        seconds = np.float64(time.perf_counter() - started)
        self._lock.check()
        write_arrays(path, arrays | {_SECONDS: seconds} | owner(belongs_to), parents=False)
        return arrays

    def save(self, name: str, content: str) -> None:
        """Write a text file of the run, unless its folder is gone.

        Raises:
            FileNotFoundError: If the folder was removed meanwhile.
        """
        self._lock.check()
        atomic_write(self.folder / name, content, parents=False)

    def checkpoint(self, name: str) -> Checkpoint:
        """Return the checkpoint of that name inside this run."""
        path = self.folder / "checkpoints" / f"{_slug(name)}.npz"
        return Checkpoint(path, f"{self._name} {name}", self._lock)

    def note(self, **facts: Any) -> None:
        """Add facts to the provenance, for example the data set's source and hash."""
        self._notes.update(facts)

    def progress(
        self, iterable: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        """Iterate with a progress bar on standard error, silent when that is no terminal."""
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        return iter(
            track(
                iterable, description, total, console=console, disable=not console.is_terminal, transient=True
            )
        )

    def finish(self, result: Result, verdicts: Iterable[Verdict] = ()) -> Record:
        """Write arrays, provenance and, last, the result."""
        self._lock.check()
        write_arrays(self.folder / "arrays.npz", dict(result.arrays), parents=False)
        facts = provenance.collect(self._earlier_seconds + time.perf_counter() - self._started)
        self.save("provenance.json", dump_json(facts | self._notes))
        arrays = hash_arrays(read_arrays(self.folder / "arrays.npz"))
        record = Record(
            self.header,
            self.config,
            result.measurements,
            tuple(verdicts),
            self.folder,
            arrays_sha256=arrays,
        )
        self.save("result.json", dump_json(record.to_json()))
        return read_record(self.folder)


def execute(
    paper: Paper, figure: Figure, config: RunOptions, preset_name: str, overrides: Iterable[str] = ()
) -> Record:
    """Run one figure end to end: compute, save, judge its claims, plot.

    A run of the same configuration that the same code has finished is not computed again, and says so;
    its claims are judged anew from the stored measurements and its picture is drawn anew from the
    stored arrays. A run of other code is moved aside and computed anew.

    Args:
        paper: The paper the figure belongs to.
        figure: The registered figure.
        config: An instance of the figure's configuration dataclass.
        preset_name: Name of the preset the configuration started from.
        overrides: What was changed on top of the preset, as ``key=value``, for the record.

    Returns:
        The record of the finished run.

    Raises:
        ValueError: If an option was changed that the experiment does not read.
        MissingMetricError: If a claim is judged by a measurement that the experiment does not make.
    """
    from gdyn_reproduce.plotting import house_style, save_figure

    preset = figure.presets[preset_name]
    check_read(config, configure(figure, preset_name), figure.unread)
    experiment = resolve(figure.module)
    folder = folder_of(paper.package, config, figure.id, preset_name)
    if config.overwrite:
        start_anew(folder)
    header = Header(
        package=paper.package,
        version=provenance.package_version(paper.package),
        title=paper.title,
        figure=figure.id,
        source=figure.source,
        shows=figure.shows,
        module=figure.module,
        preset=preset_name,
        scale=preset.scale,
        overrides=_changes(figure, preset_name, config, overrides),
        code=code_of(figure),
        authors=paper.authors,
        venue=paper.venue,
        arxiv=paper.arxiv,
    )
    # What is drawn may be deleted, by hand or on the advice of a message; then it is computed again.
    stored = (folder / "result.json").exists() and (folder / "arrays.npz").exists()
    if stored and _code_in(folder) == header.code:
        record = read_record(folder, header)
        record = dataclasses.replace(
            record, header=dataclasses.replace(record.header, overrides=header.overrides)
        )
        say(f"finished {record.made}; not computed again (overwrite=true does)")
    else:
        with Run(folder, settings(config), header) as run:
            record = run.finish(experiment.compute(config, run))
    arrays = read_numbers(record)
    record = rejudge(paper, record)
    atomic_write(folder / "result.json", dump_json(record.to_json()), parents=False)
    # Drawn after the record is safe, and from what was stored: a plotting error costs no computation.
    with house_style():
        save_figure(experiment.plot(Result(record.measurements, arrays)), folder / "figure")
    if not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder} was removed while it was drawn; start the command again.")
    return record


def _changes(figure: Figure, preset: str, config: RunOptions, overrides: Iterable[str]) -> tuple[str, ...]:
    """Return the last override of each key, without those that repeat what the preset has anyway.

    A run with ``num_steps=100`` where the preset has 100 is the run of the preset.
    """
    made, meant = settings(config), settings(configure(figure, preset))
    last = {key_of(override): override for override in overrides}
    return tuple(text for key, text in last.items() if value_at(made, key) != value_at(meant, key))


def configure(figure: Figure, preset: str, **values: Any) -> Any:
    """Build the configuration of a figure without the command line.

    Args:
        figure: The registered figure.
        preset: Name of the preset to start from.
        values: Fields to change on top of it.

    Returns:
        An instance of the figure's configuration dataclass.

    Raises:
        UnknownNameError: If the preset is not registered.
    """
    if preset not in figure.presets:
        raise UnknownNameError(unknown("preset", preset, figure.presets))
    config = _replace(resolve(figure.config)(), {**figure.presets[preset].overrides, **values})
    check(config)
    return config


def _replace(config: Any, values: Mapping[str, Any]) -> Any:
    changes = {}
    for key, value in values.items():
        nested = dataclasses.is_dataclass(getattr(config, key)) and isinstance(value, Mapping)
        changes[key] = _replace(getattr(config, key), value) if nested else value
    return dataclasses.replace(config, **changes)


def code_of(figure: Figure) -> str:
    """Return the digest of the code that computes a figure."""
    return sources.digest(figure.module, figure.config)


def rejudge(paper: Paper, record: Record) -> Record:
    """Judge a stored record by the claims as they are registered now, and say what it shows in today's words.

    A record that other code has made is *stale*: none of its verdicts is one on today's code.

    Raises:
        MissingMetricError: If a claim is judged by a measurement that the record does not hold.
    """
    figure = paper.figure(record.header.figure)
    name = record.header.preset
    scale = figure.presets[name].scale
    claims = paper.claims_of(figure.id)
    if record.header.code == code_of(figure):
        verdicts = judge_all(claims, record.measurements, scale=scale, preset=name)
    else:
        verdicts = [_stale(claim, record, scale, name) for claim in claims]
    header = dataclasses.replace(record.header, shows=figure.shows)
    return dataclasses.replace(record, header=header, verdicts=tuple(verdicts))


def _stale(claim: Claim, record: Record, scale: str, preset: str) -> Verdict:
    """Return the verdict on a record of other code, with what today's band would say of its numbers."""
    try:
        verdict = judge(claim, record.measurements, scale=scale, preset=preset)
    except MissingMetricError:
        return make_verdict(
            claim, "stale", "made by other code, without all that the claim needs today", scale_of(scale)
        )
    if verdict.outcome == "not judged here":
        return verdict
    said = " ".join(filter(None, (verdict.outcome, f"({verdict.reason})" if verdict.reason else "")))
    reason = f"made by other code, whose numbers give: {said}"
    return dataclasses.replace(verdict, outcome="stale", reason=reason)


OPTIONS = tuple(option.name for option in dataclasses.fields(RunOptions))


def settings(config: RunOptions) -> dict[str, Any]:
    """Return the values that determine the numbers: all fields but those of `RunOptions`."""
    return {key: value for key, value in plain(dataclasses.asdict(config)).items() if key not in OPTIONS}


def folder_of(package: str, config: RunOptions, *names: str) -> Path:
    """Return the folder of a run below those of its package and of the names, for example of its figure."""
    return Path(
        config.out, package, *names, config_hash(settings(config), provenance.package_version(package))
    )


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[FolderLock]:
    """Hold a folder during a block; one that fails before it has written anything leaves no folder.

    Raises:
        BlockingIOError: If someone else holds it.
        OSError: If the folder cannot be made or written.
    """
    made = _missing(folder)
    with FolderLock(folder) as lock:
        try:
            yield lock
        except BaseException:
            _remove_unused(made)
            raise


def _missing(folder: Path) -> list[Path]:
    """Return the folder and its parents as far as they are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_unused(made: Iterable[Path]) -> None:
    """Remove folders that hold nothing but each other and a lock."""
    with contextlib.suppress(OSError):  # as soon as a folder holds something
        for path in filter(Path.exists, made):
            if [entry.name for entry in path.iterdir()] == [".lock"]:
                (path / ".lock").unlink()
            path.rmdir()


def start_anew(folder: Path) -> None:
    """Delete a run folder, for ``overwrite=true``.

    Raises:
        ValueError: If it is a link: what it leads to may be kept there for a reason.
        BlockingIOError: If another process works in it.
    """
    if folder.is_symlink():
        raise ValueError(
            f"{folder} is a link to {folder.readlink()}; overwrite=true deletes no linked folder."
        )
    remove_folder(folder)


def _slug(name: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._=+-]+", "_", name)[:80]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _code_in(folder: Path) -> str | None:
    """Return the digest of the code that worked in a run folder; ``None`` if it does not say.

    A damaged file says no code that there could be, so what stands beside it is not mixed in either.
    """
    path = folder / _CODE
    if not path.exists():
        return None
    code = path.read_bytes()[:99].decode(errors="replace")
    return code if re.fullmatch(r"\w{1,64}", code) else "damaged"


def _supersede(folder: Path, code: str) -> None:
    """Move aside what other code has left in a run folder."""
    used = any((folder / name).exists() for name in ("result.json", "pieces", "checkpoints"))
    earlier = _code_in(folder)
    if not used or earlier == code:
        return
    aside = folder.parent / SUPERSEDED / f"{folder.name}-{earlier or 'unknown'}"
    with FolderLock(folder):
        while aside.exists():
            aside = aside.with_name(f"{aside.name}_")
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
    who = earlier or "of an earlier version"
    say(f"what code {who} left here is kept in {aside}; computed anew by {code}")


def say(line: str) -> None:
    """Tell the user one line about reuse, on standard error so that tables stay clean."""
    print(f"  {line}", file=sys.stderr, flush=True)


def dump_yaml(body: Mapping[str, Any]) -> str:
    """Return a configuration as YAML, in the order of its fields."""
    import yaml

    return str(yaml.safe_dump(plain(body), sort_keys=False))
