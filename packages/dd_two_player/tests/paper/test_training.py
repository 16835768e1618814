"""Training runs end to end on a tiny network: restore, stopping, devices, divergence, evaluation."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dd_two_player.paper import PAPER
from dd_two_player.paper.cli import COMMANDS
from dd_two_player.paper.config import TrainConfig
from dd_two_player.paper.training import _warn_about_momentum
from gdyn_common.storage import read_arrays
from gdyn_reproduce.cli import dispatch

TINY = [
    "nets.hidden=[8]",
    "nets.num_latents=4",
    "batch_size=16",
    "eval_every=0",
    "sample_every=0",
    "checkpoint_every=4",
    "log_every=2",
    "grad_regularizes.dd_coeffs_multiplier.disc.other_dot_prod=-1",
    "grad_regularizes.dd_coeffs_multiplier.gen.other_dot_prod=-1",
]


def run(*arguments):
    return dispatch(PAPER, COMMANDS, list(arguments))


def last(folder):
    (path,) = folder.rglob("checkpoints/last.npz")
    return read_arrays(path)


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_stopped_and_continued_equals_uninterrupted(tmp_path, capsys):
    assert run("train", *TINY, "num_steps=12", f"out={tmp_path / 'whole'}") == 0
    assert run("train", *TINY, "num_steps=6", f"out={tmp_path / 'parts'}") == 0
    assert run("train", *TINY, "num_steps=12", f"out={tmp_path / 'parts'}") == 0
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["step"] for line in lines if "disc_loss" in line][:6] == [2, 4, 6, 8, 10, 12]


def test_train_then_eval_and_restore_from_a_folder(tmp_path, capsys):
    out = f"out={tmp_path}"
    train = ("train", *TINY, "num_steps=4", "sample_every=4", "eval_every=4", "eval_samples=50", out)
    assert run(*train) == 0
    (folder,) = (tmp_path / "dd_two_player/train/digits").iterdir()
    assert (folder / "samples" / "step_0000004.png").stat().st_size > 1000
    assert (folder / "checkpoints" / "best.npz").exists()
    capsys.readouterr()
    assert (
        run("eval", out, "num_samples=200", "num_splits=2", f"save_samples={tmp_path / 'samples.npz'}") == 0
    )
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 1 <= report["classifier_score_mean"] <= 10
    assert report["frechet_classifier_distance_mean"] > 0
    assert report["step"] == 4
    assert 0.9 < report["classifier_accuracy"] < 1
    assert read_arrays(tmp_path / "samples.npz")["samples"].shape == (200, 8, 8, 1)
    other = tmp_path / "other"
    assert run("train", *TINY, "num_steps=5", f"restore_path={folder}", f"out={other}", "seed=9") == 0
    assert int(last(other)[".step"]) == 5


def test_a_schedule_is_given_on_the_command_line_and_survives_in_the_checkpoint(tmp_path, capsys):
    arguments = (*TINY, "num_steps=4", "+updates.rate_schedule={1:4.0,3:0.5}", f"out={tmp_path}")
    assert run("train", *arguments, "log_every=1") == 0
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    factors = [json.loads(line)["learning_rate_factor"] for line in metrics.read_text().splitlines()]
    assert factors == [1.0, 4.0, 4.0, 2.0]
    assert run("eval", f"out={tmp_path}", "num_samples=100", "num_splits=1") == 0


def test_mixtures_keep_the_best_coverage_and_are_scored_by_modes(tmp_path, capsys):
    out = f"out={tmp_path}"
    small = ("nets.hidden=[8]", "batch_size=16", "sample_every=6", "eval_every=2", "eval_samples=200")
    assert run("train", "experiment=mog16", *small, "num_steps=6", out) == 0
    (folder,) = (tmp_path / "dd_two_player/train/mog16").iterdir()
    assert (folder / "samples" / "step_0000006.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    best = read_arrays(folder / "checkpoints" / "best_score.npz")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert float(best["score"]) == max(row["coverage"] for row in rows)
    capsys.readouterr()
    assert run("eval", "experiment=mog16", "which=best", out, "num_samples=300", "num_splits=2") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["step"] == int(best["step"])
    assert 0 <= report["modes_covered_mean"] <= 16
    assert 0 <= report["high_quality_share_mean"] <= 1
    assert run("eval", "experiment=mog16", out, "reference=x.npz") == 2
    assert "mog16 is scored by its modes" in capsys.readouterr().err


def test_a_sweep_trains_every_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = run("train", "-m", *TINY, "num_steps=2", "optimizers.gen.lr=0.01,0.02", f"out={tmp_path}")
    assert code == 0
    folders = list((tmp_path / "dd_two_player/train/digits").iterdir())
    rates = {json.loads((f / "config.json").read_text())["optimizers"]["gen"]["lr"] for f in folders}
    assert rates == {0.01, 0.02}


def test_a_sweep_ends_with_its_worst_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("train", "-m", *TINY, "num_steps=1", "updates.scheme=simultaneous,rk", f"out={tmp_path}") == 2
    assert "scheme is 'rk'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One tiny run that several tests evaluate."""
    folder = tmp_path_factory.mktemp("trained")
    assert run("train", *TINY, "num_steps=2", f"out={folder}") == 0
    return folder


