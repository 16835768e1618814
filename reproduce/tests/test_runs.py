import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toy_paper.config import DecayConfig
from toy_paper.paper import PAPER

from gdyn_common.storage import read_arrays
from gdyn_reproduce.intervals import Measured
from gdyn_reproduce.records import Result, hash_arrays, load_records, load_runs, parse_record, read_record
from gdyn_reproduce.runs import config_hash, configure, execute, folder_of, hold, rejudge, settings
from gdyn_reproduce.verdicts import MissingMetricError

FIG1 = PAPER.figure("fig1")


def run(tmp_path, preset="quick", **options):
    return execute(PAPER, FIG1, configure(FIG1, preset, out=str(tmp_path), **options), preset)


def test_a_run_leaves_everything_it_promises(tmp_path):
    record = run(tmp_path)
    names = {path.name for path in record.folder.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "result.json",
        "provenance.json",
        "arrays.npz",
        "figure.png",
        "figure.svg",
    }
    assert [verdict.outcome for verdict in record.verdicts] == ["holds", "holds", "fails", "not judged here"]
    assert record.as_expected
    assert record.provenance["versions"]["numpy"] == np.__version__
    assert json.loads((record.folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == 100


def test_the_commit_is_that_of_the_start(tmp_path, monkeypatch):
    commits = iter(["at the start", "checked out meanwhile"])
    monkeypatch.setattr("gdyn_reproduce.provenance.commit", lambda: next(commits))
    assert run(tmp_path).provenance["commit"] == "at the start"


def test_a_finished_run_is_not_computed_again_and_that_is_said(tmp_path, monkeypatch, capsys):
    first = run(tmp_path)
    assert "finished" not in capsys.readouterr().err
    monkeypatch.setattr("toy_paper.decay._decay", lambda *_: pytest.fail("computed again"))
    second = run(tmp_path)
    assert second.measurements == first.measurements
    assert second.provenance == first.provenance
    said = capsys.readouterr().err
    assert f"finished {first.provenance['finished']} by code {first.header.code} at commit" in said
    assert "not computed again" in said


def test_what_other_code_has_made_is_moved_aside_and_computed_anew(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as earlier:
        earlier.setattr("gdyn_reproduce.sources.digest", lambda *_: "another")
        earlier.setattr("toy_paper.decay._decay", lambda *_: {"u": np.array([1.0, 7.0])})
        old = run(tmp_path)
    assert old.measurements["decay"] == [7.0, 7.0, 7.0]
    new = run(tmp_path)
    assert new.folder == old.folder
    assert new.measurements["decay"] != old.measurements["decay"]
    assert "what code another left here is kept in" in capsys.readouterr().err
    (kept,) = (new.folder.parent / ".superseded").iterdir()
    assert read_record(kept).measurements == old.measurements
    assert [record.header.code for record in load_records(tmp_path)] == [new.header.code]


def test_pieces_of_other_code_are_not_mixed_in(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    calls = []
    piece = {"u": np.array([1.0, 7.0])}
    with monkeypatch.context() as earlier:
        earlier.setattr("gdyn_reproduce.sources.digest", lambda *_: "another")
        earlier.setattr(
            "toy_paper.decay._decay", lambda *_: stop() if len(calls) > 2 else calls.append(1) or piece
        )
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert len(list(tmp_path.rglob("pieces/*.npz"))) == 3
    clean = run(tmp_path / "clean")
    assert run(tmp_path).measurements == clean.measurements


def test_resumed_pieces_are_said(tmp_path, monkeypatch, capsys):
    whole = run(tmp_path)
    (whole.folder / "result.json").unlink()
    assert run(tmp_path).measurements == whole.measurements
    assert f"made by the same code {whole.header.code}, are reused" in capsys.readouterr().err


def test_a_missing_metric_is_an_error_and_loses_no_computation(tmp_path, monkeypatch):
    first = run(tmp_path)
    body = json.loads((first.folder / "result.json").read_text())
    del body["measurements"]["finite"]
    (first.folder / "result.json").write_text(json.dumps(body))
    with pytest.raises(
        MissingMetricError, match=r"claim 'fig1.rate' cannot be judged. Unknown metric 'finite'"
    ):
        run(tmp_path)
    monkeypatch.setattr(
        "toy_paper.decay.compute", lambda *_: Result({"falls": [True]}, {"curves": np.ones((1, 1, 2))})
    )
    with pytest.raises(MissingMetricError, match="Unknown metric 'decay'"):
        run(tmp_path / "fresh")
    assert len(load_records(tmp_path / "fresh")) == 1


def test_a_record_is_described_in_the_words_of_today(tmp_path):
    record = run(tmp_path)
    old = dataclasses.replace(record, header=dataclasses.replace(record.header, shows="Terse."))
    assert rejudge(PAPER, old).header == record.header


def test_a_record_of_other_code_is_stale_and_surprises_nobody(tmp_path, monkeypatch):
    record = run(tmp_path)
    monkeypatch.setattr("gdyn_reproduce.sources.digest", lambda *_: "newer")
    stale = rejudge(PAPER, record)
    assert [verdict.outcome for verdict in stale.verdicts] == ["stale", "stale", "stale", "not judged here"]
    assert stale.verdicts[0].reason == "made by other code, whose numbers give: holds"
    assert stale.as_expected
    lost = dataclasses.replace(record, measurements={})
    assert "without all that the claim needs" in rejudge(PAPER, lost).verdicts[0].reason


def test_records_of_the_first_format_are_read_as_stale(tmp_path):
    record = run(tmp_path)
    body = json.loads((record.folder / "result.json").read_text())
    del body["header"]["code"]
    body |= {"format": 1, "verdicts": [{"claim": "fig1.rate", "outcome": "partly", "values": [1.0]}]}
    body["header"]["scale"] = "scaled down"
    old = parse_record(body, {}, record.folder)
    assert old.header.scale == "scaled"
    assert old.measurements == record.measurements
    assert {verdict.outcome for verdict in rejudge(PAPER, old).verdicts} == {"stale", "not judged here"}


def test_a_record_survives_writing_and_reading(tmp_path):
    record = run(tmp_path)
    assert read_record(record.folder).verdicts == record.verdicts
    assert record.verdicts[0].control.rejected
    assert record.arrays_sha256 == hash_arrays(read_arrays(record.folder / "arrays.npz"))


@pytest.mark.parametrize("value", ["rate=1", None, [1.0, "two"], np.ones(2), np.float32(1)])
def test_a_measurement_that_no_record_holds_is_refused_by_name(value):
    with pytest.raises(TypeError, match="measurement 'best' is"):
        Result({"best": value}, {})


def test_the_hash_of_arrays_sees_every_byte_name_and_shape():
    base = {"a": np.arange(6.0), "b": np.array(["x"])}
    hashes = [
        hash_arrays(base),
        hash_arrays(base | {"a": np.arange(6.0).reshape(2, 3)}),
        hash_arrays(base | {"a": np.nextafter(np.arange(6.0), 9)}),
        hash_arrays(base | {"a": np.arange(6)}),
        hash_arrays({"c": base["a"], "b": base["b"]}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_arrays(base | {"a": np.arange(6.0).astype(">f8")}) == hashes[0]
    assert hash_arrays(base | {"a": np.arange(12.0)[::2] / 2}) == hashes[0]


def test_a_place_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.* cannot be written: Not a directory\. Pass another out="):
        run(tmp_path / "file")


def test_overwrite_computes_anew(tmp_path):
    first = run(tmp_path)
    (first.folder / "marker").touch()
    assert not (run(tmp_path, overwrite=True).folder / "marker").exists()


def test_configure_starts_from_the_preset():
    assert configure(FIG1, "paper").num_steps == 1000
    assert configure(FIG1, "paper", num_steps=7).num_steps == 7
    with pytest.raises(ValueError, match="Unknown preset 'papr'"):
        configure(FIG1, "papr")


def test_every_setting_and_the_version_change_the_folder_but_options_do_not(tmp_path):
    base = settings(DecayConfig())
    assert "out" not in base
    assert config_hash(base, "1") != config_hash(settings(DecayConfig(num_steps=3)), "1")
    assert config_hash(base, "1") != config_hash(base, "2")
    one, other = (folder_of("toy_paper", DecayConfig(overwrite=flag)) for flag in (True, False))
    assert one == other


def test_claims_are_judged_anew_from_stored_measurements(tmp_path):
    record = run(tmp_path)
    path = record.folder / "result.json"
    body = json.loads(path.read_text())
    body["measurements"]["decay"] = [9.0, 9.1]
    path.write_text(json.dumps(body))
    assert run(tmp_path).verdicts[0].outcome == "fails"


def test_a_second_process_is_kept_out(tmp_path):
    from gdyn_reproduce.records import Header
    from gdyn_reproduce.runs import Run

    header = Header("toy_paper", "0", "t", "fig1", "s", "s", "m", "quick", "smoke", code="c")
    with Run(tmp_path, {}, header), pytest.raises(BlockingIOError, match="in use by another process"):
        Run(tmp_path, {}, header)


def test_numbers_json_does_not_know_survive(tmp_path):
    from gdyn_reproduce.records import Header
    from gdyn_reproduce.runs import Run

    header = Header("toy_paper", "0", "t", "fig1", "s", "s", "m", "quick", "smoke", code="c")
    with Run(tmp_path, {}, header) as open_run:
        measured = {"x": [float("inf"), 1.0], "ok": True, "own": Measured(1.0, 0.5)}
        record = open_run.finish(Result(measured, {}))
    assert record.measurements == measured
    assert [row["value"] for row in load_runs(tmp_path)] == [float("inf"), 1.0, True, 1.0]


def test_a_record_of_another_format_is_refused(tmp_path):
    record = run(tmp_path)
    path = record.folder / "result.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(ValueError, match="record format 99; this version reads 1 and 2"):
        read_record(record.folder)


def test_a_damaged_record_is_named(tmp_path):
    record = run(tmp_path)
    (record.folder / "result.json").write_text('{"format": 2')
    with pytest.raises(ValueError, match=r"result\.json is damaged .*; delete its folder and run"):
        load_records(tmp_path)


def test_load_runs_gives_one_row_per_measurement_and_seed(tmp_path):
    run(tmp_path)
    rows = load_runs(tmp_path)
    assert len(rows) == 12
    assert {row["metric"] for row in rows} == {"decay", "falls", "finite", "decay_at_rate_0"}
    assert rows[0]["config.num_steps"] == 100
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_runs(tmp_path / "nowhere")


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from gdyn_reproduce.cli import main
main("toy_paper.paper:PAPER", (), ["run", "fig1", "out={out}", "delay_s=0.15"])
"""


def start(out: Path) -> subprocess.Popen:
    program = PROGRAM.format(tests=str(Path(__file__).parent), out=out)
    environment = os.environ | {"MPLBACKEND": "Agg"}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert start(out).wait(60) == 0
    return next(out.rglob("result.json")).parent


@pytest.mark.kill
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, uninterrupted):
    child = start(tmp_path)  # tests/faults kills at every kind of write
    deadline = time.monotonic() + 30
    while len(list(tmp_path.rglob("pieces/*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list(tmp_path.rglob("result.json"))
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("pieces/*.npz")}
    assert start(tmp_path).wait(60) == 0
    folder = next(tmp_path.rglob("result.json")).parent
    assert (folder / "result.json").read_bytes() == (uninterrupted / "result.json").read_bytes()
    for name, array in read_arrays(uninterrupted / "arrays.npz").items():
        assert array.tobytes() == read_arrays(folder / "arrays.npz")[name].tobytes()
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in stored.items()), (
        "a stored piece was computed again"
    )


@pytest.mark.kill
def test_sigterm_saves_and_exits_130(tmp_path):
    child = start(tmp_path)
    while not list(tmp_path.rglob("pieces/*.npz")) and child.poll() is None:
        time.sleep(0.01)
    child.terminate()
    assert child.wait(30) == 130
    assert not list(tmp_path.rglob("result.json"))


def test_a_block_that_fails_before_it_wrote_anything_leaves_no_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "mine" / "b"):
        with pytest.raises(ValueError, match="refused"), hold(folder):
            raise ValueError("refused")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_block_that_fails_later_keeps_its_folder(tmp_path):
    def work():
        with hold(tmp_path / "run") as lock:
            (lock.folder / "state").touch()
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        work()
    assert (tmp_path / "run" / "state").exists()


def test_what_repeats_the_preset_is_no_setting_of_ones_own(tmp_path):
    overrides = ["num_steps=5", "rates=[0.5,1]", "num_steps=100", "seeds=[0,1,2]"]
    record = execute(PAPER, FIG1, configure(FIG1, "quick", out=str(tmp_path)), "quick", overrides)
    assert record.header.overrides == ()
    assert record.own_settings == []
    path = record.folder / "result.json"
    body = json.loads(path.read_text())
    body["header"]["overrides"] = ["num_steps=100"]  # as earlier versions kept it
    path.write_text(json.dumps(body))
    assert run(tmp_path).own_settings == []
    changed = configure(FIG1, "quick", out=str(tmp_path), num_steps=7)
    record = execute(PAPER, FIG1, changed, "quick", ["num_steps=5", "num_steps=7"])
    assert record.header.command == "gdyn-toy-paper run fig1 preset=quick num_steps=7"
    assert record.own_settings == ["num_steps=7"]


def test_a_setting_that_is_a_mapping_is_told_with_its_value(tmp_path):
    record = run(tmp_path)
    header = dataclasses.replace(record.header, overrides=("+model.depth=2", "model={width:3}"))
    nested = dataclasses.replace(record, header=header, config={"model": {"width": 3, "depth": 2}})
    assert nested.own_settings == ["model.depth=2", "model={'width': 3, 'depth': 2}"]
