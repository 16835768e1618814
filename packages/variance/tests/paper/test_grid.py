"""Grids: pure expansion, names, dry run, resumption, failures, collection."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from variance.errors import ConfigError
from variance.paper.grid import expand, jobs_for, load_grid, run_jobs, run_name
from variance.paper.grid.command import CollectConfig, GridConfig, collect, run_grid
from variance.paper.grid.executors import Job, run_job
from variance.paper.grid.expansion import varied_keys

GRIDS = Path(__file__).parents[2] / "grids"


def test_composition_rules() -> None:
    assert expand({"a": [1, 2], "b": "x"}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    assert expand([{"a": 1}, {"b": [2, 3]}]) == [{"a": 1}, {"b": 2}, {"b": 3}]
    assert expand({"product": [{"a": [1, 2]}, [{"b": 3}, {"c": 4}]]}) == [
        {"a": 1, "b": 3}, {"a": 1, "c": 4}, {"a": 2, "b": 3}, {"a": 2, "c": 4},
    ]  # fmt: skip
    nested = {"arch": ["mlp", {"value": "resnet8", "with": {"lr": [0.1, 0.01]}}], "drop": [None, 1]}
    assert len(expand(nested)) == 6
    assert {"arch": "resnet8", "lr": 0.1} in expand(nested)
    assert expand({"seeds": [[0, 1]]}) == [{"seeds": [0, 1]}]
    assert expand({}) == [{}]


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True), max_size=4
    )
)
def test_the_size_of_a_product_is_the_product_of_sizes(grid: dict[str, list[int]]) -> None:
    size = 1
    for values in grid.values():
        size *= len(values)
    assert len(expand(grid)) == size
    assert expand(grid) == expand(grid)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([{"a": 1}, {"a": [1, 2]}], "twice"),
        ({"product": [{"a": 1}, {"a": 2}]}, "set twice with different values"),
        ({"a": [{"value": 1, "then": {}}]}, "keys 'value' and 'with' only"),
        ("abc", "a grid is a mapping"),
    ],
)
def test_malformed_grids(grid: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(grid)  # type: ignore[arg-type]


def test_names_spell_varied_keys_only() -> None:
    runs = expand({"lr": [0.1, 0.2], "seed": [0, 1], "b": 8})
    assert varied_keys(runs, exclude=["seed"]) == ["lr"]
    assert run_name(runs[3], varied_keys(runs), 3) == "003_lr=0.2_seed=1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {a: [", "damaged or of another kind"),
        ("a: !!python/name:os.system x", "damaged or of another kind"),
        ("a: &a [1]\nb: *a", "refers to its own parts"),
        ("[" * (1 << 19), "is nested more than 50 deep"),
        ("- " * (1 << 19), "is nested more than 50 deep"),
        ("[" * 5000, "damaged or of another kind"),
        ("a: 1", "keys figure and grid"),
        ("figure: F1\ngird: {}", "Did you mean 'grid'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_grid(file)
    with pytest.raises(FileNotFoundError, match="shipped ones are in packages/variance/grids"):
        load_grid(tmp_path / "missing.yaml")


@pytest.mark.parametrize("file", sorted(GRIDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_grids_name_registered_figures_and_known_keys(file: Path) -> None:
    from dataclasses import fields

    from gdyn_reproduce.registry import resolve
    from variance.paper import PAPER

    grid = load_grid(file)
    figure = PAPER.figure(grid["figure"])
    known = {field.name for field in fields(resolve(figure.config))}
    jobs = jobs_for(grid, "runs")
    assert grid["preset"] in figure.presets
    assert all(key in known for run in expand(grid["grid"]) for key in run)
    assert len({job.folder for job in jobs}) == len(jobs) > 0


def test_a_dry_run_prints_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_grid(GridConfig(file=str(GRIDS / "F9.yaml"), dry_run=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gdyn-variance run F9 preset=paper signal_to_noise=1 out=runs"
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("figure: F11\ngrid: {}", "Unknown figure 'F11'"),
        ("figure: F1\npreset: huge\ngrid: {}", "Unknown preset 'huge'"),
        ("figure: F1\ngrid: {cluster: [1]}", "figure F1: Unknown key 'cluster'.*clusters"),
    ],
)
def test_what_no_run_would_accept_is_refused_before_any_starts(
    text: str, message: str, tmp_path: Path, fake_program: list[list[str]]
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        run_grid(GridConfig(file=str(file), out=str(tmp_path)))
    assert not fake_program


@pytest.fixture
def fake_program(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace child processes: the run with clusters=2 fails, all others succeed."""
    calls: list[list[str]] = []

    def fake(command: list[str], *, stdout, **options: object) -> object:  # type: ignore[no-untyped-def]
        calls.append(command)
        stdout.write("line\nreason\n")
        return type("Done", (), {"returncode": 2 if "clusters=2" in command else 0})

    monkeypatch.setattr(subprocess, "run", fake)
    return calls


def test_finished_runs_are_skipped_and_failures_reported(
    tmp_path: Path, fake_program: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("figure: F1\ngrid: {clusters: [1, 2, 3]}")
    config = GridConfig(file=str(file), out=str(tmp_path / "runs"))
    assert run_grid(config) == 2
    assert "3 runs: 2 done (0 of them before), 1 failed" in (text := capsys.readouterr().out)
    assert "001_clusters=2 exited with 2" in text
    assert "reason" in text
    assert run_grid(config) == 2
    assert len(fake_program) == 4
    assert "2 of them before" in capsys.readouterr().out


def test_a_changed_configuration_is_run_again(tmp_path: Path, fake_program: list[list[str]]) -> None:
    first, other = (Job("000", ("run", "F1", f"x={x}"), tmp_path / "000") for x in (1, 3))
    assert not run_job(first).skipped
    assert run_job(first).skipped
    assert not run_job(other).skipped
    assert json.loads((tmp_path / "000" / "done").read_text()) == list(other.arguments)


def test_processes(tmp_path: Path) -> None:
    jobs = [Job(f"{i:03d}", ("cite",), tmp_path / f"{i:03d}") for i in range(2)]
    outcomes = run_jobs(jobs, "joblib", 2)
    assert [outcome.code for outcome in outcomes] == [0, 0]
    assert "faghri2020study" in (tmp_path / "000" / "log.txt").read_text()


def test_missing_slurm_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"executor=submitit (needs the package|found no SLURM)"):
        run_jobs([Job("0", ("cite",), tmp_path)], "submitit")
    with pytest.raises(ConfigError, match="allowed are serial, joblib, submitit"):
        run_jobs([], "cloud")
    with pytest.raises(ValueError, match="executor=cloud"):
        GridConfig(executor="cloud")


def test_collecting_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not found"):
        collect(CollectConfig(folder=str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match="no finished run"):
        collect(CollectConfig(folder=str(tmp_path)))


def test_the_interpreter_is_the_running_one(tmp_path: Path, fake_program: list[list[str]]) -> None:
    run_job(Job("0", ("run", "F1"), tmp_path / "0"))
    assert fake_program[0][:3] == [sys.executable, "-m", "variance"]
