"""What the report page shows, gathered from records: papers, figures, claims, and where they were made."""

from __future__ import annotations

import base64
import gzip
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gdyn_reproduce.claims import KINDS, Outcome
from gdyn_reproduce.records import Record, csv_table, flat, read_numbers
from gdyn_reproduce.strips import band_strip

OUTCOMES: tuple[Outcome, ...] = ("holds", "fails", "undecided", "stale", "not judged here")
_KIND_NAMES = {
    "number": "Numbers of the paper",
    "statement": "Statements of the paper",
    "check": "Our own checks",
}
_LARGEST_DOWNLOAD = 60_000  # bytes of compressed numbers that a page carries for one figure


def page_context(records: Sequence[tuple[Record, Sequence[Any]]]) -> dict[str, Any]:
    """Gather what the templates show.

    Args:
        records: What to report, in order, each with its verdicts spelled by `gdyn_reproduce.report.rows`.

    Returns:
        The template's variables.
    """
    names: Counter[str] = Counter()
    figures = [_figure(record, rows, names) for record, rows in records]
    by_package = itertools.groupby(figures, key=lambda figure: figure["header"].package)
    papers = [_paper(package, list(group)) for package, group in by_package]
    shown = [item["row"].verdict for figure in figures for item in figure["items"]]
    return {
        "papers": papers,
        "figures": figures,
        "outcomes": OUTCOMES,
        "kinds": _KIND_NAMES,
        "paper_claims": _tally([verdict for verdict in shown if verdict.kind != "check"]),
        "checks": _tally([verdict for verdict in shown if verdict.kind == "check"]),
        "surprises": [i for figure in figures for i in figure["items"] if i["row"].is_unexpected],
        "made": _made([record for record, _ in records]),
        "total": len(shown),
    }


