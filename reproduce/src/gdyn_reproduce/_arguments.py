"""What is typed after a command, checked and brought into the form that Hydra takes.

Hydra would refuse most of these mistakes too, but in many lines, or with advice that does not fit here.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gdyn_common.errors import unknown
from gdyn_reproduce.keys import ELSEWHERE, known_as
from gdyn_reproduce.registry import Command, resolve


def name_positionals(command: Command, arguments: list[str]) -> list[str]:
    """Turn arguments without ``=``, and paths that have one, into overrides of the positional keys."""
    known = {item.name for item in dataclasses.fields(resolve(command.config))} | {*command.groups, "hydra"}
    arguments = _join_options(arguments)

    def is_value(argument: str) -> bool:
        key = re.split(r"[.@/=]", argument.lstrip("+~"), maxsplit=1)[0]
        return "=" not in argument or (key not in known and Path(argument).exists())

    plain = [a for a in arguments if is_value(a) and not a.startswith("-") and a != "job"]
    rest = [a for a in arguments if a not in plain]
    keys = command.positional
    if len(plain) > len(keys) and not command.variadic:
        allowed = ", ".join(keys) if keys else "none; every argument is key=value"
        raise ValueError(f"Unexpected argument {plain[len(keys)]!r}. Positional arguments: {allowed}.")
    named = [f"{key}={_quote(value)}" for key, value in zip(keys, plain, strict=False)]
    if command.variadic and plain:
        first = len(keys) - 1
        named[first:] = [f"{keys[-1]}=[{','.join(map(_quote, plain[first:]))}]"]
    return named + rest


def _join_options(arguments: Sequence[str]) -> list[str]:
    """Read the word after an option that is not ours as its value, so that the option is what is refused.

    >>> _join_options(["--seed", "3", "--cfg", "job", "num_steps=2"])
    ['--seed=3', '--cfg', 'job', 'num_steps=2']
    """
    joined: list[str] = []
    for argument in arguments:
        option = joined[-1] if joined else ""
        foreign = option.startswith("--") and "=" not in option and option not in ("--cfg", "--multirun")
        if foreign and "=" not in argument and not argument.startswith("-"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _quote(value: str) -> str:
    """Quote a value so that Hydra reads it as one string, and looks nothing up in it.

    A backslash counts as one unless it stands before a quote or the mark of a lookup.
    """
    literal = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (r"\'" if found[2] else ""), literal)
    return f"'{escaped}'"


def prepare(overrides: Sequence[str], config_class: type, groups: Mapping[str, Any]) -> list[str]:
    """Return overrides as Hydra takes them: a single value for a list becomes a list of one.

    Raises:
        ValueError: For an option that is not ours, a key that is no field of the dataclass, no group and
            not Hydra's, an unknown option of a group, or several values without ``-m``.
    """
    arguments = list(overrides)
    sweeps = not {"-m", "--multirun"}.isdisjoint(arguments)
    arguments = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    ready = ["-m"] if sweeps else []
    for flag in ("--cfg", "-c"):
        if flag in arguments:
            where = arguments.index(flag)
            if arguments[where + 1 : where + 2] != ["job"]:
                raise ValueError(f"{flag} takes job: it prints the configuration.")
            del arguments[where : where + 2]
            if sweeps:
                raise ValueError(f"{flag} job prints one configuration; leave -m out.")
            ready += ["--cfg", "job"]
    return ready + [_prepare_one(argument, sweeps, config_class, groups) for argument in arguments]


def _prepare_one(argument: str, sweeps: bool, config_class: type, groups: Mapping[str, Any]) -> str:
    prefix, bare = argument[: len(argument) - len(argument.lstrip("+~"))], argument.lstrip("+~")
    key, separator, value = bare.partition("=")
    if argument.startswith("-"):
        name, advice = key.lstrip("-"), "everything else is key=value"
        if name in {**_types(config_class), **groups}:
            advice = f"write {name}={value or 'VALUE'}, without dashes"
        raise ValueError(f"Unknown option {key}. There are -h, --version, -m and --cfg job; {advice}.")
    if not separator or not key:
        raise ValueError(f"Unexpected argument {argument!r}. Arguments have the form key=value; no spaces.")
    if key.partition("/")[0].partition(".")[0] == "hydra":
        if not sweeps:
            raise ValueError(f"{argument} is a setting of sweeps; add -m.")
        return argument
    values = _parts(value)
    if values is None:
        raise ValueError(f"{argument} is cut off. Write lists without spaces, and quotes round all of it.")
    if key in groups:
        for option in values:
            if option not in groups[key]:
                raise ValueError(unknown(key, option, groups[key]))
    kind = None if key in groups else _type_of(key, config_class, groups)
    if "~" in prefix or (prefix == "+" and kind is not dict):
        raise ValueError(f"{argument} would remove or add a key; write {key}=VALUE.")
    if len(values) > 1 and not sweeps:
        as_list = f"write {key}=[{value}] for one run with all of them, or " if kind is list else ""
        raise ValueError(f"{key}={value} names several values; {as_list}add -m for one run each.")
    if kind is list and values != ["null"]:
        listed = [v if v.startswith(("[", "$", "'[", '"[')) or "(" in v else f"[{v}]" for v in values]
        return f"{prefix}{key}={','.join(listed)}"
    return argument


def _parts(value: str) -> list[str] | None:
    """Split at the commas outside brackets and quotes; ``None`` if one of those is left open.

    >>> _parts("[1,2],'a,b'"), _parts("[1,")
    (['[1,2]', "'a,b'"], None)
    """
    parts, depth, quote = [""], 0, ""
    for character, before in zip(value, " " + value, strict=False):
        if quote:
            quote = "" if character == quote and before != "\\" else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
            if character == "," and depth == 0:
                parts.append("")
                continue
        parts[-1] += character
    return None if quote or depth else parts


def _types(config_class: Any) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def _nested(config_class: Any) -> Iterator[str]:
    """Return the keys of the dataclasses inside a dataclass, by their full path."""
    for item in dataclasses.fields(config_class):
        inner: Any = item.default_factory
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            deeper = [*(field.name for field in dataclasses.fields(inner)), *_nested(inner)]
            yield from (f"{item.name}.{name}" for name in deeper)


def _type_of(key: str, config_class: type, groups: Mapping[str, Any]) -> type | None:
    """Return ``list`` or ``dict`` for a key whose field is one, else ``None``.

    Raises:
        ValueError: If there is no such key; with the nearest match.
    """
    current: Any = config_class
    for depth, part in enumerate(key.split(".")):
        if current is list:
            name = ".".join(key.split(".")[:depth])
            raise ValueError(f"{key} is one entry of a list; write all of it, {name}=[...].")
        if not dataclasses.is_dataclass(current):
            return dict  # inside a free-form mapping
        items = {item.name: item for item in dataclasses.fields(current)}
        if part not in items:
            names = [*items, *groups] if depth == 0 else list(items)
            if other := known_as(part, [*names, *_nested(current)]):
                raise ValueError(f"Unknown key {key!r}; here it is called {other}. --help lists all keys.")
            if key in ELSEWHERE:
                raise ValueError(f"This command has no key {key!r}. {ELSEWHERE[key]}")
            raise ValueError(unknown("key", key, names))
        hint = _types(current)[part]
        factory = items[part].default_factory
        current = type(factory()) if factory is not dataclasses.MISSING else hint
    options = [typing.get_origin(option) or option for option in (hint, *typing.get_args(hint))]
    is_list = options[0] in (list, tuple) or (list in options and options[0] is not dict)
    return list if is_list else (dict if current is dict else None)
