"""Options of the fault suites: short or long, the seed, and the tally for ``docs/reliability.md``."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@dataclass(frozen=True)
class Form:
    """How much is tried.

    Attributes:
        name: ``short`` or ``long``.
        kills: Of each package's run.
        faults: Of every other kind, of each package's run.
        inputs: Command lines of each package.
        mutations: Of each kind of file.
        runs: In the test of scale.
    """

    name: str
    kills: int
    faults: int
    inputs: int
    mutations: int
    runs: int


SHORT = Form("short", kills=20, faults=1, inputs=2_000, mutations=200, runs=1_000)
LONG = Form("long", kills=200, faults=20, inputs=10_000, mutations=10_000, runs=10_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long form, which goes on where it stopped")
    parser.addoption("--fault-seed", type=int, default=0, help="seed of everything that is drawn")
    parser.addoption("--tally", help="folder that receives what was tried, for docs/reliability.md")


def pytest_report_header(config: pytest.Config) -> str:
    return f"fault seed: {config.getoption('--fault-seed')} (--fault-seed repeats a failure)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that fork come first: others start JAX, whose threads a fork would lose."""
    items.sort(key=lambda item: "workload" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def form(request: pytest.FixtureRequest) -> Form:
    return LONG if request.config.getoption("--long") else SHORT


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--fault-seed")


@pytest.fixture
def random(request: pytest.FixtureRequest, seed: int) -> Random:
    return Random(f"{request.node.name} {seed}")


@pytest.fixture
def tally(request: pytest.FixtureRequest, form: Form, seed: int):
    """Return a function that notes how many things of a kind passed on a subject, a file for each test.

    A test of the long form that has its note is skipped.
    """
    folder = Path(request.config.getoption("--tally") or request.getfixturevalue("tmp_path")) / form.name
    path = folder / f"{re.sub('[^a-zA-Z0-9]+', '-', request.node.name)}.json"
    if form is LONG and path.exists():
        pytest.skip(f"passed before; delete {path} to run it again")

    def note(kind: str, subject: str, count: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        what = {"kind": kind, "subject": subject, "count": count, "seed": seed}
        path.write_text(json.dumps(what | machine()))

    return note


def machine() -> dict[str, str]:
    """Say when and on what kind of machine this is, without its name."""
    kind = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {"date": time.strftime("%Y-%m-%d"), "machine": f"{kind}, Python {platform.python_version()}"}
