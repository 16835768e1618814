"""Typical mistakes at the command line: each is answered in one line that helps, exit code 2."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading

import pytest
from test_cli import COMMANDS
from toy_paper.paper import PAPER

from gdyn_reproduce._arguments import prepare
from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.data.command import main as data_main
from gdyn_reproduce.exits import guard
from gdyn_reproduce.keys import check
from gdyn_reproduce.records import load_records
from gdyn_reproduce.report import main as report_main

# What is typed, and what the answer must contain.
MISTAKES = [
    # commands
    ("bogus", "Unknown command 'bogus'. Allowed: list, show"),
    ("lst", "Did you mean 'list'?"),
    ("rum fig1", "Did you mean 'run'?"),
    ("fig1", "Did you mean `run fig1`?"),
    ("Figure1", "Did you mean `run fig1`?"),
    ("--list", "Unknown command '--list'"),
    ("train", "Unknown command 'train'"),
    ("version", "Unknown command 'version'"),
    ("list fig1", "list takes nothing more, not 'fig1'; one figure is described by show ID."),
    ("list --all", "list takes nothing more"),
    ("cite --bibtex", "cite takes nothing more, not '--bibtex'"),
    ("cite bibtex", "cite takes nothing more, not 'bibtex'.\n"),
    ("show", "show takes one figure, not none: fig1, fig2."),
    ("show fig1 fig2", "show takes one figure, not fig1 fig2"),
    ("show fig3", "Unknown figure 'fig3'. Allowed: fig1, fig2."),
    ("show all", "Unknown figure 'all'"),
    ("show fig9", "out of scope here: needs a telescope"),
    ("report --chck", "--check"),
    ("report fig1", "report takes nothing, --check, or --add"),
    # figures
    ("run", "run takes a figure, or all, as its first argument: fig1, fig2."),
    ("run fig3", "Unknown figure 'fig3'. Allowed: fig1, fig2."),
    ("run figs1", "Did you mean 'fig1'?"),
    ("run fig", "Did you mean 'fig1' or 'fig2'?"),
    ("run fig9", "out of scope here"),
    ("run preset=paper", "run takes a figure, or all, as its first argument, not preset=paper"),
    ("run -m fig1 num_steps=1,2", "run takes a figure, or all, as its first argument, not -m"),
    ("run --preset=paper fig1", "as its first argument, not --preset=paper"),
    ("run fig1,fig2", "run takes a figure, or all, as its first argument, not fig1,fig2"),
    ("run fig1 fig2", "Unexpected argument 'fig2'. Arguments have the form key=value"),
    # presets
    ("run fig1 preset=papr", "Unknown preset 'papr'. Allowed: quick, paper, smoke. Did you mean 'paper'?"),
    ("run fig1 preset=", "Unknown preset ''"),
    ("run fig1 preset=quick,paper", "preset=quick,paper names several values; add -m for one run each."),
    ("run fig1 --preset=paper", "write preset=paper, without dashes"),
    ("run fig1 --preset paper", "write preset=VALUE, without dashes"),
    ("run fig1 paper", "Unexpected argument 'paper'"),
    ("run fig1 Preset=paper", "Did you mean 'preset'?"),
    ("run all preset=huge", "Unknown preset 'huge'"),
    # keys
    ("run fig1 num_step=3", "here it is called 'num_steps'"),
    ("run fig1 ++seeds.x=[0.0]", "seeds.x is one entry of a list; write all of it, seeds=[...]."),
    ("run fig1 num-steps=3", "Did you mean 'num_steps'?"),
    ("run fig1 steps=3", "Unknown key 'steps'; here it is called 'num_steps'."),
    ("run fig1 max_steps=3", "here it is called 'num_steps'"),
    ("run fig1 num_seeds=3", "here it is called 'seeds'"),
    ("run fig1 seed=3", "here it is called 'seeds'"),
    ("run fig1 output_dir=x", "here it is called 'out'"),
    ("run fig1 colour=red", "Unknown key 'colour'. Allowed: "),
    ("run fig1 data_root=here", "Set GDYN_DATA_DIR to the folder of the data."),
    ("run fig1 download=true", "Fetch the data with `gdyn-data fetch NAME`."),
    ("run fig1 +new=3", "Unknown key 'new'"),
    ("run fig1 +num_steps=3", "write num_steps=VALUE"),
    ("run fig1 ~num_steps", "Unexpected argument '~num_steps'"),
    ("run fig1 ~num_steps=100", "would remove or add a key"),
    ("run fig1 num_steps", "Unexpected argument 'num_steps'. Arguments have the form key=value; no spaces."),
    ("run fig1 num_steps = 3", "Unexpected argument 'num_steps'"),
    ("run fig1 num_steps:3", "Unexpected argument 'num_steps:3'"),
    ("run fig1 =3", "Unexpected argument '=3'"),
    ("run fig1 --num_steps=3", "write num_steps=3, without dashes"),
    ("run fig1 --num_steps 3", "write num_steps=VALUE, without dashes"),
    ("run fig1 --overwrite", "write overwrite=VALUE, without dashes"),
    ("run fig1 -o runs", "Unknown option -o. There are -h, --version, -m and --cfg job"),
    ("run all num_steps=3", "Unknown key for `run all` 'num_steps'"),
    ("run all include=short", "the only value is include=long"),
    ("run all include=long max_hours=soon", "max_hours=soon is no number of hours"),
    ("run all include=long max_hours=nan", "max_hours=nan is no number of hours"),
    ("run all max_hours=-1", "max_hours=-1 is no number of hours"),
    ("run all overwrite", "Write overwrite=true, not overwrite."),
    ("run all overwrite=perhaps", "Write overwrite=true, not overwrite=perhaps."),
    ("run all dry_run=1", "Write dry_run=true, not dry_run=1."),
    ("run all yes=maybe", "Write yes=true, not yes=maybe."),
    ("run all out", "Write out=VALUE, not out."),
    ("run all -m", "Unknown key for `run all` '-m'"),
    # values
    ("run fig1 num_steps=many", "could not be converted to Integer"),
    ("run fig1 num_steps=1e3", "could not be converted to Integer"),
    ("run fig1 num_steps=", "could not be converted to Integer"),
    ("run fig1 num_steps=0", "num_steps is 0; it must be at least 1."),
    ("run fig1 num_steps=1,2", "num_steps=1,2 names several values; add -m for one run each."),
    ("run fig1 rates=0.1,0.2", "write rates=[0.1,0.2] for one run with all of them, or add -m"),
    ("run fig1 rates=fast", "could not be converted to Float"),
    ("run fig1 rates=[0.1, 0.2]", "rates=[0.1, is cut off. Write lists without spaces"),
    ("run fig1 rates=[0.1", "rates=[0.1 is cut off"),
    ("run fig1 rates=(0.1)", "rates=(0.1) cannot be read"),
    ("run fig1 rates=[nan]", "rates is nan; pass a number."),
    ("run fig1 rates=[[0.5]]", "rates=[[0.5]] is nested; write its values in one pair of brackets."),
    ("run fig1 seeds=[[0,1]]", "seeds=[[0, 1]] is nested"),
    ("run fig1 rates.0=3", "rates.0 is one entry of a list; write all of it, rates=[...]."),
    ("run fig1 num_steps=9223372036854775808", "has more than 64 bits; pass a smaller number."),
    ("run fig1 rates=[]", "rates is empty; pass at least one value."),
    ("run fig1 delay_s=nan", "delay_s is nan; pass a number."),
    ("run fig1 seeds=-1", "seeds=-1: a seed is an integer from 0 to 2**32 - 1."),
    ("run fig1 seeds=[0,4294967296]", "seeds=4294967296: a seed is an integer"),
    ("run fig1 seeds=[0,0]", "seeds=[0, 0] repeats a seed"),
    ("run fig1 seeds=[]", "seeds is empty; pass at least one, for example seeds=[0,1,2]."),
    ("run fig1 seeds=0.5", "could not be converted to Integer"),
    ("run fig1 overwrite=maybe", "is not a valid bool"),
    ("run fig1 out=", "out is empty; name a folder"),
    ("run fig1 out=~/runs", 'out=~/runs cannot be read; write out="$HOME/runs".'),
    ("run fig1 out='~/runs'", "out=~/runs names a folder ~ here"),
    ("run fig1 out=/proc/nowhere", "/proc/nowhere"),
    ("run fig1 out=a(b", "out=a(b is cut off"),
    ("run fig1 out=a:b)c", "out=a:b)c is cut off"),
    ("run fig1 fail=input", "fail is 'input'; leave it out."),
    # options of Hydra that are none of ours
    ("run fig1 --info", "Unknown option --info."),
    ("run fig1 --shell-completion install=bash", "Unknown option --shell-completion."),
    ("run fig1 --config-name=x", "Unknown option --config-name."),
    ("run fig1 --cfg", "--cfg takes job"),
    ("run fig1 --cfg hydra", "--cfg takes job"),
    ("run fig1 --cfg job -m num_steps=1,2", "--cfg job prints one configuration; leave -m out."),
    ("run fig1 hydra.job.chdir=true", "hydra.job.chdir=true is a setting of sweeps; add -m."),
    # sweeps
    ("run fig1 -m num_steps=many", "could not be converted to Integer"),
    ("run fig1 -m num_steps=0", "num_steps is 0; it must be at least 1."),
    ("run fig1 -m preset=papr,quick", "Unknown preset 'papr'"),
    ("run fig1 -m hydra/launcher=nope", "hydra/launcher=nope is not installed. Allowed: basic"),
    ("run fig1 -m hydra.sweep.dirr=x", "Could not override 'hydra.sweep.dirr'"),
    # own commands
    ("greet A model.depth=2", "model.depth"),
    ("greet A name=B", "here it is called 'names'"),
    ("greet A --loud", "Unknown option --loud."),
    ("greet A model=3", "model"),
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.mark.parametrize(("typed", "answer"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_one_line_that_helps(typed, answer, capfd, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    assert dispatch(PAPER, COMMANDS, typed.split()) == 2
    out, errors = capfd.readouterr()
    assert errors.count("\n") == 1, errors
    assert out.count("\n") <= 1  # where the run would have been written
    assert answer in errors
    assert len(errors) < 400
    assert not list(tmp_path.iterdir())  # nothing is left of it
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", -1),
        ("train_size", -5),
        ("measure_every", -2),
        ("milestones", [3, -1]),
        ("momentum", -0.1),
        ("weight_decay", float("inf")),
    ],
)
def test_no_count_and_no_rate_is_negative(name, value):
    config = dataclasses.make_dataclass("Config", [(name, object)])
    with pytest.raises(ValueError, match=rf"^{name}=.*; pass a number that is finite and not negative\.$"):
        check(config(value))


def test_a_nested_key_is_found_by_its_last_name():
    inner = dataclasses.make_dataclass("Inner", [("lr", float, 0.1)])
    outer = dataclasses.make_dataclass("Outer", [("optim", inner, dataclasses.field(default_factory=inner))])
    for word in ("lr", "learning_rate"):
        with pytest.raises(ValueError, match=f"^Unknown key '{word}'; here it is called 'optim.lr'"):
            prepare([f"{word}=1"], outer, {})


@pytest.mark.parametrize(
    ("typed", "computed"),
    [
        ("run F1", ["fig1"]),
        ("run fig.1 rates=0.5", ["fig1"]),
        ("run fig1 -m rates=0.5,1.0 preset=smoke", ["fig1", "fig1"]),
        ("run fig1 --multirun preset=quick,smoke", ["fig1", "fig1"]),
        ("run all preset=paper yes=true", ["fig1"]),
    ],
)
def test_what_is_meant_is_done(typed, computed, tmp_path):
    assert dispatch(PAPER, COMMANDS, typed.split()) in (0, 1)
    found = [path.relative_to(tmp_path).parts[2] for path in tmp_path.rglob("result.json")]
    assert found == computed


@pytest.mark.parametrize("typed", ["--version", "list --version", "run fig1 --version", "greet --version"])
def test_version_everywhere(typed, capfd):
    assert dispatch(PAPER, COMMANDS, typed.split()) == 0
    out, errors = capfd.readouterr()
    assert out.startswith("gdyn-toy-paper 0 (gdyn-common ")
    assert (out.count("\n"), errors) == (1, "")


@pytest.mark.parametrize("command", ["list", "show", "cite", "run", "run fig1", "report", "greet"])
@pytest.mark.parametrize("form", ["{} -h", "{} --help", "help {}"])
def test_help_everywhere(command, form, capfd):
    assert dispatch(PAPER, COMMANDS, form.format(command).split()) == 0
    out, errors = capfd.readouterr()
    assert out.startswith("Usage: ")
    assert errors == ""


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("", "the following arguments are required: command; gdyn-report --help says more."),
        ("biuld runs", "invalid choice: 'biuld'"),
        ("build", "the following arguments are required: runs"),
        ("build nowhere", "nowhere"),
        ("controls .", "No finished run below ."),
        ("compare . .", "No finished run below ."),
        ("compare one", "the following arguments are required: second"),
        ("build runs --unmod", "unrecognized arguments: --unmod"),
    ],
)
def test_mistakes_of_gdyn_report(typed, answer, capfd):
    try:
        code = report_main(typed.split())
    except SystemExit as stop:
        code = stop.code
    errors = capfd.readouterr().err
    assert (code, errors.count("\n")) == (2, 1), errors
    assert answer in errors


@pytest.mark.parametrize("program", [report_main, data_main])
@pytest.mark.parametrize("flag", ["--version", "--help", "-h"])
def test_version_and_help_of_the_other_programs(program, flag, capfd):
    with pytest.raises(SystemExit, match=r"^0$"):
        program([flag])
    assert capfd.readouterr().out.startswith(("gdyn-report", "gdyn-data", "usage: gdyn-"))


def test_a_command_runs_in_a_thread():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(dispatch(PAPER, COMMANDS, ["run", "fig1"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_commands_in_several_threads_do_not_meet(tmp_path):
    import matplotlib as mpl

    settings, environment, arguments = dict(mpl.rcParams), dict(os.environ), list(sys.argv)
    together, codes = threading.Barrier(4), []

    def command(steps):
        together.wait()
        more = ["-m"] if steps == 4 else []
        codes.append(dispatch(PAPER, COMMANDS, ["run", "fig1", f"num_steps={steps}", *more]))

    threads = [threading.Thread(target=command, args=(steps,)) for steps in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {0, 1}, codes  # some claims need more steps
    found = {record.config["num_steps"] for record in load_records(tmp_path)}
    assert found == {1, 2, 3, 4}
    assert (dict(mpl.rcParams), dict(os.environ), sys.argv) == (settings, environment, arguments)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second in a C locale
def test_a_terminal_without_the_character_is_no_bug(monkeypatch, errors):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", errors))
    assert guard("toy_paper", lambda: print("1 ± 2") or 0) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"1 \\xb1 2\n"
    assert sys.stdout.errors == errors


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_interrupts_unless_the_caller_handles_it(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under `nohup`
    try:
        assert guard("toy_paper", lambda: os.kill(os.getpid(), number) or 0) == 130
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as `nohup` does
        assert guard("toy_paper", lambda: os.kill(os.getpid(), number) or 0) == 0
    finally:
        signal.signal(number, before)


def _fails(error):
    def task():
        raise error

    return task


class OutOfMemoryError(RuntimeError):
    """As PyTorch's, which no test here can provoke."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,)"),
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8000000000000 bytes."),
    ],
)
def test_lack_of_memory_is_no_bug(error, capfd):
    assert guard("toy_paper", _fails(error)) == 2
    message = capfd.readouterr().err
    assert message.startswith("gdyn-toy-paper: out of memory (")
    assert "Make the run smaller" in message
    assert "bug" not in message


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("CUDA error: invalid device ordinal"),
        RuntimeError(
            "Unknown backend: 'gpu' requested, but no platforms that are instances of gpu are present."
        ),
    ],
)
def test_a_device_that_is_not_there_is_no_bug(error, capfd):
    assert guard("toy_paper", _fails(error)) == 2
    assert "the device is not there" in capfd.readouterr().err


