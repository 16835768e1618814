"""What the command line says about itself: overview, list, show, keys."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from gdyn_reproduce.keys import meaning
from gdyn_reproduce.registry import Command, Figure, Paper, program, resolve

HOUSE = {
    "list": "Figures, tables and claims, with their cost.",
    "show": "One figure in full: what it shows, its claims with their bands, its presets and keys.",
    "cite": "BibTeX of the paper.",
    "run": "One figure end to end, or all: compute, save, plot, judge its claims.",
    "report": "Rewrite the README's table from results/; --check compares only; --add takes run folders.",
}
USAGE = {
    "list": "Usage: list",
    "show": "Usage: show ID",
    "cite": "Usage: cite",
    "run": (
        "Usage: run ID [preset=quick|paper] [key=value ...] [-m] [--cfg job]\n"
        "       run all [preset=quick|paper] [include=long] [max_hours=2] [yes=true]"
    ),
    "report": "Usage: report [--check | --add RUN_FOLDER ...]",
}


def version(package: str) -> str:
    """Return the versions of a package and of what it stands on."""
    from gdyn_reproduce.provenance import package_version

    core = ", ".join(f"gdyn-{name} {package_version(name)}" for name in ("common", "reproduce"))
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{program(package)} {package_version(package)} ({core}, Python {python})"


def overview(paper: Paper, commands: Sequence[Command]) -> str:
    """Return what a bare call prints."""
    name = program(paper.package)
    house = "\n".join(f"  {command:<18}{text}" for command, text in HOUSE.items())
    own = "\n".join(f"  {command.name:<18}{command.help}" for command in commands)
    return (
        f"{name}: {paper.title} ({paper.venue})\n\n"
        f"Usage: {name} COMMAND [key=value ...]\n\nCommands\n{house}\n{own}\n\n"
        f"Try: {name} list\n     {name} run {paper.figures[0].id}\n     {name} COMMAND --help"
    )


def listing(paper: Paper) -> str:
    """Return the figures with source, meaning and cost."""
    width = max(len(figure.id) for figure in paper.figures) + 2
    arxiv = f" arXiv {paper.arxiv}" if paper.arxiv else ""
    lines = [f"{paper.title}\n{paper.authors}. {paper.venue}.{arxiv}\n"]
    for figure in paper.figures:
        cost = ", ".join(f"{name}: {p.cost}" for name, p in figure.presets.items() if p.scale != "smoke")
        long = "" if figure.in_default else "  [not in `run all`; include=long]"
        lines.append(f"{figure.id:<{width}}{figure.source}{long}\n{'':<{width}}{figure.shows}")
        count = len(paper.claims_of(figure.id))
        lines.append(f"{'':<{width}}{cost}; {count} claim{'s' if count != 1 else ''}")
    if paper.out_of_scope:
        lines.append("\nOut of scope")
        lines += [f"  {name}: {reason}" for name, reason in paper.out_of_scope.items()]
    return "\n".join(lines)


def show(paper: Paper, figure: Figure) -> str:
    """Return one figure in full."""
    lines = [f"{figure.id}: {figure.source}", figure.shows, "", "Claims"]
    for claim in paper.claims_of(figure.id):
        unit = f" {claim.unit}" if claim.unit else ""
        where = f" (judged at {', '.join(claim.presets)})" if claim.presets else ""
        reason = f": {claim.expected_because}" if claim.expected_because else ""
        lines += [
            f"  {claim.id}: {claim.statement} ({claim.source})",
            f"    accepted: {claim.metric} {claim.accept.band(claim.paper)}{unit}; {claim.because}",
            f"    paper: {'no number' if claim.paper is None else f'{claim.paper}{unit}'}",
            f"    expected: {claim.expected}{where}{reason}",
        ]
    lines += ["", "Presets"]
    for name, preset in figure.presets.items():
        lines.append(f"  preset={name}: {preset.cost}; {preset.scale}")
    if figure.not_run:
        lines.append(f"  The paper preset has not been run: {figure.not_run}")
    lines += ["", "Keys", keys(resolve(figure.config)), "", f"Code: {figure.module}"]
    largest = "paper" if "paper" in figure.presets else next(iter(figure.presets))
    lines.append(f"Cost on this machine: run {figure.id} preset={largest} dry_run=true")
    return "\n".join(lines)


def keys(config_class: type, prefix: str = "", *, without: Sequence[str] = ()) -> str:
    """Document the keys of a configuration from its class docstrings, nested ones by their full path.

    >>> inner = dataclasses.make_dataclass("Inner", [("a", int, 1), ("b", int, 2)])
    >>> field = dataclasses.field(default_factory=inner)
    >>> print(keys(dataclasses.make_dataclass("Outer", [("inner", inner, field)])))
      inner.* ()
      inner.a=1
      inner.b=2
    """
    docs: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        docs |= _attribute_docs(base.__doc__ or "")
    lines = []
    for item in dataclasses.fields(config_class):
        if item.name in without:
            continue
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if dataclasses.is_dataclass(default):
            lines.append(f"  {prefix}{item.name}.* ({docs.get(item.name, '')})")
            lines.append(keys(type(default), f"{prefix}{item.name}."))
            continue
        lines.append(
            f"  {prefix}{item.name}={_spell(default)}  {docs.get(item.name) or meaning(item.name)}".rstrip()
        )
    return "\n".join(lines)


def _spell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spell, value)) + "]"
    return str(getattr(value, "name", value))


def _attribute_docs(docstring: str) -> dict[str, str]:
    r"""Read the ``Attributes:`` section of a Google-style docstring.

    >>> _attribute_docs("X.\n\n    Attributes:\n        a: One\n            thing.\n        b: Two.")
    {'a': 'One thing.', 'b': 'Two.'}
    """
    docs: dict[str, str] = {}
    _, _, section = docstring.partition("Attributes:\n")
    lines = section.split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip()) if lines[0].strip() else 0
    name = ""
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if not line.strip() or depth < indent:
            break
        if depth == indent and ":" in line:
            name, _, text = line.strip().partition(":")
            docs[name] = text.strip()
        elif name:
            docs[name] = f"{docs[name]} {line.strip()}".strip()
    return docs
