"""Records as a page: one self-contained HTML file and its Markdown twin.

The page holds everything it shows, pictures included; it makes no request and needs no package of
the project but this one, since a record carries its claims in full.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdyn_common.storage import atomic_write
from gdyn_reproduce.claims import Outcome
from gdyn_reproduce.records import Record, load_records

OUTCOMES: tuple[Outcome, ...] = ("holds", "partly", "fails", "not run")


@dataclass(frozen=True)
class Row:
    """One judged claim of one record, spelled for a table."""

    record: Record
    claim: str
    statement: str
    source: str
    paper: str
    ours: str
    band: str
    because: str
    outcome: str
    expected: str
    expected_because: str
    as_expected: bool


def spell_number(value: float) -> str:
    """Spell a number with four significant digits.

    >>> spell_number(12960000.0), spell_number(0.25), spell_number(3.86521662)
    ('1.296e+07', '0.25', '3.865')
    """
    return f"{value:.4g}"


def spell_values(values: Sequence[float]) -> str:
    """Spell measurements as mean ± standard deviation with their number.

    >>> spell_values([1.0, 3.0])
    '2 ± 1.414 (n=2)'
    >>> spell_values([0.5])
    '0.5'
    >>> spell_values([True, True, False]), spell_values([True])
    ('2 of 3 true', 'true')
    >>> spell_values([1.0, 3.0, float("inf")])
    '2 ± 1.414 (n=2), 1 of 3 not finite'
    """
    if not values:
        return "not measured"
    if all(isinstance(value, bool) for value in values):
        if len(values) == 1:
            return str(values[0]).lower()
        return f"{int(sum(values))} of {len(values)} true"
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values) > 1:
        known = f"{spell_values(finite)}, " if finite else ""
        return f"{known}{len(values) - len(finite)} of {len(values)} not finite"
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return spell_number(mean)
    return f"{spell_number(mean)} ± {spell_number(statistics.stdev(values))} (n={len(values)})"


def rows(records: Sequence[Record]) -> list[Row]:
    """Spell every verdict of the records as a table row."""
    return [
        Row(
            record=record,
            claim=verdict.claim,
            statement=verdict.statement,
            source=verdict.source,
            paper=_spell_paper(verdict.paper, verdict.unit),
            ours=f"{spell_values(verdict.values)} {verdict.unit}".strip(),
            band=f"{verdict.band} {verdict.unit}".strip(),
            because=verdict.because,
            outcome=verdict.outcome,
            expected=verdict.expected,
            expected_because=verdict.expected_because,
            as_expected=verdict.as_expected,
        )
        for record in records
        for verdict in record.verdicts
    ]


def _spell_paper(value: float | str | None, unit: str) -> str:
    if value is None:
        return "no number"
    return value if isinstance(value, str) else f"{spell_number(value)} {unit}".strip()


def write_report(records: Sequence[Record], folder: Path) -> Path:
    """Write ``index.html`` and ``report.md``.

    Args:
        records: What to report, in order.
        folder: Where to write; created if missing.

    Returns:
        The path of the page.
    """
    context = _context(records)
    atomic_write(folder / "report.md", _render("report.md.j2", context))
    atomic_write(folder / "index.html", _render("report.html.j2", context))
    return folder / "index.html"


def _context(records: Sequence[Record]) -> dict[str, Any]:
    per_record = [rows([record]) for record in records]
    table = list(itertools.chain(*per_record))
    return {
        "records": [_figure_context(*pair) for pair in zip(records, per_record, strict=True)],
        "rows": table,
        "packages": sorted({record.header.package for record in records}),
        "outcomes": OUTCOMES,
        "counts": Counter(row.outcome for row in table),
        "surprises": [row for row in table if not row.as_expected],
    }


def _figure_context(record: Record, table: Sequence[Row]) -> dict[str, Any]:
    header = record.header
    return {
        "record": record,
        "header": header,
        "rows": table,
        "svg": _embed(record.folder / "figure.svg"),
        "anchor": f"{header.package}-{header.figure}-{header.preset}-{record.folder.name}",
        "config": _flat_text(record.config),
        "provenance": _flat_text(record.provenance),
        "minutes": record.provenance.get("wall_time_s", math.nan) / 60,
        "mebibytes": record.provenance.get("peak_memory_bytes", math.nan) / 2**20,
    }


def _embed(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode() if picture.exists() else ""


def _flat_text(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat_text(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, str(value)))
    return flat


def _render(template: str, context: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gdyn_reproduce"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=escape_markdown if template.endswith(".md.j2") else None,
    )
    environment.filters["code"] = _code
    return environment.get_template(template).render(context)


class _Markdown(str):
    """Text that is Markdown already."""


def escape_markdown(value: Any) -> Any:
    r"""Return text in which no character has a meaning in Markdown or HTML; other values as they are.

    >>> print(escape_markdown("a|b <i> [x](y) `c`"))
    a\|b \<i\> \[x\](y) \`c\`
    """
    if not isinstance(value, str) or isinstance(value, _Markdown):
        return value
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", value)


def _code(text: str) -> _Markdown:
    """Return text as a code span, which needs more backticks around it than there are inside."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return _Markdown(f"{fence}{pad}{text}{pad}{fence}")


def compare(first: Sequence[Record], second: Sequence[Record]) -> str:
    """Put two sets of records side by side, claim by claim.

    Args:
        first: Records of one folder, for example of one machine.
        second: Records of the other.

    Returns:
        A Markdown table; a claim that only one side has is listed with a dash.
    """
    left, right = _by_claim(first), _by_claim(second)
    lines = ["| package | run | claim | A | B | verdict A | verdict B |", "|---|---|---|---|---|---|---|"]
    for key in sorted(left.keys() | right.keys()):
        a, b = left.get(key), right.get(key)
        cells = [*key, *(row.ours if row else "-" for row in (a, b))]
        cells += [row.outcome if row else "-" for row in (a, b)]
        lines.append("| " + " | ".join(map(escape_markdown, cells)) + " |")
    return "\n".join(lines)


def _by_claim(records: Sequence[Record]) -> dict[tuple[str, str, str], Row]:
    return {
        (
            row.record.header.package,
            f"{row.record.header.figure} {row.record.header.preset}",
            row.claim,
        ): row
        for row in rows(records)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``gdyn-report``."""
    parser = argparse.ArgumentParser(
        prog="gdyn-report", description="Report finished runs, or compare two sets."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write index.html and report.md from run folders")
    build.add_argument("runs", nargs="+", type=Path, help="folders that hold runs, of any package or machine")
    build.add_argument("--out", type=Path, default=Path("runs/report"), help="where to write")
    build.add_argument("--unmodified", action="store_true", help="leave out runs with changed settings")
    side_by_side = commands.add_parser("compare", help="two folders of runs, claim by claim")
    side_by_side.add_argument("first", type=Path)
    side_by_side.add_argument("second", type=Path)
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "compare":
            print(compare(load_records(arguments.first), load_records(arguments.second)))
            return 0
        records = [record for folder in arguments.runs for record in load_records(folder)]
        if arguments.unmodified:
            records = [record for record in records if not record.header.overrides]
        if not records:
            raise FileNotFoundError(f"No finished run below {', '.join(map(str, arguments.runs))}.")
        print(write_report(records, arguments.out))
    except (OSError, ValueError) as error:
        print(f"gdyn-report: {error}", file=sys.stderr)
        return 2
    return 0 if all(record.as_expected for record in records) else 1
