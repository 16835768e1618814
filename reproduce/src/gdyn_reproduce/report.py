"""Records as a page: one self-contained HTML file and its Markdown twin.

The page holds everything it shows, pictures included; it makes no request and needs no package of
the project but this one, since a record carries its claims in full.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdyn_common.storage import atomic_write
from gdyn_reproduce.claims import Kind
from gdyn_reproduce.exits import DONE, UNEXPECTED, Parser, flushed, guard
from gdyn_reproduce.page import OUTCOMES as OUTCOMES
from gdyn_reproduce.page import page_context, sentence
from gdyn_reproduce.records import Record, load_records
from gdyn_reproduce.spelling import spell_bounds, spell_number, spell_values
from gdyn_reproduce.verdicts import Verdict

PAPER_KINDS: tuple[Kind, ...] = ("number", "statement")
"""Claims of the paper; what is left are our own checks."""


@dataclass(frozen=True)
class Row:
    """One verdict of one record, spelled for a table."""

    record: Record
    verdict: Verdict
    paper: str
    ours: str
    interval: str
    band: str
    registered: str
    control: str

    @property
    def is_unexpected(self) -> bool:
        """Whether the outcome contradicts what is registered for the record's settings."""
        return not (self.verdict.as_expected or self.record.own_settings)


def rows(records: Sequence[Record]) -> list[Row]:
    """Spell every verdict of the records as a table row."""
    return [row_of(record, verdict) for record in records for verdict in record.verdicts]


def row_of(record: Record, verdict: Verdict) -> Row:
    """Spell one verdict."""
    band = verdict.low, verdict.high
    return Row(
        record=record,
        verdict=verdict,
        paper=_spell_paper(verdict.paper, verdict.unit, band),
        ours=f"{spell_values(verdict.values, *band)} {verdict.unit}".strip(),
        interval=_spell_interval(verdict),
        band=f"{verdict.band} {verdict.unit}".strip(),
        registered=_spell_registered(verdict),
        control=_spell_control(verdict),
    )


def _spell_paper(value: float | str | None, unit: str, band: tuple[float, float]) -> str:
    if value is None:
        return "no number"
    return value if isinstance(value, str) else f"{spell_number(value, *band)} {unit}".strip()


def _spell_interval(verdict: Verdict) -> str:
    if verdict.method == "deterministic":
        return verdict.method
    if not all(map(math.isfinite, verdict.interval)):
        return "none" if verdict.method else ""
    low, high = (spell_number(end, verdict.low, verdict.high) for end in verdict.interval)
    return f"{low} to {high} ({verdict.method})"


def _spell_registered(verdict: Verdict) -> str:
    reason = f": {verdict.registered_because}" if verdict.registered_because else ""
    return f"{verdict.registered} the first run{reason}"


def _spell_control(verdict: Verdict) -> str:
    control = verdict.control
    if control:
        said = "rejected" if control.rejected else "not rejected"
        return f"{control.removes}: {spell_values(control.values, verdict.low, verdict.high)}, {said}"
    if verdict.kind == "check":
        return ""
    return f"none can exist: {verdict.no_control}" if verdict.no_control else "none"


def prints_outside_its_band(verdict: Verdict) -> bool:
    """Whether the claim holds although the value, as printed, lies outside the band, as printed."""
    if verdict.outcome != "holds" or verdict.estimate is None:
        return False
    printed = float(spell_number(verdict.estimate, verdict.low, verdict.high))
    low, high = (float(end) for end in spell_bounds(verdict.low, verdict.high))
    return not low <= printed <= high


