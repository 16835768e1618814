"""Write ``docs/reliability.md`` from what the suites noted.

Usage: ``python tests/faults/reliability.py runs/faults``
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
PACKAGES = ("chaos", "dd_two_player", "eigengame", "instability", "variance")
RUNS = {
    "killed and resumed": PACKAGES,
    "interrupted and resumed": PACKAGES,
    "refused writes": PACKAGES,
    "full disks": PACKAGES,
    "removed folders": PACKAGES,
    "clocks set back": PACKAGES,
    "second processes": PACKAGES,
    "command lines": PACKAGES,
    "one of two processes lost": ("dd_two_player", "eigengame", "variance"),
    "requeued jobs of SLURM": ("variance",),
}
"""What is tried on runs and commands, and the packages it is tried on."""
REST = (
    "damaged files",
    "bombs and files of another kind",
    "runs in one table and report",
    "megabytes of metrics",
)
NOT_RUN = "not run"
HEAD = """# Reliability

What is tried on runs, commands and files, and how often it went well. A run that was stopped is started again
by the same command. All its numbers must then equal those of an uninterrupted run bit for bit;
`metrics.jsonl` must have no gap, no double and no torn line; no temporary file may be left.

Every fault hits a place in the run that is drawn at random: before or after a file is opened, written,
synchronised or replaced, or in the middle of a line or of a file. One start in twenty is a new interpreter;
the others are forked from one that has imported everything. A command line is answered by success or by one
line and exit code 2, and changes no file. A damaged file is read, or refused in one line that names it;
nothing in it runs. The seed repeats a failure.

The short form is part of `make test`, the long one takes hours. A cell counts what
passed. *Not run*: nothing of that kind has passed in that form. A dash: there is nothing to try.

This page is written by the suites (`nox -s test-faults`, `nox -s reliability`); do not edit it."""


def notes(folder: Path) -> list[dict[str, Any]]:
    """Return what the suites noted in a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def section(form: str, found: Iterable[Mapping[str, Any]]) -> str:
    """Return the section of one form."""
    found = list(found)
    counts: Counter[tuple[str, str]] = Counter()
    for note in found:
        counts[note["kind"], note["subject"]] += note["count"]
    lines = [f"## {form.capitalize()} form", ""]
    runs = sorted({f"{n['date']}, {n['machine']}, seed {n['seed']}" for n in found}) or [NOT_RUN]
    lines += [f"Run: {run}." for run in runs]
    lines += ["", f"Bytes lost: {0 if found else NOT_RUN}.", ""]
    lines += [f"| on runs and commands | {' | '.join(PACKAGES)} |", "|---" * (len(PACKAGES) + 1) + "|"]
    for kind, packages in RUNS.items():
        cells = [str(counts[kind, name] or NOT_RUN) if name in packages else "–" for name in PACKAGES]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += ["", "| on files and many runs | subjects | times |", "|---|---|---|"]
    for kind in REST:
        subjects = sum(1 for k, _ in counts if k == kind) or NOT_RUN
        lines.append(
            f"| {kind} | {subjects} | {sum(n for (k, _), n in counts.items() if k == kind) or NOT_RUN} |"
        )
    return "\n".join(lines)


def page(folder: Path) -> str:
    """Return the whole page."""
    return "\n\n".join([HEAD, *(section(form, notes(folder / form)) for form in ("short", "long"))]) + "\n"


def shape(text: str) -> str:
    """Return a page without its numbers, dates and machines."""
    text = re.sub(r"(Run: .*\n)+", "Run\n", text)
    return re.sub(rf"(?<=\| )(\d+|{NOT_RUN})(?= \|)|(?<=lost: )(0|{NOT_RUN})", "n", text)


if __name__ == "__main__":
    PAGE.write_text(page(Path(sys.argv[1])), encoding="utf-8")
