"""A release wheel must name its dependencies by version, never by a path of the machine that built it."""

import zipfile
from pathlib import Path

import pytest

WHEELS = sorted(Path(__file__).parents[1].glob("dist/*.whl"))


def test_every_package_was_built():
    packages = Path(__file__).parents[1].glob("packages/*/pyproject.toml")
    assert len(WHEELS) == 2 + len(list(packages))


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name)
def test_metadata_has_no_path(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (item for item in archive.namelist() if item.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert "file:" not in metadata
    assert "@ " not in "".join(line for line in metadata.splitlines() if line.startswith("Requires-Dist"))