def summary(record: Record) -> str:
    """Return what a program prints of a finished run: one line per claim, and where the picture lies."""
    lines = []
    if own := record.own_settings:
        lines.append(f"  At settings of your own ({', '.join(own)}), for which nothing is expected.")
    for row in rows([record]):
        verdict = row.verdict
        note = f"  ({verdict.reason})" if verdict.reason else ""
        note += f"  <- expected {verdict.expected!r}" if row.is_unexpected else ""
        lines.append(
            f"  {verdict.outcome:<9} {verdict.claim}: {row.ours}"
            f"{f', interval {row.interval}' if row.interval else ''} (accepted: {row.band}){note}"
        )
    return "\n".join([*lines, f"  {record.folder / 'figure.png'}"])


def write_report(records: Sequence[Record], folder: Path) -> Path:
    """Write ``index.html`` and ``report.md``.

    Args:
        records: What to report, in order.
        folder: Where to write; created if missing.

    Returns:
        The path of the page.
    """
    context = page_context([(record, rows([record])) for record in records])
    atomic_write(folder / "report.md", _render("report.md.j2", context))
    atomic_write(folder / "index.html", _render("report.html.j2", context))
    return folder / "index.html"


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
    environment.filters["sentence"] = sentence
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


def control_table(records: Sequence[Record]) -> str:
    """Return the Markdown table of all controls: what was removed, measured, and whether it is rejected."""
    lines = ["| package | run | claim | control | accepted |", "|---|---|---|---|---|"]
    for row in rows(records):
        if row.verdict.control:
            header = row.record.header
            run = f"{header.figure} {header.preset}"
            cells = (header.package, run, row.verdict.claim, row.control, row.band)
            lines.append(f"| {' | '.join(map(escape_markdown, cells))} |")
    return "\n".join(lines)


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
        cells += [row.verdict.outcome if row else "-" for row in (a, b)]
        lines.append("| " + " | ".join(map(escape_markdown, cells)) + " |")
    return "\n".join(lines)


def _by_claim(records: Sequence[Record]) -> dict[tuple[str, str, str], Row]:
    return {
        (
            row.record.header.package,
            f"{row.record.header.figure} {row.record.header.preset}",
            row.verdict.claim,
        ): row
        for row in rows(records)
    }


def _records(folders: Sequence[Path], *, unmodified: bool = False) -> list[Record]:
    """Read the records below folders, with ``unmodified`` only those of presets as they are."""
    found = [record for folder in folders for record in load_records(folder)]
    records = [record for record in found if not (unmodified and record.own_settings)]
    if not records:
        raise FileNotFoundError(f"No finished run below {', '.join(map(str, folders))}.")
    return records


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``gdyn-report``."""
    parser = Parser(prog="gdyn-report", description="Report finished runs, or compare two sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write index.html and report.md from run folders")
    build.add_argument("runs", nargs="+", type=Path, help="folders that hold runs, of any package or machine")
    build.add_argument("--out", type=Path, default=Path("runs/report"), help="where to write")
    build.add_argument("--unmodified", action="store_true", help="leave out runs with changed settings")
    side_by_side = commands.add_parser("compare", help="two folders of runs, claim by claim")
    side_by_side.add_argument("first", type=Path)
    side_by_side.add_argument("second", type=Path)
    refuted = commands.add_parser("controls", help="what the criteria say of the controls")
    refuted.add_argument("runs", nargs="+", type=Path, help="folders that hold runs")
    arguments = parser.parse_args(argv)
    return flushed(guard("report", lambda: _main(arguments)))


def _main(arguments: argparse.Namespace) -> int:
    if arguments.command == "compare":
        print(compare(_records([arguments.first]), _records([arguments.second])))
        return DONE
    records = _records(arguments.runs, unmodified=arguments.command == "build" and arguments.unmodified)
    if arguments.command == "controls":
        verdicts = [verdict for record in records for verdict in record.verdicts]
        rejected = [verdict.control.rejected for verdict in verdicts if verdict.control]
        if not rejected:
            raise ValueError("No control was measured in these runs; a smoke run measures none.")
        print(control_table(records))
        return DONE if all(rejected) else UNEXPECTED
    print(write_report(records, arguments.out))
    return DONE if all(record.as_expected for record in records) else UNEXPECTED
