"""One changed byte in the committed results does not go unnoticed."""

import json
import os
from pathlib import Path

import pytest
from toy_paper.paper import PAPER

from gdyn_reproduce import verify
from gdyn_reproduce.ledger import committed
from gdyn_reproduce.results import BEGIN, END, report_command
from gdyn_reproduce.runs import configure, execute

FIG1 = PAPER.figure("fig1")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    package = root / "packages" / "toy_paper"
    (package / "results").mkdir(parents=True)
    (package / "pyproject.toml").touch()
    (package / "README.md").write_text(f"{BEGIN}\n{END}\n")
    record = execute(PAPER, FIG1, configure(FIG1, "quick", out=str(root / "runs")), "quick")
    report_command(PAPER, ["--add", str(record.folder)], root)
    return package


@pytest.fixture
def package(original):
    kept = {path: path.read_bytes() for path in (original / "results").iterdir()}
    yield original
    for path in set((original / "results").iterdir()) - kept.keys():
        path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)


def differences(package):
    return list(verify.differences(package, PAPER, committed(package / "results", PAPER)))


@pytest.fixture
def in_checkout(package, monkeypatch):
    monkeypatch.chdir(package.parents[1])
    results = package / "results"
    monkeypatch.setattr(verify, "ledgers", lambda root: {package: (PAPER, committed(results, PAPER))})
    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH")))))
    return package


@pytest.mark.parametrize("name", ["fig1-quick.json", "fig1-quick.npz", "fig1-quick.png", "fig1-quick.svg"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.95])
def test_one_changed_byte_is_found(package, name, where):
    assert differences(package) == []
    path = package / "results" / name
    content = bytearray(path.read_bytes())
    at = next(i for i in range(int(where * len(content)), len(content)) if chr(content[i]).isdigit())
    content[at] = ord("7") if content[at] != ord("7") else ord("3")
    path.write_bytes(content)
    try:
        found = differences(package)
    except ValueError as error:  # no longer a readable record, or no longer arrays
        found = [str(error)]
    assert any(name in problem for problem in found)


def test_a_changed_key_a_missing_and_an_extra_file_are_found(package):
    key = package / "results" / "answers.json"
    text = key.read_text()
    key.write_text(text.replace('"rejected": true', '"rejected": false'))
    assert any("does not say what the records" in problem for problem in differences(package))
    key.write_text(text)
    (package / "results" / "fig1-quick.svg").unlink()
    assert any("is in the key, but missing" in problem for problem in differences(package))
    stranger = package / "results" / "fig9-quick.json"
    stranger.write_text("{}")
    assert any("fig9-quick.json is not in the key" in problem for problem in differences(package))
    stranger.unlink()
    body = json.loads(text)
    del body["files"]["fig1-quick.png"]
    key.write_text(json.dumps(body))
    assert any("fig1-quick.png is not in the key" in problem for problem in differences(package))
    key.unlink()
    assert any("answers.json is missing" in problem for problem in differences(package))


@pytest.mark.parametrize("content", ["", '{"format": 1', "[]", "{}", '{"files": [1]}', '{"files": null}'])
def test_a_damaged_key_is_a_difference_and_no_bug(package, content):
    key = package / "results" / "answers.json"
    key.write_text(content)
    assert differences(package) == [f"{key} is damaged; write it anew with `report`."]


def test_nothing_to_verify_is_no_success(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert verify.main([]) == 2
    assert "holds no packages; run this in the top folder of a checkout." in capsys.readouterr().err


def test_arrays_that_do_not_belong_to_their_record_are_found_even_with_a_key_made_anew(package):
    path = package / "results" / "fig1-quick.json"
    body = json.loads(path.read_text())
    body["arrays_sha256"] = body["arrays_sha256"][::-1]
    path.write_text(json.dumps(body))
    report_command(PAPER, [], package)
    (problem,) = differences(package)
    assert "does not hold the numbers that its record was judged by" in problem


def test_cheap_records_are_computed_again(in_checkout, capsys):
    assert verify.main([]) == 0
    said = capsys.readouterr().out
    assert "1 records checked against their keys; 0 of them are stale." in said
    assert "computing again: gdyn-toy-paper run fig1 preset=quick" in said


def test_a_forged_number_with_a_fitting_key_is_found_by_computing_again(in_checkout, capsys):
    path = in_checkout / "results" / "fig1-quick.json"
    body = json.loads(path.read_text())
    body["measurements"]["decay"] = [value + 1e-5 for value in body["measurements"]["decay"]]
    path.write_text(json.dumps(body))
    report_command(PAPER, [], in_checkout)
    assert verify.main(["--no-rerun"]) == 0
    assert verify.main([]) == 1
    assert "toy_paper fig1-quick: decay is" in capsys.readouterr().out
    assert verify.main(["--fast"]) == 2


def test_stale_records_are_counted_and_not_computed_again(in_checkout, capsys, monkeypatch):
    monkeypatch.setattr("gdyn_reproduce.sources.digest", lambda *_: "newer")
    report_command(PAPER, [], in_checkout)
    assert verify.main([]) == 0
    said = capsys.readouterr().out
    assert "1 of them are stale" in said
    assert "computing again" not in said


def test_another_line_end_in_the_key_is_a_changed_byte(package):
    key = package / "results" / "answers.json"
    key.write_bytes(key.read_bytes().replace(b"\n", b"\r", 1))
    (problem,) = differences(package)
    assert "does not say what the records and the claims of today give" in problem
    assert report_command(PAPER, ["--check"], package) == 1
