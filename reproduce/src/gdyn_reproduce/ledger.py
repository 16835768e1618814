"""The committed records as a ledger: what is refused, what is owed, and the answer key.

``packages/<package>/results/`` holds for each record ``<figure>-<preset>.json``, its plotted numbers
(``.npz``) and its picture, and three files about all of them: ``answers.json``, generated, is enough to
score the package from; ``bench.json`` holds timings; ``debts.json``, by hand, names what the check lets
pass for now::

    {"stale": {"fig1-paper": "why this record, which `make reproduce` does not make, is not made anew"}}

A debt that is no longer owed is refused as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gdyn_common.storage import read_json
from gdyn_reproduce.records import Record, dump_json, flat, parse_record, plain
from gdyn_reproduce.registry import Paper
from gdyn_reproduce.report import prints_outside_its_band
from gdyn_reproduce.runs import code_of, rejudge
from gdyn_reproduce.verdicts import Verdict

KEY = "answers.json"
DEBTS = "debts.json"
SUFFIXES = (".json", ".npz", ".png", ".svg")
"""Files of one committed record."""


def debts(results: Path) -> dict[str, str]:
    """Read why records of a package may be stale, by their names.

    Raises:
        ValueError: If the file holds anything else.
    """
    path = results / DEBTS
    try:
        found = read_json(path) if path.exists() else {"stale": {}}
        if found.keys() != {"stale"} or not all(isinstance(why, str) for why in found["stale"].values()):
            raise TypeError(f"keys {sorted(found)}")
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no list of debts ({error}); it holds 'stale' alone.") from None
    return dict(found["stale"])


def name_of(record: Record) -> str:
    """Return the name under which a record is committed."""
    return f"{record.header.figure}-{record.header.preset}"


def committed(results: Path, paper: Paper) -> list[Record]:
    """Read the committed records of a paper, judged by its claims of today, in the paper's order.

    Raises:
        MissingMetricError: If a claim is judged by a measurement that a record of today's code lacks.
        ValueError: If a file is no record, or that of another figure, preset or package than its name says.
    """
    records = []
    for figure in paper.figures:
        for preset in figure.presets:
            path = results / f"{figure.id}-{preset}.json"
            if path.exists():
                body = read_json(path)
                record = replace(parse_record(body, body.get("provenance", {}), path), folder=results)
                if (record.header.package, name_of(record)) != (paper.package, path.stem):
                    raise ValueError(f"{path} is a record of {record.header.package} {name_of(record)}.")
                records.append(rejudge(paper, record))
    return records


def is_stale(paper: Paper, record: Record) -> bool:
    """Whether other code than today's has made a record."""
    return record.header.code != code_of(paper.figure(record.header.figure))


def changed_settings(paper: Paper, record: Record) -> str:
    """Return which settings of a record are not those that its preset has today, empty if all are.

    A preset is not part of the code that a digest covers, and what was changed on top of it is that of the
    person who ran it: neither may stand under the preset's name.
    """
    preset = paper.figure(record.header.figure).presets[record.header.preset]
    made, meant = flat(record.config), flat(plain(preset.overrides))
    differing = [
        f"{key}={made.get(key)}"
        for key, value in meant.items()
        if made.get(key) != value and not record.is_free(key)
    ]
    return ", ".join(dict.fromkeys([*record.own_settings, *differing]))


def is_default(paper: Paper, record: Record) -> bool:
    """Whether ``run all``, and so ``make reproduce``, makes this record."""
    figure = paper.figure(record.header.figure)
    return figure.in_default and record.header.preset == figure.default_preset


