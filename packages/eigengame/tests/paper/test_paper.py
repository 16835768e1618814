from eigengame.paper import PAPER
from eigengame.paper.figures import FIGURES
from gdyn_reproduce.registry import resolve
from gdyn_reproduce.testing import check_registry


def test_the_registry():
    check_registry("eigengame")


def test_quick_runs_use_three_seeds_or_more():
    for figure in (figure for figure in FIGURES if figure.in_default):
        quick = figure.presets["quick"].overrides
        assert len(quick.get("seeds", resolve(figure.config)().seeds)) >= 3


def test_all_three_papers_are_cited():
    for entry in ("2102.04152", "2010.00554", "2206.04993"):
        assert entry in PAPER.bibtex
