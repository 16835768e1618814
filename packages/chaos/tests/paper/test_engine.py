"""``train``: the published command lines, every option, and runs that continue."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import chaos
from chaos.eigenthings import Eigenthings
from chaos.paper import PAPER
from chaos.paper.cli import COMMANDS
from chaos.paper.train.config import LoggingConfig, ModelConfig, OptimConfig, TrainConfig
from chaos.paper.train.engine import run_training
from chaos.paper.train.trajectories import Trajectories
from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.records import load_records
from gdyn_reproduce.testing import check_killed_runs_resume

LINES = (Path(__file__).parent / "published_commands.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The file that the first run of the distance experiment writes."""
    out = tmp_path_factory.mktemp("stored")
    line = ["train", "save_eigenthings='True'", "seed=42", "debug=true", "max_epochs=1", f"out={out}"]
    assert dispatch(PAPER, COMMANDS, line) == 0
    return next(out.rglob("eigenthings-final*.npz"))


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_published_lines_run_in_debug_size(line, tmp_path, stored, capsys):
    words = [word.replace("path/to/save", str(stored)) for word in shlex.split(line)[1:]]
    code = dispatch(PAPER, COMMANDS, ["train", *words, "debug=true", "max_epochs=1", f"out={tmp_path}"])
    message = capsys.readouterr().err
    assert code == 0, message
    assert json.loads(next(tmp_path.rglob("summary.json")).read_text())["num_steps"] == 3
    if "parallel=5" in line:
        assert "randn is missing. parallel=6 runs all five" in message
    if "prune_start" in line:
        assert "optim.name=cgd" in message


def test_names_of_files_need_no_quotes(stored):
    """Neither a shell nor the grammar of overrides sees anything in them but a word."""
    for path in stored.parent.rglob("*"):
        assert re.fullmatch(r"[\w.-]+", path.name), path


def test_literal_path_says_how_to_make_the_file(capsys, tmp_path):
    words = [*shlex.split(LINES[2])[1:], "debug=true", f"out={tmp_path}"]
    assert dispatch(PAPER, COMMANDS, ["train", *words]) == 2
    assert "save_eigenthings=True seed=42" in capsys.readouterr().err


def leaves(kind, prefix=""):
    for item in dataclasses.fields(kind):
        if item.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(
            item.default_factory()
        ):
            yield from leaves(type(item.default_factory()))
        else:
            yield item.name


def test_every_key_is_read():
    """Each option's name is used as an attribute somewhere outside the option table."""
    folder = Path(chaos.__file__).parent
    text = "".join(p.read_text() for p in (folder / "paper").rglob("*.py") if p.name != "config.py")
    for name in set(leaves(TrainConfig)) - {"out"}:  # which folder_of reads
        assert f".{name}" in text, name


SMALL = [
    "dataset=digits",
    "model.inter_dim=3",
    "seed=1",
    "logging.logger_type=jsonl",
    "logging.log_lyapunov=False",
    "checkpoint_every=5",
]


def small(tmp_path, **changes):
    """A small configuration, overridden by nested keys such as ``logging__log_freq``."""
    nested = {"logging": {"logger_type": "jsonl"}, "model": {"inter_dim": 3}, "optim": {"lr": 0.05}}
    top = {
        "dataset": "digits",
        "seed": 1,
        "num_steps": 12,
        "batch_size": 8,
        "checkpoint_every": 5,
        "out": str(tmp_path),
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            nested[group][name] = value
        else:
            top[key] = value
    return TrainConfig(
        **top,
        logging=LoggingConfig(**nested["logging"]),
        model=ModelConfig(**nested["model"]),
        optim=OptimConfig(**nested["optim"]),
    )


def metrics_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key for line in lines for key in line}


EVERYTHING = {
    "logging__log_subsim": True,
    "logging__t_hessian_subsim": [2.0],
    "logging__log_lyapunov_subsim": True,
    "logging__t_lya_subsim": [4.0],
    "logging__lyapunov_freq": 4,
    "logging__save_hessian_dist_every": 5,
    "logging__signal_noise_window": 3,
    "logging__save_eigenthings": True,
    "optim__name": "cgd",
    "optim__prune_set": "neg",
    "optim__prune_k": "rand",
    "optim__k": 5,
    "optim__noise": True,
    "optim__momentum": 0.5,
    "optim__prune_start": 3,
}


def test_a_training_run_is_no_record_of_a_figure(tmp_path):
    """`make reproduce` reads every record below the folder of runs."""
    run_training(small(tmp_path))
    assert list(tmp_path.rglob("summary.json"))
    assert load_records(tmp_path) == []


