import pytest

from gdyn_reproduce.registry import resolve
from gdyn_reproduce.testing import check_registry
from instability.paper import PAPER


def test_the_registry():
    check_registry("instability")


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda f: f.id)
def test_an_experiment_offers_two_functions(figure):
    module = resolve(figure.module)
    public = {
        name
        for name, value in vars(module).items()
        if callable(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    configurations = {name for name in public if name.endswith("Config")}
    assert public - configurations - {"estimate"} == {"compute", "plot"}


def test_every_figure_has_its_null_control_and_a_claim_of_its_own():
    for figure in PAPER.figures:
        claims = {claim.id for claim in PAPER.claims_of(figure.id)}
        assert f"{figure.id}.controls" in claims
        assert len(claims) >= 2


def test_every_artefact_of_the_original_is_registered():
    wanted = {"fig1", "fig2-left", "fig2-right", "fig3", "fig4-left", "fig4-right", "table1", "table2"}
    assert wanted <= {figure.id for figure in PAPER.figures}
    for figure in PAPER.figures:
        if figure.id in wanted:
            assert figure.presets["paper"].scale == "paper size"