class InvalidParameterError(ValueError):
    """As scikit-learn's, which is not installed here."""


def test_a_setting_that_an_estimator_refuses_is_no_bug(capfd):
    message = (
        "The 'momentum' parameter of EigenGame must be a float in the range [0.0, 1.0). Got 1.0 instead."
    )
    assert guard("toy_paper", _fails(InvalidParameterError(message))) == 2
    assert capfd.readouterr().err == f"gdyn-toy-paper: {message}\n"


def test_a_refusal_of_a_module_that_runs_as_a_program_is_no_bug():
    command = [sys.executable, "-m", "gdyn_reproduce.results", "--chck"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("gdyn-reproduce: The tables take nothing, --write, or --draw")


def test_a_bug_names_the_page_for_reports(capfd, monkeypatch):
    import email.message
    import importlib.metadata

    assert guard("toy_paper", _fails(IndexError("ours"))) == 70
    assert "Please report it with the lines above on the issue page of the project." in capfd.readouterr().err
    facts = email.message.Message()
    facts["Project-URL"] = "Paper, https://example.org/paper"
    facts["Project-URL"] = "Issues, https://example.org/issues"
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: facts)
    assert guard("toy_paper", _fails(IndexError("ours"))) == 70
    assert "Please report it with the lines above at https://example.org/issues." in capfd.readouterr().err


def _toy(arguments, **streams):
    code = (
        "import sys, ast; sys.path[:0] = sys.argv[2:]\n"
        "from gdyn_reproduce.cli import main\n"
        "main('toy_paper.paper:PAPER', (), ast.literal_eval(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, repr(arguments), *sys.path]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **streams)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["list"], 0, ""),
        (["run", "fig1", "preset=smoke"], 130, "Interrupted. The same command resumes where it stopped.\n"),
        (["run", "all", "preset=smoke"], 130, "Interrupted. The same command resumes where it stopped.\n"),
    ],
)
def test_a_reader_that_has_seen_enough_is_no_error_but_leaves_work_undone(tmp_path, arguments, code, said):
    read, write = os.pipe()
    os.close(read)
    child = _toy(arguments, stdout=write, cwd=tmp_path)
    os.close(write)
    assert child.stderr == said
    assert child.returncode == code


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors")
def test_a_process_without_standard_output_does_its_work(tmp_path):
    child = _toy(["run", "fig1", "preset=smoke"], cwd=tmp_path, preexec_fn=lambda: (os.close(0), os.close(1)))
    assert child.stderr == ""
    assert child.returncode == 0
    assert list(tmp_path.rglob("result.json"))
