"""Who may import whom: read from the source, so that late imports count too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
FRAMEWORKS = {"torch", "jax", "jaxlib", "haiku", "optax", "tensorflow", "torchvision", "flax"}


def imported(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("core", ["common", "reproduce"])
def test_the_core_imports_no_framework_and_no_package(core):
    above = {"gdyn_reproduce"} if core == "common" else set()
    for source in (ROOT / core / "src").rglob("*.py"):
        forbidden = imported(source) & (FRAMEWORKS | set(PACKAGES) | above)
        assert not forbidden, f"{source.relative_to(ROOT)} imports {sorted(forbidden)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_never_import_one_another(package):
    others = set(PACKAGES) - {package}
    for source in (ROOT / "packages" / package).rglob("*.py"):
        forbidden = imported(source) & others
        assert not forbidden, f"{source.relative_to(ROOT)} imports {sorted(forbidden)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_only_cli_and_config_know_hydra(package):
    source = ROOT / "packages" / package / "src" / package
    for path in source.rglob("*.py"):
        if path.name not in ("cli.py", "config.py"):
            forbidden = imported(path) & {"hydra", "omegaconf"}
            assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"
