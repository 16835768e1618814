"""The page of reliability has the shape that the suites of today give it."""

import json
import runpy
from pathlib import Path

import pytest

SUITES = Path(__file__).parents[2] / "tests" / "faults"


@pytest.fixture(scope="module")
def reliability():
    return runpy.run_path(str(SUITES / "reliability.py"))


def test_the_page_is_that_of_the_suites(reliability, tmp_path):
    written = reliability["PAGE"].read_text(encoding="utf-8")
    assert reliability["shape"](written) == reliability["shape"](reliability["page"](tmp_path))


def test_what_the_suites_note_has_a_place_on_the_page(reliability):
    sources = "".join(path.read_text() for path in SUITES.glob("test_*.py"))
    for kind in (*reliability["RUNS"], *reliability["REST"]):
        assert f'tally("{kind}", ' in sources
    assert sources.count("tally(") == len(reliability["RUNS"]) + len(reliability["REST"])


def test_the_page_adds_up_what_was_noted(reliability, tmp_path):
    facts = {"seed": 3, "date": "2026-01-02", "machine": "Linux"}
    rows = [("killed and resumed", "chaos", 20), ("damaged files", "arrays", 5), ("damaged files", "text", 6)]
    (tmp_path / "short").mkdir()
    for number, (kind, subject, count) in enumerate([*rows, rows[0]]):
        note = facts | {"kind": kind, "subject": subject, "count": count}
        (tmp_path / "short" / f"{number}.json").write_text(json.dumps(note))
    short, _, long = reliability["page"](tmp_path).partition("## Long form")
    assert "| killed and resumed | 40 | not run |" in short
    assert "| requeued jobs of SLURM | – | – | – | – | not run |" in short
    assert "| damaged files | 2 | 11 |" in short
    assert "Run: 2026-01-02, Linux, seed 3." in short
    assert "Bytes lost: 0." in short
    assert "Bytes lost: not run." in long
