import json

import numpy as np
import pytest

from dd_two_player.paper import PAPER
from dd_two_player.paper.cli import COMMANDS
from dd_two_player.paper.config import DTYPES, TrainConfig
from dd_two_player.paper.published import EXPERIMENTS
from dd_two_player.paper.toy_config import ToyConfig
from dd_two_player.paper.unread import check_read
from gdyn_reproduce import keys
from gdyn_reproduce.cli import dispatch


def run(capsys, *arguments):
    assert dispatch(PAPER, COMMANDS, list(arguments)) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_dirac_end_is_the_experiments_number(tmp_path, capsys):
    report = run(capsys, "toy", "dirac", "num_steps=100", f"out={tmp_path}")
    assert report["norm"] == pytest.approx(1.58697, abs=1e-5)
    table = np.genfromtxt(next(tmp_path.rglob("path.csv")), delimiter=",", names=True)
    assert len(table) == 101
    assert next(tmp_path.rglob("figure.png")).stat().st_size > 5000


@pytest.mark.parametrize("arguments", [["scheme=rk4"], ["scheme=sim", "correct=joint"]])
def test_schemes_that_follow_the_flow_keep_the_distance(arguments, tmp_path, capsys):
    report = run(capsys, "toy", "dirac", *arguments, "num_steps=100", f"out={tmp_path}")
    assert report["norm"] == pytest.approx(np.sqrt(2), abs=2e-2)


def test_principal_flow_prints_equal_ends(tmp_path, capsys):
    report = run(capsys, "principal-flow", f"out={tmp_path}")
    assert report["gradient descent"] == pytest.approx(report["principal flow"], abs=1e-9)


def test_dal_command(tmp_path, capsys):
    report = run(capsys, "dal", "num_steps=5", "num_examples=32", "width=4", f"out={tmp_path}")
    assert np.isfinite(report["DAL final loss"])


def test_commands_compute_where_and_as_they_are_told(tmp_path, capsys):
    small = ["num_steps=5", "num_examples=32", "width=4", f"out={tmp_path}", "device=cpu"]
    single, double = (run(capsys, "dal", *small, f"dtype={d}")["DAL final loss"] for d in DTYPES)
    assert single == float(np.float32(single))
    assert double != float(np.float32(double))
    for arguments in (["toy", "dirac"], ["toy", "ring8", "num_steps=2"], ["dal", *small[:3]]):
        assert dispatch(PAPER, COMMANDS, [*arguments, "device=cpu:99", f"out={tmp_path}"]) != 0
        assert "device is 'cpu:99'; JAX sees" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["classifier=foo"], "'foo' is not a SavedModel folder; classifier is auto, PATH or"),
        (["classifier=foo", "eval_every=0"], "classifier=foo has no effect with eval_every=0"),
        (["dataset=ring8", "nets.gen=PointMLP", "classifier=foo"], "Allowed: auto, modes, none"),
    ],
)
def test_train_looks_at_its_classifier_before_the_first_step(arguments, told, tmp_path, capsys):
    assert dispatch(PAPER, COMMANDS, ["train", "num_steps=1", *arguments, f"out={tmp_path}"]) != 0
    assert told in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