def evaluate(trained, capsys, *arguments):
    capsys.readouterr()
    code = run("eval", f"out={trained}", "num_samples=100", "num_splits=1", *arguments)
    captured = capsys.readouterr()
    return code, (json.loads(captured.out.splitlines()[-1]) if code == 0 else captured.err)


def test_distance_to_stored_moments_and_to_a_folder_agree(trained, tmp_path, capsys):
    """Both references are made of the same 200 digits; only the folder rounds them to eight bits."""
    from matplotlib.image import imsave

    from dd_two_player.evaluation import moments
    from dd_two_player.paper.classifiers import train_classifier
    from dd_two_player.paper.data import load_samples
    from gdyn_common.storage import write_arrays

    digits = load_samples("digits")
    images = digits.scaled(slice(200))
    stored = moments(train_classifier(digits)(images)[1])
    write_arrays(tmp_path / "moments.npz", {"mean": stored.mean, "covariance": stored.covariance})
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        grey = np.repeat((image + 1) / 2, 3, 2)
        imsave(tmp_path / "images" / f"{i:03d}.png", grey)
    distances = []
    for reference in ("moments.npz", "images"):
        code, report = evaluate(trained, capsys, f"reference={tmp_path / reference}")
        assert code == 0
        distances.append(report["frechet_classifier_distance_mean"])
    assert distances[0] == pytest.approx(distances[1], rel=0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is neither a folder of images nor an npz file"),
        ({"mean": np.zeros(3)}, "holds ['mean']; a reference needs mean and covariance, or mu and sigma"),
        ({"mean": np.zeros(3), "covariance": np.eye(3)}, "features have 3 and 64 dimensions"),
        ([], "holds no .png images"),
        ([(4, 4)], "samples have (8, 8)"),
    ],
)
def test_bad_references(content, message, trained, tmp_path, capsys):
    from matplotlib.image import imsave

    from gdyn_common.storage import write_arrays

    path = tmp_path / ("reference.npz" if isinstance(content, dict) else "reference")
    if isinstance(content, dict):
        write_arrays(path, content)
    elif content is not None:
        path.mkdir()
        for i, shape in enumerate(content):
            imsave(path / f"{i}.png", np.zeros((*shape, 3)))
    code, error = evaluate(trained, capsys, f"reference={path}")
    assert code == 2
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "disc_reg_disc_norm=1"], "use grad_regularizes.explicit_non_dd_coeffs.disc.self_norm"),
        (["train", "--config", "config"], "--config is now experiment=NAME"),
        (["train", "experiment=sgd_cifer_config"], "Did you mean 'sgd_cifar_config'?"),
        (["train", "optimizers.disc.learning=1"], "Unknown key 'optimizers.disc.learning'"),
        (["train", "batch_size=many"], "batch_size"),
        (
            ["train", "nets.gen=MnistGenerator"],
            "the generator makes samples of shape (28, 28, 1); the data set has",
        ),
        (["train", "device_count=64"], "device_count is 64; this machine shows JAX"),
        (
            ["train", "restore_path=/nowhere/last.npz"],
            "checkpoint /nowhere/last.npz does not exist; give restore_path=<file or run folder>",
        ),
        (["train", "updates.scheme=rk"], "scheme is 'rk'; allowed: simultaneous, alternating, runge_kutta"),
        (
            ["train", "optimizers.disc.num_updates=2"],
            "simultaneous updates take one update per player and step",
        ),
        (["train", "dataset=dogs"], "Unknown dataset 'dogs'"),
        (["eval", "restore_path=/nowhere"], "checkpoint /nowhere does not exist"),
        (["eval", "experiment=none"], "run `train` first or give restore_path=FILE"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, tmp_path, capsys):
    assert run(*arguments, f"out={tmp_path / 'runs'}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing"


def test_a_file_of_the_users_is_never_to_be_removed(tmp_path, capsys):
    path = tmp_path / "notes.txt"
    path.write_text("not a checkpoint")
    assert run("train", f"restore_path={path}", f"out={tmp_path / 'runs'}") == 2
    error = capsys.readouterr().err
    assert f"{path} is damaged or of another kind" in error
    assert "delete" not in error
    assert list(tmp_path.iterdir()) == [path]


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    base = [
        *TINY,
        f"out={tmp_path}",
        "losses.gen=generator_square_loss",
        "losses.disc=discriminator_square_loss",
    ]
    wild = [*base, "optimizers.disc.lr=20", "optimizers.gen.lr=20", "num_steps=400"]
    assert run("train", *wild) == 2
    error = capsys.readouterr().err
    assert "_loss is " in error
    assert " at step " in error
    assert "pass continue_on_nan=true" in error
    for path in tmp_path.rglob("last.npz"):
        assert all(np.isfinite(a).all() for a in read_arrays(path).values() if a.dtype.kind == "f")


def child(arguments, **environment):
    command = [sys.executable, "-m", "dd_two_player", *arguments]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.kill
def test_a_signal_saves_and_exits_130_and_the_rest_is_identical(tmp_path):
    arguments = ["train", *TINY, "num_steps=4000", "checkpoint_every=5000", f"out={tmp_path}"]
    with child(arguments) as process:
        while '"step": 20,' not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    stopped = int(last(tmp_path)[".step"])
    assert 20 <= stopped < 4000
    total = stopped + 3
    assert run("train", *TINY, f"num_steps={total}", "checkpoint_every=5000", f"out={tmp_path}") == 0
    assert (
        run("train", *TINY, f"num_steps={total}", "checkpoint_every=5000", f"out={tmp_path / 'whole'}") == 0
    )
    whole = last(tmp_path / "whole")
    (path,) = list(tmp_path.glob("dd_two_player/train/digits/*/checkpoints/last.npz"))
    assert_same(read_arrays(path), whole)


def test_four_devices_agree_with_one(tmp_path):
    """Both runs in one child, whose JAX sees four devices on the host."""
    arguments = [
        "train",
        *TINY,
        "num_steps=5",
        "nets.spectral_norm=apply",
        "updates.estimator=unbiased_estimate_fn_lowest_variance",
    ]
    code = (
        "from dd_two_player.paper.cli import COMMANDS\n"
        "from dd_two_player.paper import PAPER\n"
        "from gdyn_reproduce.cli import dispatch\n"
        "for count in (1, 4):\n"
        f"    extra = [f'device_count={{count}}', f'out={tmp_path}/{{count}}']\n"
        f"    assert dispatch(PAPER, COMMANDS, {arguments} + extra) == 0"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | flags, check=True, stdout=subprocess.DEVNULL
    )
    one, four = (last(tmp_path / count) for count in ("1", "4"))
    for name, value in one.items():
        # float32 sums in another order over five steps
        np.testing.assert_allclose(value, four[name], rtol=2e-4, atol=1e-5, err_msg=name)


def test_momentum_with_a_drift_multiplier_warns():
    config = TrainConfig()
    config.optimizers.disc.name = "adam"
    _warn_about_momentum(config)  # nothing to say without a multiplier
    config.grad_regularizes.dd_coeffs_multiplier.gen.other_dot_prod = -1.0
    with pytest.warns(UserWarning, match="drift coefficients are those of gradient descent"):
        _warn_about_momentum(config)


def test_a_finite_loss_whose_update_overflows_is_no_good_checkpoint(tmp_path, capsys):
    base = [
        "train",
        *TINY[2:],
        f"out={tmp_path}",
        "nets.hidden=[8]",
        "nets.num_latents=4",
        "checkpoint_every=1",
    ]
    assert run(*base, "optimizers.disc.lr=3e38", "num_steps=1") == 2
    assert "parameters are not finite after step 1; no checkpoint was saved yet" in capsys.readouterr().err
    assert not list(tmp_path.rglob("last.npz"))


def test_singular_values_are_logged(tmp_path):
    assert run("train", *TINY, f"out={tmp_path}", "nets.spectral_norm=no_op", "num_steps=2") == 0
    (path,) = tmp_path.rglob("metrics.jsonl")
    line = json.loads(path.read_text().splitlines()[-1])
    found = [value for name, value in line.items() if name.startswith("singular_value")]
    assert len(found) == 2
    assert all(value > 0 for value in found)


def test_references_of_the_usual_tools(trained, tmp_path, capsys):
    both = {}
    for names in (("mean", "covariance"), ("mu", "sigma")):
        np.savez(tmp_path / "of.npz", **dict(zip(names, (np.zeros(64), np.eye(64)), strict=True)))
        code, report = evaluate(trained, capsys, f"reference={tmp_path / 'of.npz'}")
        assert code == 0
        both[names] = report["frechet_classifier_distance_mean"]
    assert len(set(both.values())) == 1


def test_double_precision_from_the_first_draw_to_the_score(tmp_path, capsys):
    out = f"out={tmp_path}"
    assert run("train", *TINY, out, "num_steps=2", "dtype=float64", "device=cpu:0") == 0
    kinds = {a.dtype.name for name, a in last(tmp_path).items() if name.startswith(".params")}
    assert kinds == {"float64"}
    assert run("eval", out, "num_samples=100", "num_splits=1", "device=cpu") == 0
    assert not jax.config.jax_enable_x64
    assert run("train", *TINY, out, "device=tpu:3") == 2
    assert "device is 'tpu:3'; JAX sees" in capsys.readouterr().err


def test_the_logged_rate_leaves_out_what_happens_between_steps(tmp_path, monkeypatch):
    """A picture that takes a second must not look like slow steps."""
    from dd_two_player.paper import monitoring

    monkeypatch.setattr(monitoring.Observer, "__call__", lambda self, *a, **k: time.sleep(0.5))
    assert run("train", *TINY, f"out={tmp_path}", "num_steps=40", "log_every=20") == 0
    (path,) = tmp_path.rglob("metrics.jsonl")
    rates = [json.loads(line)["steps_per_second"] for line in path.read_text().splitlines()]
    assert len(rates) == 2
    assert min(rates) > 8  # ten visits of half a second and the compilation would leave at most 8
