"""Check every committed record against its answer key, and recompute three cheap ones.

``python -m gdyn_reproduce.verify`` works in a checkout, on files alone, and takes seconds; the three
records that are recomputed need their packages installed. ``--no-rerun`` leaves them out.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gdyn_common.storage import read_arrays, read_json
from gdyn_reproduce.exits import guard
from gdyn_reproduce.ledger import DEBTS, KEY, SUFFIXES, answer_key, is_stale, name_of
from gdyn_reproduce.records import Record, hash_arrays, load_records, plain
from gdyn_reproduce.registry import Paper
from gdyn_reproduce.results import Ledgers, ledgers
from gdyn_reproduce.verdicts import Measurement

_RERUNS = 3
_NO_RECORDS = (KEY, DEBTS, "memmap.json")
_TOLERANCE = 1e-6  # another processor may round the last digits otherwise


def differences(folder: Path, paper: Paper, records: Sequence[Record]) -> Iterator[str]:
    """Return what does not fit together in a package's committed results, one sentence each.

    Args:
        folder: The package's folder.
        paper: Its paper.
        records: Its committed records, judged by the claims of today.
    """
    results = folder / "results"
    path = results / KEY
    if not path.exists():
        yield f"{path} is missing; write it with `report`."
        return
    try:
        files = dict(read_json(path)["files"])
    except (ValueError, TypeError, KeyError):
        yield f"{path} is damaged; write it anew with `report`."
        return
    bad = set()
    for name, digest in files.items():
        if not (results / name).is_file():
            yield f"{results / name} is in the key, but missing."
        elif hashlib.sha256((results / name).read_bytes()).hexdigest() != digest:
            bad.add(name)
            yield f"{results / name} is not the file that the key names: its SHA-256 differs."
    for extra in sorted(results.iterdir()):
        measured = extra.name in _NO_RECORDS or extra.stem.startswith("bench")
        if extra.suffix in SUFFIXES and extra.name not in files and not measured:
            yield f"{extra} is not in the key."
    for record in records:
        arrays = results / f"{name_of(record)}.npz"
        if arrays.name in bad or not arrays.exists():
            continue
        if hash_arrays(read_arrays(arrays)) != record.arrays_sha256:
            yield f"{arrays} does not hold the numbers that its record was judged by."
    if path.read_bytes() != answer_key(paper, records, results).encode():
        yield f"{path} does not say what the records and the claims of today give."


def cheapest(found: Ledgers) -> list[tuple[Paper, Record]]:
    """Return the records to recompute: made by today's code, without chance where possible, quick."""
    fresh = [
        (paper, record)
        for paper, records in found.values()
        for record in records
        if not is_stale(paper, record)
    ]

    def cost(item: tuple[Paper, Record]) -> tuple[bool, float]:
        chance = any(verdict.method != "deterministic" for verdict in item[1].verdicts if verdict.method)
        return chance, float(item[1].provenance.get("wall_time_s", math.inf))

    return sorted(fresh, key=cost)[:_RERUNS]


def rerun(record: Record) -> Iterator[str]:
    """Compute a record again in a process of its own, and return how it differs."""
    header = record.header
    name = f"{header.package} {name_of(record)}"
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", header.package, "run", header.figure, f"preset={header.preset}"]
        done = subprocess.run(
            [*command, *header.overrides, f"out={out}"], capture_output=True, text=True, check=False
        )
        found = load_records(Path(out))
        if not found:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            yield f"{name} cannot be computed again: {last}"
            return
        for metric, value in record.measurements.items():
            again = found[0].measurements.get(metric)
            if again is None or not _close(value, again):
                yield f"{name}: {metric} is {plain(again)} when computed again, not {plain(value)}."


def _close(one: Measurement, two: Measurement) -> bool:
    first, second = (_numbers(plain(value)) for value in (one, two))
    return len(first) == len(second) and np.allclose(first, second, _TOLERANCE, 1e-12, equal_nan=True)


def _numbers(value: object) -> list[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [float(value)]  # type: ignore[arg-type]  # a number, a truth value, or "nan" and the like


def main(argv: Sequence[str] | None = None) -> int:
    """Verify the checkout around the working folder."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guard("reproduce", lambda: _verify(arguments))


def _verify(arguments: Sequence[str]) -> int:
    if set(arguments) - {"--no-rerun"}:
        raise ValueError("verify takes nothing, or --no-rerun.")
    found = ledgers(Path.cwd())
    problems = [
        problem
        for folder, (paper, records) in found.items()
        for problem in differences(folder, paper, records)
    ]
    count = sum(len(records) for _, records in found.values())
    stale = sum(is_stale(paper, record) for paper, records in found.values() for record in records)
    print(f"{count} records checked against their keys; {stale} of them are stale.", flush=True)
    for _, record in [] if "--no-rerun" in arguments else cheapest(found):
        print(f"computing again: {record.header.command}", flush=True)
        problems += rerun(record)
    print("\n".join(problems) or "All agree.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
