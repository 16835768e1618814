import importlib
import subprocess
import sys

import pytest

from eigengame.paper import PAPER
from eigengame.paper.claims import CLAIMS
from eigengame.paper.figures import FIGURES
from gdyn_reproduce.registry import resolve


@pytest.mark.parametrize("figure", FIGURES, ids=[figure.id for figure in FIGURES])
def test_every_entry_resolves(figure):
    module = importlib.import_module(figure.module)
    assert callable(module.compute)
    assert callable(module.plot)
    for preset in figure.presets.values():
        resolve(figure.config)(**preset.overrides)
    assert {"paper", "smoke"} <= set(figure.presets)
    assert "quick" in figure.presets or not figure.in_default


def test_every_figure_has_a_claim_and_every_claim_a_figure():
    assert {claim.figure for claim in CLAIMS} == {figure.id for figure in FIGURES}
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)


def test_quick_runs_use_three_seeds_or_more():
    for figure in (figure for figure in FIGURES if figure.in_default):
        quick = figure.presets["quick"].overrides
        assert len(quick.get("seeds", resolve(figure.config)().seeds)) >= 3


def test_the_map_imports_no_framework():
    program = (
        "import sys, eigengame.paper; print(sorted({'jax', 'scipy', 'sklearn', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_three_papers_are_cited():
    for entry in ("2102.04152", "2010.00554", "2206.04993"):
        assert entry in PAPER.bibtex