def _paper(package: str, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    items = [item for figure in figures for item in figure["items"]]
    bars = []
    for kind in KINDS:
        verdicts = [item["row"].verdict for item in items if item["row"].verdict.kind == kind]
        if verdicts:
            bars.append({"kind": _KIND_NAMES[kind], "count": len(verdicts), "parts": _tally(verdicts)})
    return {
        "package": package,
        "header": figures[0]["header"],
        "figures": figures,
        "best": max(figures, key=lambda figure: (bool(figure["picture"]), _weight(figure))),
        "bars": bars,
        "troubles": [item for item in items if item["row"].verdict.outcome in ("fails", "undecided")],
    }


def _weight(figure: Mapping[str, Any]) -> int:
    """Count the claims of the paper that a figure decides: the picture with most of them says most."""
    verdicts = (item["row"].verdict for item in figure["items"])
    return sum(verdict.kind != "check" and verdict.outcome in ("holds", "fails") for verdict in verdicts)


def _figure(record: Record, rows: Sequence[Any], names: Counter[str]) -> dict[str, Any]:
    header = record.header
    return {
        "record": record,
        "header": header,
        "anchor": _unique(f"{header.package}.{header.figure}.{header.preset}", names),
        "items": [
            {
                "row": row,
                "anchor": _unique(f"{header.package}.{row.verdict.claim}.{header.preset}", names),
                "strip": band_strip(row.verdict),
                "trouble": _trouble(row),
            }
            for row in rows
        ],
        "picture": _picture(record.folder / "figure"),
        "caption": caption(header.shows, [row.verdict for row in rows]),
        "numbers": _download(record),
        "config": _flat_text(record.config),
        "provenance": _flat_text(record.provenance),
        "cost": _cost(record.provenance),
    }


def caption(shows: str, verdicts: Sequence[Any]) -> str:
    """Say under a picture what is expected of it, and what became of each claim it carries.

    >>> from types import SimpleNamespace as Verdict
    >>> rises = Verdict(outcome="holds", statement="The loss rises.")
    >>> caption("All rise.", [rises, Verdict(outcome="fails", statement="The norm rises.")])
    'Expected: All rise. Measured: 1 of 2 claims holds. Fails: The norm rises.'
    >>> caption("All rise.", [rises])
    'Expected: All rise. Measured: the claim holds.'
    >>> caption("All rise.", [Verdict(outcome="fails", statement="The norm rises.")])
    'Expected: All rise. Fails: The norm rises.'
    >>> caption("All rise.", 2 * [Verdict(outcome="stale", statement="The loss rises.")])
    'Expected: All rise. Made by earlier code: The loss rises; The loss rises.'
    """
    judged = [verdict for verdict in verdicts if verdict.outcome not in ("not judged here", "stale")]
    held = sum(verdict.outcome == "holds" for verdict in judged)
    found = f"Expected: {shows}"
    if judged and held == len(judged):
        all_of_them = {1: "the claim holds", 2: "both claims hold"}.get(held, f"all {held} claims hold")
        found += f" Measured: {all_of_them}."
    elif len(judged) > 1:
        found += f" Measured: {held or 'none'} of {len(judged)} claims {'holds' if held < 2 else 'hold'}."
    for outcome, name in (("fails", "Fails"), ("undecided", "Undecided"), ("stale", "Made by earlier code")):
        words = [verdict.statement.rstrip(".") for verdict in verdicts if verdict.outcome == outcome]
        found += f" {name}: {'; '.join(words)}." if words else ""
    return found


def sentence(words: str) -> str:
    """Return a statement as a sentence: a capital, unless it begins with a symbol, and one full stop.

    >>> sentence("the loss of `game` rises"), sentence("k = 1 changes nothing.")
    ('The loss of game rises.', 'k = 1 changes nothing.')
    """
    words = words.replace("`", "").rstrip(".") + "."
    return re.sub(r"^([a-z]{2,}|a)\b", lambda first: first[0].capitalize(), words)


def _unique(name: str, names: Counter[str]) -> str:
    """Return a name for an address, the same in every report that holds the same runs."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    names[name] += 1
    return name if names[name] == 1 else f"{name}.{names[name]}"


def _trouble(row: Any) -> str:
    """Say in a sentence what failed or was not decided, and why as far as it is known."""
    verdict = row.verdict
    reasons = [reason for reason in (verdict.reason, verdict.expected_because) if reason]
    found = f"measured {row.ours}, accepted {row.band}."
    return " ".join([found, *(f"{reason[0].upper()}{reason[1:].rstrip('.')}." for reason in reasons)])


def _tally(verdicts: Sequence[Any]) -> list[tuple[str, int]]:
    counts = Counter(verdict.outcome for verdict in verdicts)
    return [(outcome, counts[outcome]) for outcome in OUTCOMES if counts[outcome]]


def _picture(stem: Path) -> str:
    """Return the smaller of the two pictures of a run as the address of an image."""
    kinds = {".svg": "image/svg+xml", ".png": "image/png"}
    found = [stem.with_suffix(suffix) for suffix in kinds if stem.with_suffix(suffix).is_file()]
    if not found:
        return ""
    picture = min(found, key=lambda path: path.stat().st_size)
    return f"data:{kinds[picture.suffix]};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _download(record: Record) -> str:
    """Return the plotted numbers as a compressed table, base64; empty if there are none or too many."""
    if not (record.folder / "arrays.npz").is_file():
        return ""
    arrays = read_numbers(record)
    if (
        sum(array.size for array in arrays.values()) > 10 * _LARGEST_DOWNLOAD
    ):  # it would take minutes to spell
        return ""
    packed = gzip.compress(numbers_as_csv(arrays).encode(), mtime=0)
    return base64.b64encode(packed).decode() if len(packed) <= _LARGEST_DOWNLOAD else ""


def numbers_as_csv(arrays: Mapping[str, Any]) -> str:
    """Return named arrays as one tidy table with the columns ``array``, ``index`` and ``value``.

    >>> import numpy as np
    >>> print(numbers_as_csv({"loss": np.array([[1.5, 2.0]])}), end="")
    array,index,value
    loss,0 0,1.5
    loss,0 1,2.0
    """
    rows = (
        (name, " ".join(map(str, index)), array[index].item())
        for name, array in arrays.items()
        for index in itertools.product(*map(range, array.shape))
    )
    return csv_table(itertools.chain([("array", "index", "value")], rows))


def _cost(provenance: Mapping[str, Any]) -> str:
    seconds, memory = provenance.get("wall_time_s", math.nan), provenance.get("peak_memory_bytes", math.nan)
    if not (math.isfinite(seconds) and math.isfinite(memory)):
        return "Cost unknown."
    time = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{time}, {memory / 2**20:.0f} MiB at its peak."


def _made(records: Sequence[Record]) -> str:
    """Say when, where and by which code the records were made."""
    facts = [record.provenance for record in records]
    days = sorted(str(fact["finished"])[:10] for fact in facts if fact.get("finished"))
    parts = [f"Computed {days[0]}" + (f" to {days[-1]}" if days[-1] != days[0] else "")] if days else []
    machines = dict.fromkeys(f"{f['cpu']} ({f.get('cores', 'unknown')} cores)" for f in facts if f.get("cpu"))
    commits = dict.fromkeys(str(fact["commit"]) for fact in facts if fact.get("commit"))
    parts += [f"on {'; '.join(machines)}"] if machines else []
    parts += [f"at commit {', '.join(commits)}"] if 0 < len(commits) <= 3 else []
    parts += [f"at {len(commits)} commits"] if len(commits) > 3 else []
    return f"{' '.join(parts)}." if parts else ""


def _flat_text(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in flat(values).items()]
