"""One timer and one schema for the benchmarks of all packages.

A package's script registers cases. Each case names contenders: ours, its peers, and, where it is known,
the work that no method avoids (the limit). All contenders of a case run in turn in one process, round
after round, so that a slow moment of the machine hits all of them. Every case is repeated in fresh
processes, for two states of the memory allocator: ``default``, where freed memory goes back to the
system and is faulted in again, and ``kept``, where the process keeps it; points of a growth curve for the
first only. Written by hand because a timer for ratios between libraries, with both states, is not what
pytest-benchmark or asv offer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from gdyn_common.storage import atomic_write
from gdyn_reproduce import provenance

FORMAT = 1
"""Version of ``bench.json``."""

OURS, LIMIT = "ours", "limit"
"""Contenders with a meaning of their own, as have ``"ours, ..."``, other ways of ours; the rest are peers."""

PEERS = ("curvlinops-for-pytorch", "hessian-eigenthings", "PyHessian", "backpack-for-pytorch", "opacus")
"""Distributions whose versions are recorded where they are installed; the others are our dependencies."""

ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    # glibc: no allocation by mmap, nothing given back; other systems ignore these variables.
    "kept": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(1 << 26),
    },
}

Contender = Callable[[], object] | ImportError
"""What is timed, or why a peer is absent."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: Unique within the package, for example ``"hessian-cnn"``.
        what: One sentence: what is computed, of which size.
        contenders: Makes the contenders by name; called in the process that times them. It must have
            the name `OURS`, and may have `LIMIT`. A call returns when its work is done.
        growth: Name of the curve that this case is a point of, ``"title over abscissa"``; empty for none.
        size: Abscissa of that point.
        threads: The thread counts it is measured with; 0 stands for all cores.
        note: What a reader should know about the result, for example why a peer is ahead.
    """

    name: str
    what: str
    contenders: Callable[[], Mapping[str, Contender]]
    growth: str = ""
    size: float = math.nan
    threads: tuple[int, ...] = (1,)
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One contender of one case in one state, over all processes.

    Attributes:
        case: Name of the case.
        what: Its sentence.
        contender: Name of the contender.
        threads: Threads it was allowed; 0 stands for all cores.
        allocator: Key of `ALLOCATORS`.
        seconds: Median, lowest and highest of the processes' medians, per call: CPU time for one
            thread, wall time for several. Empty for an absent peer.
        over_ours: The same of the ratio to our time, taken round by round. Below 1 the contender is faster.
        processes: Number of processes.
        rounds: Rounds in each.
        absent: Why a peer was not measured.
        growth: Name of the growth curve, if it is a point of one.
        size: Its abscissa.
        note: The case's note.
    """

    case: str
    what: str
    contender: str
    threads: int
    allocator: str
    seconds: tuple[float, ...] = ()
    over_ours: tuple[float, ...] = ()
    processes: int = 0
    rounds: int = 0
    absent: str = ""
    growth: str = ""
    size: float | None = None
    note: str = ""

    @property
    def is_peer(self) -> bool:
        """Whether it is neither ours nor the limit."""
        return self.contender.partition(",")[0] not in (OURS, LIMIT)


@dataclass
class _Sample:
    """What one process found: medians over its rounds, and why contenders are absent."""

    seconds: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def optional(make: Callable[[], Callable[[], object]]) -> Contender:
    """Make a peer that may not be installed.

    >>> optional(lambda: (lambda: 1))()
    1
    """
    try:
        return make()
    except ImportError as error:
        return error


