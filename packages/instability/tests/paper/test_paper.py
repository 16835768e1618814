import dataclasses
import subprocess
import sys

import pytest

from gdyn_reproduce.registry import resolve
from instability.paper import PAPER

FRAMEWORKS = ("torch", "scipy", "hydra", "matplotlib")


def test_the_map_imports_no_framework():
    code = f"import sys, instability.paper; print([m for m in {FRAMEWORKS!r} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda f: f.id)
def test_every_entry_resolves_and_its_presets_fit(figure):
    module = resolve(figure.module)
    public = {
        name
        for name, value in vars(module).items()
        if callable(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    configurations = {name for name in public if name.endswith("Config")}
    assert public - configurations - {"estimate"} == {"compute", "plot"}
    config = resolve(figure.config)
    names = {field.name for field in dataclasses.fields(config)}
    for preset in figure.presets.values():
        assert set(preset.overrides) <= names
        config(**preset.overrides)  # validates


def test_every_figure_has_its_null_control_and_a_claim_of_its_own():
    for figure in PAPER.figures:
        claims = {claim.id for claim in PAPER.claims_of(figure.id)}
        assert f"{figure.id}.controls" in claims
        assert len(claims) >= 2


def test_claims_are_unique_and_say_why():
    ids = [claim.id for claim in PAPER.claims]
    assert len(ids) == len(set(ids))
    assert all(claim.because and claim.source for claim in PAPER.claims)


def test_every_artefact_of_the_original_is_registered():
    wanted = {"fig1", "fig2-left", "fig2-right", "fig3", "fig4-left", "fig4-right", "table1", "table2"}
    assert wanted <= {figure.id for figure in PAPER.figures}
    for figure in PAPER.figures:
        if figure.id in wanted:
            assert figure.presets["paper"].scale == "paper size"