def test_all_measurements_appear(tmp_path):
    folder = run_training(
        small(tmp_path, **EVERYTHING, logging__plot_eigs_every=6, logging__plot_mats_every=6)
    )
    seen = metrics_of(folder)
    for name in (
        "acc", "loss", "val_acc0", "val_loss0", "eigvals/hessian:max_eig", "eigvals/chaos:chaotic_cnt",
        "eigvals/lyapunov:max_exponent", "grad_old-grad:overlap", "hessian:sparsity", "gradient:signal_noise",
        "hessian:curvature_along_gradient", "subsim/hessian-t=2:neg-neg",
        "subsim/lyapunov-t=4:chaotic-chaotic",
        "subsim/lyapunov-t=4:baseline,chaotic-chaotic", "cgd:pruned_fraction",
    ):  # fmt: skip
        assert name in seen, name
    spectra = [json.loads(line) for line in (folder / "hessian_spectra-0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in spectra] == [0, 5, 10]
    assert len(list((folder / "plots").glob("*.png"))) == 4


@pytest.mark.parametrize(
    "extra", [{}, {"parallel": 3, "perturb_strat": "randn", "logging__save_trajectories": True}]
)
def test_resume_is_bit_identical(tmp_path, monkeypatch, extra):
    """Stopped after step 7 (a checkpoint at 5): every file of the run ends with the same bytes."""
    whole = run_training(small(tmp_path / "whole", **EVERYTHING, **extra))
    original = Trajectories.measure

    def stop(self, step):
        if step == 8:
            raise KeyboardInterrupt
        return original(self, step)

    monkeypatch.setattr(Trajectories, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        run_training(small(tmp_path / "killed", **EVERYTHING, **extra))
    monkeypatch.setattr(Trajectories, "measure", original)
    resumed = run_training(small(tmp_path / "killed", **EVERYTHING, **extra))
    for name in ("metrics.jsonl", "summary.json", "hessian_spectra-0.jsonl"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    for path in [*whole.glob("eigenthings*.npz"), *whole.glob("trajectories.npz")]:
        a, b = np.load(path), np.load(resumed / path.name)
        assert all(np.array_equal(a[key], b[key], equal_nan=a[key].dtype.kind == "f") for key in a.files)


def test_prune_global_in_two_phases(tmp_path, capsys):
    config = small(tmp_path, optim__name="cgd", optim__prune_global=True, optim__prune_set="neg")
    folder = run_training(config)
    assert "trains normally first" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("summary.json"))) == 2
    assert "cgd:pruned_fraction" in metrics_of(folder)


def test_save_lyapunov_at_an_epoch(tmp_path):
    folder = run_training(small(tmp_path, debug=True, num_steps=6, logging__save_lyapunov_at=0))
    things = chaos.load_eigenthings(folder / "eigenthings-epoch0-0.npz")
    assert things.step == 3


def test_eps_eigh_only_stabilises(tmp_path):
    a, b = (run_training(small(tmp_path, eps_eigh=e, logging__log_lyapunov=False)) for e in (0.0, 1e-3))
    first, second = (
        [json.loads(x)["eigvals/hessian:max_eig"] for x in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (a, b)
    )
    assert np.allclose(first, second, rtol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__name": "adam"}, "optim.name=adam is unknown"),
        ({"optim__prune_set": "negg"}, "optim.prune_set=negg is unknown. Allowed: chaotic, pos, neg."),
        ({"optim__prune_k": "top"}, "optim.prune_k=top is unknown. Allowed: top_abs, rand."),
        ({"model__name": "vit"}, "model.name=vit is unknown"),
        ({"model__name": "cnn", "model__inter_dim": 20}, "model.name=cnn needs 16 x 16 images"),
        ({"perturb_strat": "up"}, "perturb_strat=up is unknown"),
        ({"parallel": 2}, "name a perturb_strat"),
        ({"parallel": 2, "perturb_strat": "max_chaos"}, "only 'randn' works without"),
        (
            {"optim__prune_global": True, "logging__log_lyapunov": False},
            "optim.prune_global needs directions",
        ),
        ({"logging__log_lyapunov_subsim": True}, "t_lya_subsim"),
        ({"logging__signal_noise_window": 1}, "must be 0 or at least 2"),
        ({"logging__logger_type": "mlflow"}, "logger_type=mlflow is unknown"),
        ({"optim__name": "cgd", "optim__k": -1}, "k is -1"),
        ({"optim__k": 3}, "optim.k=3 has no effect with optim.name=sgd; leave it out"),
        (
            {"optim__name": "cgd", "optim__prune_k": "rand"},
            "optim.prune_k=rand has no effect without optim.k",
        ),
        (
            {"optim__name": "cgd", "optim__prune_global_checkpoint": "a"},
            "no effect without optim.prune_global",
        ),
        ({"optim__name": "cgd", "optim__noise_fac": 0.5}, "no effect without optim.noise"),
        ({"perturb_eps": [0.3]}, "perturb_eps=.* has no effect without parallel models"),
        ({"perturb_strat": "all"}, "perturb_strat=all has no effect without parallel models"),
        ({"logging__lyapunov_perturb_eigs": "a"}, "lyapunov_perturb_eigs=a has no effect without parallel"),
        (
            {"logging__lyapunov_perturb_vecs": "a", "logging__lyapunov_perturb_vals": "a"},
            "lyapunov_perturb_vecs=a has no effect without parallel",
        ),
        ({"eigenthings_path": "a", "debug": True}, "eigenthings_path=a has no effect here"),
        ({"model__base_channels": 7}, "model.base_channels=7 has no effect with model.name=mlp"),
        ({"model__name": "cnn"}, "model.inter_dim=3 has no effect with model.name=cnn"),
        ({"logging__save_lyapunov_at": 99}, "save_lyapunov_at=99 is no epoch of this run, which has 0"),
        ({"logging__save_lyapunov_at": -1}, "save_lyapunov_at=-1 is no epoch"),
    ],
)
def test_bad_options(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_training(small(tmp_path, **changes))


def directions(path, n=5):
    logs = torch.linspace(-1, 1, n, dtype=torch.float64)
    things = Eigenthings(logs.exp(), logs, torch.eye(n).double(), 0, 10, 0.1, 0.0, 1, "lyapunov")
    return str(things.save(path))


def test_directions_of_another_model_name_both_sizes(tmp_path):
    path = directions(tmp_path / "other.npz")
    message = "eigenpairs have n = 5; the model has n = 235"
    with pytest.raises(ValueError, match=message):
        run_training(small(tmp_path, parallel=2, perturb_strat="max_chaos", eigenthings_path=path))
    message = "curvature has n = 5; the optimiser's parameters have n = 235"
    changes = {"optim__name": "cgd", "optim__prune_global": True, "optim__prune_global_checkpoint": path}
    with pytest.raises(ValueError, match=message):
        run_training(small(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x04."])
@pytest.mark.parametrize("name", ["eigenthings.npz", "eigenthings.pt"])
def test_a_foreign_file_exits_2_in_one_line(tmp_path, capsys, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    words = [*SMALL, "perturb_strat=all", "parallel=6", f"eigenthings_path={path}", f"out={tmp_path}"]
    assert dispatch(PAPER, COMMANDS, ["train", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert name in error[0]


def test_hessian_logging_of_several_models_warns_about_its_cost(tmp_path, capsys):
    run_training(small(tmp_path, parallel=2, perturb_strat="randn", num_steps=2))
    assert "Hessian logging costs 2 times as much here" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_absent_gpu_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match="device=cuda:0 was asked for, but no such device is there"):
        run_training(small(tmp_path, device="cuda:0"))


def test_late_subspace_time_is_announced(tmp_path, capsys):
    run_training(small(tmp_path, logging__t_lya_subsim=[5000.0], logging__log_lyapunov_subsim=True))
    assert "lie beyond the run's 12 steps" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_anywhere_runs_resume(tmp_path):
    arguments = ["train", *SMALL, "num_steps=220", "optim=cgd", "optim.noise=true"]
    kills = [0, 2, 3, 5, 8, 13]
    check_killed_runs_resume("chaos", arguments, tmp_path, after_files=kills, result="summary.json")


def test_sweep_runs_every_job_and_exits_with_the_worst_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the sweep's own folder goes below the working directory
    line = ["train", *SMALL, "num_steps=3", f"out={tmp_path / 'a'}", "-m"]
    assert dispatch(PAPER, COMMANDS, [*line, "optim=sgd,cgd"]) == 0
    results = [json.loads(p.read_text()) for p in (tmp_path / "a").rglob("summary.json")]
    assert [r["num_steps"] for r in results] == [3, 3]
    assert dispatch(PAPER, COMMANDS, [*line, "optim.lr=0.05,-1", "overwrite=true"]) == 2
    assert "optim.lr=-1.0 must be positive" in capsys.readouterr().err
    assert len(list((tmp_path / "a").rglob("summary.json"))) == 3  # the good job finished


def test_tensorboard_receives_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run_training(small(tmp_path, logging__logger_type="tensorboard"))
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"loss", "eigvals/hessian:max_eig", "val_acc0"} <= set(events.Tags()["scalars"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [round(e.value, 5) for e in events.Scalars("loss")] == [
        round(line["loss"], 5) for line in lines if "loss" in line
    ]


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_an_absent_service_costs_a_notice_not_the_run(tmp_path, monkeypatch, caplog, service):
    import sys

    for name in [n for n in sys.modules if n == service or n.startswith(f"{service}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, service, None)
    folder = run_training(small(tmp_path, logging__logger_type=service, num_steps=3))
    assert f"{service} is not installed (pip install 'gdyn-common[{service}]')" in caplog.text
    assert len([r for r in caplog.records if service in r.getMessage()]) == 1
    assert "loss" in metrics_of(folder)


def test_a_closed_service_costs_a_notice_not_the_run(tmp_path, caplog):
    folder = run_training(small(tmp_path, logging__logger_type="neptune", num_steps=3))
    assert "neptune failed (its service ended on 2026-03-05" in caplog.text
    assert "loss" in metrics_of(folder)