def main(package: str, cases: Sequence[Case], argv: Sequence[str] | None = None) -> None:
    """Run a package's benchmark script.

    Args:
        package: Import name of the package; results go to ``packages/<package>/results/bench.json``.
        cases: What to measure.
        argv: Arguments; those of the process if ``None``.
    """
    parser = argparse.ArgumentParser(description=f"Benchmarks of {package}.")
    parser.add_argument("--full", action="store_true", help="7 processes instead of 2, 9 rounds instead of 3")
    parser.add_argument(
        "--only", default="", help="cases whose name contains this or, a,b, one of these; other rows stay"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    processes, rounds = (7, 9) if options.full else (2, 3)
    script = Path(sys.argv[0]).resolve()
    if options.child:
        by_name, wall = {case.name: case for case in cases}, options.threads != 1
        for name in options.child.split(","):
            print(json.dumps(asdict(_time(by_name[name].contenders(), rounds, wall))))
        return
    chosen = [case for case in cases if any(part in case.name for part in options.only.split(","))]
    # The short form times all cases in each process: starting one may take longer than they do.
    groups = [[case] for case in chosen] if options.full else [chosen]
    rows = [row for group in groups for row in _measure(script, group, processes, rounds, options.full)]
    folder = script.parents[1] / "results"
    measured = {row.case for row in rows}
    known = {case.name: case for case in cases}
    rows += [
        replace(row, what=known[row.case].what, note=known[row.case].note)
        for row in read(folder / "bench.json")
        if row.case not in measured and row.case in known
    ]
    rows.sort(key=lambda row: list(known).index(row.case))
    write(folder / "bench.json", rows, mode="full" if options.full else "short")
    if any(row.growth for row in rows):
        draw_growth(rows, folder / "bench-growth")
    print(table(rows))


def _measure(script: Path, cases: Sequence[Case], processes: int, rounds: int, full: bool) -> list[Row]:
    rows = []
    for threads in dict.fromkeys(threads for case in cases for threads in case.threads):
        for allocator, variables in ALLOCATORS.items():
            group = [
                case
                for case in cases
                if threads in case.threads and (allocator == "default" or not case.growth)
            ]
            if not group:
                continue
            names = ",".join(case.name for case in group)
            count = str(threads or os.cpu_count() or 1)
            limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
            if threads == 1:
                limits["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
            command = [sys.executable, str(script), "--child", names, "--threads", str(threads)]
            samples: list[list[_Sample]] = [[] for _ in group]
            for _ in range(processes):
                print(f"{names} threads={count} allocator={allocator}", file=sys.stderr, flush=True)
                out = subprocess.run(
                    [*command, *(["--full"] if full else [])],
                    env=os.environ | limits | variables,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                lines = out.stdout.splitlines()[-len(group) :]
                for found, line in zip(samples, lines, strict=True):
                    found.append(_Sample(**json.loads(line)))
            for case, found in zip(group, samples, strict=True):
                rows += _rows(case, threads, allocator, found, rounds)
    return rows


def _time(contenders: Mapping[str, Contender], rounds: int, wall: bool) -> _Sample:
    """Time all contenders in turn; the first round warms up and is not counted."""
    sample = _Sample()
    present: dict[str, Callable[[], object]] = {}
    for name, contender in contenders.items():
        if isinstance(contender, ImportError):
            sample.absent[name] = str(contender)
        else:
            present[name] = contender
    times: dict[str, list[float]] = {name: [] for name in present}
    for number in range(rounds + 1):
        for name, call in present.items():
            spent = _seconds(call, wall)
            if number:
                times[name].append(spent)
    for name, values in times.items():
        sample.seconds[name] = statistics.median(values)
        sample.ratios[name] = statistics.median(a / b for a, b in zip(values, times[OURS], strict=True))
    return sample


def _seconds(call: Callable[[], object], wall: bool) -> float:
    """Seconds of one call, from a row of calls that takes 50 ms or more, as a training loop makes them."""
    clock = time.perf_counter if wall else time.process_time
    calls, started = 0, clock()
    while (spent := clock() - started) < 0.05:
        call()
        calls += 1
    return spent / calls


def _rows(case: Case, threads: int, allocator: str, samples: Sequence[_Sample], rounds: int) -> list[Row]:
    size = None if math.isnan(case.size) else case.size
    common: dict[str, Any] = {
        "case": case.name,
        "what": case.what,
        "threads": threads,
        "allocator": allocator,
        "growth": case.growth,
        "size": size,
        "note": case.note,
    }
    rows = [
        Row(
            contender=name,
            seconds=_spread([sample.seconds[name] for sample in samples]),
            over_ours=_spread([sample.ratios[name] for sample in samples]),
            processes=len(samples),
            rounds=rounds,
            **common,
        )
        for name in samples[0].seconds
    ]
    return rows + [Row(contender=name, absent=why, **common) for name, why in samples[0].absent.items()]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def write(path: Path, rows: Sequence[Row], mode: str) -> None:
    """Write ``bench.json``: the rows, and the machine and versions they were measured with."""
    facts = provenance.collect(0.0)
    kept = ("finished", "python", "platform", "cpu", "cores", "versions")
    peers = {found.name: found.version for found in metadata.distributions() if found.name in PEERS}
    body = {
        "format": FORMAT,
        "mode": mode,
        "environment": {name: facts[name] for name in kept} | {"versions": facts["versions"] | peers},
        "rows": [asdict(row) for row in rows],
    }
    atomic_write(path, json.dumps(body, indent=1) + "\n")


def read(path: Path) -> list[Row]:
    """Read the rows of ``bench.json``; none if there is no file or it has another format."""
    if not path.is_file():
        return []
    body = json.loads(path.read_text(encoding="utf-8"))
    if body.get("format") != FORMAT:
        return []
    return [
        Row(**(row | {"seconds": tuple(row["seconds"]), "over_ours": tuple(row["over_ours"])}))
        for row in body["rows"]
    ]


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table of all ratios; where a peer is faster the line comes first, and says so.

    Points of a growth curve are drawn, and stand here where a peer is faster only.
    """
    measured = [row for row in rows if row.over_ours]
    by_line: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in measured:
        by_line.setdefault((row.case, row.contender, row.threads), {})[row.allocator] = row
    behind: list[str] = []
    others: list[str] = []
    for (case, contender, threads), states in by_line.items():
        if contender == OURS:
            continue
        row = next(iter(states.values()))
        slower = row.is_peer and any(one.over_ours[0] < 1 for one in states.values())
        name = f"**{contender} is faster**" if slower else contender
        if contender == LIMIT:
            name = f"limit; ours takes {1 / row.over_ours[0]:.2g} times as long"
        ratios = " | ".join(_spell_ratio(states.get(state)) for state in ALLOCATORS)
        own = " | ".join(_spell_ours(by_line[case, OURS, threads].get(state)) for state in ALLOCATORS)
        where = "" if threads == 1 else ", all cores" if threads == 0 else f", {threads} threads"
        if row.growth and not slower:
            continue
        (behind if slower else others).append(f"| {row.what}{where} | {name} | {ratios} | {own} |")
    ratio_heads = " | ".join(f"their time over ours, {state}" for state in ALLOCATORS)
    head = [
        f"| computed | against | {ratio_heads} | {' | '.join(f'ours, {state}' for state in ALLOCATORS)} |",
        f"|{'---|' * (2 + 2 * len(ALLOCATORS))}",
    ]
    notes = dict.fromkeys(f"- {row.what}: {row.note}" for row in rows if row.note)
    absent = dict.fromkeys(f"- {row.contender} was not measured: {row.absent}" for row in rows if row.absent)
    return "\n".join([*head, *behind, *others, *([""] if notes or absent else []), *notes, *absent])


def _spell_ratio(row: Row | None) -> str:
    if row is None:
        return ""
    middle, low, high = row.over_ours
    return f"{middle:.2g} ({low:.2g} to {high:.2g})"


def _spell_ours(row: Row | None) -> str:
    return spell_time(row.seconds[0]) if row else ""


_PAGE_HEAD = """# Benchmarks

Generated from `packages/*/results/bench.json`; `make bench` measures them anew, `BENCH_PEERS=1` installs the
peers.

All contenders of a row run in turn in one process, round after round, and every row is repeated in fresh
processes. Printed is the median of their time over ours, with the lowest and the highest process: above 1
ours is faster. Lines where a peer is faster come first. The *limit* is work that no method avoids; how many
times as long ours takes stands beside it. Where nothing else is said, one thread. Each ratio is given for two
states of the C library's allocator: *default* gives freed memory back to the system, *kept* keeps it; a
method that needs much fresh memory is slower in the first state. Points of the curves below a table are
measured in the first state, and stand in the table where a peer is faster."""


def page(results: Mapping[str, Path]) -> str:
    """Return the page of benchmarks of all packages.

    Args:
        results: The folder of committed results of each package, by the package's name.
    """
    parts = [_PAGE_HEAD]
    for package, folder in results.items():
        rows = read(folder / "bench.json")
        if not rows:
            continue
        environment = json.loads((folder / "bench.json").read_text(encoding="utf-8"))["environment"]
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
        parts += [
            f"## {package}",
            f"{environment['finished'][:10]}, {environment['cpu']}, {environment['cores']} cores, "
            f"Python {environment['python']}; {versions}.",
            table(rows),
        ]
        if (folder / "bench-growth.png").is_file():
            picture = f"../packages/{package}/results/bench-growth.png"
            parts.append(f"![{package}: cost over size, against peers and the limit]({picture})")
    return "\n\n".join(parts) + "\n"


def spell_time(seconds: float) -> str:
    """Spell a duration of a call.

    >>> spell_time(0.0123), spell_time(2e-5)
    ('12.3 ms', '20 µs')
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-9:.3g} ns"


def draw_growth(rows: Sequence[Row], stem: Path) -> None:
    """Draw the cost of every contender over size, one panel for each growth curve, both axes logarithmic."""
    from gdyn_reproduce.plotting import house_style, label_curves, new_figure, save_figure

    points = [row for row in rows if row.growth and row.seconds and row.allocator == "default"]
    curves = list(dict.fromkeys(row.growth for row in points))
    with house_style():
        rows_of_two = -(-len(curves) // 2)
        figure, axes = new_figure(rows_of_two, 2, squeeze=False, figsize=(9.2, 3.3 * rows_of_two))
        for axis in axes.flat[len(curves) :]:
            axis.remove()
        for axis, curve in zip(axes.flat, curves, strict=False):
            for name in dict.fromkeys(row.contender for row in points if row.growth == curve):
                mine = [row for row in points if row.growth == curve and row.contender == name]
                mine.sort(key=lambda row: row.size or 0)
                style = "k--" if name == LIMIT else "o-"
                axis.loglog([row.size for row in mine], [row.seconds[0] for row in mine], style, label=name)
            title, _, size = curve.partition(" over ")
            axis.set(title=title, xlabel=size, ylabel="seconds a call")
            label_curves(axis)
        save_figure(figure, stem)
