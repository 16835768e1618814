"""Finished runs as data: read, check, tabulate."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
import shlex
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdyn_common.errors import printable
from gdyn_common.storage import RECOMPUTE, Arrays, read_arrays, read_json
from gdyn_reproduce.claims import scale_of
from gdyn_reproduce.intervals import Measured
from gdyn_reproduce.registry import program
from gdyn_reproduce.verdicts import Measurement, Refutation, Verdict

FORMAT = 2
"""Version of the files in a run folder. Format 1, which did not say what code made it, is read as stale."""


@dataclass(frozen=True)
class Result:
    """What an experiment computed.

    Attributes:
        measurements: Numbers or truth values that claims refer to, single or one per seed.
        arrays: The numbers that the figure draws.

    Raises:
        TypeError: If a measurement is of another kind, which no record could hold.
    """

    measurements: Mapping[str, Measurement]
    arrays: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        for name, value in self.measurements.items():
            entries = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(entry, int | float | Measured) for entry in entries):
                raise TypeError(
                    f"measurement {name!r} is {value!r}; allowed are numbers, truth values and lists of them "
                    "(float(), bool() and .tolist() make them of arrays)."
                )


@dataclass(frozen=True)
class Header:
    """What a record is a record of; enough to read it without the package at hand.

    Attributes:
        package: Import name of the package.
        version: Version of the package that computed it.
        title: Title of the paper.
        figure: Id of the figure.
        source: Where the figure stands in the paper.
        shows: What a reader should see.
        module: Import path of the experiment.
        preset: Name of the preset.
        scale: Scale of the preset.
        overrides: Configuration values given on top of the preset, as ``key=value``.
        code: Digest of the sources that made the numbers, see `gdyn_reproduce.sources`; empty if unknown.
        authors: Authors of the paper.
        venue: Where it appeared.
        arxiv: Its arXiv identifier.
    """

    package: str
    version: str
    title: str
    figure: str
    source: str
    shows: str
    module: str
    preset: str
    scale: str
    overrides: tuple[str, ...] = ()
    code: str = ""
    authors: str = ""
    venue: str = ""
    arxiv: str = ""

    @property
    def command(self) -> str:
        """The command that makes this record, as typed in a shell."""
        words = [program(self.package), "run", self.figure, f"preset={self.preset}", *self.overrides]
        return shlex.join(words)


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        header: What it is a record of.
        config: The configuration that determined the numbers.
        measurements: As in `Result`.
        verdicts: One per claim of the figure.
        folder: Where the record and its pictures lie.
        provenance: Versions, machine, wall time and memory; see `gdyn_reproduce.provenance`.
        arrays_sha256: Hash of names, types, shapes and bytes of the plotted numbers; empty if unknown.
    """

    header: Header
    config: Mapping[str, Any]
    measurements: Mapping[str, Measurement]
    verdicts: tuple[Verdict, ...]
    folder: Path
    provenance: Mapping[str, Any] = field(default_factory=dict)
    arrays_sha256: str = ""

    @property
    def made(self) -> str:
        """When and by which code the numbers were made, in words."""
        code = self.header.code or "unknown"
        commit = self.provenance.get("commit") or "unknown"
        return f"{self.provenance.get('finished', 'at an unknown time')} by code {code} at commit {commit}"

    def is_free(self, key: str) -> bool:
        """Whether a key says where a run computes, or that it has fewer or more of the first seeds.

        These only move rounding and the width of intervals; all others, chosen seeds too, make another study.
        """
        seeds = flat(self.config).get("seeds")
        return key in _ELSEWHERE or (key == "seeds" and seeds == list(range(len(seeds or ()))))

    @property
    def own_settings(self) -> list[str]:
        """What was changed on top of the preset, as ``key=value``, without what is free."""
        given = dict.fromkeys(map(key_of, self.header.overrides))
        return [f"{key}={value_at(self.config, key)}" for key in given if not self.is_free(key)]

    @property
    def as_expected(self) -> bool:
        """Whether every judged claim came out as registered; for own settings nothing is registered."""
        return bool(self.own_settings) or all(verdict.as_expected for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``; equal runs give equal bytes, so no provenance here."""
        return {
            "format": FORMAT,
            "header": dataclasses.asdict(self.header),
            "config": dict(self.config),
            "measurements": dict(self.measurements),
            "arrays_sha256": self.arrays_sha256,
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
        }


_ELSEWHERE = ("data_root", "device", "download")
_REMAKE = "delete its folder and run its command again"


def read_record(folder: Path, expected: Header | None = None) -> Record:
    """Read a finished run.

    Args:
        folder: The run folder.
        expected: Package, figure and preset that it must be a run of.

    Raises:
        FileNotFoundError: If the folder holds no finished run.
        ValueError: If the record was written by another version of this format, is damaged, or is that of
            another run.
    """
    path = folder / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no finished run (no result.json); run its command first.")
    body = read_json(path, advice=_REMAKE)
    facts = folder / "provenance.json"
    record = parse_record(body, read_json(facts, advice=_REMAKE) if facts.exists() else {}, folder)
    header = record.header
    digits = config_hash(body["config"], header.version, body["format"])
    ours = (header.package, header.figure, header.preset)
    if re.fullmatch("[0-9a-f]{12}", folder.name) and folder.name != digits:
        raise ValueError(f"{path} is not the record of its folder but of one called {digits}; {_REMAKE}.")
    if expected and ours != (expected.package, expected.figure, expected.preset):
        raise ValueError(f"{path} is a record of {printable(' '.join(ours))}; {_REMAKE}.")
    return record


def config_hash(values: Mapping[str, Any], version: str, record_format: int = FORMAT) -> str:
    """Return twelve hexadecimal digits that depend on every value and on the package's version.

    >>> config_hash({"a": 1}, "0.1.0") == config_hash({"a": 2}, "0.1.0")
    False
    """
    text = json.dumps([record_format, version, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parse_record(body: Mapping[str, Any], provenance: Mapping[str, Any], folder: Path) -> Record:
    """Build a record from its JSON.

    Raises:
        ValueError: If it was written by another version of the format, or does not have its form.
    """
    if body.get("format") not in (1, FORMAT):
        raise ValueError(
            f"{folder} was written with record format {body.get('format')!r}; this version reads 1 and "
            f"{FORMAT}. Rerun its command with this version."
        )
    try:
        record = _parse(_clean(body), _clean(provenance), folder)
        _check_form(record)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise ValueError(f"{folder} holds no readable record ({reason}); {_REMAKE}.") from None
    return record


def _parse(body: Mapping[str, Any], provenance: Mapping[str, Any], folder: Path) -> Record:
    header = _header(body["header"])
    verdicts = tuple(_verdict(item) for item in body["verdicts"]) if body["format"] == FORMAT else ()
    measurements = {name: _measurement(value) for name, value in body["measurements"].items()}
    arrays = body.get("arrays_sha256", "")
    return Record(header, body["config"], measurements, verdicts, folder, provenance, arrays)


def _clean(value: Any, levels: int = 50) -> Any:
    """Spell out what could steer a terminal or break a line, in all text of JSON data."""
    if levels == 0:  # whatever reads it later may go down level by level
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(key): _clean(item, levels - 1) for key, item in value.items()}
    return [_clean(item, levels - 1) for item in value] if isinstance(value, list) else value


def _check_form(value: Any) -> None:
    """Check the fields of a dataclass against their annotations, and those of its parts."""
    hints = typing.get_type_hints(type(value))
    for name in ("wall_time_s", "peak_memory_bytes") if isinstance(value, Record) else ():
        if not _fits(value.provenance.get(name, 0.0), float):
            raise TypeError(f"{name} is {str(value.provenance[name])[:60]!r}")
    for item in dataclasses.fields(value):
        found = getattr(value, item.name)
        if not _fits(found, hints[item.name]):
            raise TypeError(f"{item.name} is {str(found)[:60]!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if kind is typing.Literal:
        return value in parts
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind in (tuple, list, Sequence):
        if isinstance(value, str):
            return False
        sizes = len(parts) == 1 or parts[-1] is ... or len(parts) == len(value)
        each = parts if len(parts) > 1 and parts[-1] is not ... else itertools.repeat(parts[0])
        return isinstance(value, kind) and sizes and all(map(_fits, value, each))
    if kind in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and _fits(item, parts[1]) for key, item in value.items()
        )
    if isinstance(hint, type) and dataclasses.is_dataclass(value) and isinstance(value, hint):
        _check_form(value)
        return True
    return isinstance(value, (int, float) if hint is float else hint)


def _header(values: Mapping[str, Any]) -> Header:
    overrides = tuple(values["overrides"])
    return Header(**(dict(values) | {"overrides": overrides, "scale": scale_of(values["scale"])}))


def _verdict(item: Mapping[str, Any]) -> Verdict:
    values = {key: _unplain(value) for key, value in item.items()}
    if values["control"]:
        values["control"] = Refutation(**{k: _frozen(v) for k, v in values["control"].items()})
    return Verdict(**{key: _frozen(value) for key, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _measurement(value: Any) -> Measurement:
    known = _unplain(value)
    return Measured(**known) if isinstance(known, dict) else known


def read_numbers(record: Record) -> Arrays:
    """Read the plotted numbers of a run.

    Raises:
        OSError: If they cannot be opened.
        ValueError: If they are damaged, or not those of the record.
    """
    path = record.folder / "arrays.npz"
    arrays = read_arrays(path, advice=RECOMPUTE)
    if record.arrays_sha256 not in ("", hash_arrays(arrays)):
        raise ValueError(f"{path} is not that of its record; {RECOMPUTE}.")
    return arrays


def load_records(root: Path) -> list[Record]:
    """Read every finished run below a folder, ordered by path.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a record is damaged or was written by another version.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; pass the folder that holds the runs.")
    paths = [path.relative_to(root) for path in root.rglob("result.json")]
    return [read_record(root / path.parent) for path in sorted(paths) if SUPERSEDED not in path.parts]


SUPERSEDED = ".superseded"
"""Folder beside the runs that keeps what other code than today's has made; no report reads it."""


def load_runs(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return all finished runs below a folder as one tidy table.

    Args:
        path: A folder of run folders, for example ``"runs"``.

    Returns:
        One row per run, measurement and seed, with the columns ``package figure preset scale
        version metric seed_index value folder`` and ``config.<key>``. ``pandas.DataFrame(rows)`` takes
        it as is.
    """
    rows = []
    for record in load_records(Path(path)):
        common = {
            "package": record.header.package,
            "figure": record.header.figure,
            "preset": record.header.preset,
            "scale": record.header.scale,
            "version": record.header.version,
            "folder": str(record.folder),
        } | {f"config.{key}": value for key, value in flat(record.config).items()}
        for metric, value in record.measurements.items():
            single = value.value if isinstance(value, Measured) else value
            values = single if isinstance(single, list) else [single]
            rows += [common | {"metric": metric, "seed_index": i, "value": v} for i, v in enumerate(values)]
    return rows


def csv_table(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV, in which no text is a formula to a spreadsheet.

    >>> print(csv_table([["name", "value"], ["=1+1", 0.5]]), end="")
    name,value
    '=1+1,0.5
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([f"'{v}" if isinstance(v, str) and v[:1] in _FORMULA else v for v in row])
    return text.getvalue()


_FORMULA = tuple("=+-@\t\r")
"""What a text may not begin with."""


def plain(value: Any) -> Any:
    """Turn a value into JSON data; numbers that JSON does not know become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Measured):
        return plain(dataclasses.asdict(value))
    if hasattr(value, "name") and hasattr(value, "value"):  # enum members
        return value.name
    return value


def _unplain(value: Any) -> Any:
    if isinstance(value, list):
        return [_unplain(item) for item in value]
    if isinstance(value, dict):
        return {key: _unplain(item) for key, item in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value


def hash_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of named arrays: of each, in order of name, its name, type, shape and bytes.

    The bytes are little-endian and in C order, so that the hash does not depend on the machine.
    """
    text = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        portable = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        text.update(f"{name}\0{portable.dtype.str}\0{array.shape}\0".encode())
        text.update(portable.tobytes())
    return text.hexdigest()


def dump_json(body: Mapping[str, Any]) -> str:
    """Return readable JSON that every parser accepts."""
    return json.dumps(plain(body), indent=2, allow_nan=False) + "\n"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their full path, ``outer.inner``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def key_of(override: str) -> str:
    """Return the key of an override.

    >>> key_of("+model.width=2")
    'model.width'
    """
    return override.lstrip("+").partition("=")[0]


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """Return the value, or the mapping, at a full path; ``None`` if there is none.

    >>> value_at({"model": {"width": 2}}, "model.width"), value_at({"model": {"width": 2}}, "model")
    (2, {'width': 2})
    """
    found: Any = values
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
