"""Every registered run at its smoke size, killed runs, and bad configurations."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from gdyn_common.logging import read_jsonl
from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.records import Header, read_record
from gdyn_reproduce.registry import resolve
from gdyn_reproduce.runs import Run, configure, execute
from gdyn_reproduce.testing import check_registry, check_unread, every_option_counts
from variance.paper import PAPER, trajectory
from variance.paper.cli import COMMANDS

FIGURES = [figure.id for figure in PAPER.figures]


def test_the_registry() -> None:
    check_registry("variance")
    assert {f"F{i}" for i in range(1, 11)} <= set(FIGURES)


@pytest.mark.parametrize("figure", FIGURES)
def test_smoke_run_measures_every_claim(figure: str, tmp_path: Path) -> None:
    with every_option_counts(PAPER.figure(figure)):
        assert dispatch(PAPER, COMMANDS, ["run", figure, "preset=smoke", f"out={tmp_path}"]) == 0
    (result,) = tmp_path.rglob("result.json")
    record = read_record(result.parent)
    check_unread(PAPER.figure(figure), record, tmp_path / "unread")
    for claim in PAPER.claims_of(figure):
        assert claim.metric in record.measurements, claim.id
        assert claim.control is None or claim.control.metric in record.measurements, claim.id
    assert (result.parent / "figure.svg").stat().st_size > 1000


@pytest.mark.parametrize("estimator", ["SG-2B", "SVRG", "GC-3", "GC-online"])
def test_options_of_other_estimators_change_no_number(estimator: str, tmp_path: Path) -> None:
    figure = PAPER.figure("F10")
    smoke = figure.presets["smoke"]
    values = {**smoke.overrides, "estimators": ["SG-B", estimator]}
    changed = dataclasses.replace(figure, presets={"smoke": dataclasses.replace(smoke, overrides=values)})
    with every_option_counts(changed):
        record = execute(PAPER, changed, configure(changed, "smoke", out=str(tmp_path)), "smoke")
    check_unread(changed, record, tmp_path / "unread")


def run_in_a_child(arguments: list[str], kill_after: int = 0) -> int:
    """Run in a forked process, killed once that many pieces and checkpoints are written; return its code."""
    if (child := os.fork()) == 0:
        code, count, replace = 99, 0, os.replace

        def counted(source: str, target: str) -> None:
            nonlocal count
            replace(source, target)
            count += Path(target).parent.name in ("pieces", "checkpoints")
            if count == kill_after > 0:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counted  # type: ignore[assignment]
        try:
            code = dispatch(PAPER, COMMANDS, arguments)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize(
    ("figure", "overrides", "kills"),
    [
        ("F1", ["estimators=[SG-B,SG-2B,SVRG,GC,GC-online]"], [1, 4]),
        ("F6", ["seeds=[0]", "learning_rates=[0.01]"], [6]),  # inside the second piece
        ("F8", ["seeds=[0]"], [12]),  # between two passes over the data
        ("F9", ["seeds=[0]"], [7]),
    ],
)
def test_a_killed_run_resumes_to_the_same_result(
    figure: str, overrides: list[str], kills: list[int], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    arguments = ["run", figure, "preset=smoke", *overrides]
    assert dispatch(PAPER, COMMANDS, [*arguments, f"out={whole}"]) == 0  # imports what the children need
    for count in kills:
        assert run_in_a_child([*arguments, f"out={out}"], kill_after=count) == -signal.SIGKILL
        assert not list(out.rglob("result.json"))
    assert run_in_a_child([*arguments, f"out={out}"]) == 0
    (expected,), (found,) = whole.rglob("result.json"), out.rglob("result.json")
    assert found.read_bytes() == expected.read_bytes()


def test_train_and_collect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["num_steps=20", "measure_every=10", "clusters=4", "cluster_iterations=1", "max_size=200"]
    assert dispatch(PAPER, COMMANDS, ["train", *small, f"out={tmp_path}"]) == 0
    assert "SG-B.avg_var" in capsys.readouterr().out
    assert dispatch(PAPER, COMMANDS, ["collect", str(tmp_path)]) == 0
    assert "SG-2B.avg_var" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "F11"], "Unknown figure 'F11'"),
        (["run", "F5", "preset=paper"], "must hold one folder of images per class"),
        (["run", "F1", "mode=unbiased", "num_draws=2"], "num_draws=2: at least 3"),
        (["run", "F1", "first_snapshot=50"], "first_measure=10 lies before first_snapshot=50"),
        (["run", "F1", "model=lenet", "num_steps=1", "seeds=[0]"], "Unknown model 'lenet'"),
        (["run", "F1", "estimators=[SGD]", "num_steps=1", "seeds=[0]"], "Unknown estimator 'SGD'"),
        (["run", "F1", "num_draws=20"], "num_draws=20 has no effect with mode=exact; leave it out."),
        (["run", "F1", "data_root=/data"], "data_root=/data has no effect on a dataset that is always there"),
        (["run", "F2", "clusters=8"], "clusters=8 has no effect without GC or GC-online among estimators"),
        (["run", "F6", "duplicate_points=3"], "duplicate_points=3 has no effect without duplicate_fractions"),
        (["run", "F8", "clusters=8"], "clusters=8 has no effect beside counts, the numbers of clusters"),
        (["run", "F6", "clusters=200"], "exceed the 100 examples"),
        (["run", "F9", "switch_at=0"], "must lie inside num_steps"),
        (["grid"], "grid needs a file"),
        (["grid", "nowhere.yaml"], "grid file nowhere.yaml not found"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(PAPER, COMMANDS, [*arguments, f"out={tmp_path}"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "Traceback" not in error


def test_packed_states_hold_no_code() -> None:
    import pickle

    evil = np.frombuffer(pickle.dumps(print), dtype=np.uint8)
    with pytest.raises(Exception, match="no packed state"):
        trajectory.unpack(evil)


def test_log_lines_carry_batch_sizes(tmp_path: Path) -> None:
    dispatch(PAPER, COMMANDS, ["run", "F4", "preset=smoke", "seeds=[0]", f"out={tmp_path}"])
    (log,) = tmp_path.rglob("metrics.jsonl")
    first = json.loads(log.read_text().splitlines()[0])
    assert "SG-2B[B=64]/avg_var" in first
    assert "gc/distortion" in first
    assert first["piece"] == "learning_rate=0.02/seed=0"


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    """A line is dropped where its step is repeated, because the run was killed before the checkpoint."""
    figure = PAPER.figure("F9")
    config = configure(figure, "smoke", out=str(tmp_path), seeds=[0])
    header = Header("variance", "0", "", "F9", "", "", figure.module, "smoke", "smoke")
    with Run(tmp_path / "run", {}, header) as run:
        run.tracker.log(40, {"piece": "SG-B/seed=0", "loss": 1.0})
        run.tracker.log(40, {"piece": "SG-2B/seed=7", "loss": 1.0})
        resolve(figure.module).compute(config, run)
    lines = [(line["piece"], line["step"]) for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert len(lines) == len(set(lines)) == 4 * 4 + 1