UNREAD = [
    ("train eval_every=0 eval_samples=50", "eval_samples=50 has no effect with eval_every=0"),
    (
        "train classifier=none eval_samples=50",
        "eval_samples=50 has no effect with eval_every=0 or classifier",
    ),
    ("train experiment=mog16 eval_every=0 eval_samples=50", "eval_samples=50 has no effect"),
    ("train optimizers.gen.name=adam optimizers.gen.momentum=0.9", "unless optimizers.gen.name=sgd"),
    ("train optimizers.disc.name=rmsprop optimizers.disc.b1=0.9", "unless optimizers.disc.name=adam"),
    ("train optimizers.disc.num_updates=2", "num_updates"),
    ("train nets.convolution=lax", "on networks without the convolutions of this package"),
    ("train experiment=config nets.hidden=[8]", "nets.hidden=[8] has no effect on networks that are no MLP"),
    ("train updates.first=gen", "updates.first=gen has no effect unless updates.scheme=alternating"),
    ("train updates.rk_order=2", "updates.rk_order=2 has no effect unless updates.scheme=runge_kutta"),
    ("train updates.scheme=runge_kutta updates.rk_order=1 updates.rk_shared_rate=true", "several stages"),
    ("train updates.scheme=alternating updates.shared_batch=true", "with updates.scheme=alternating"),
    ("train updates.convention=joint", "without grad_regularizes.dd_coeffs_multiplier"),
    ("eval experiment=mog16 restore_path=here", "experiment=mog16 has no effect with restore_path"),
    ("eval which=best restore_path=last.npz", "which=best has no effect with restore_path=FILE"),
    ("run gan-simultaneous adam_rate=0.1", "adam_rate=0.1 has no effect without adam among arms"),
    ("run gan-simultaneous arms=[plain] strength=1", "strength=1.0 has no effect without sga or consensus"),
    ("run mnist nets.hidden=[8]", "nets.hidden=[8] has no effect on networks that are no MLP"),
    ("run ode-gan-adam arms=[adam] gen_rates=[1]", "gen_rates=[1.0] has no effect on arms=[adam]"),
    ("run gan-grid download=true", "download=True has no effect on a dataset that is always there"),
    ("toy dirac first=gen", "first=gen has no effect unless scheme=alt"),
    ("toy dirac damping=0.3", "damping=0.3 has no effect unless game=linear"),
    ("toy ring8 start=[1.0,2.0]", "on mixtures, whose networks start at random"),
]


@pytest.mark.parametrize(("command", "told"), UNREAD, ids=[command for command, _ in UNREAD])
def test_an_option_that_another_one_switches_off_is_refused(command, told, tmp_path, capsys):
    assert dispatch(PAPER, COMMANDS, [*command.split(), f"out={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_options_are_read_or_left_alone(name):
    check_read(keys.build(TrainConfig, EXPERIMENTS[name] | {"eval_every": 0}))


def test_a_direction_that_one_step_removes_is_zero_and_not_nan(tmp_path, capsys):
    report = run(capsys, "principal-flow", "learning_rate=0.5", "num_steps=4", f"out={tmp_path}")
    assert report["principal flow"] == pytest.approx([0, -0.2 * 0.99**4])


def test_a_mixture_is_drawn_as_descent_leaves_it_and_as_the_flow_would(tmp_path, capsys):
    short = ["num_steps=4", f"out={tmp_path}"]
    report = run(capsys, "toy", "ring8", "scheme=alt", *short)
    names = ("modes_covered", "high_quality_share", "coverage")
    assert list(report) == [*(f"{scheme} {name}" for scheme in ("alt", "rk4") for name in names), "folder"]
    assert len(list((tmp_path / "dd_two_player/train/toy-ring8").iterdir())) == 2
    alone = run(capsys, "toy", "ring8", "scheme=rk4", *short)
    assert [alone[f"rk4 {name}"] for name in names] == [report[f"rk4 {name}"] for name in names]
    assert not any(key.startswith("alt") for key in alone)


def test_a_game_lasts_long_enough_to_show_something():
    steps = {game: ToyConfig(game=game).num_steps for game in ("dirac", "linear", "ring8", "mog16")}
    assert steps == {"dirac": 200, "linear": 200, "ring8": 2000, "mog16": 2000}


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [
        (("principal-flow", "learning_rate=1000", "num_steps=200"), "gradient descent and principal flow"),
        (("toy", "linear", "learning_rate=1e30", "num_steps=50"), "sim"),
    ],
)
def test_a_path_without_an_end_is_no_success(arguments, lost, tmp_path, capsys):
    assert dispatch(PAPER, COMMANDS, [*arguments, f"out={tmp_path}"]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert lost in captured.err
