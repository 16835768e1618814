import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from toy_paper.paper import PAPER

from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.registry import Command, Preset

COMMANDS = (
    Command(
        "greet",
        "Say hello.",
        "toy_paper.decay:greet",
        "toy_paper.config:GreetConfig",
        ("names",),
        variadic=True,
        options=("dry_run",),
    ),
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.fixture
def call(capfd):
    def _call(*arguments):
        code = dispatch(PAPER, COMMANDS, list(arguments))
        out, errors = capfd.readouterr()
        return code, out, errors

    return _call


@pytest.mark.parametrize(
    "arguments",
    [[], ["list"], ["show", "fig1"], ["cite"], ["--help"], ["run", "fig1", "--help"], ["greet", "-h"]],
)
def test_questions_are_answered(call, arguments):
    code, out, errors = call(*arguments)
    assert (code, errors) == (0, "")
    assert out.strip()


def test_help_documents_every_key(call):
    _, out, _ = call("run", "fig1", "--help")
    assert "num_steps=100  Number of Euler steps." in out
    assert "overwrite=false" in out


def test_an_option_that_a_command_does_not_read_is_no_key_of_it(call):
    assert call("greet", "A", "out=x")[::2] == (2, "gdyn-toy-paper: greet does not read out; leave it out.\n")
    _, out, _ = call("greet", "--help")
    assert "dry_run=" in out
    assert "overwrite=" not in out


def test_list_imports_no_heavy_module():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from gdyn_reproduce.cli import dispatch; from toy_paper.paper import PAPER;"
        "dispatch(PAPER, (), ['list']);"
        "print(sorted({'torch', 'jax', 'hydra', 'scipy', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")


