"""Public names have types for a checker, although they are loaded when first used."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUBS = sorted(ROOT.glob("packages/*/src/*/__init__.pyi"))


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.parent.name)
def test_no_public_name_is_any(stub, tmp_path):
    package = stub.parent.name
    names = re.findall(r" as (\w+)$", stub.read_text(), re.MULTILINE)
    assert names
    program = tmp_path / "program.py"
    program.write_text("".join(f"from {package} import {n}\nreveal_type({n})\n" for n in names))
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *settings, str(program)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    revealed = re.findall(r'Revealed type is "(.*)"', said)
    assert len(revealed) == len(names), said
    assert [name for name, kind in zip(names, revealed, strict=True) if kind in ("Any", "Unknown")] == []


def test_every_package_has_a_stub():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    standing = {name for contract in contracts if "except_under" in contract for name in contract["packages"]}
    assert standing <= {stub.parent.name for stub in STUBS}
