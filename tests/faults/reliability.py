"""Write ``docs/reliability.md`` from what the suites tallied.

Usage: ``python tests/faults/reliability.py runs/faults``
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = """# Reliability

What is tried on every change, and in the long form before a release. After each fault the same command is
started again, and all numbers must equal those of an uninterrupted run bit for bit; `metrics.jsonl` must have
no gap, no double and no torn line; no temporary file may be left. This page is written by the suites
(`nox -s test-faults -- docs`); do not edit it.

Every fault hits a chosen place in the run: before or after a file is opened, written, synchronised, replaced,
or halfway through a line. The places are drawn at random; the seed is printed and repeats a failure.
"""


def section(form: str, folder: Path) -> str:
    """Return the section of one form; it says so when something failed."""
    counts: Counter[tuple[str, str]] = Counter()
    seeds, failed, newest = set(), False, 0.0
    for path in sorted(folder.glob("*.json")):
        body = json.loads(path.read_text())
        seeds.add(str(body["seed"]))
        failed |= body["failed"]
        newest = max(newest, path.stat().st_mtime)
        for kind, subject, count in body["counts"]:
            counts[kind, subject] += count
    kinds = sorted({kind for kind, _ in counts})
    lines = [
        f"## {form.capitalize()} form",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime(newest))}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, seed {', '.join(sorted(seeds))}.",
        "",
        "**A test of this form failed; the counts below are not a proof.**" if failed else "Bytes lost: 0.",
        "",
        "| what was tried | on | times |",
        "|---|---|---|",
    ]
    for kind in kinds:
        lines += [
            f"| {kind} | {subject} | {counts[k, subject]} |" for k, subject in sorted(counts) if k == kind
        ]
    return "\n".join(lines)


def main(folder: Path) -> None:
    forms = [form for form in ("short", "long") if (folder / form).is_dir()]
    PAGE.write_text("\n\n".join([HEAD.strip(), *(section(form, folder / form) for form in forms)]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
