"""Repairs of published command lines: what they mean, and that each is announced."""

from __future__ import annotations

import pytest

from chaos.paper.train.published import repair


@pytest.mark.parametrize(
    ("given", "expected", "notes"),
    [
        (["model=cnn"], ["model.name=cnn"], 0),
        (["model.name=cnn"], ["model.name=cnn"], 0),
        (["optim=cgd", "prune_set=neg"], ["optim.name=cgd", "optim.prune_set=neg"], 1),
        (["optim=sgd", "prune_start=2000"], ["optim.prune_start=2000", "optim.name=cgd"], 2),
        (["k=5"], ["optim.k=5", "optim.name=cgd"], 2),
        (["optim.k=5"], ["optim.k=5", "optim.name=cgd"], 1),
        (["optim=sgd", "optim.prune_set=neg"], ["optim.prune_set=neg", "optim.name=cgd"], 1),
        (
            ["optim=sgd", "optim.noise=False", "optim.k=null"],
            ["optim.name=sgd", "optim.noise=False", "optim.k=null"],
            0,
        ),
        (["optim=sgd,cgd", "optim.k=3", "-m"], ["optim.name=sgd,cgd", "optim.k=3", "-m"], 0),
        (["save_eigenthings='True'"], ["logging.save_eigenthings='True'"], 1),
        (["optim=sgd,cgd", "-m"], ["optim.name=sgd,cgd", "-m"], 0),
        (["max_steps=3"], ["num_steps=3"], 1),
        (["data.normalize=unit", "data.root=a"], ["normalize=unit", "data_root=a"], 2),
        (["logging=default"], [], 0),
        (["seed=1,2"], ["seed=1,2"], 0),
        (["gpus=[]"], ["device=cpu"], 1),
        (["gpus=['cuda:0']"], ["device=cuda:0"], 1),
        (["gpus=[cuda:1]"], ["device=cuda:1"], 1),
    ],
)
def test_repairs(given, expected, notes, capsys):
    assert repair(given) == expected
    assert capsys.readouterr().err.count("note: ") == notes


def test_preglobal_tracks_the_tangent_matrix_only():
    assert repair(["logging=preglobal"]) == [
        "logging.log_eigenthings=False",
        "logging.log_lyapunov=True",
        "logging.log_subsim=False",
        "logging.log_lyapunov_subsim=False",
    ]


def test_one_run_uses_one_device():
    with pytest.raises(ValueError, match="one run uses one device"):
        repair(["gpus=[cuda:0,cuda:1]"])


@pytest.mark.parametrize("group", ["model=vit", "optim=adam", "logging=all", "optim=sgd,adam"])
def test_unknown_choice(group):
    with pytest.raises(ValueError, match=r"Unknown (model|optim|logging) '\w+'\. Allowed: "):
        repair([group])
