"""The two console scripts are one program."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize(("script", "words"), [("gdyn-chaos", ["train"]), ("chaos-train", [])])
def test_scripts(script, words, monkeypatch, tmp_path, capsys):
    module, _, name = SCRIPTS[script].partition(":")
    line = [script, *words, "dataset=digits", "seed=1", "dry_run=true", f"out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stopped:
        getattr(importlib.import_module(module), name)()
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert f"train would write {tmp_path}" in printed
    assert "expected on this machine: about" in printed
