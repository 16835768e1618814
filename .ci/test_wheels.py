"""What a release carries: versions, no paths; licence files; facts for an index; honest dependencies."""

import ast
import email
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHEELS = sorted((ROOT / "dist").glob("*.whl"))
NAMES = {
    "haiku": "dm-haiku",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "hydra": "hydra-core",
}
BROUGHT = {
    "omegaconf": "hydra-core",
    "jaxlib": "jax",
    "tf_keras": "tf-keras",
}  # by a dependency that needs it

each_wheel = pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name.partition("-")[0])


def read(wheel):
    """Return the metadata and the source files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (name,) = (item for item in names if item.endswith(".dist-info/METADATA"))
        sources = {item: archive.read(item).decode() for item in names if item.endswith(".py")}
        licences = {Path(item).name: archive.read(item) for item in names if ".dist-info/licenses/" in item}
        return email.message_from_bytes(archive.read(name)), sources, licences


def imports(sources):
    """Return the top-level names imported anywhere, without the standard library."""
    found = set()
    for text in sources.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names)


def test_every_distribution_was_built():
    projects = [
        ROOT / "common",
        ROOT / "reproduce",
        *(p.parent for p in ROOT.glob("packages/*/pyproject.toml")),
    ]
    assert len(WHEELS) == len(projects) == 7


@each_wheel
def test_metadata_has_no_path(wheel):
    metadata, _, _ = read(wheel)
    assert "file:/" not in str(metadata)
    assert not [line for line in metadata.get_all("Requires-Dist") or [] if "@" in line]


@each_wheel
def test_licence_files_are_there(wheel):
    metadata, _, licences = read(wheel)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert licences == {name: (ROOT / name).read_bytes() for name in ("LICENSE", "NOTICE")}


@each_wheel
def test_an_index_can_describe_it(wheel):
    metadata, sources, _ = read(wheel)
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata["Author"] == "the gdyn authors"
    for field in ("Summary", "Keywords"):
        assert metadata[field], field
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata.get_payload().startswith("# "), "the README is the description"
    assert any(name.endswith("__init__.py") for name in sources)
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith("py.typed")]


@each_wheel
def test_it_declares_what_it_imports_and_nothing_else(wheel):
    metadata, sources, _ = read(wheel)
    needed, optional = set(), set()
    for line in metadata.get_all("Requires-Dist") or []:
        name = re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
        (optional if "extra ==" in line else needed).add(name)
    package = next(iter(sources)).partition("/")[0]
    used = {NAMES.get(n, n.replace("_", "-")).lower() for n in imports(sources) - {package}}
    assert used - needed - optional == set(), "imported, not declared"
    assert needed - used == set(), "declared, never imported"


def test_names_of_wheels_agree_with_the_release():
    """A tag v1.2.3 releases 1.2.3; without a tag all have one version."""
    versions = {wheel.name.split("-")[1] for wheel in WHEELS}
    assert len(versions) == 1
    tag = os.environ.get("GITHUB_REF_NAME", "")
    if tag.startswith("v"):
        assert versions == {tag[1:]}
