"""The map: every string resolves, ids are unique, every figure can be smoked and has claims."""

import subprocess
import sys

from gdyn_reproduce.registry import resolve
from variance.paper import PAPER


def test_every_entry_resolves() -> None:
    for figure in PAPER.figures:
        module, config = resolve(figure.module), resolve(figure.config)
        assert callable(module.compute)
        assert callable(module.plot)
        for preset in figure.presets.values():
            config(**preset.overrides)
        assert {"quick", "smoke"} <= set(figure.presets)
        assert PAPER.claims_of(figure.id), figure.id


def test_ids_are_unique_and_claims_belong_to_figures() -> None:
    ids = [claim.id for claim in PAPER.claims]
    assert len(set(ids)) == len(ids)
    assert {claim.figure for claim in PAPER.claims} <= {figure.id for figure in PAPER.figures}
    covered = {figure.id for figure in PAPER.figures} | set(PAPER.out_of_scope)
    assert {f"F{i}" for i in range(1, 11)} <= covered


def test_reading_the_map_imports_no_framework() -> None:
    code = "import sys, variance.paper, variance.cli; print({'torch', 'scipy', 'hydra'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
