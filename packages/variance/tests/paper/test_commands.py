"""`gdyn-variance train`: what it prints, stores and does a second time."""

import json
from pathlib import Path

import pytest

from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.records import read_record
from variance.paper import PAPER, trajectory
from variance.paper.cli import COMMANDS

SMALL = [
    "num_steps=20",
    "batch_size=32",
    "measure_every=10",
    "clusters=4",
    "cluster_iterations=1",
    "max_size=100",
]

WITH_DATA = ("F1", "F2", "F3", "F4", "F5", "F8", "F10", "gallery", "ad_hoc")


def train(tmp_path: Path, *options: str) -> int:
    return dispatch(PAPER, COMMANDS, ["train", *SMALL, *options, f"out={tmp_path}"])


def test_a_run_is_stored_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path) == 0
    first = capsys.readouterr().out
    (result,) = tmp_path.rglob("result.json")
    record = read_record(result.parent)
    for name in ("SG-B", "SG-2B", "SVRG", "GC"):
        assert f"  {name + '.avg_var':<28}{record.measurements[name + '.avg_var'][0]:.4g}" in first
    one, two = (record.measurements[f"{name}.avg_var"][0] for name in ("SG-B", "SG-2B"))
    assert one / two == pytest.approx(
        2 * (100 - 32) / (100 - 64)
    )  # batches of 32 and 64 of 100, without replacement
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "image_run", lambda *_: pytest.fail("computed again"))
        assert train(tmp_path) == 0
    assert capsys.readouterr().out == first
    assert train(tmp_path, "overwrite=true") == 0
    assert capsys.readouterr().out == first


def test_every_estimator_is_measured_and_drives(tmp_path: Path) -> None:
    everyone = (
        "SG-B", "SG-2B", "SVRG", "GC", "GC-2", "GC-online", "GC-chance", "heavy-ball", "Nesterov", "Adam",
        "IGT", "K-FAC", "EK-FAC", "NTK", "snapshot-average",
    )  # fmt: skip
    options = ("mode=unbiased", "num_draws=3", "num_steps=6", "measure_every=5", "first_snapshot=0")
    frequent = ("first_measure=0", "frequent_every=1", "snapshot_every=5")
    assert train(tmp_path, *options, *frequent, f"estimators=[{','.join(everyone)}]") == 0
    (result,) = tmp_path.rglob("result.json")
    measured = read_record(result.parent).measurements
    assert {f"{name}.avg_var" for name in everyone} <= measured.keys()
    for driver in ("SVRG", "GC", "Adam", "EK-FAC", "NTK", "GC-chance"):
        beside = "SG-B,GC" if driver == "GC-chance" else "SG-B"  # whose strata it deals out
        choice = (f"estimators=[{beside}]", f"driver={driver}")
        assert train(tmp_path, *options, *frequent, "momentum=0", *choice) == 0
    losses = {
        read_record(path.parent).measurements["SG-B.avg_var"][0] for path in tmp_path.rglob("result.json")
    }
    assert len(losses) == 7, "some drivers train alike"


def test_one_run_per_rate_and_seed(tmp_path: Path) -> None:
    assert train(tmp_path, "learning_rates=[0.1,0.01]", "seeds=[0,1]", "estimators=[SG-B]") == 0
    (result,) = tmp_path.rglob("result.json")
    measured = read_record(result.parent).measurements
    assert [len(measured[f"lr={rate}|SG-B.avg_var"]) for rate in (0.1, 0.01)] == [2, 2]


def test_another_configuration_is_another_folder(tmp_path: Path) -> None:
    assert train(tmp_path) == train(tmp_path, "seeds=[1]") == 0
    assert len(list(tmp_path.rglob("result.json"))) == 2


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "dry_run=true") == 0
    out = capsys.readouterr().out
    assert str(tmp_path) in out
    assert "num_steps: 20" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dataset=cifar11", "Unknown data set 'cifar11'"),
        ("clusters=101", "num_clusters 101 exceeds the 100 examples; use fewer clusters"),
        ("model=mnist-mlp", "model=mnist-mlp cannot take the inputs of shape (1, 8, 8)"),
        ("model=resnet8", "model=resnet8 cannot take the inputs of shape (1, 8, 8)"),
        ("classes=5", "classes=5, but labels run up to 9"),
        ("learning_rates=[1e30]", "training stopped at step"),
        ("learning_rate=0.1", "learning_rates"),
        ("seed=1", "seeds"),
        ("driver=SGD", "Unknown estimator 'SGD'"),
        ("estimators=[SG-B,nonsense]", "Unknown estimator 'nonsense'"),
        ("driver=nonsense", "Unknown estimator 'nonsense'"),
        ("estimators=[SG-B,Adam]", "mode=exact has no closed form for Adam"),
        ("driver=GC", "driver=GC needs a snapshot before the first step"),
        ("steps=3", "steps"),
    ],
)
def test_bad_input_is_one_line(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, option) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["train", *(f"run {name} preset=smoke" for name in WITH_DATA)])
@pytest.mark.parametrize("root", ["absent", "empty"])
def test_data_are_looked_for_where_the_key_says(
    command: str,
    root: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    options = ["dataset=mnist", f"data_root={root}", "download=false", "out=runs"]
    assert dispatch(PAPER, COMMANDS, [*command.split(), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"mnist not found in {root}. Run gdyn-data fetch mnist (12 MB)" in line


def test_a_run_records_its_data(tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    (stored,) = tmp_path.rglob("provenance.json")
    assert json.loads(stored.read_text())["data"]["shape"] == [1437, 8, 8]


def test_imagenet_is_looked_for_there_too_and_not_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["dataset=imagenet", "max_size=0", f"data_root={tmp_path}"]
    assert train(tmp_path / "runs", *options) == 2
    assert f"{tmp_path}/imagenet/train not found; it must hold one folder" in capsys.readouterr().err
    assert train(tmp_path / "runs", *options, "download=true") == 2
    assert "are behind a login; put one folder per class into" in capsys.readouterr().err
