"""What people bring to a game, as one table: tools agree with nested gradients, or refuse in a sentence."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player import (
    Coefficients,
    Drift,
    Game,
    PlayerTerms,
    Regularization,
    drift_coefficients,
    jacobian,
    measure_drift,
    modified_flow,
    step_map,
)

TERMS = Coefficients(PlayerTerms(0.3, 0.2, -0.4), PlayerTerms(-0.1, 0.5, 0.25))


class Weights(NamedTuple):
    w: object
    b: object


class Case(NamedTuple):
    """A game with its players and batch; ``tolerance`` is that of the type."""

    disc: object
    gen: object
    batch: object
    loss_disc: object
    loss_gen: object
    tolerance: float = 1e-5


def plain(disc, gen, batch):
    """Any two trees of arrays: sums of products of smooth functions of everything."""
    a = sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(disc))
    b = sum(jnp.tanh(leaf).sum() for leaf in jax.tree.leaves(gen))
    return a * b + 0.5 * a * a + 0.1 * b * b * a + (0.0 if batch is None else batch * a)


def other(disc, gen, batch):
    return jnp.cos(plain(disc, gen, batch)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gen))


def trees(disc, gen, batch=None, tolerance=1e-5):
    return Case(disc, gen, batch, plain, other, tolerance)


def array(*shape, dtype=jnp.float32):
    count = int(np.prod(shape))
    return jnp.asarray(np.linspace(-0.4, 0.7, count).reshape(shape), dtype)


def haiku_case(*, state=False, random=False):
    """Return networks with batch norm or dropout; state and key are in the batch."""

    def network(x):
        x = hk.Linear(5)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, True) if state else jnp.tanh(x)
        return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.4, x) if random else x)

    disc, gen = hk.transform_with_state(network), hk.transform(lambda z: hk.Linear(3)(z))
    keys = jax.random.split(jax.random.key(0), 4)
    x, z = jax.random.normal(keys[0], (6, 3)), jax.random.normal(keys[1], (6, 2))
    params, statistics = disc.init(keys[2], x)
    batch = {"x": x, "z": z, "state": statistics, "key": keys[3]}

    def logits(d, images, batch):
        return disc.apply(d, batch["state"], batch["key"], images)[0]

    def loss_disc(d, g, batch):
        fake = gen.apply(g, None, batch["z"])
        real, made = logits(d, batch["x"], batch), logits(d, fake, batch)
        return jax.nn.softplus(-real).mean() + jax.nn.softplus(made).mean()

    def loss_gen(d, g, batch):
        return jax.nn.softplus(-logits(d, gen.apply(g, None, batch["z"]), batch)).mean()

    return Case(params, gen.init(keys[2], z), batch, loss_disc, loss_gen, 1e-4)


def equinox_case():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    nets = (eqx.nn.MLP(2, "scalar", 8, 1, key=keys[0]), eqx.nn.MLP(3, 2, 8, 1, key=keys[1]))
    (disc, disc_rest), (gen, gen_rest) = (eqx.partition(net, eqx.is_inexact_array) for net in nets)
    batch = (jax.random.normal(keys[2], (6, 2)), jax.random.normal(keys[2], (6, 3)))

    def made(d, g, b):
        net = eqx.combine(d, disc_rest)
        return jax.vmap(net)(jax.vmap(eqx.combine(g, gen_rest))(b[1]))

    def loss_disc(d, g, b):
        real = jax.vmap(eqx.combine(d, disc_rest))(b[0])
        return jax.nn.softplus(-real).mean() + jax.nn.softplus(made(d, g, b)).mean()

    return Case(disc, gen, batch, loss_disc, lambda d, g, b: -jax.nn.softplus(made(d, g, b)).mean(), 1e-4)


def flax_case():
    linen = pytest.importorskip("flax.linen")
    disc, gen = linen.Dense(1), linen.Dense(2)
    keys = jax.random.split(jax.random.key(0), 3)
    x, z = jax.random.normal(keys[0], (6, 2)), jax.random.normal(keys[1], (6, 3))

    def loss_disc(d, g, b):
        fake = jax.nn.softplus(disc.apply(d, jnp.tanh(gen.apply(g, b[1]))))
        return jax.nn.softplus(-disc.apply(d, b[0])).mean() + fake.mean()

    params = disc.init(keys[2], x), gen.init(keys[2], z)
    return Case(*params, (x, z), loss_disc, lambda d, g, b: -loss_disc(d, g, b), 1e-4)


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=["activation", "name"])
@dataclass
class Module:
    """A module as libraries make them: layers are its leaves, functions and names are static."""

    layers: list
    activation: object
    name: str

    def __call__(self, x):
        for weights in self.layers[:-1]:
            x = self.activation(x @ weights.w + weights.b)
        return x @ self.layers[-1].w + self.layers[-1].b


def module_case():
    disc = Module([Weights(array(2, 4), array(4)), Weights(array(4, 1), array(1))], jnp.tanh, "disc")
    gen = Module([Weights(array(3, 2), array(2))], jax.nn.relu, "gen")
    batch = (jax.random.normal(jax.random.key(0), (6, 2)), jax.random.normal(jax.random.key(1), (6, 3)))

    def loss_disc(d, g, b):
        return jax.nn.softplus(-d(b[0])).mean() + jax.nn.softplus(d(g(b[1]))).mean()

    return Case(disc, gen, batch, loss_disc, lambda d, g, b: -jax.nn.softplus(d(g(b[1]))).mean(), 1e-4)


CASES = {
    "python numbers": lambda: trees(0.5, -0.3),
    "0-d arrays": lambda: trees(jnp.float32(0.5), {"scale": jnp.float32(0.2)}),
    "nested": lambda: trees({"a": [array(2), (array(3),)]}, Weights(array(2, 2), {"b": array(1)}), 0.3),
    "empty parts": lambda: trees({"a": array(2), "none": {}, "list": []}, [array(2), ()]),
    "None leaves": lambda: trees({"a": array(2), "bias": None}, (None, array(3))),
    "empty arrays": lambda: trees({"a": array(2), "nothing": jnp.zeros((0, 3))}, array(3)),
    "NumPy, reversed": lambda: trees(np.array([0.5, 0.2])[::-1], np.float32(0.3)),
    "bfloat16": lambda: trees(array(3, dtype=jnp.bfloat16), array(2, dtype=jnp.bfloat16), None, 6e-2),
    "float16": lambda: trees(array(3, dtype=jnp.float16), array(2, dtype=jnp.float16), None, 8e-3),
    "mixed types": lambda: trees(array(3, dtype=jnp.float16), array(2), None, 8e-3),
    "haiku": haiku_case,
    "haiku with batch norm": lambda: haiku_case(state=True),
    "haiku with dropout": lambda: haiku_case(random=True),
    "modules with static fields": module_case,
    "equinox": equinox_case,
    "flax": flax_case,
}

MICROSCOPED = ("nested", "None leaves", "float16", "haiku with dropout")


def nested(case, terms):
    """Return both totals as people write them: gradients of inner products, one factor stopped."""
    losses, totals = (case.loss_disc, case.loss_gen), []

    def dot(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return sum((x * jax.lax.stop_gradient(y)).sum() for x, y in pairs)

    for own, weights in enumerate(terms):
        q = 1 - own

        def total(x, own=own, weights=weights, q=q):
            at = (x, case.gen) if own == 0 else (case.disc, x)

            def slope(loss, by):
                return jax.grad(losses[loss], by)(*at, case.batch)

            return (
                losses[own](*at, case.batch)
                + weights.self_norm * dot(slope(own, own), slope(own, own))
                + weights.other_norm * dot(slope(q, q), slope(q, q))
                + weights.other_dot_prod * dot(slope(own, q), slope(q, q))
            )

        totals.append(jax.grad(total)((case.disc, case.gen)[own]))
    return tuple(totals)


def assert_close(found, expected, tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        scale = max(1.0, float(np.abs(np.asarray(b, float)).max(initial=0.0)))
        np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=tolerance * scale
        )


@pytest.mark.parametrize("name", CASES)
def test_every_tool_agrees_with_nested_gradients(name):
    case = CASES[name]()
    game, params = Game(case.loss_disc, case.loss_gen), (case.disc, case.gen)
    expected = nested(case, TERMS)
    jitted = jax.jit(lambda p, b, c: game.value_and_gradients(p, b, c))
    seen = jitted(params, case.batch, TERMS)
    assert_close(seen.gradients, expected, case.tolerance)
    for loss, f in zip(seen.losses, (case.loss_disc, case.loss_gen), strict=True):
        np.testing.assert_allclose(float(loss), float(f(*params, case.batch)), rtol=case.tolerance, atol=1e-6)
    rates = (0.1, 0.05)  # powers of ten fit half precision as well
    drift = Drift.of(rates)
    flow = modified_flow(game, drift, batch=case.batch)(params)
    drifted = nested(case, drift.coefficients)
    scaled = tuple(
        jax.tree.map(lambda a, r=r: (-r * a).astype(a.dtype), jax.tree.map(jnp.asarray, side))
        for side, r in zip(drifted, rates, strict=True)
    )
    assert_close(flow, scaled, case.tolerance)
    if name not in MICROSCOPED:  # its program is the largest, and compiling it all that it costs
        return
    report = measure_drift(game, params, case.batch, rates)
    for player, plain_side, full in zip(report.players, nested(case, Coefficients()), drifted, strict=True):
        leaves = zip(*map(jax.tree.leaves, (plain_side, full)), strict=True)
        size = np.sqrt(sum(((np.asarray(b, float) - np.asarray(a, float)) ** 2).sum() for a, b in leaves))
        rate = rates[player.player == "gen"]
        both = player.self_term, player.interaction
        assert (
            abs(both[0] - both[1]) - 1e-3 <= rate * size <= sum(both) + max(1e-4, 10 * case.tolerance * rate)
        )


@pytest.mark.parametrize("width", [32, 64])
def test_transformations_around_a_game(width):
    with jax.enable_x64(width == 64):
        dtype = jnp.dtype(f"float{width}")
        tolerance = 1e-12 if width == 64 else 1e-5
        case = trees(array(3, dtype=dtype), array(2, dtype=dtype))
        game = Game(case.loss_disc, case.loss_gen)

        def cancelled(rate):
            recipe = Regularization.cancel_interaction()
            return game.gradients(
                (case.disc, case.gen), None, recipe.coefficients(drift_coefficients((rate, rate)))
            )

        rates = jnp.asarray([0.1, 0.2], dtype)
        together = jax.jit(jax.vmap(cancelled))(rates)
        for i, rate in enumerate(rates):
            assert_close(jax.tree.map(lambda a, i=i: a[i], together), cancelled(rate), tolerance)
        # the gradient of a player is linear in the rate: its derivative is the difference of two
        slope = jax.jacfwd(cancelled)(rates[0])
        assert_close(
            jax.tree.map(lambda a: a / 0.1, jax.tree.map(lambda a: a[1] - a[0], together)),
            slope,
            20 * tolerance,
        )
        stacked = jax.vmap(lambda d: game.gradients((d, case.gen), None, TERMS))(
            jnp.stack([case.disc, case.disc + 1])
        )
        alone = game.gradients((case.disc + 1, case.gen), None, TERMS)
        assert_close(jax.tree.map(lambda a: a[1], stacked), alone, tolerance)


def test_aux_comes_back_and_changes_no_gradient():
    case = trees(array(3), array(2))
    game = Game(
        lambda *at: (plain(*at), {"logit": at[0][0]}), lambda *at: (other(*at), jnp.arange(2)), has_aux=True
    )
    seen = game.value_and_gradients((case.disc, case.gen), None, TERMS)
    assert_close(seen.gradients, Game(plain, other).gradients((case.disc, case.gen), None, TERMS), 1e-6)
    assert float(seen.aux[0]["logit"]) == float(case.disc[0])
    assert seen.aux[1].tolist() == [0, 1]
    assert measure_drift(game, (case.disc, case.gen), None, (0.1, 0.1)).total.step > 0


@pytest.mark.parametrize(
    ("params", "loss", "error", "message"),
    [
        (
            {"a": 0.5, "steps": 3},
            None,
            TypeError,
            r"parameters of disc hold int.* at \['steps'\], which has no gradient",
        ),
        ({"a": 0.5, "n": jnp.array(3)}, None, TypeError, r"hold int32 at \['n'\].*equinox.partition"),
        ({"a": 0.5, "f": jnp.tanh}, None, TypeError, r"at \['f'\], which has no gradient; split it off"),
        (
            {"a": 0.5},
            lambda d, g, b: jnp.ones(2) * d["a"],
            ValueError,
            r"is float32 of shape \(2,\); it must",
        ),
        (
            {"a": 0.5},
            lambda d, g, b: (d["a"], 1),
            ValueError,
            "loss of disc returns a pair, and the game has has_aux=False; with has_aux=True",
        ),
        ({"a": 0.5}, lambda d, g, b: 0, ValueError, "loss of disc is int; it must be a real scalar"),
        ({"a": 0.5}, lambda d, g, b: d["a"] * 1j, ValueError, "loss of disc is complex64"),
    ],
)
def test_what_has_no_gradient_is_refused_with_the_way_out(params, loss, error, message):
    game = Game(loss or (lambda d, g, b: d["a"] * g), lambda d, g, b: g)
    with pytest.raises(error, match=message):
        game.gradients((params, 0.3), None)
    with pytest.raises(error, match=message):
        measure_drift(game, (params, 0.3), None, (0.1, 0.1))


def test_a_loss_without_its_aux_is_refused():
    game = Game(lambda d, g, b: (d * g, None), lambda d, g, b: -d * g, has_aux=True)
    with pytest.raises(ValueError, match=r"loss of gen returns float32 of shape \(\), and .* has_aux=True;"):
        game.gradients((0.5, 0.3), None)


def test_complex_parameters_are_their_real_and_imaginary_parts(x64):
    def loss_disc(d, g, b):
        return (jnp.abs(d * g - 1) ** 2).sum() + (d.real**3 + 0.3 * d.imag * d.real**2).sum()

    def loss_gen(d, g, b):
        return -(jnp.abs(d * g - 1) ** 2).sum() + (g.imag**2 * g.real).sum()

    def halves(z):
        return jnp.stack([z.real, z.imag])

    def whole(x):
        return x[0] + 1j * x[1]

    params = jnp.array([0.3 + 0.5j, -0.2 + 0.1j]), jnp.array([0.7 - 0.4j, 0.1 + 0.9j])
    real = tuple(map(halves, params))
    case = Case(*real, None, *(lambda d, g, b, f=f: f(whole(d), whole(g), b) for f in (loss_disc, loss_gen)))
    game, rates = Game(loss_disc, loss_gen), (0.1, 0.05)
    expected = nested(case, TERMS)
    for player in (0, 1):  # jax.grad returns the conjugate
        found = game.gradients(params, None, TERMS)[player].conj()
        np.testing.assert_allclose(halves(found), expected[player], rtol=1e-12)
    moved = step_map(game, rates, coefficients=TERMS)(params)
    flow = modified_flow(game, Drift.of(rates))(params)
    for player, rate in enumerate(rates):
        np.testing.assert_allclose(halves(moved[player]), real[player] - rate * expected[player], rtol=1e-12)
        drifted = nested(case, Drift.of(rates).coefficients)[player]
        np.testing.assert_allclose(halves(flow[player]), -rate * drifted, rtol=1e-12)
    seen = measure_drift(game, params, None, rates).total
    split = measure_drift(Game(case.loss_disc, case.loss_gen), real, None, rates).total
    np.testing.assert_allclose(
        [seen.self_term, seen.interaction, seen.error], [split.self_term, split.interaction, split.error]
    )
    with pytest.raises(TypeError, match="jacobian needs real parameters"):
        jacobian(modified_flow(game, Drift.of(rates)), params)


def test_a_game_of_nothing_has_no_drift():
    game = Game(lambda d, g, b: jnp.zeros(()), lambda d, g, b: jnp.zeros(()))
    assert game.gradients(({}, {}), None, TERMS) == ({}, {})
    report = measure_drift(game, ({"a": 0.0}, {}), None, (0.1, 0.1))
    assert (report.total.error, report.total.self_share, report.players[1].step) == (0.0, 0.0, 0.0)