@pytest.mark.parametrize(("own", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_run_takes_one_thread_unless_the_user_says_otherwise(tmp_path, own, threads):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    program = "from gdyn_reproduce.cli import main; main('toy_paper.paper:PAPER')"
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    arguments = [sys.executable, "-c", program, "run", "fig1", "preset=smoke", f"out={tmp_path}"]
    subprocess.run(arguments, env=environment | own, check=True)
    (facts,) = tmp_path.glob("*/*/*/*/provenance.json")
    assert json.loads(facts.read_text())["threads"]["OMP_NUM_THREADS"] == threads


def test_run_computes_and_prints_the_verdicts(call):
    code, out, _ = call("run", "fig1")
    assert code == 0
    assert "holds     fig1.rate" in out
    assert "figure.png" in out.splitlines()[-1]
    assert sum("(judged at paper)" in line for line in out.splitlines()) == 1
    assert sum("(judged at paper)" in line for line in call("show", "fig1")[1].splitlines()) == 1


def test_an_unexpected_outcome_exits_1(capfd):
    hopeful = [replace(c, expected="holds") if c.expected == "fails" else c for c in PAPER.claims]
    paper = replace(PAPER, claims=tuple(hopeful))
    assert dispatch(paper, COMMANDS, ["run", "fig1"]) == 1
    assert "<- expected 'holds'" in capfd.readouterr().out


@pytest.mark.parametrize("prefix", ["", "++"])
def test_at_settings_of_ones_own_nothing_is_expected(call, prefix):
    code, out, _ = call("run", "fig1", f"{prefix}rates=[0.1]")
    assert code == 0
    assert "At settings of your own (rates=[0.1]), for which nothing is expected." in out
    assert "fails     fig1.rate" in out
    assert "<- expected" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "Unknown command 'bogus'"),
        (["run", "fig3"], "Unknown figure 'fig3'"),
        (["run", "fig1", "num_steps_=3"], "Did you mean 'num_steps'?"),
        (["run", "fig1", "+new=3"], "Unknown key 'new'"),
        (["run", "fig1", "num_steps=many"], "could not be converted to Integer"),
        (["run", "fig1", "num_steps=0"], "num_steps is 0; it must be at least 1."),
        (["run", "fig1", "preset=papr"], "Did you mean 'paper'?"),
        (["run", "fig1", "stray"], "Arguments have the form key=value;"),
        (["run", "fig1", "fail=input"], "fail is 'input'; leave it out."),
        (["run", "fig1", "out=/proc/nowhere"], "/proc/nowhere"),
        (["run", "all", "num_steps=3"], "Unknown key for `run all` 'num_steps'"),
        (["run", "all", "include=short"], "the only value is include=long"),
        (["run", "all", "preset=papr"], "Did you mean 'paper'?"),
        (["greet", "model.depth=2"], "model.depth"),
        (["show", "fig7"], "Unknown figure 'fig7'"),
        (["report", "--chck"], "--check"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(call, arguments, message):
    code, _, errors = call(*arguments)
    assert code == 2
    assert errors.count("\n") == 1
    assert message in errors


def test_a_bug_shows_its_traceback_and_exits_70(call):
    code, _, errors = call("run", "fig1", "fail=bug")
    assert code == 70
    assert "cannot reshape" in errors
    assert "Please report it" in errors


def test_run_all_takes_the_default_set(call, tmp_path):
    code, _, _ = call("run", "all")
    assert code == 0
    assert [path.parent.parent.parent.name for path in tmp_path.rglob("result.json")] == ["fig1"]


@pytest.fixture
def dear():
    """The toy paper with a figure that takes days and has no preset `paper`."""
    first, second = PAPER.figures
    second = dataclasses.replace(second, presets={"quick": Preset("days, 1 core", "scaled")})
    return dataclasses.replace(PAPER, figures=(first, second))


def test_run_all_takes_the_largest_preset_a_figure_has_and_says_so(dear, tmp_path, capsys):
    assert dispatch(dear, (), ["run", "all", "preset=paper", "include=long", "yes=true"]) == 0
    said = capsys.readouterr().out
    assert "fig2 has no preset paper; it runs with preset=quick." in said
    assert {(path.parts[-4], path.parts[-3]) for path in tmp_path.rglob("result.json")} == {
        ("fig1", "paper"),
        ("fig2", "quick"),
    }


def test_run_all_says_the_cost_and_refuses_what_takes_days(dear, tmp_path, capsys):
    assert dispatch(dear, (), ["run", "all", "preset=paper", "include=long"]) == 2
    said = capsys.readouterr()
    assert "2 figures, about 48.0 h as stated" in said.out
    assert "more than max_hours=2; the dearest are fig2 (days, 1 core), fig1 (2 s). Add yes=true" in said.err
    assert not list(tmp_path.rglob("result.json"))
    assert dispatch(dear, (), ["run", "all", "include=long", "max_hours=many"]) == 2
    assert "max_hours=many is no number" in capsys.readouterr().err
    assert dispatch(dear, (), ["run", "all", "include=long", "preset=paper", "dry_run=true"]) == 0
    assert dispatch(dear, (), ["run", "all", "include=long", "max_hours=49"]) == 0


def test_run_all_include_long_takes_everything(call, tmp_path):
    assert call("run", "all", "include=long", "preset=quick")[0] == 0
    assert len(list(tmp_path.rglob("result.json"))) == 2


def test_a_sweep_runs_every_job_and_exits_with_the_worst(call, tmp_path):
    code, _, errors = call("run", "fig1", "-m", "num_steps=0,100")
    assert code == 2
    assert "num_steps is 0" in errors
    assert len(list(tmp_path.rglob("result.json"))) == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["toy_paper"]


def test_an_interrupt_ends_a_sweep(call, tmp_path, monkeypatch):
    started = []

    def interrupted(*_arguments, **_options):
        started.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr("gdyn_reproduce.runs.execute", interrupted)
    code, _, errors = call("run", "fig1", "-m", "num_steps=10,20,30")
    assert (code, len(started)) == (130, 1)
    assert errors.count("Interrupted") == 1


def test_cfg_job_prints_the_resolved_configuration(call):
    code, out, _ = call("run", "fig1", "preset=paper", "--cfg", "job")
    assert code == 0
    assert "num_steps: 1000" in out


def test_dry_run_computes_nothing(call, tmp_path):
    code, out, _ = call("run", "fig1", "preset=paper", "dry_run=true")
    assert code == 0
    assert "On this machine, from a few calibration steps: 2 min, 1 MiB." in out
    assert not list(tmp_path.iterdir())


def test_positional_arguments_become_keys(call):
    assert call("greet", "A", "B b", "model.width=3")[:2] == (0, "Hello A B b 3\n")


def test_hydra_leaves_no_trace_in_the_environment(call):
    import os

    before, argv = dict(os.environ), list(sys.argv)
    call("run", "fig1")
    assert (dict(os.environ), sys.argv) == (before, argv)


def test_a_key_may_bear_the_name_of_a_folder_of_the_core(call):
    """Hydra would search this package for config groups, were it not told to search nowhere."""
    assert call("greet", "A", "data=file.npy")[:2] == (0, "Hello A 1 file.npy\n")


def test_a_lookup_that_fails_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dispatch(PAPER, (), ["run", "fig1", "out=${oc.env:GDYN_NO_SUCH}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "GDYN_NO_SUCH" in line
