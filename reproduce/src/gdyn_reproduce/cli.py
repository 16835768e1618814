"""One command line for every package, built from its registry.

``list``, ``show`` and ``cite`` read the registry only and answer at once. Everything that computes
takes ``key=value`` overrides and sweeps (``-m``) through Hydra, with the command's dataclass as schema.
The dispatch is a page written by hand: libraries for commands do not read Hydra's overrides.

Exit codes: 0 done and every outcome is the registered one; 1 an outcome differs; 2 bad input, told in
one line; 70 an internal error, with its traceback; 130 interrupted, and the same command resumes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gdyn_common.errors import unknown
from gdyn_reproduce import _help
from gdyn_reproduce._arguments import name_positionals
from gdyn_reproduce.exits import DONE, INTERRUPTED, UNEXPECTED, flushed, guard, worst
from gdyn_reproduce.registry import Command, Figure, Paper, Preset, resolve

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(paper: str, commands: Sequence[Command] = (), argv: Sequence[str] | None = None) -> NoReturn:
    """Run a package's command line and exit.

    ``run`` computes on one thread, unless ``OMP_NUM_THREADS`` says otherwise: costs are stated for one core,
    the last digits depend on the number of threads, and the figures' small matrices gain nothing from more.

    Args:
        paper: ``"package.paper:PAPER"``.
        commands: The package's own commands.
        argv: Arguments without the program's name; those of the process if ``None``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"] and "OMP_NUM_THREADS" not in os.environ:
        os.environ |= dict.fromkeys(_THREADS, "1")  # read when NumPy and PyTorch are imported, later
    sys.exit(flushed(dispatch(resolve(paper), commands, arguments)))


def dispatch(paper: Paper, commands: Sequence[Command], argv: list[str]) -> int:
    """Run one command and return its exit code; errors become one line on standard error."""
    return guard(paper.package, lambda: _dispatch(paper, commands, argv))


def _dispatch(paper: Paper, commands: Sequence[Command], argv: list[str]) -> int:
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if "--version" in argv:
        print(_help.version(paper.package))
        return DONE
    if not argv or argv[0] in ("-h", "--help"):
        print(_help.overview(paper, commands))
        return DONE
    name, rest = argv[0], argv[1:]
    wants_help = any(argument in ("-h", "--help") for argument in rest)
    own = {command.name: command for command in commands}
    if name in own:
        return _own(paper, own[name], rest, wants_help)
    if name not in _help.HOUSE:
        raise ValueError(_unknown_command(paper, name, [*_help.HOUSE, *own]))
    if name == "run":
        return _run(paper, rest, wants_help)
    if wants_help:
        about = f"\n\n{_help.listing(paper)}" if name == "show" else ""
        print(f"{_help.USAGE[name]}\n\n{_help.HOUSE[name]}{about}")
        return DONE
    if name == "report":
        from gdyn_reproduce.results import report_command

        return report_command(paper, rest, Path.cwd())
    if name == "show":
        if len(rest) != 1:
            raise ValueError(f"show takes one figure, not {' '.join(rest) or 'none'}: {_ids(paper)}.")
        text = _help.show(paper, paper.figure(rest[0]))
    elif rest:
        advice = "; one figure is described by show ID" if name == "list" else ""
        raise ValueError(f"{name} takes nothing more, not {rest[0]!r}{advice}.")
    else:
        text = _help.listing(paper) if name == "list" else paper.bibtex.strip()
    with contextlib.suppress(BrokenPipeError):  # the reader, for instance `head`, has seen enough
        print(text)
    return DONE


def _unknown_command(paper: Paper, name: str, commands: list[str]) -> str:
    with contextlib.suppress(ValueError):
        return f"Unknown command {name!r}. Did you mean `run {paper.figure(name).id}`?"
    return unknown("command", name, commands)


def _ids(paper: Paper) -> str:
    return ", ".join(figure.id for figure in paper.figures)


def _run(paper: Paper, arguments: list[str], wants_help: bool) -> int:
    name = arguments[0] if arguments else ""
    if wants_help:
        about = (
            _help.listing(paper) if name in ("all", "-h", "--help") else _help.show(paper, paper.figure(name))
        )
        print(f"{_help.USAGE['run']}\n\n{_help.HOUSE['run']}\n\n{about}")
        return DONE
    if not name or "=" in name or name.startswith("-") or "," in name:
        given = f", not {name}" if name else ""
        raise ValueError(f"run takes a figure, or all, as its first argument{given}: {_ids(paper)}.")
    return (
        _run_all(paper, arguments[1:])
        if name == "all"
        else _run_figure(paper, paper.figure(name), arguments[1:])
    )


_SWITCHES = ("overwrite", "dry_run", "yes")


def _run_all(paper: Paper, overrides: list[str]) -> int:
    """Run every figure of the default set; a figure that fails does not keep the others from running."""
    own = {"include": "", "preset": "", "max_hours": "2", "yes": "false"}
    options = _run_options()
    rest = []
    for argument in overrides:
        key, given, value = argument.partition("=")
        if key not in (*own, *options):
            raise ValueError(unknown("key for `run all`", key, sorted([*options, *own])))
        if not given or (key in _SWITCHES and value.lower() not in ("true", "false")):
            raise ValueError(f"Write {key}={'true' if key in _SWITCHES else 'VALUE'}, not {argument}.")
        if key in own:
            own[key] = value.lower() if key in _SWITCHES else value
        else:
            rest.append(argument.lower() if key in _SWITCHES else argument)
    if own["include"] not in ("", "long"):
        raise ValueError(f"include={own['include']} is unknown; the only value is include=long.")
    chosen = _choose(paper, own["preset"], long=own["include"] == "long")
    if "dry_run=true" not in rest:
        _guard_cost(chosen, own["max_hours"], agreed=own["yes"] == "true")
    codes = []
    for figure, preset in chosen:
        codes.append(dispatch(paper, (), ["run", figure.id, f"preset={preset}", *rest]))
        if codes[-1] == INTERRUPTED:
            break
    return worst(codes)


