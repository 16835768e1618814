"""All packages are built alike: once you know one, you know all."""

import re
import stat
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
EVERY_README = ("Results", "Deviations", "Coming from the original", "Speed", "Cite")

pytestmark = pytest.mark.skipif(not PACKAGES, reason="needs the repository around it")
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


@each_package
def test_the_same_files_stand_at_the_same_places(package):
    source = package / "src" / package.name
    for name in (
        "__init__",
        "__main__",
        "cli",
        "config",
        "paper/figures",
        "paper/claims",
        "paper/deviations",
    ):
        assert (source / f"{name}.py").is_file(), name
    assert (source / "py.typed").is_file()
    assert list((source / "experiments").glob("[a-z]*.py"))
    assert list((package / "tests").glob("test_*.py"))
    assert list((package / "benchmarks").glob("bench_*.py"))
    assert (package / "results" / "bench.json").is_file()
    assert (package / "run.sh").stat().st_mode & stat.S_IXUSR


@each_package
def test_names_follow_the_family(package):
    name = f"gdyn-{package.name.replace('_', '-')}"
    assert project(package)["name"] == name
    assert project(package)["scripts"][name] == f"{package.name}.cli:main"
    assert f'python" -m {package.name} "$@"' in (package / "run.sh").read_text()


@each_package
def test_readmes_have_the_same_sections(package):
    text = (package / "README.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [name for name in EVERY_README if name not in headings] == []
    assert re.search(r"^!\[.+\]\(results/.+\.png\)$", text, re.MULTILINE), "no picture"


@each_package
def test_every_experiment_stands_in_the_map(package):
    source = package / "src" / package.name
    registered = (source / "paper" / "figures.py").read_text()
    for path in (source / "experiments").glob("[a-z]*.py"):
        assert path.stem in registered, path.name
