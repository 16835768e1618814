import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.drift import PlayerTerms
from dd_two_player.game import Game
from dd_two_player.gans.spectral_norm import initial_vectors, normalize_weights


def stored(small, which):
    """Golden power-iteration vectors under our paths."""
    state = {}
    for i in range(3):
        prefix = f"spectral/{which}/disc__l{i}__w"
        state[f"['w{i}']"] = {k: jnp.asarray(small.golden[f"{prefix}/{k}"]) for k in ("u0", "sigma")}
    return state


@pytest.fixture
def spectral_game(small):
    loss_disc, loss_gen = small.losses("zerosum")
    before = stored(small, "state_before")

    def normalized(loss):
        return lambda d, g, b: loss(normalize_weights(d, before)[0], g, b)

    return Game(normalized(loss_disc), normalized(loss_gen))


def test_golden_state_losses_and_gradients(small, spectral_game):
    params, batch = small.params(), small.batch()
    _, after = normalize_weights(params[0], stored(small, "state_before"))
    for path, expected in stored(small, "state_after").items():
        for name, value in expected.items():
            np.testing.assert_allclose(after[path][name], value, rtol=small.RTOL)
    for player, loss in (("disc", spectral_game.loss_disc), ("gen", spectral_game.loss_gen)):
        np.testing.assert_allclose(loss(*params, batch), small.golden[f"spectral/loss/{player}"], small.RTOL)
        for i, other in enumerate(("disc", "gen")):
            gradient = jax.jit(jax.grad(loss, i))(*params, batch)
            small.assert_tree(gradient, f"spectral/grad/{player}_loss_wrt_{other}")


@pytest.mark.parametrize("player", ["disc", "gen"])
def test_golden_regularizers(small, spectral_game, player):
    params, batch = small.params(), small.batch()
    for i, term in enumerate(PlayerTerms._fields):
        one = PlayerTerms(*(float(i == j) for j in range(3)))
        mask = PlayerTerms(*(i == j for j in range(3)))
        measured = jax.jit(
            lambda p, one=one, mask=mask: spectral_game.regularizer(player, p, batch, one, mask=mask)
        )(params)
        small.assert_tree(measured, f"spectral/reg/same_batch/{player}/{term}")


def test_converges_to_the_largest_singular_value_and_leaves_biases():
    rng = np.random.default_rng(0)
    params = {"conv": {"w": jnp.asarray(rng.standard_normal((3, 3, 2, 5))), "b": jnp.arange(5.0)}}
    state = initial_vectors(jax.random.key(1), params)
    for _ in range(200):
        normalized, state = normalize_weights(params, state)
    matrix = np.asarray(normalized["conv"]["w"]).reshape(-1, 5)
    assert np.linalg.svd(matrix)[1][0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(normalized["conv"]["b"], params["conv"]["b"])


def test_no_op_tracks_without_applying():
    params = {"w": jnp.diag(jnp.array([4.0, 2.0]))}
    state = initial_vectors(jax.random.key(0), params)
    for _ in range(30):
        same, state = normalize_weights(params, state, apply=False)
    assert same is params
    assert float(state["['w']"]["sigma"]) == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1.0, 1e20, 1e30])
def test_weights_of_every_size_are_normalised(scale):
    weight = jnp.float32(np.random.default_rng(0).standard_normal((5, 4)) * scale)
    state = initial_vectors(jax.random.key(0), {"w": weight})
    for _ in range(60):
        normalized, state = normalize_weights({"w": weight}, state)
    assert np.linalg.norm(normalized["w"], 2) == pytest.approx(1, abs=1e-4)


def test_a_weight_of_zeros_stays_one_and_may_grow():
    """Last layers start at zero."""
    params = {"w": jnp.zeros((3, 2))}
    state = initial_vectors(jax.random.key(0), params)
    normalized, state = normalize_weights(params, state)
    assert not np.asarray(normalized["w"]).any()
    gradient = jax.grad(lambda p: normalize_weights(p, state)[0]["w"].sum())(params)["w"]
    assert np.isfinite(gradient).all()
    for _ in range(30):
        normalized, state = normalize_weights({"w": jnp.diag(jnp.array([4.0, 2.0, 1.0]))[:, :2]}, state)
    assert np.linalg.norm(normalized["w"], 2) == pytest.approx(1, abs=1e-5)