def refusals(paper: Paper, records: Sequence[Record], owed: Mapping[str, str]) -> Iterator[str]:
    """Return what a ledger may not hold, one sentence each."""
    for claim in paper.claims:
        if claim.needs_control:
            yield f"{claim.id} is a claim of the paper without a control, and without a reason for none."
    measured = {record.header.figure for record in records}
    for figure in paper.figures:
        if figure.in_default and figure.id not in measured:
            yield f"{figure.id} has no record, though `run all` makes one; `report --add` its folder."
    stale = {name_of(record): record for record in records if is_stale(paper, record)}
    for name, record in stale.items():
        if is_default(paper, record):
            command = record.header.command
            yield f"{name} was made by other code; run `{command}` and `report --add` its folder."
        elif name not in owed:
            yield f"{name} was made by other code; make it anew, or say in {DEBTS} why not."
    for name in sorted(owed.keys() - stale.keys()):
        yield f"{DEBTS} lists {name}, which is not stale; remove the line."
    for record in records:
        if name_of(record) not in stale and (changed := changed_settings(paper, record)):
            yield f"{name_of(record)} was made with other settings than its preset's ({changed})."
        for verdict in record.verdicts:
            yield from _of_verdict(name_of(record), verdict)


def _of_verdict(name: str, verdict: Verdict) -> Iterator[str]:
    where = f"{name}: {verdict.claim}"
    control = verdict.control
    judged = verdict.outcome not in ("stale", "not judged here") and not verdict.gated
    if judged and control and not control.rejected:  # behind a closed gate neither run says anything
        what = f"{control.removes}: {control.metric}"
        yield f"{where} has a control that its criterion does not reject ({what})."
    if prints_outside_its_band(verdict):
        yield f"{where} holds, but its value is printed outside its printed band."


def notices(paper: Paper, records: Sequence[Record]) -> Iterator[str]:
    """Return what is let pass, one sentence each."""
    stale = [name_of(record) for record in records if is_stale(paper, record)]
    if stale:
        yield f"{len(stale)} of {len(records)} records are stale: {', '.join(stale)}."


def answer_key(paper: Paper, records: Sequence[Record], results: Path) -> str:
    """Return the content of ``answers.json``.

    Its ``answers`` say of every claim and every record that measures it: question, the paper's value, the
    accepted band, ours with its interval, verdict, control, command, cost, and the hash of the arrays
    behind it. Its ``files`` give the SHA-256 of every committed file.
    """
    answers = [_answer(paper, record, verdict) for record in records for verdict in record.verdicts]
    measured = {verdict.claim for record in records for verdict in record.verdicts}
    unmeasured = {
        claim.id: {"question": claim.statement, "kind": claim.kind, "verdict": "not run"}
        for claim in paper.claims
        if claim.id not in measured
    }
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for record in records
        for path in _files(results, name_of(record))
    }
    return dump_json(
        {
            "format": 1,
            "package": paper.package,
            "paper": {"title": paper.title, "venue": paper.venue, "arxiv": paper.arxiv},
            "level": 0.9,
            "answers": answers,
            "not_run": unmeasured,
            "files": files,
        }
    )


def _files(results: Path, name: str) -> list[Path]:
    return [path for suffix in SUFFIXES if (path := results / f"{name}{suffix}").exists()]


def _answer(paper: Paper, record: Record, verdict: Verdict) -> dict[str, Any]:
    header = record.header
    control = verdict.control
    return {
        "claim": verdict.claim,
        "question": verdict.statement,
        "source": verdict.source,
        "kind": verdict.kind,
        "registered": verdict.registered,
        "scale": verdict.scale,
        "paper": verdict.paper,
        "unit": verdict.unit,
        "accepted": [verdict.low, verdict.high],
        "ours": verdict.estimate,
        "interval": verdict.interval,
        "method": verdict.method,
        "seeds": len(verdict.values),
        "verdict": verdict.outcome,
        "reason": verdict.reason,
        "expected": verdict.expected,
        "control": {
            "removes": control.removes,
            "interval": control.interval,
            "rejected": control.rejected,
        }
        if control
        else (verdict.no_control or None),
        "record": f"{name_of(record)}.json",
        "arrays_sha256": record.arrays_sha256 or None,
        "command": header.command,
        "cost": {
            "stated": paper.figure(header.figure).presets[header.preset].cost,
            "seconds": record.provenance.get("wall_time_s"),
        },
    }
