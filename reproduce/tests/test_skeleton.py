"""All packages are built alike: once you know one, you know all."""

import re
import stat
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text()) if PACKAGES else {}
STANDING = [
    name
    for contract in CONTRACTS.get("tool", {}).get("importlinter", {}).get("contracts", [])
    if "except_under" in contract
    for name in contract["packages"]
]
EVERY_README = ("Figures", "Deviations", "Coming from the original", "Speed", "Cite")

pytestmark = pytest.mark.skipif(not PACKAGES, reason="needs the repository around it")
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)


def experiments(source):
    return [*source.glob("experiments/[a-z]*.py"), *source.glob("paper/experiments/[a-z]*.py")]


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


@each_package
def test_the_same_files_stand_at_the_same_places(package):
    source = package / "src" / package.name
    for name in ("__init__", "__main__", "cli", "paper/figures", "paper/claims", "paper/deviations"):
        assert (source / f"{name}.py").is_file(), name
    assert (source / "py.typed").is_file()
    assert experiments(source)
    assert list((package / "tests").glob("test_*.py"))
    assert list((package / "benchmarks").glob("bench*.py"))
    assert (package / "results" / "bench.json").is_file()
    assert (package / "run.sh").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(
    "package", [path for path in PACKAGES if path.name in STANDING], ids=lambda p: p.name
)
def test_a_library_is_small_enough_to_remember(package):
    source = package / "src" / package.name
    rooms = [path for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    modules = {path.stem for path in rooms} - {"__init__", "__main__", "cli", "paper"}
    assert len(modules) <= 14, sorted(modules)
    stub = (source / "__init__.pyi").read_text()
    public = re.findall(r"^from \.\w[\w.]* import (\w+) as \1$", stub, re.MULTILINE)
    assert public, "no public names"
    assert not set(public) & modules, "a name that is both a function and a module"
    assert len((source / "cli.py").read_text().splitlines()) <= 20


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
    for path in experiments(source):
        assert path.stem in registered, path.name
