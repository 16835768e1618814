"""Which code made a number: a digest of the sources that can change it.

The digest covers every module that the experiment reaches by imports inside its package, the thin core
and this distribution, read as syntax trees: comments, docstrings and layout do not count. Left out is
what only registers, judges, stores or shows numbers: functions named ``plot`` or ``plot_...`` and the
methods by which an object prints itself are among it.
Nothing is imported to find it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

_SHARED = ("gdyn_common", "gdyn_reproduce")
_MACHINERY = (
    "_arguments _help _hydra benchmark claims cli data.command data.download exits intervals keys ledger "
    "plotting provenance records registry report results runs sources spelling testing unread verdicts verify"
)
_NO_NUMBERS = frozenset(
    {
        "gdyn_common.display",
        "gdyn_common.errors",
        "gdyn_common.logging",
        "gdyn_reproduce",
        *(f"gdyn_reproduce.{name}" for name in _MACHINERY.split()),
    }
)
_PRINTING = frozenset({"__repr__", "_repr_html_"})
_DECLARATIONS = re.compile(r"\.paper(\.(\w*claims|figures|deviations))?$")
_DIGITS = 16


@functools.cache
def digest(*modules: str) -> str:
    """Return sixteen hexadecimal digits that change with the code behind the modules.

    Args:
        modules: Import paths, for example of an experiment and of its configuration; what follows a
            colon is ignored.

    Raises:
        ModuleNotFoundError: If a module has no source.
    """
    roots = [module.partition(":")[0] for module in modules]
    text = hashlib.sha256()
    for name, path in sorted(closure(*roots).items()):
        text.update(f"{name}\0{_spell(_computing(_tree(path).body))}\0".encode())
    return text.hexdigest()[:_DIGITS]


def _computing(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements of a module or a class without those that only show."""
    return [node for node in body if not _only_shows(node)]


def _only_shows(node: ast.stmt) -> bool:
    """Tell whether a statement of a module or a class draws or prints, or imports what does."""
    if isinstance(node, ast.FunctionDef):
        return node.name in _PRINTING or node.name.lstrip("_").partition("_")[0] == "plot"
    if isinstance(node, ast.ImportFrom):
        return node.module in _NO_NUMBERS
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def closure(*modules: str) -> dict[str, Path]:
    """Return the modules that the given ones reach, with their files."""
    roots = {module.partition(".")[0] for module in modules} | set(_SHARED)
    found: dict[str, Path] = {}
    followed: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in followed or name in _NO_NUMBERS:
            continue
        followed.add(name)
        path = _file(name)
        if path is None:
            raise ModuleNotFoundError(f"No source of module {name!r} was found.")
        found[name] = path
        todo += [target for target in _targets(name, path) if target.partition(".")[0] in roots]
        for parent in _parents(name):  # their code runs at import; what they offer counts where it is used
            parent_path = _file(parent)
            if parent_path and not _DECLARATIONS.search(parent) and parent not in _NO_NUMBERS:
                found.setdefault(parent, parent_path)
    return found


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@functools.cache
def _file(name: str) -> Path | None:
    """Return the source of a module; only the top-level name is looked up, nothing is imported."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec and spec.submodule_search_locations is None:  # a package of one file
        origin = Path(spec.origin or "")
        return origin if not rest and origin.suffix == ".py" else None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        base = Path(location, *rest)
        for candidate in (base / "__init__.py", base.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


def _targets(name: str, path: Path) -> Iterator[str]:
    """Return the modules that a file names in an import, at its top or inside a function, or as text.

    Text counts where it spells an existing module, with or without ``:attribute``, as in a registry.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _file(alias.name):
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            )
            source = ".".join(part for part in (base, node.module) if part)
            yield from _imported(source, [alias.name for alias in node.names])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.partition(":")[0]
            if re.fullmatch(r"\w+(\.\w+)+", text) and _file(text):
                yield text


def _imported(source: str, names: list[str]) -> Iterator[str]:
    """Return the modules behind ``from source import names``."""
    path = _file(source)
    if path is None:
        return
    for name in names:
        if _file(f"{source}.{name}"):
            yield f"{source}.{name}"
        elif path.name == "__init__.py" and (homes := _stub(path)):
            if name in homes:
                yield f"{source}.{homes[name]}"
            else:
                yield source
        else:
            yield source


@functools.cache
def _stub(init: Path) -> dict[str, str]:
    """Return the submodule behind each name that a lazy package offers, from its stub."""
    stub = init.with_suffix(".pyi")
    if not stub.is_file():
        return {}
    return {
        alias.asname or alias.name: node.module or alias.name
        for node in ast.walk(_tree(stub))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _spell(node: object) -> str:
    """Spell syntax without docstrings, the same under every version of Python."""
    if isinstance(node, list):
        return f"[{','.join(filter(None, map(_spell, node)))}]"
    if isinstance(node, ast.ClassDef):
        node = ast.ClassDef(**dict(ast.iter_fields(node)) | {"body": _computing(node.body)})
    if not isinstance(node, ast.AST):
        return repr(node)
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return ""  # a docstring, or text that does nothing
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return f"{type(node).__name__}({','.join(f'{name}={_spell(value)}' for name, value in fields)})"
