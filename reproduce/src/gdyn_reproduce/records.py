"""Finished runs as data: read, check, tabulate."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdyn_reproduce.claims import Measurement, Verdict
from gdyn_reproduce.registry import program

FORMAT = 1
"""Version of the files in a run folder; records of another version are refused."""


@dataclass(frozen=True)
class Result:
    """What an experiment computed.

    Attributes:
        measurements: Numbers or truth values that claims refer to, single or one per seed.
        arrays: The numbers that the figure draws.
    """

    measurements: Mapping[str, Measurement]
    arrays: Mapping[str, NDArray[Any]]


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
    """

    header: Header
    config: Mapping[str, Any]
    measurements: Mapping[str, Measurement]
    verdicts: tuple[Verdict, ...]
    folder: Path
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def as_expected(self) -> bool:
        """Whether every judged claim came out as registered."""
        return all(verdict.as_expected for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``; equal runs give equal bytes, so no provenance here."""
        return {
            "format": FORMAT,
            "header": dataclasses.asdict(self.header),
            "config": dict(self.config),
            "measurements": dict(self.measurements),
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
        }


def read_record(folder: Path) -> Record:
    """Read a finished run.

    Raises:
        FileNotFoundError: If the folder holds no finished run.
        ValueError: If the record was written by another version of this format, or is damaged.
    """
    path = folder / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no finished run (no result.json); run its command first.")
    try:
        body = json.loads(path.read_text())
        provenance_path = folder / "provenance.json"
        provenance = json.loads(provenance_path.read_text()) if provenance_path.exists() else {}
        return parse_record(body, provenance, folder)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a readable record ({error!r}); delete the folder and rerun."
        ) from None


def parse_record(body: Mapping[str, Any], provenance: Mapping[str, Any], folder: Path) -> Record:
    """Build a record from its JSON.

    Raises:
        ValueError: If it was written by another version of the format.
    """
    if body.get("format") != FORMAT:
        raise ValueError(
            f"{folder} was written with record format {body.get('format')!r}; this version reads {FORMAT}. "
            "Rerun its command with this version."
        )
    verdicts = tuple(
        Verdict(**(item | {"values": tuple(_unplain(item["values"]))})) for item in body["verdicts"]
    )
    measurements = {name: _unplain(value) for name, value in body["measurements"].items()}
    return Record(_header(body["header"]), body["config"], measurements, verdicts, folder, provenance)


def _header(values: Mapping[str, Any]) -> Header:
    return Header(**(dict(values) | {"overrides": tuple(values["overrides"])}))


def load_records(root: Path) -> list[Record]:
    """Read every finished run below a folder, ordered by path.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a record is damaged or was written by another version.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; pass the folder that holds the runs.")
    return [read_record(path.parent) for path in sorted(root.rglob("result.json"))]


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
        } | {f"config.{key}": value for key, value in _flat(record.config).items()}
        for metric, value in record.measurements.items():
            values = value if isinstance(value, list) else [value]
            rows += [common | {"metric": metric, "seed_index": i, "value": v} for i, v in enumerate(values)]
    return rows


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
    if hasattr(value, "name") and hasattr(value, "value"):  # enum members
        return value.name
    return value


def _unplain(value: Any) -> Any:
    if isinstance(value, list):
        return [_unplain(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def dump_json(body: Mapping[str, Any]) -> str:
    """Return readable JSON that every parser accepts."""
    return json.dumps(plain(body), indent=2, allow_nan=False) + "\n"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
