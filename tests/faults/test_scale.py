"""Many runs, long files, and files that change while they are read."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from toy_paper.paper import PAPER

from gdyn_common.logging import JsonLines, read_jsonl
from gdyn_reproduce.records import config_hash, load_runs, read_record
from gdyn_reproduce.report import main
from gdyn_reproduce.runs import configure, execute

pytestmark = pytest.mark.timeout(3600)


def many(folder: Path, count: int) -> None:
    """Write the record of one run many times, each with a configuration of its own."""
    figure = PAPER.figure("fig1")
    first = execute(PAPER, figure, configure(figure, "smoke", out=str(folder / "first")), "smoke")
    body = json.loads((first.folder / "result.json").read_text())
    facts = (first.folder / "provenance.json").read_text()
    for number in range(count):
        config = body["config"] | {"num_steps": number + 1}
        run = (
            folder / "many" / "toy_paper" / "fig1" / "smoke" / config_hash(config, body["header"]["version"])
        )
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(body | {"config": config}))
        (run / "provenance.json").write_text(facts)


def test_reading_many_runs_costs_each_the_same(tmp_path, form, tally):
    many(tmp_path, form.runs)
    started = time.process_time()
    rows = load_runs(tmp_path / "many")
    assert len({row["folder"] for row in rows}) == form.runs
    seconds = time.process_time() - started
    assert main(["build", str(tmp_path / "many"), "--out", str(tmp_path / "report")]) in (0, 1)
    assert read_record(next((tmp_path / "many").rglob("result.json")).parent).measurements
    tally("runs in one table and report", "gdyn-report", form.runs)
    print(f"{form.runs} runs read in {seconds:.1f} s of one core")


def test_a_long_log_is_read_and_rewound_in_little_memory(tmp_path, form, tally):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 0, "seed": 0, "note": "x" * 1000}) + "\n"
    size = (1 << 30) if form.name == "long" else (1 << 25)
    with path.open("w") as file:
        for _ in range(size // len(line)):
            file.write(line)
        file.write(line.replace('"step": 0', '"step": 7'))
    tracemalloc.start()
    assert sum(1 for _ in read_jsonl(path)) == size // len(line) + 1
    lines = JsonLines(path)
    lines.rewind(7)
    lines.close()
    assert path.stat().st_size == size // len(line) * len(line)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    tally("megabytes of metrics", "gdyn-common", size >> 20)
