import pytest
from toy_paper.paper import PAPER

from gdyn_common.errors import UnknownNameError
from gdyn_reproduce.registry import Figure, Preset, resolve


def test_a_figure_is_found_by_its_id():
    assert PAPER.figure("fig1").source == "Figure 1"
    assert [claim.id for claim in PAPER.claims_of("fig1")] == [
        "fig1.rate",
        "fig1.falls",
        "fig1.rises",
        "fig1.paper",
    ]


def test_an_unknown_figure_names_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"Unknown figure 'fig11'. Allowed: fig1, fig2. Did you mean 'fig1'\?"
    ):
        PAPER.figure("fig11")


def test_a_figure_out_of_scope_says_why():
    with pytest.raises(UnknownNameError, match="needs a telescope"):
        PAPER.figure("fig9")


def test_resolve_returns_modules_and_attributes():
    assert resolve("toy_paper.paper").PAPER is PAPER
    assert resolve("toy_paper.paper:PAPER") is PAPER


def test_default_preset_is_quick_or_the_first():
    names = {"paper": Preset("1 s", "paper"), "quick": Preset("1 s", "scaled down")}
    assert Figure("a", "", "", "", "", names).default_preset == "quick"
    assert Figure("a", "", "", "", "", {"paper": names["paper"]}).default_preset == "paper"
