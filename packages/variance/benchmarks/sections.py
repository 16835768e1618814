"""The file `results/bench.json`, one section per benchmark, and interleaved timing."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gdyn_reproduce.provenance import collect

FILE = Path(__file__).parents[1] / "results" / "bench.json"


def write_section(name: str, body: Mapping[str, Any]) -> None:
    """Replace one section and leave the others as they are."""
    stored = json.loads(FILE.read_text()) if FILE.is_file() else {}
    stored[name] = {**body, "provenance": collect(0.0)}
    FILE.write_text(json.dumps(stored, indent=2, default=str) + "\n")


def interleaved(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return process seconds of `repeats` rounds in which every job runs once, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            if repeat:
                times[name].append(time.process_time() - started)
    return times


def ratios(times: Mapping[str, list[float]], unit: str) -> dict[str, dict[str, float]]:
    """Return ratios of every other job to the job `unit`.

    Median, lowest and highest round, and `best`, the ratio of the shortest times, which other load on the
    machine disturbs least.
    """
    found = {}
    for name, values in times.items():
        if name != unit:
            each = sorted(value / one for value, one in zip(values, times[unit], strict=True))
            found[name] = {
                "ratio": statistics.median(each),
                "low": each[0],
                "high": each[-1],
                "best": min(values) / min(times[unit]),
            }
    return found
