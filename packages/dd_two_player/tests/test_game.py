import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.drift import Coefficients, PlayerTerms, drift_coefficients
from dd_two_player.game import Game
from dd_two_player.regularization import Regularization

pytestmark = pytest.mark.usefixtures("x64")


def rows(array):
    return Coefficients(*(PlayerTerms(*map(float, row)) for row in array))


@pytest.mark.parametrize("kind", ["zerosum", "nonsat", "square"])
def test_golden_losses_and_gradients(golden, small, kind):
    params, batch = small.params(), small.batch()
    game = Game(*small.losses(kind))
    for player, loss in (("disc", game.loss_disc), ("gen", game.loss_gen)):
        np.testing.assert_allclose(loss(*params, batch), golden[f"{kind}/loss/{player}"], rtol=small.RTOL)
    for measured, player in zip(game.gradients(params, batch), ("disc", "gen"), strict=True):
        small.assert_tree(measured, f"{kind}/grad/{player}_loss_wrt_{player}")


@pytest.mark.parametrize("i", range(4))
def test_golden_totals(golden, small, i):
    setting = golden[f"total/{i}/setting"]
    recipe = Regularization(rows(golden[f"total/{i}/dd_multiplier"]), rows(golden[f"total/{i}/explicit"]))
    drift = drift_coefficients(
        (float(setting[0]), float(setting[1])),
        (int(setting[2]), int(setting[3])),
        "simultaneous" if setting[4] else "alternating",
        ("disc", "gen")[int(setting[5])],
        "original",
    )
    coefficients = recipe.coefficients(drift)
    np.testing.assert_allclose(np.array(coefficients), golden[f"total/{i}/coeffs"], rtol=1e-13, atol=1e-17)
    game = Game(*small.losses("zerosum"))
    measured = game.gradients(small.params(), small.batch(), coefficients)
    for player, gradient in zip(("disc", "gen"), measured, strict=True):
        small.assert_tree(gradient, f"total/{i}/{player}")


def test_sga_is_the_antisymmetric_adjustment_on_a_bilinear_zero_sum_game():
    matrix = np.random.default_rng(0).standard_normal((3, 4))
    game = Game(lambda p, t, _: p @ matrix @ t, lambda p, t, _: -(p @ matrix @ t))
    params = (jnp.arange(3.0), jnp.arange(4.0) - 1)
    strength = 0.3
    measured = np.concatenate(
        game.gradients(params, None, Regularization.sga(strength).coefficients(Coefficients()))
    )
    gradient = np.concatenate(game.gradients(params, None))
    jacobian = np.block([[np.zeros((3, 3)), matrix], [-matrix.T, np.zeros((4, 4))]])
    antisymmetric = (jacobian - jacobian.T) / 2
    np.testing.assert_allclose(measured, gradient + strength * antisymmetric.T @ gradient, rtol=1e-12)


def test_changing_coefficients_does_not_retrace(small):
    params, batch = small.params(), small.batch()
    game, traces = Game(*small.losses("zerosum")), []
    mask = Regularization.cancel_interaction().mask()

    @jax.jit
    def gradients(coefficients):
        traces.append(1)
        return game.gradients(params, batch, coefficients, mask=mask)

    outputs = [gradients(drift_coefficients((r, r)))[0]["w0"] for r in (0.1, 0.2, 0.3)]
    assert len(traces) == 1
    assert not np.allclose(outputs[0], outputs[1])


def test_parameters_may_be_any_pytree_in_single_precision():
    with jax.enable_x64(False):
        game = Game(lambda p, t, _: p["a"][0] * t, lambda p, t, _: -p["a"][0] * t)
        disc, gen = game.gradients(
            ({"a": [2.0]}, 3.0), None, Coefficients(PlayerTerms(1.0, 1.0, 1.0), PlayerTerms(1.0, 1.0, 1.0))
        )
        assert float(disc["a"][0]) == 3.0 + 0.0 + 2.0 - 2.0
        assert float(gen) == -2.0 + 0.0 + 3.0 - 3.0


def test_values_print_as_a_line_whatever_they_hold():
    game = Game(lambda a, b, x: x * (a["w"] * b).sum(), lambda a, b, x: -x * (a["w"] * b).sum())
    params, seen = ({"w": jnp.full(400, 3.0)}, jnp.full(400, 2.0)), []
    values = game.value_and_gradients(params, 0.5)
    assert repr(values) == "losses 1200, -1200; gradients of size 20, 30"  # 0.5 * 20 * (2 and 3)
    whole = "losses and gradients of both players in 4 leaves"
    jax.jit(lambda p: seen.append(repr(game.value_and_gradients(p, 0.5))))(params)
    assert seen == [whole]
    assert repr(jax.vmap(lambda x: game.value_and_gradients(params, x))(jnp.ones(3))) == whole
    assert repr(jax.tree.map(jnp.shape, values)).startswith("losses and gradients of both players")
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), values)
    assert repr(half).endswith("gradients of size 20, 30")
    values.gradients[1].delete()
    assert repr(values) == whole
