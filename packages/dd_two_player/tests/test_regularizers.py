import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.drift import Coefficients, PlayerTerms
from dd_two_player.game import Game
from dd_two_player.microscope import measure_drift
from dd_two_player.regularizers import ESTIMATORS, split_batch
from dd_two_player.toy_games import dirac_gan, dirac_gan_regularizers, random_smooth_game

pytestmark = pytest.mark.usefixtures("x64")
TERMS = PlayerTerms._fields


def only(term, value=1.0):
    return PlayerTerms(**{term: value}), PlayerTerms(**{t: t == term for t in TERMS})


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("player", ["disc", "gen"])
@pytest.mark.parametrize("kind", ["zerosum", "nonsat", "square"])
def test_golden_same_and_split_batch(golden, small, kind, player, term):
    game = Game(*small.losses(kind))
    weights, mask = only(term)
    setting = (player, small.params(), small.batch(), weights)
    same = game.regularizer(*setting, mask=mask)
    small.assert_tree(same, f"{kind}/reg/same_batch/{player}/{term}")

    def stored_latents(halves):
        return tuple(
            {**half, "z": jnp.asarray(golden[f"data/z_{which}_half"])}
            for half, which in zip(halves, ("first", "second"), strict=True)
        )

    estimator = ESTIMATORS["unbiased_estimate_fn_lowest_variance"]
    split = game.regularizer(*setting, mask=mask, estimator=estimator, resample=stored_latents)
    small.assert_tree(split, f"{kind}/reg/split_batch/{player}/{term}")


@pytest.mark.parametrize("at", [(1.0, 1.0), (0.7, -1.3), (-0.2, 2.1), (0.0, 0.0)])
@pytest.mark.parametrize("player", ["disc", "gen"])
@pytest.mark.parametrize("term", TERMS)
def test_dirac_gan_closed_forms(term, player, at):
    weights, mask = only(term)
    measured = dirac_gan().regularizer(player, at, None, weights, mask=mask)
    expected = getattr(getattr(dirac_gan_regularizers(*at), player), term)
    assert float(measured) == pytest.approx(expected, abs=1e-10)


def frozen_value(game, player, term, params, frozen_at):
    """The regulariser with its second factor evaluated at ``frozen_at``: what stop-gradient means."""
    own = 0 if player == "disc" else 1
    loss = (game.loss_disc, game.loss_gen)
    which, argument = {
        "self_norm": (own, own),
        "other_norm": (1 - own, 1 - own),
        "other_dot_prod": (own, 1 - own),
    }[term]
    left = jax.grad(loss[which], argument)(*params, None)
    return left @ jax.grad(loss[argument], argument)(*frozen_at, None)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("player", ["disc", "gen"])
def test_finite_differences_with_the_factor_frozen(player, term):
    game = random_smooth_game(3)
    own = 0 if player == "disc" else 1
    at = (jnp.array([0.3, -0.4]), jnp.array([0.2, 0.5]))
    weights, mask = only(term)
    measured = game.regularizer(player, at, None, weights, mask=mask)

    def difference(frozen):
        rows = []
        for e in 1e-5 * jnp.eye(2):
            up, down = (tuple(x + s * e if i == own else x for i, x in enumerate(at)) for s in (1, -1))
            f = lambda x: frozen_value(game, player, term, x, at if frozen else x)  # noqa: E731
            rows.append((f(up) - f(down)) / 2e-5)
        return np.array(rows)

    np.testing.assert_allclose(measured, difference(True), rtol=1e-6, atol=1e-8)
    unfrozen = difference(False)
    if term == "other_dot_prod":  # not a gradient of half its value unless the game is zero-sum
        assert np.abs(unfrozen / 2 - measured).max() > 1e-2
    else:
        np.testing.assert_allclose(unfrozen / 2, measured, rtol=1e-6, atol=1e-8)


