"""The timer of the benchmarks: ratios, both allocators, absent peers, and a table that names losses first."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from gdyn_reproduce import benchmark
from gdyn_reproduce.benchmark import Row

SCRIPT = """
import time
from gdyn_reproduce.benchmark import Case, main, optional

def spin(seconds):
    def call():
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
    return call

def missing():
    import a_peer_that_nobody_has

def contenders():
    return {"ours": spin(0.01), "half": spin(0.005), "double": spin(0.02), "peer": optional(missing)}

twice = Case("spin-2", "Twice.", contenders, growth="spin over nothing", size=2)
main("toy", [Case("spin", "Spinning.", contenders), twice])
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    script = folder / "benchmarks" / "bench_toy.py"
    script.parent.mkdir()
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"MPLBACKEND": "Agg"}
    command = [sys.executable, str(script)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return folder, script, out.stdout


def test_ratios_are_those_of_the_work(measured):
    rows = benchmark.read(measured[0] / "results" / "bench.json")
    found = {
        (row.contender, row.allocator): row.over_ours for row in rows if row.case == "spin" and not row.absent
    }
    assert {allocator for _, allocator in found} == {"default", "kept"}
    for allocator in ("default", "kept"):
        assert found["ours", allocator] == (1.0, 1.0, 1.0)
        assert found["half", allocator][0] == pytest.approx(0.5, rel=0.1)
        assert found["double", allocator][0] == pytest.approx(2.0, rel=0.1)


def test_an_absent_peer_is_named_with_its_reason(measured):
    (row, _) = (
        row
        for row in benchmark.read(measured[0] / "results" / "bench.json")
        if row.absent and row.case == "spin"
    )
    assert "a_peer_that_nobody_has" in row.absent
    assert "- peer was not measured: No module named 'a_peer_that_nobody_has'" in measured[2]


def test_a_faster_peer_stands_first(measured):
    body = measured[2].splitlines()
    assert "half is faster" in body[2]
    assert [line for line in body if "double is faster" in line] == []


def test_growth_is_drawn_and_kept_out_of_the_table(measured):
    assert (measured[0] / "results" / "bench-growth.svg").exists()
    lines = [line for line in measured[2].splitlines() if "Twice." in line]
    assert len(lines) == 1  # that of the faster peer
    assert "**half is faster**" in lines[0]


def test_one_case_can_be_measured_anew(measured):
    folder, script, _ = measured
    path = folder / "results" / "bench.json"
    before = json.loads(path.read_text())
    subprocess.run([sys.executable, str(script), "--only", "spin-2"], capture_output=True, check=True)
    after = json.loads(path.read_text())
    assert [row for row in before["rows"] if row["case"] == "spin"] == [
        row for row in after["rows"] if row["case"] == "spin"
    ]
    assert len(after["rows"]) == len(before["rows"])


def test_a_file_of_another_format_has_no_rows(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text('{"rows": []}')
    assert benchmark.read(path) == []
    benchmark.write(
        path, [Row("a", "A.", "ours", 1, "default", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1, 1)], "short"
    )
    assert [row.case for row in benchmark.read(path)] == ["a"]


def test_the_page_shows_what_was_measured_and_on_what(measured, tmp_path):
    page = benchmark.page({"toy": measured[0] / "results", "empty": tmp_path})
    assert "## toy" in page
    assert "## empty" not in page
    assert "numpy" in page
    assert page.index("**half is faster**") < page.index("| double |")
    assert "../packages/toy/results/bench-growth.png" in page
