import subprocess
import sys

import pytest

from dd_two_player.paper import PAPER
from dd_two_player.paper.cli import COMMANDS
from gdyn_reproduce.registry import resolve


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda f: f.id)
def test_every_string_resolves(figure):
    module = resolve(figure.module)
    assert callable(module.compute)
    assert callable(module.plot)
    config = resolve(figure.config)
    assert {"quick", "smoke"} <= set(figure.presets)
    for preset in figure.presets.values():
        assert set(preset.overrides) <= set(config.__dataclass_fields__)


def test_claims_belong_to_figures_and_are_unique():
    ids = [claim.id for claim in PAPER.claims]
    assert len(ids) == len(set(ids))
    figures = {figure.id for figure in PAPER.figures}
    assert {claim.figure for claim in PAPER.claims} == figures
    for command in COMMANDS:
        assert callable(resolve(command.run))


def test_listing_imports_no_framework():
    names = "('jax', 'scipy', 'hydra')"
    code = f"import sys, dd_two_player.paper.cli; print([m for m in {names} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
