"""``gdyn-data``: which data sets there are, fetch one, check what is there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gdyn_common.errors import printable
from gdyn_reproduce.data.catalogue import (
    SPLITS,
    data_folder,
    describe,
    fetch_dataset,
    is_available,
    load_dataset,
    names,
)
from gdyn_reproduce.exits import DONE, UNEXPECTED, Parser, guard


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``gdyn-data`` and return its exit code."""
    parser = Parser(prog="gdyn-data", description="Data sets: which there are, fetch one, check files.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|fetch|check")
    where = Parser(add_help=False)
    where.add_argument("--root", type=Path, help="data folder; default $GDYN_DATA_DIR, else ~/.cache/gdyn")
    commands.add_parser("list", parents=[where], help="every data set, and whether it is there")
    fetch = commands.add_parser("fetch", parents=[where], help="download and check a data set")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    check = commands.add_parser("check", parents=[where], help="read and check what is there")
    check.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args(argv)
    tasks = {"list": _list, "fetch": _fetch, "check": _check}
    given = getattr(arguments, "names", [])

    def task() -> int:
        root = _checked(arguments.root)
        for name in given:
            is_available(name, root)  # a name that does not exist is refused before anything is fetched
        return tasks[arguments.command](given, root)

    return guard("data", task)


def _checked(root: Path | None) -> Path:
    folder = data_folder(root)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"The data folder {folder} is a file. Pass --root or set GDYN_DATA_DIR.")
    return folder


def _list(given: Sequence[str], root: Path) -> int:
    print(f"Data folder: {data_folder(root)}")
    for name in names():
        print(f"{name:<16}{describe(name, root)}")
    return DONE


def _fetch(given: Sequence[str], root: Path) -> int:
    for name in given:
        fetch_dataset(name, root)
        _check([name], root)
    return DONE


def _check(given: Sequence[str], root: Path) -> int:
    """Read both splits of what is named, or of all that is there; each is judged for itself."""
    code = DONE
    for name in given or [name for name in names() if is_available(name, root)]:
        for split in SPLITS:
            try:
                found = load_dataset(name, split, root)
            except (OSError, ValueError) as error:
                if len(given) == 1:
                    raise
                print(f"gdyn-data: {printable(str(error))}", file=sys.stderr)
                code = UNEXPECTED
                continue
            known = "as published" if found.verified and not found.lossy else "as known"
            verdict = known if found.verified else "readable; its content has no known hash"
            print(f"{name} {split}: {len(found.y)} samples, {verdict} ({found.source})")
    return code
