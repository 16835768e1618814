"""Any command line ends in success or in one line, and changes nothing it was not asked to change."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from workloads import PACKAGES, command_line

import gdyn_reproduce.cli
from gdyn_reproduce.registry import resolve

pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]

each_package = pytest.mark.parametrize(
    "package", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in PACKAGES]
)


def alternatives(text: str) -> list[str]:
    return text.split("|")


ODD = alternatives(
    "|null|-1|0|1e400|nan|inf|-inf|[]|[[]]|{}|ünï☃|'|\"|${oc.env:HOME}|${x}|${|???|true|1.5|[1,2|a=b|\\|a\nb|1,2|"
    "9223372036854775808|!!python/object/apply:os.system|[1e308,1e308]|[nan]|[-1]|[0]|['a']|[0,0]|range(1,3)|"
    'choice(1,2)|glob(*)|int(3)|0x10|1_000|1e-320|100000000000|[null]|[true]|{a:1}|"quoted"|../../x|/dev/null|/|'
    '%s%n|~|@|$(id)|`id`|3|[1]|[2,1]|["1",2]|\x1b[31m|\u202e'
)
FLAGS = alternatives(
    "--cfg job|--multirun|-m|--info|--hydra-help|--version|-cd /nonexist|-cn foo|--config-dir=/x|--resolve|"
    "-x|--|-|--run|--shell-completion install=bash|hydra.run.dir=zz|hydra/launcher=nope|hydra.job.chdir=true|"
    "hydra.output_subdir=zz|hydra.verbose=true|hydra.mode=MULTIRUN|+hydra.x=1|~hydra.run|preset=nope|preset=|"
    "preset=quick,paper|+preset=quick|~preset|++out=zz|+out=zz|~out|=1|job|all|hydra|seeds=[0] seeds=[1]|"
    "+_target_=os.system|_target_=os.system|+hydra.callbacks.x._target_=os.getcwd|-h|--help|include=long|"
    "overwrite=maybe|dry_run=2|out=null|out=|out=[1]|out=a=b|out=a,b|out=/dev/null/x|out=${oc.env:NOPE}|out=~/x|"
    "--cfg nope|-c|hydra.searchpath=[file:///etc]|hydra.sweeper.params.x=1|hydra.sweep.dir=zz -m"
)
HOUSE = alternatives(
    "|list|show|cite|report|run|run nope|show nope|show a b|list x|cite x=1|nope|run all x=1|"
    "run all include=nope|report --add|report --add /nope|report x|run -h|--version|-v|help|-h|"
    "run all preset=nope"
)
PATHS = alternatives("a b.npy|ü☃.npy|a'b.npy|a\"b.npy|a,b.npy|a[0].npy|a{b}.npy|a\\b.npy|a=b.npy|${x}.npy")


def fields(kind: type, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(kind):
        missing = item.default_factory is dataclasses.MISSING
        value = item.default if missing else item.default_factory()
        yield prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from fields(type(value), f"{prefix}{item.name}.")


def command_lines(package: str) -> st.SearchStrategy[list[str]]:
    """Return command lines of a package: its commands with odd values, odd keys and odd flags."""
    paper, commands = command_line(package)
    starts = [(["run", figure.id], resolve(figure.config)) for figure in paper.figures]
    starts += [([command.name], resolve(command.config)) for command in commands] * 3
    values = st.one_of(
        st.sampled_from(ODD),
        st.integers().map(str),
        st.floats().map(str),
        st.text(max_size=8),
        st.lists(st.floats(width=16), max_size=3).map(lambda items: str(items).replace(" ", "")),
    )

    def overrides(keys: list[str]) -> st.SearchStrategy[list[str]]:
        prefix = st.sampled_from(["", "", "", "", "+", "++", "~"])
        suffix = st.sampled_from(["", "", "", "", "", "", ".x", ".0", "@p", "/x", " ", "[0]"])
        one = st.builds("{}{}{}={}".format, prefix, st.sampled_from(keys), suffix, values).map(lambda x: [x])
        return st.one_of(
            one, one, one, st.sampled_from(FLAGS).map(str.split), st.text(max_size=9).map(lambda x: [x])
        )

    def line(start: list[str], extra: list[list[str]]) -> list[str]:
        return [*start, *(word for words in extra for word in words)]

    # One strategy for each start, made once: `flatmap` would make and validate one for each example.
    usual = [
        st.builds(line, st.just(start), st.lists(overrides(list(fields(kind))), min_size=1, max_size=3))
        for start, kind in starts
    ]
    house = st.sampled_from(HOUSE).map(str.split)
    return st.one_of([*usual, *[house] * (len(usual) // 4)])


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def hang(number: int, frame: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@each_package
def test_any_command_line_is_answered(package, tmp_path, form, seed, tally, monkeypatch):
    paper, commands = command_line(package)
    # Everything up to the computation is real; the computation itself is not what is tried here.
    stub = types.ModuleType("stub")
    stub.task = lambda config: 0
    monkeypatch.setitem(sys.modules, "stub", stub)
    commands = tuple(dataclasses.replace(command, run="stub:task") for command in commands)
    monkeypatch.setattr(gdyn_reproduce.cli, "_compute", lambda *arguments: 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("my own file")
    before, environment = listing(tmp_path), dict(os.environ)
    tried = 0

    @hypothesis_seed(seed)
    @settings(
        max_examples=form.inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines(package))
    def check(arguments: list[str]) -> None:
        nonlocal tried
        tried += 1
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), at_most(60):
            try:
                code = gdyn_reproduce.cli.dispatch(paper, commands, list(arguments))
            except SystemExit as leaving:  # a flag of the parser's own
                code = leaving.code or 0
        lines = [line for line in err.getvalue().splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("note: ")]  # how a published option is read
        assert code in (0, 1, 2), f"{arguments} ends with {code}: {err.getvalue()[-400:]}"
        assert "Traceback" not in err.getvalue(), f"{arguments}: {err.getvalue()[-400:]}"
        assert "\x1b" not in err.getvalue(), arguments
        if code == 2 and len(lines) != 1:
            usage = "usage" in (out.getvalue() + err.getvalue()).lower()
            assert usage, f"{arguments} answers in {len(lines)} lines: {err.getvalue()[:400]}"
        changed = listing(tmp_path)
        assert {name: changed.get(name) for name in before} == before, f"{arguments} changed a file"
        assert Path.cwd() == tmp_path, f"{arguments} changed the folder"
        # A framework may set variables of its own when it is first imported.
        assert environment.items() <= os.environ.items(), f"{arguments} changed the environment"

    check()
    tally("command lines", package, tried)


@each_package
def test_any_path_arrives_as_it_was_typed(package, tmp_path, monkeypatch):
    paper, commands = command_line(package)
    places = ("data", "edges", "components", "checkpoint", "file", "grid", "folder")
    taking = [c for c in commands if c.positional and not c.variadic and c.positional[0] in places]
    if not taking:
        pytest.skip("no command takes a path by its position")
    seen: list[str] = []
    stub = types.ModuleType("stub")
    monkeypatch.setitem(sys.modules, "stub", stub)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.npy").touch()  # only what exists can be told from a key
    for command in taking:
        key = command.positional[0]
        stub.task = lambda config, key=key: seen.append(getattr(config, key)) or 0
        stubbed = dataclasses.replace(command, run="stub:task", rewrite="")
        for path in (
            "a b.npy",
            "ü☃.npy",
            "a'b.npy",
            'a"b.npy',
            "a,b.npy",
            "a[0].npy",
            "a{b}.npy",
            "a\\b.npy",
        ):
            assert gdyn_reproduce.cli.dispatch(paper, (stubbed,), [command.name, path]) == 0, path
            assert seen.pop() == path
