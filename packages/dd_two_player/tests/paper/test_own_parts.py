"""Own networks, losses, optimisers and data in ``train``, by ``module:name``."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.drift import Coefficients, PlayerTerms
from dd_two_player.gans import losses
from dd_two_player.gans.model import Batch, Gan
from dd_two_player.gans.networks import build_generator, haiku_network
from dd_two_player.paper import PAPER
from dd_two_player.paper.cli import COMMANDS
from dd_two_player.regularization import active_terms
from gdyn_reproduce.cli import dispatch

OWN = """
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dd_two_player.gans.networks import Network, haiku_network


def points():
    return np.random.default_rng(0).normal(size=(64, 2))


def critic():
    def net(x, is_training):
        x = jnp.tanh(hk.Linear(8)(x))
        return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x)

    return haiku_network(net, random=True)


def shifter(shape):  # no framework at all
    def init(key, example):
        return {"shift": jnp.zeros(shape)}, {}

    return Network(init, lambda params, state, z, training: (z[:, : shape[0]] + params["shift"], state))


def hinge(real, fake):
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def clipped(learning_rate, limit):
    return optax.chain(optax.clip_by_global_norm(limit), optax.sgd(learning_rate))
"""


def test_everything_can_be_your_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_for_dd.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train", "dataset=mine_for_dd:points", "nets.disc=mine_for_dd:critic", "nets.gen=mine_for_dd:shifter",
        "losses.disc=mine_for_dd:hinge", "losses.gen=wasserstein_generator_loss", "nets.num_latents=3",
        "optimizers.disc.name=mine_for_dd:clipped", "optimizers.disc.options={limit:0.1}",
        "optimizers.gen.name=rmsprop", "optimizers.gen.rate_schedule={2:0.5}",
        "grad_regularizes.explicit_non_dd_coeffs.gen.other_norm=0.1",
        "batch_size=16", "num_steps=4", "log_every=1", "sample_every=0", "eval_every=0",
    ]  # fmt: skip
    assert dispatch(PAPER, COMMANDS, arguments) == 0
    lines = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    assert [line["learning_rate_factor"] for line in lines] == [1.0] * 4
    assert [line["gen_learning_rate_factor"] for line in lines] == [1.0, 1.0, 0.5, 0.5]
    capsys.readouterr()
    for wrong, message in (
        ("nets.disc=mine_for_dd:critc", "discriminator 'mine_for_dd:critc' is not there"),
        ("losses.gen=saturating", "Unknown generator loss 'saturating'"),
        ("nets.gen=mine_for_dd:hinge", "generator 'mine_for_dd:hinge' cannot be called as hinge(shape):"),
        ("nets.disc=math:pi", "discriminator 'math:pi' is a float; pass the name of a function."),
        ("losses.disc=os:getcwd", "discriminator loss 'os:getcwd' cannot be called as getcwd(real, fake):"),
        ("losses.gen=os:path", "generator loss 'os:path' is a module"),
        ("optimizers.gen.name=math:pi", "optimizer 'math:pi' is a float"),
        ("dataset=os:rename", "dataset 'os:rename' cannot be called as rename()"),
        ("dataset=a:b:c", "dataset 'a:b:c' is not there"),
    ):
        assert dispatch(PAPER, COMMANDS, [*arguments, wrong]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1


def test_dropout_is_one_draw_per_loss_and_its_regularisers(x64):
    import haiku as hk

    def net(x, is_training):
        x = jnp.tanh(hk.Linear(8)(x))
        return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x)

    gan = Gan(
        haiku_network(net, random=True),
        build_generator("PointMLP", (2,), (4,)),
        losses.discriminator_goodfellow_loss,
        losses.generator_saturating_loss,
        3,
    )
    keys = jax.random.split(jax.random.key(0), 4)
    batch = Batch(jax.random.normal(keys[0], (8, 2)), jax.random.normal(keys[1], (8, 3)))
    params, state = gan.init(keys[2], batch.data)
    terms = Coefficients(disc=PlayerTerms(other_dot_prod=0.3))
    seen = gan.game(state, keys[3]).value_and_gradients(params, batch, terms)

    def again(key):
        game = gan.game(state, key, has_aux=True)
        mask = active_terms(terms).disc
        return game.player_value_and_gradient("disc", params, batch, terms.disc, mask=mask)

    (loss, _), gradient = again(keys[3])
    np.testing.assert_allclose(seen.losses[0], loss, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), seen.gradients[0], gradient)
    assert abs(float(again(keys[2])[0][0] - loss)) > 1e-4
    with pytest.raises(ValueError, match="this network is random; pass a key"):
        gan.game(state).gradients(params, batch)
