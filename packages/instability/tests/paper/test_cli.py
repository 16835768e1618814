import os
import subprocess
import sys

import numpy as np
import pytest

from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.testing import check_killed_runs_resume
from instability.paper import PAPER
from instability.paper.cli import COMMANDS


def call(capsys, *arguments):
    """Run the command line in this process; returns exit code, standard output, standard error."""
    code = dispatch(PAPER, COMMANDS, list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_imports_no_framework():
    """It answers in 0.2 s, since what it would need seconds for is not loaded."""
    command = [sys.executable, "-X", "importtime", "-m", "instability", "list"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "fig4-right" in run.stdout
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "instability.paper" in loaded
    assert not loaded & {"torch", "scipy", "matplotlib", "hydra"}


@pytest.mark.parametrize("command", ["run", "show", "thresholds", "sensitivity", "train", "accuracy-spread"])
def test_every_command_explains_itself(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert command in out
    assert len(out.splitlines()) > 5


BAD = [
    (("run", "fig9"), "Unknown figure 'fig9'"),
    (("run", "fig3", "preset=huge"), "Unknown preset 'huge'"),
    (("run", "fig3", "kernel_sise=3"), "Did you mean 'kernel_size'?"),
    (
        ("run", "fig3", "kernel_size=99", "image_size=64"),
        "kernel_size=99 must lie between 1 and image_size=64",
    ),
    (("run", "fig3", "label=2"), "label=2 must be 0 or 1"),
    (("run", "fig3", "weight_decays=[-1.0]"), "must be not negative"),
    (("run", "fig3", "learning_rate=0"), "must be positive"),
    (("run", "fig3", "image=board.npy"), "Allowed: checkerboard, noise"),
    (("run", "fig4-right", "window=1000"), "window=1000 must lie between"),
    (("run", "fig4-right", "perturbations=[]"), "perturbations is empty"),
    (("run", "fig4-right", "perturbations=[3,5]"), "must start with the baseline 1"),
    (("run", "fig2-left", "preset=smoke", "layer=layer1.0.conv9.weight"), "Close names: layer1.0.conv"),
    (
        ("run", "table1", "preset=smoke", "dataset=cifar10", "data_root=/nowhere"),
        "cifar10 not found",
    ),
    (("run", "table1", "preset=smoke", "seeds=[]"), "seeds is empty"),
    (("run", "fig1", "time_steps=[0.4]"), "must be two positive numbers"),
    (("run", "fig1", "num_points=abc"), "num_points"),
    (("thresholds", "learning_rate=-1"), "learning_rate must be positive"),
    (("thresholds", "kernel_size=9", "image_size=4"), "kernel_size 9 is larger than the image"),
    (("thresholds", "label=3"), "label=3 must be 0 or 1"),
    (("sensitivity", "perturbations=[1,0]"), "hold ints >= 1"),
    (("train", "device=cuda"), "torch sees no GPU"),
    (("train", "depth=8"), "depth=8 has no effect with model=tiny; leave it out"),
    (("train", "model=resnet", "tiny_blocks=2"), "tiny_blocks=2 has no effect with model=resnet"),
    (("sensitivity", "seeds=[1,2]"), "seeds=[1, 2]: this command trains from one seed"),
    (("sensitivity", "model=vgg16", "tiny_width=4"), "tiny_width=4 has no effect with model=vgg16"),
    (("thresholds", "image=board.npy", "image_size=64"), "image_size=64 has no effect with image=board.npy"),
    (("run", "fig2-left", "preset=smoke", "dtype=float23"), "float23"),
    (("run", "fig2-left", "preset=smoke", "device=gpu9"), "gpu9"),
    (
        ("run", "fig3", "preset=smoke", "dtype=bfloat16"),
        "dtype=bfloat16 is unknown. Allowed: float64, float32",
    ),
    (("run", "fig1", "dtype=float32"), "dtype"),
    (("accuracy-spread", "nothing.npz"), "nothing.npz does not exist"),
    (("accuracy-spread",), "files is empty"),
    (("fly",), "Unknown command 'fly'"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_bad_input_exits_2_with_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize(
    ("figure", "array", "more"),
    [("fig3", "losses", []), ("fig2-left", "divergence", ["device=cpu"])],
)
def test_the_floating_type_reaches_the_numbers(capsys, tmp_path, figure, array, more):
    found = {}
    for dtype in ("float32", "float64"):
        out = tmp_path / dtype
        command = ["run", figure, "preset=smoke", f"dtype={dtype}", *more, f"out={out}"]
        assert call(capsys, *command)[0] == 0
        (arrays,) = out.rglob("arrays.npz")
        found[dtype] = np.load(arrays)[array]
    assert not np.array_equal(found["float32"], found["float64"])
    if figure == "fig2-left":  # the first step is apart by rounding, nine decades less of it in float64
        first = [found[dtype].reshape(-1, found[dtype].shape[-1])[:, 0].max() for dtype in found]
        assert first[0] > 1e6 * first[1] > 0


def test_out_that_is_a_file(capsys, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, _, err = call(capsys, "run", "fig1", "preset=smoke", f"out={tmp_path / 'taken'}")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert (tmp_path / "taken").read_text() == "mine"


def test_thresholds_prints_the_papers_numbers(capsys):
    code, out, _ = call(
        capsys, "thresholds", "kernel_size=8", "image_size=64", "learning_rate=2.5e-6", "weight_decay=1.25"
    )
    assert code == 0
    assert "alpha_min      51984" in out
    assert "alpha_max      800000" in out
    assert "2 / sharpness" in out


def test_sensitivity_reports(capsys):
    code, out, _ = call(
        capsys,
        "sensitivity",
        "num_steps=6",
        "every=2",
        "tiny_blocks=1",
        "tiny_width=4",
        "train_size=96",
        "perturbations=[1,1,2,3]",
    )
    assert code == 0
    assert "null controls exactly equal: yes" in out


def test_train_prints_accuracies(capsys):
    code, out, _ = call(
        capsys, "train", "num_epochs=1", "tiny_blocks=1", "tiny_width=4", "train_size=96", "perturbation=3"
    )
    assert code == 0
    assert "epoch 1: train" in out


def test_accuracy_spread_reads_arrays_and_run_folders(capsys, tmp_path):
    values = np.zeros((2, 3, 12))
    values[1] = 2.0
    np.save(tmp_path / "a.npy", values)
    code, out, _ = call(capsys, "accuracy-spread", str(tmp_path / "a.npy"))
    assert code == 0
    assert "mean 1.000, 2 perturbations x 3 seeds" in out
    assert "over perturbations, per seed: [1.0, 1.0, 1.0]" in out
    call(capsys, "run", "table1", "preset=smoke", f"out={tmp_path}")
    folder = next(tmp_path.rglob("result.json")).parent
    code, out, _ = call(capsys, "accuracy-spread", str(folder), "last=1")
    assert code == 0
    assert "swish" in out


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.timeout(1200)
def test_killed_trainings_resume_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    check_killed_runs_resume(
        "instability",
        ["run", "table1", "preset=smoke", "num_epochs=30"],
        tmp_path,
        after_files=[0, 1],
        timeout_s=300,
    )
