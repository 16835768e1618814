"""The published configurations: they build at their published size, and train, restore and evaluate."""

import json

import jax
import numpy as np
import pytest
from omegaconf import OmegaConf

from dd_two_player.gans.model import Batch
from dd_two_player.paper import PAPER
from dd_two_player.paper.cli import COMMANDS
from dd_two_player.paper.config import TrainConfig
from dd_two_player.paper.engine import build
from dd_two_player.paper.published import EXPERIMENTS
from gdyn_common.storage import read_arrays
from gdyn_reproduce.cli import dispatch

SHAPES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1), "digits": (8, 8, 1), "mog16": (2,)}
DRAWS = {"ode_gan_cifar_config": 8}  # four stages, two players; two draws otherwise


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_configuration_traces_at_its_published_batch(name):
    merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), EXPERIMENTS[name])
    config = OmegaConf.to_object(merged)
    shape = SHAPES[config.dataset]
    trainer = build(config, shape)
    width = trainer.rule.batches_per_step
    assert width == DRAWS.get(name, 2)
    state = jax.eval_shape(trainer.start, 0)
    data = jax.ShapeDtypeStruct((width, config.batch_size, *shape), np.float32)
    latents = jax.ShapeDtypeStruct((width, config.batch_size, trainer.gan.num_latents), np.float32)
    moved, metrics = jax.eval_shape(trainer.step, state, trainer.hyper, Batch(data, latents))
    assert jax.tree.map(lambda a: a.shape, moved) == jax.tree.map(lambda a: a.shape, state)
    assert metrics["disc_loss"].shape == ()


@pytest.mark.parametrize(
    ("name", "disc", "gen", "scheme", "norm", "recipe"),
    [
        ("sgd_cifar_config", ("sgd", 1e-2), ("sgd", 5e-3), "simultaneous", "apply", -1.0),
        ("ode_gan_cifar_config", ("sgd", 1e-2), ("sgd", 1e-2), "runge_kutta", "apply", 0.0),
        ("cifar_config", ("adam", 1e-4), ("adam", 1e-4), "alternating", "no_op", 0.0),
        ("config", ("sgd", 1e-2), ("sgd", 1e-2), "simultaneous", "no_op", 0.0),
    ],
)
def test_published_values(name, disc, gen, scheme, norm, recipe):
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), EXPERIMENTS[name]))
    optimizers = config.optimizers
    assert (optimizers.disc.name, optimizers.disc.lr) == disc
    assert (optimizers.gen.name, optimizers.gen.lr) == gen
    assert (config.updates.scheme, config.nets.spectral_norm) == (scheme, norm)
    assert config.nets.num_latents == 128
    assert config.losses.gen == "generator_saturating_loss"
    multiplier = config.grad_regularizes.dd_coeffs_multiplier
    assert multiplier.disc.other_dot_prod == multiplier.gen.other_dot_prod == recipe


@pytest.mark.slow
@pytest.mark.data("cifar10_small")
@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n.endswith("cifar_config")])
def test_cifar_configurations_train_restore_and_evaluate(name, tmp_path, capsys):
    """Twenty steps in two parts of ten, a small batch, the supplied images; minutes of compiling."""
    small = ["dataset=cifar10_small", "batch_size=4", "eval_every=0", "sample_every=20", "log_every=10"]
    for steps in (10, 20):
        command = ["train", f"experiment={name}", *small, f"num_steps={steps}", f"out={tmp_path}"]
        assert dispatch(PAPER, COMMANDS, command) == 0
    (last,) = tmp_path.rglob("checkpoints/last.npz")
    arrays = read_arrays(last)
    assert int(arrays[".step"]) == 20
    assert all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f")
    capsys.readouterr()
    evaluate = ["eval", f"experiment={name}", f"out={tmp_path}", "num_samples=100", "num_splits=2"]
    assert dispatch(PAPER, COMMANDS, evaluate) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["step"] == 20
    assert report["frechet_classifier_distance_mean"] > 0