def test_merged_terms_are_the_sum_of_single_terms(small):
    game = Game(*small.losses("nonsat"))
    params, batch = small.params(), small.batch()
    weights = PlayerTerms(0.3, -0.7, 1.9)
    merged = game.regularizer("gen", params, batch, weights, mask=PlayerTerms(True, True, True))
    parts = [
        game.regularizer("gen", params, batch, only(t, getattr(weights, t))[0], mask=only(t)[1])
        for t in TERMS
    ]
    total = jax.tree.map(lambda *a: sum(a), *parts)
    for name, value in merged.items():
        np.testing.assert_allclose(value, total[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "active", [("other_dot_prod",), ("other_norm",), ("other_norm", "other_dot_prod"), TERMS]
)
@pytest.mark.parametrize("player", ["disc", "gen"])
def test_loss_and_regularisers_together_equal_nested_gradients(small, player, active):
    own = 0 if player == "disc" else 1
    losses, params, batch = small.losses("nonsat"), small.params(), small.batch()
    weights = PlayerTerms(**{t: 0.3 + i for i, t in enumerate(TERMS) if t in active})
    mask = PlayerTerms(*(t in active for t in TERMS))
    frozen = [jax.grad(losses[i], i)(*params, batch) for i in (0, 1)]

    def inner(which, argument, point):
        found = jax.grad(losses[which], argument)(*point, batch)
        return sum((found[k] * frozen[argument][k]).sum() for k in found)

    def written_out(x):
        point = (x, params[1]) if own == 0 else (params[0], x)
        return (
            losses[own](*point, batch)
            + weights.self_norm * inner(own, own, point)
            + weights.other_norm * inner(1 - own, 1 - own, point)
            + weights.other_dot_prod * inner(own, 1 - own, point)
        )

    game = Game(*losses)
    (loss, _), one_pass = game.player_value_and_gradient(player, params, batch, weights, mask=mask)
    assert float(loss) == pytest.approx(float(losses[own](*params, batch)), rel=1e-14)
    terms = Coefficients(**{player: weights})
    expected = jax.grad(written_out)(params[own])
    for measured in (one_pass, game.gradients(params, batch, terms)[own]):
        for name, value in expected.items():
            np.testing.assert_allclose(measured[name], value, rtol=1e-12, atol=1e-14)


def test_split_estimator_is_unbiased_and_same_batch_is_not():
    """The expectation is exact; 20 000 draws, five standard errors (failure probability below 1e-6)."""
    game = Game(
        lambda d, g, x: jnp.mean(jnp.tanh(d * x["data"]) * g + x["data"] * d**2 / 2),
        lambda d, g, x: jnp.mean(jnp.sin(g * x["data"] + d)),
    )
    params, mask, weights = (
        (jnp.asarray(0.7), jnp.asarray(0.4)),
        PlayerTerms(True, True, True),
        PlayerTerms(1.0, 0.5, 2.0),
    )
    everything = np.linspace(-2, 3, 12)
    population = {"data": jnp.asarray(everything)}
    exact = float(game.regularizer("disc", params, population, weights, mask=mask))
    draws, size = 20_000, 4
    batches = {"data": jnp.asarray(np.random.default_rng(0).choice(everything, (draws, size)))}

    def mean_and_error(estimator):
        def one(b):
            return game.regularizer("disc", params, b, weights, mask=mask, estimator=ESTIMATORS[estimator])

        values = np.asarray(jax.jit(jax.vmap(one))(batches))
        return values.mean(), values.std() / np.sqrt(draws)

    mean, error = mean_and_error("unbiased_estimate_fn_lowest_variance")
    assert abs(mean - exact) < 5 * error
    biased, error = mean_and_error("biased_estimate_general_grad_fn")
    assert abs(biased - exact) > 10 * error


def test_same_batch_bias_falls_as_one_over_batch():
    game = Game(lambda d, g, x: jnp.mean(x["data"] * d**2 / 2), lambda d, g, x: jnp.mean(g * d))
    params, mask = (jnp.asarray(1.0), jnp.asarray(1.0)), PlayerTerms(True, False, False)
    # R = d^2 mean(x)^2 in expectation d (mu^2 + var / batch); the bias is d var / batch exactly
    values = jnp.asarray([-1.0, 1.0])

    def expectation(size):
        grids = jnp.stack(jnp.meshgrid(*[values] * size), -1).reshape(-1, size)
        one = lambda row: game.regularizer("disc", params, {"data": row}, PlayerTerms(1.0), mask=mask)  # noqa: E731
        return float(jax.vmap(one)(grids).mean())

    assert [expectation(n) for n in (1, 2, 4)] == pytest.approx([1.0, 0.5, 0.25], abs=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_runs_and_shards_only_when_not_averaged(name):
    game = Game(
        lambda d, g, x: jnp.mean(jnp.tanh(x["data"] * d)) * g, lambda d, g, x: jnp.mean(x["data"]) * g**2 * d
    )
    params, mask = (jnp.asarray(0.5), jnp.asarray(0.8)), PlayerTerms(True, True, True)
    batch = {"data": jnp.linspace(-1, 2, 8)}
    estimator = ESTIMATORS[name]
    values = [
        float(
            game.regularizer(
                "disc",
                params,
                batch,
                PlayerTerms(1.0, 1.0, 1.0),
                mask=mask,
                estimator=estimator,
                second_batch={"data": batch["data"][::-1] ** 2},
                num_shards=n,
            )
        )
        for n in (1, 2)
    ]
    assert np.isfinite(values).all()
    assert (values[0] == values[1]) == estimator.averaged


def test_odd_batch_is_refused():
    with pytest.raises(ValueError, match="batch size is 3; estimators that split the batch need an even one"):
        split_batch({"data": jnp.zeros(3)})


def test_two_batch_estimator_needs_a_second_batch():
    with pytest.raises(ValueError, match="two_data_estimate_grad_fn needs two batches; pass second_batch"):
        dirac_gan().regularizer(
            "disc",
            (1.0, 1.0),
            None,
            PlayerTerms(1.0),
            mask=PlayerTerms(True, False, False),
            estimator=ESTIMATORS["two_data_estimate_grad_fn"],
        )


def test_inactive_terms_are_not_computed():
    """The jaxpr of a masked-out configuration equals the plain gradient's."""
    game, at = random_smooth_game(1), (jnp.ones(2), jnp.ones(2))
    plain = jax.make_jaxpr(
        lambda p: (jax.grad(game.loss_disc, 0)(*p, None), jax.grad(game.loss_gen, 1)(*p, None))
    )(at)
    zero = jax.make_jaxpr(lambda p: game.gradients(p, None, Coefficients()))(at)
    assert str(plain) == str(zero)


@pytest.mark.parametrize("extra", [jax.random.key(0), jax.random.PRNGKey(0), 2.0, jnp.ones(6)])
@pytest.mark.parametrize("name", ["unbiased_estimate_fn_lowest_variance", "biased_estimate_grad_fn"])
def test_only_data_are_cut(name, extra):
    """A key or a state beside the data would be cut in two as well."""
    game = Game(lambda d, g, b: (d * g * b["x"]).mean(), lambda d, g, b: -(d * g * b["x"]).mean())
    batch = {"x": jnp.arange(4.0), "more": extra}
    how = {"mask": PlayerTerms(False, False, True), "num_shards": 2}
    with pytest.raises(ValueError, match="put keys and states into the losses"):
        game.regularizer("disc", (1.0, 2.0), batch, PlayerTerms(0, 0, 1.0), estimator=ESTIMATORS[name], **how)
    with pytest.raises(TypeError, match=f"estimator is '{name}'; pass one of ESTIMATORS"):
        game.regularizer("disc", (1.0, 2.0), batch, PlayerTerms(0, 0, 1.0), estimator=name, **how)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_term_whose_direction_is_below_half_precision_is_kept(dtype, alone):
    """With ``L_D = 1000 phi theta``, ``L_G = -1e-4 theta`` the direction is 2e-8, which no float16 is."""
    game = Game(lambda d, g, b: 1e3 * (d * g), lambda d, g, b: -1e-4 * g)
    terms, at = PlayerTerms(other_dot_prod=2e-4), (jnp.asarray(1e-4, dtype), jnp.asarray(1e-7, dtype))
    if alone:
        mask = PlayerTerms(False, False, True)
        found = game.player_gradient("disc", at, None, terms, mask=mask)
    else:
        found = game.gradients(at, None, Coefficients(disc=terms))[0]
    plain = float(game.gradients(at, None)[0])
    assert found.dtype == dtype
    assert float(found) == pytest.approx(plain - 2e-5, rel=1e-2, abs=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_with_operations_that_want_equal_types(dtype):
    """Convolutions refuse operands of two types, so the batch is raised with the parameters."""

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1,), "SAME")

    def loss_disc(d, g, b):
        fake = conv(conv(b["z"], g), d)
        return jax.nn.softplus(-conv(b["x"], d)).mean() + jax.nn.softplus(fake).mean()

    game = Game(loss_disc, lambda d, g, b: -loss_disc(d, g, b))
    drawn = jax.random.normal(jax.random.key(0), (4, 2, 1, 3))
    pair, batch = (drawn[0, :1], drawn[1, :1]), {"x": drawn[2], "z": drawn[3]}
    terms = Coefficients(disc=PlayerTerms(other_dot_prod=-0.05))
    expected = game.gradients(pair, batch, terms)[0]
    halves = jax.tree.map(lambda a: a.astype(dtype), (pair, batch))
    found = game.gradients(*halves, terms)[0]
    assert found.dtype == dtype
    assert jnp.allclose(found.astype("float32"), expected, atol=0.02)
    measured, exact = (measure_drift(game, *at, (0.1, 0.1)).total for at in (halves, (pair, batch)))
    assert measured.interaction == pytest.approx(exact.interaction, rel=0.05)
