"""Losses that stop gradients: their own gradients are right, derivatives along the other player are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player import (
    Drift,
    Game,
    PlayerTerms,
    Regularization,
    discrete_path,
    jacobian,
    measure_drift,
    modified_field,
    modified_flow,
    step_map,
)
from dd_two_player.flows import runge_kutta_map

RATES = (0.1, 0.1)
TERMS = Regularization.cancel_interaction().coefficients(Drift.of(RATES).coefficients)
stop = jax.lax.stop_gradient
PARAMS = {"w": jnp.ones(2)}, {"shift": jnp.full(2, 0.3), "scale": jnp.float32(0.5)}
BATCH = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)


def made(gen):
    return gen["scale"] * BATCH + gen["shift"]


def loss_disc(disc, gen, batch):
    return jnp.tanh(made(gen) @ disc["w"]).mean() - jnp.tanh(batch @ disc["w"]).mean()


def loss_gen(disc, gen, batch):
    return -jnp.tanh(made(gen) @ disc["w"]).mean()


def detached_disc(disc, gen, batch):
    return jnp.tanh(stop(made(gen)) @ disc["w"]).mean() - jnp.tanh(batch @ disc["w"]).mean()


def detached_gen(disc, gen, batch):
    return -jnp.tanh(made(gen) @ stop(disc["w"])).mean()


def partly(disc, gen, batch):  # a penalty keeps the shift in sight, the scale is lost
    return detached_disc(disc, gen, batch) + (gen["shift"] ** 2).sum() * disc["w"][0]


TOOLS = {
    "gradients": lambda game: game.gradients(PARAMS, BATCH, TERMS),
    "jitted": lambda game: jax.jit(lambda p: game.gradients(p, BATCH, TERMS))(PARAMS),
    "measure": lambda game: measure_drift(game, PARAMS, BATCH, RATES),
    "jacobian": lambda game: jacobian(modified_field(game, batch=BATCH), PARAMS),
    "flow": lambda game: modified_flow(game, Drift.of(RATES), batch=BATCH)(PARAMS),
    "step": lambda game: discrete_path(step_map(game, RATES, coefficients=TERMS, batch=BATCH), PARAMS, 1),
    "terms": lambda game: game.regularizer(
        "disc", PARAMS, BATCH, TERMS.disc, mask=PlayerTerms(False, False, True)
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_what_needs_the_other_players_derivative_refuses_losses_that_stop_it(tool):
    for losses, told in (
        ((detached_disc, loss_gen), r"loss of disc uses gen\['scale'\] but has no derivative there"),
        ((loss_disc, detached_gen), r"loss of gen uses disc\['w'\] but has no derivative there"),
        ((jax.jit(detached_disc), loss_gen), r"loss of disc uses gen\['scale'\] but"),
        ((partly, loss_gen), r"loss of disc uses gen\['scale'\] but"),
    ):
        with pytest.raises(ValueError, match=told):
            TOOLS[tool](Game(*losses))
    TOOLS[tool](Game(loss_disc, loss_gen))


@pytest.mark.parametrize(
    "tool",
    [
        lambda game: game.gradients(PARAMS, BATCH),
        lambda game: step_map(game, RATES, batch=BATCH)(PARAMS),
        lambda game: runge_kutta_map(game, RATES, batch=BATCH)(PARAMS),
    ],
    ids=["gradients", "step", "runge-kutta"],
)
def test_plain_gradients_and_steps_of_such_losses_are_right(tool):
    found, expected = tool(Game(detached_disc, detached_gen)), tool(Game(loss_disc, loss_gen))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("switch", lambda g: jnp.where(g > 0, 1.0, 2.0)),
        ("sign", lambda g: jnp.sign(g)),
        ("count", lambda g: (jnp.asarray(g) > 0).astype(jnp.float32)),
        ("logged", lambda g: [jax.debug.callback(lambda x: None, g), 1.0][1]),
    ],
)
def test_what_only_chooses_or_is_logged_is_no_stop(name, extra):
    """Its derivative is zero, so nothing is missed."""
    game = Game(lambda d, g, b: extra(g) * d * d + 0.0 * d, lambda d, g, b: (g - 2.0) ** 2)
    assert float(game.gradients((2.0, 3.0), None, TERMS)[1]) == pytest.approx(2.0)


def test_python_branches_on_parameters_work_outside_of_jit():
    def loss(d, g, b):
        return d * g if d > 0 else -d * g

    found = Game(loss, lambda d, g, b: -loss(d, g, b)).gradients((2.0, 3.0), None, TERMS)
    # by hand: own gradients g = 3 and -d = -2, and h / 2 times d = 2 and g = 3 of the interaction
    assert [float(x) for x in found] == pytest.approx([3.1, -1.85], rel=1e-6)


def test_a_batch_that_switches_a_stop_on_is_looked_at_by_itself():
    game = Game(lambda d, g, b: d * (g if b["flag"] else stop(g)), lambda d, g, b: -d * g)
    game.gradients((2.0, 3.0), {"flag": True}, TERMS)
    with pytest.raises(ValueError, match="has no derivative there"):
        game.gradients((2.0, 3.0), {"flag": False}, TERMS)


def test_parameters_that_do_not_move_and_aux_may_be_stopped():
    """A frozen layer moves no one; what a loss returns beside its value is no part of it."""

    def frozen(disc, gen, batch):
        return disc["w"] * stop(disc["f"]) * gen, stop(gen)

    def other(disc, gen, batch):
        return -disc["w"] * stop(disc["f"]) * gen, None

    params = ({"w": jnp.float32(1.5), "f": jnp.float32(2.0)}, jnp.float32(0.5))
    for wrap in (lambda f: f, jax.jit):
        disc, gen = Game(wrap(frozen), wrap(other), has_aux=True).gradients(params, None, TERMS)
        # the terms are -0.05 <grad_gen L_D, grad_gen L_G> and the like: c f^2 w and c f^2 theta
        assert float(disc["f"]) == 0
        assert float(disc["w"]) == pytest.approx(2.0 * 0.5 + 0.05 * 4 * 1.5, rel=1e-6)
        assert float(gen) == pytest.approx(-2.0 * 1.5 + 0.05 * 4 * 0.5, rel=1e-6)


def test_kinks_rounding_loops_and_branches_are_no_stops():
    def critic(d, x):
        return jax.lax.fori_loop(0, 2, lambda i, c: c + jax.nn.relu(x * d["a"]) @ d["b"], 0.0)

    def loss(d, g, b):
        return jax.lax.cond(b > 0, lambda: critic(d, g + jnp.round(b)), lambda: critic(d, g))

    game = Game(loss, lambda d, g, b: -loss(d, g, b))
    params = ({"a": jnp.array([0.5, -1.0]), "b": jnp.array([1.0, 2.0])}, jnp.array([0.3, 0.2]))
    found = game.gradients(params, 1.0, TERMS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert jacobian(modified_field(game, batch=1.0), params).shape == (6, 6)
