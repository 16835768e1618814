import json

import numpy as np
import pytest

from dd_two_player.paper import PAPER
from dd_two_player.paper.cli import COMMANDS
from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.testing import check_registry, every_option_counts


def test_the_registry():
    check_registry("dd_two_player")


@pytest.mark.parametrize("figure", [f.id for f in PAPER.figures])
def test_smoke_run(figure, tmp_path):
    with every_option_counts(PAPER.figure(figure)):
        assert dispatch(PAPER, COMMANDS, ["run", figure, "preset=smoke", f"out={tmp_path}"]) == 0
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["measurements"]
    assert (result.parent / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("figure", ["network-theorem", "continuous-models", "dal", "dal-sweep"])
def test_a_device_that_is_not_there_is_refused_in_one_line(figure, tmp_path, capsys):
    command = ["run", figure, "preset=smoke", f"out={tmp_path}", "device=tpu:3"]
    assert dispatch(PAPER, COMMANDS, command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "device is 'tpu:3'; JAX sees" in line


def test_device_and_floating_type_reach_the_losses(tmp_path):
    for dtype in ("float32", "float64"):
        out = tmp_path / dtype
        command = ["run", "dal", "preset=smoke", f"out={out}", "device=cpu:0", f"dtype={dtype}"]
        assert dispatch(PAPER, COMMANDS, command) == 0
        (arrays,) = out.rglob("arrays.npz")
        losses = np.load(arrays)["network_fixed_0"]
        assert bool((losses == losses.astype(np.float32)).all()) == (dtype == "float32")
