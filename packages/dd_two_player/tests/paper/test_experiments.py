import json

import pytest

from dd_two_player.paper import PAPER
from dd_two_player.paper.cli import COMMANDS
from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.testing import check_registry


def test_the_registry():
    check_registry("dd_two_player")


@pytest.mark.parametrize("figure", [f.id for f in PAPER.figures])
def test_smoke_run(figure, tmp_path):
    assert dispatch(PAPER, COMMANDS, ["run", figure, "preset=smoke", f"out={tmp_path}"]) == 0
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["measurements"]
    assert (result.parent / "figure.png").stat().st_size > 5000
