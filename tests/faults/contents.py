"""What a run left behind, in a form in which two runs can be compared bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gdyn_common.storage import read_arrays

TIMES = ("second", "wall_time", "finished", "peak_memory", "minutes", "__belongs_to__")
"""Parts of the names of numbers that two equal runs need not share."""


def contents(folder: Path) -> dict[str, Any]:
    """Return the content of every file below a folder but provenance and locks, without times.

    Arrays are returned as type, shape and bytes.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in (".lock", "provenance.json"):
            continue
        if path.suffix == ".npz":
            found[name] = {
                key: (array.dtype.str, array.shape, array.tobytes())
                for key, array in read_arrays(path).items()
                if not _is_time(key)
            }
        elif path.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text().replace(str(folder), "")))
        else:
            found[name] = path.read_bytes().replace(str(folder).encode(), b"")
    return found


def litter(folder: Path) -> list[str]:
    """Return the temporary files below a folder."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != ".lock"
        and (path.name.startswith(".") or path.suffix in (".tmp", ".part", ".partial"))
    ]


def _is_time(key: str) -> bool:
    return any(part in key for part in TIMES)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if not _is_time(key)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Say in which files two contents differ; empty if in none."""
    lines = []
    for name in sorted(first.keys() | second.keys()):
        a, b = first.get(name), second.get(name)
        if a != b:
            detail = "only in one" if a is None or b is None else "differs"
            if isinstance(a, list) and isinstance(b, list):
                detail = f"steps {[x.get('step') for x in a][:40]} and {[x.get('step') for x in b][:40]}"
            elif isinstance(a, dict) and isinstance(b, dict):
                detail = f"differs in {[k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)][:8]}"
            lines.append(f"{name}: {detail}")
    return "\n".join(lines)
