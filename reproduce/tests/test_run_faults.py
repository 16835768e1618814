"""Run folders that were damaged, swapped, removed or shared."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from toy_paper.config import DecayConfig
from toy_paper.paper import PAPER

from gdyn_common.logging import read_jsonl
from gdyn_common.storage import FolderLock, atomic_write, write_arrays
from gdyn_reproduce import cli, page
from gdyn_reproduce.page import numbers_as_csv
from gdyn_reproduce.records import Result, load_records, read_record
from gdyn_reproduce.report import main as report_main
from gdyn_reproduce.runs import Run, configure, execute

FIG1 = PAPER.figure("fig1")


def run(tmp_path, preset="quick", **options):
    return execute(PAPER, FIG1, configure(FIG1, preset, out=str(tmp_path), **options), preset)


def test_following_the_advice_about_damaged_arrays_recovers(tmp_path):
    first = run(tmp_path)
    arrays = first.folder / "arrays.npz"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"arrays\.npz is damaged .*; delete it to have it computed again"):
        run(tmp_path)
    arrays.unlink()
    assert run(tmp_path).measurements == first.measurements
    assert arrays.read_bytes() == whole
    assert len(list(read_jsonl(first.folder / "metrics.jsonl"))) == 1


def test_following_the_advice_about_a_damaged_record_recovers(tmp_path):
    first = run(tmp_path)
    for body in (
        "{",
        '{"format": 1}',
        "[" * 10_000,
        '{"format": ' + "1" * 5000 + "}",
        '{"format": 1, "header": 0}',
        '{"format": 2, "header": ' + '{"a": ' * 900 + "0" + "}" * 901,
    ):
        (first.folder / "result.json").write_text(body)
        with pytest.raises(ValueError, match="delete its folder and run its command again") as caught:
            run(tmp_path)
        assert str(caught.value).isprintable()
    shutil.rmtree(first.folder)
    assert run(tmp_path).measurements == first.measurements


@pytest.mark.parametrize("name", ["result.json", "arrays.npz"])
def test_a_result_of_another_run_is_refused(tmp_path, name):
    quick, paper = run(tmp_path), run(tmp_path, "paper")
    shutil.copy(paper.folder / name, quick.folder / name)
    what = "that of its record" if name == "arrays.npz" else "the record of its folder but of one called"
    with pytest.raises(ValueError, match=rf"{name} is not {what}"):
        run(tmp_path)
    if name == "arrays.npz":
        return
    with pytest.raises(ValueError, match=rf"{name} is not the record of its folder"):
        load_records(tmp_path)


def test_a_record_of_another_figure_with_the_same_settings_is_refused(tmp_path):
    first = run(tmp_path)
    body = json.loads((first.folder / "result.json").read_text())
    body["header"]["figure"] = "fig2"
    (first.folder / "result.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match=r"result\.json is a record of toy_paper fig2 quick"):
        run(tmp_path)


def test_pieces_that_changed_places_are_refused(tmp_path):
    first = run(tmp_path)
    (first.folder / "arrays.npz").unlink()
    a, b, *_ = sorted((first.folder / "pieces").iterdir())
    swap = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(swap)
    with pytest.raises(ValueError, match=r"seed=0-.* belongs to '.* rate=0.5/seed=1', not to '.*seed=0'"):
        run(tmp_path)
    a.unlink()
    b.unlink()
    assert run(tmp_path).measurements == first.measurements


@pytest.mark.parametrize("moment", ["piece", "log", "checkpoint", "finish", "end"])
def test_a_folder_removed_in_mid_run_is_an_error(tmp_path, moment):
    header = run(tmp_path / "other").header
    gone = pytest.raises(FileNotFoundError, match=str(tmp_path / "run"))
    with gone, Run(tmp_path / "run", {}, header) as open_run:
        open_run.piece("a", lambda: {"x": 1})
        checkpoint = open_run.checkpoint("b")
        shutil.rmtree(tmp_path / "run")
        {
            "piece": lambda: open_run.piece("b", lambda: {"x": 1}),
            "log": lambda: open_run.tracker.log(0, {"x": 1}),
            "checkpoint": lambda: checkpoint.save(x=1),
            "finish": lambda: open_run.finish(Result({}, {}), ()),
            "end": lambda: None,
        }[moment]()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("write", [0, 1])
def test_a_run_killed_while_it_begins_is_not_taken_for_one_of_other_code(tmp_path, monkeypatch, write):
    writes = []

    def killed(path, *arguments, **options):
        writes.append(path)
        if len(writes) > write:
            raise KeyboardInterrupt
        atomic_write(path, *arguments, **options)

    monkeypatch.setattr("gdyn_reproduce.runs.atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    run(tmp_path)
    assert not list(tmp_path.rglob(".superseded"))


def test_overwrite_spares_a_linked_folder(tmp_path):
    folder = run(tmp_path).folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=r"is a link to .*elsewhere; overwrite=true deletes no linked folder"
    ):
        run(tmp_path, overwrite=True)
    assert (tmp_path / "elsewhere" / "result.json").exists()


def test_overwrite_spares_a_run_that_is_in_use(tmp_path):
    first = run(tmp_path)
    with FolderLock(first.folder), pytest.raises(BlockingIOError, match="in use"):
        run(tmp_path, overwrite=True)
    assert read_record(first.folder).measurements == first.measurements


HOSTILE = ("<script>", "|", "\x1b[31m", "\u202e", "{{7*7}}", "`", "[x](javascript:1)", "\n")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_record_steers_nothing(tmp_path, text, capsys):
    from gdyn_reproduce.report import main

    first = run(tmp_path / "runs")
    path = first.folder / "result.json"
    body = json.loads(path.read_text())
    for verdict in body["verdicts"]:
        verdict |= dict.fromkeys(("claim", "statement", "source", "unit", "band", "because"), f"a{text}b")
    body["header"] |= {"title": text, "source": text, "shows": text, "version": "0"}
    path.write_text(json.dumps(body))
    main(["build", str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    main(["compare", str(tmp_path / "runs"), str(tmp_path / "runs")])
    page = (tmp_path / "report/index.html").read_text()
    plain = (tmp_path / "report/report.md").read_text()
    table = capsys.readouterr().out.splitlines()
    assert "a<script>b" not in page
    assert "a<script>b" not in plain
    assert "\x1b" not in page + plain + "".join(table)
    assert "\u202e" not in page + plain + "".join(table)
    assert "a[x](javascript" not in plain
    columns = {line.replace("\\|", "").count("|") for line in table if line.startswith("|")}
    assert columns == {8}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", '=1","2', "=\n1", "\t=1", "a,b"])
def test_no_text_in_a_table_is_a_formula_or_breaks_the_table(text):
    table = numbers_as_csv({text: np.array([1.5]), "name": np.array([text])})
    assert "1.5" in table
    for row in list(csv.reader(io.StringIO(table))):
        assert len(row) == 3
        assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in row)
        assert {row[0], row[2]} & {"array", text, f"'{text}"}


def test_the_report_does_not_spell_a_table_that_it_would_not_carry(tmp_path, monkeypatch):
    record = dataclasses.replace(run(tmp_path), folder=tmp_path, arrays_sha256="")
    write_arrays(tmp_path / "arrays.npz", {"a": np.zeros(10**6)})
    monkeypatch.setattr(page, "numbers_as_csv", lambda arrays: pytest.fail("took a minute"))
    assert page._download(record) == ""


def test_the_report_does_not_carry_the_numbers_of_another_run(tmp_path, capsys):
    quick, paper = run(tmp_path / "runs"), run(tmp_path / "runs", "paper")
    shutil.copy(paper.folder / "arrays.npz", quick.folder / "arrays.npz")
    assert report_main(["build", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("arrays.npz is not that of its record; delete it to have it computed again.")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../elsewhere", b"a" * 5000])
def test_a_damaged_name_of_the_code_is_not_trusted(tmp_path, content, capsys):
    first = run(tmp_path)
    (first.folder / "code").write_bytes(content)
    assert run(tmp_path).measurements == first.measurements
    assert "computed anew by" in capsys.readouterr().err
    (aside,) = (first.folder.parent / ".superseded").iterdir()
    assert aside.name == f"{first.folder.name}-damaged"


def test_the_name_of_a_folder_does_not_steer_the_terminal(tmp_path, capsys):
    folder = tmp_path / "\x1b[31m\u202ered"
    folder.mkdir()
    (folder / "result.json").write_text("{")
    assert report_main(["build", str(tmp_path), "--out", str(tmp_path / "report")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


def mutate(value, random, depth=0):
    """Change one place in JSON data."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        if random.random() < 0.1:
            return {other: item for other, item in value.items() if other != key}
        return value | {key: mutate(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        return [*value[:place], mutate(value[place], random), *value[place + 1 :]]
    return random.choice(
        [None, True, 0, -1, 1e308, "", "nan", "x" * 300, [], {}, [[]], {"a": [None]}, "\ud800"]
    )


def test_mutated_records_are_read_or_refused_in_one_line(tmp_path, capsys):
    from random import Random

    from gdyn_reproduce.records import load_runs
    from gdyn_reproduce.report import main

    folder = run(tmp_path / "runs").folder.rename(tmp_path / "runs" / "record")  # any hash
    whole = {name: json.loads((folder / name).read_text()) for name in ("result.json", "provenance.json")}
    random = Random(0)
    codes = []
    for i in range(75):
        for name, body in whole.items():
            mutated = i % 3 if name == "result.json" else i % 3 == 0
            (folder / name).write_text(json.dumps(mutate(body, random) if mutated else body))
        capsys.readouterr()
        codes.append(main(["build", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]))
        if codes[-1] == 2:
            (line,) = capsys.readouterr().err.splitlines()
            assert str(folder) in line
            if "arrays.npz is not that of its record" not in line:  # which a table of runs does not read
                with pytest.raises(ValueError, match="record"):
                    load_runs(tmp_path / "runs")
            continue
        load_runs(tmp_path / "runs")
        assert main(["compare", str(tmp_path / "runs"), str(tmp_path / "runs")]) == 0
    assert {0, 2} <= set(codes) <= {0, 1, 2}


def test_the_report_costs_each_record_the_same(tmp_path, monkeypatch):
    from gdyn_reproduce import report

    records = [run(tmp_path)] * 50
    spelled = []
    spell = report.spell_values
    monkeypatch.setattr(report, "spell_values", lambda *values: spelled.append(1) or spell(*values))
    report.write_report(records[:10], tmp_path / "report")
    few = len(spelled)
    report.write_report(records, tmp_path / "report")
    assert len(spelled) - few == 5 * few


def test_a_command_survives_whatever_lies_at_its_places(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (DecayConfig().out, "runs/toy_paper"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("a file")
        assert cli.dispatch(PAPER, (), ["run", "fig1", "preset=smoke"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be written: Not a directory" in line
        (tmp_path / place).unlink()