def _choose(paper: Paper, preset: str, *, long: bool) -> list[tuple[Figure, str]]:
    """Return the figures of `run all` with the preset of each; a figure that lacks it says which it takes."""
    known = sorted({name for figure in paper.figures for name in figure.presets})
    if preset and preset not in known:
        raise ValueError(unknown("preset", preset, known))
    chosen = []
    for figure in paper.figures:
        if not (figure.in_default or long):
            continue
        name = preset or figure.default_preset
        if name not in figure.presets:
            name = figure.largest_preset if preset == "paper" else figure.default_preset
            print(f"{figure.id} has no preset {preset}; it runs with preset={name}.", flush=True)
        chosen.append((figure, name))
    return chosen


def _guard_cost(chosen: Sequence[tuple[Figure, str]], limit: str, *, agreed: bool) -> None:
    """Say what all runs cost together, and refuse what is more than the user may expect."""
    try:
        most = float(limit)
    except ValueError:
        most = -1.0
    if not most >= 0:
        raise ValueError(f"max_hours={limit} is no number of hours.")
    costs = {
        f"{figure.id} ({figure.presets[name].cost})": figure.presets[name].hours for figure, name in chosen
    }
    total = sum(costs.values())
    print(
        f"{len(chosen)} figures, about {_duration(3600 * total)} as stated, less what is finished.",
        flush=True,
    )
    if total > most and not agreed:
        dear = ", ".join(sorted(costs, key=lambda name: -costs[name])[:3])
        raise ValueError(
            f"About {_duration(3600 * total)} is more than max_hours={limit}; the dearest are {dear}. Add "
            "yes=true, raise max_hours=, or run figures one by one."
        )


def _run_figure(paper: Paper, figure: Figure, overrides: list[str]) -> int:
    from gdyn_reproduce._hydra import run_hydra

    def task(config: Any, preset: str, given: list[str]) -> int:
        return _compute(paper, figure, config, preset, given)

    return run_hydra(
        paper.package,
        f"run {figure.id}",
        figure.config,
        task,
        overrides,
        {"preset": {name: preset.overrides for name, preset in figure.presets.items()}},
        {"preset": figure.default_preset},
    )


def _compute(paper: Paper, figure: Figure, config: Any, preset: str, given: list[str]) -> int:
    from gdyn_reproduce import runs
    from gdyn_reproduce.report import summary
    from gdyn_reproduce.unread import check_read

    check_read(config, runs.configure(figure, preset), figure.unread)
    folder = runs.folder_of(paper.package, config, figure.id, preset)
    if config.dry_run:
        print(f"{figure.id} preset={preset} would write {folder}\n{runs.dump_yaml(runs.settings(config))}")
        print(_cost(figure, figure.presets[preset], config))
        return DONE
    print(f"{figure.id} preset={preset} -> {folder}", flush=True)
    record = runs.execute(paper, figure, config, preset, _changes(given))
    print(summary(record))
    return DONE if record.as_expected else UNEXPECTED


def _changes(given: Sequence[str]) -> list[str]:
    """Return the overrides that change what is computed."""
    ignored = ("preset", *_run_options())
    return [override for override in given if override.partition("=")[0] not in ignored]


def _cost(figure: Figure, preset: Preset, config: Any) -> str:
    """Say what a run would cost; measured here where the experiment knows how."""
    estimate: Callable[[Any], Any] | None = getattr(resolve(figure.module), "estimate", None)
    if estimate is None:
        return f"Expected cost: {preset.cost}."
    expected = estimate(config)
    return (
        f"Expected cost: {preset.cost}. On this machine, from a few calibration steps: "
        f"{_duration(expected.seconds)}, {expected.memory_bytes / 2**20:.0f} MiB."
    )


def _duration(seconds: float) -> str:
    """Spell a duration.

    >>> _duration(90.0), _duration(7200.0)
    ('2 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _own(paper: Paper, command: Command, arguments: list[str], wants_help: bool) -> int:
    from gdyn_reproduce._hydra import run_hydra

    unread = tuple(option for option in _run_options() if option not in command.options)
    if wants_help:
        positional = " ".join(key.upper() for key in command.positional)
        usage = f"Usage: {command.name} {positional} [key=value ...]".replace("  ", " ")
        groups = "\n".join(f"  {name}={'|'.join(options)}" for name, options in command.groups.items())
        fields = _help.keys(resolve(command.config), without=unread)
        print(f"{usage}\n\n{command.help}\n\nKeys\n{groups}\n{fields}")
        return DONE

    def task(config: Any, preset: str, given: list[str]) -> int:
        return int(resolve(command.run)(config) or DONE)

    overrides = name_positionals(command, arguments)
    if command.rewrite:
        overrides = resolve(command.rewrite)(overrides)
    for key in unread:
        if any(override.lstrip("+").partition("=")[0] == key for override in overrides):
            raise ValueError(f"{command.name} does not read {key}; leave it out.")
    return run_hydra(
        paper.package, command.name, command.config, task, overrides, command.groups, command.default_groups
    )


def _run_options() -> tuple[str, ...]:
    from gdyn_reproduce.runs import OPTIONS

    return OPTIONS
