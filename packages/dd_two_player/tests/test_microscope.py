import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player import DriftMicroscope, Game, measure_drift
from dd_two_player.flows import discrete_path, integrate, modified_field, step_map

pytestmark = pytest.mark.usefixtures("x64")
SCHEMES = [
    {},
    {"scheme": "alternating", "num_updates": (2, 1)},
    {"scheme": "alternating", "first": "gen"},
]


def sizes(report, name):
    return np.array([getattr(row, name) for row in (report.total, *report.players)])


@pytest.mark.parametrize("options", SCHEMES)
def test_on_a_network_the_error_is_of_order_2_and_of_order_3_without_the_measured_terms(small, options):
    game, params, batch = Game(*small.losses("nonsat")), small.params(), small.batch()
    rates = np.array([0.02, 0.01, 0.005])
    reports = [measure_drift(game, params, batch, (h, 0.5 * h), **options) for h in rates]

    def orders(name):
        return np.polyfit(np.log(rates), np.log([sizes(r, name) for r in reports]), 1)[0]

    np.testing.assert_allclose(orders("error"), 2, atol=0.15)
    assert (orders("residual") > 2.8).all()
    for row in (reports[-1].total, *reports[-1].players):
        assert row.self_share + row.interaction_share == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("options", SCHEMES)
def test_the_error_is_that_of_the_step_against_the_integrated_flow(small, options):
    """Another way: an adaptive method of order 8 instead of three stages; they differ by order 4."""
    game, params, batch, rates = Game(*small.losses("zerosum")), small.params(), small.batch(), (0.01, 0.02)
    updates = options.get("num_updates", (1, 1))
    end = discrete_path(step_map(game, rates, batch=batch, **options), params, 1)[-1]
    clock = tuple(n * r for n, r in zip(updates, rates, strict=True))
    flow = integrate(modified_field(game, rates=clock, batch=batch), params, [1.0])[-1]
    report = measure_drift(game, params, batch, rates, **options)
    assert report.total.error == pytest.approx(np.linalg.norm(end - flow), rel=1e-3)
    start = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert report.total.step == pytest.approx(np.linalg.norm(end - start), rel=1e-9)


def test_terms_are_those_of_dense_second_derivatives(small):
    game, params, batch, rates = Game(*small.losses("zerosum")), small.params(), small.batch(), (0.1, 0.3)
    flat = [jax.flatten_util.ravel_pytree(side) for side in params]

    def field(x, y):
        pair = game.gradients((flat[0][1](x), flat[1][1](y)), batch)
        return tuple(-jax.flatten_util.ravel_pytree(side)[0] for side in pair)

    at = (flat[0][0], flat[1][0])
    (ff, fg), (gf, gg) = (jax.jacobian(lambda *z, i=i: field(*z)[i], (0, 1))(*at) for i in (0, 1))
    f, g = field(*at)
    a, b = rates  # simultaneous, joint time: half the square of a player's own rate, half the product
    expected = {
        "self_term": (a * a / 2 * ff @ f, b * b / 2 * gg @ g),
        "interaction": (a * b / 2 * fg @ g, a * b / 2 * gf @ f),
    }
    report = measure_drift(game, params, batch, rates)
    for name, vectors in expected.items():
        found = [getattr(row, name) for row in report.players]
        np.testing.assert_allclose(found, [jnp.linalg.norm(v) for v in vectors], rtol=1e-9)
    cosine = -(expected["self_term"][0] @ f) / (
        jnp.linalg.norm(expected["self_term"][0]) * jnp.linalg.norm(f)
    )
    assert report.players[0].self_cosine == pytest.approx(float(cosine), rel=1e-9)


def test_layers_add_up_and_the_report_is_a_frozen_table(small):
    params = tuple({"first": side, "empty": {}, "none": None} for side in small.params())
    losses = [lambda d, g, b, f=f: f(d["first"], g["first"], b) for f in small.losses("square")]
    report = measure_drift(Game(*losses), params, small.batch(), (0.1, 0.1))
    for name in ("step", "self_term", "interaction", "error", "residual"):
        parts = [getattr(row, name) for row in report.layers]
        assert np.linalg.norm(parts) == pytest.approx(getattr(report.total, name), rel=1e-9)
    assert [row["layer"] for row in report.to_dict()] == ["['first']", "['first']", "all", "all", "all"]
    assert report.summary().count("\n") == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.total = None


def test_half_precision_measures_sizes_without_overflow():
    game = Game(lambda p, t, _: (p * t).sum() * 300, lambda p, t, _: -(p * t).sum() * 300)
    pair = (jnp.ones(4, jnp.float16), jnp.ones(4, jnp.float16))
    report = measure_drift(game, pair, None, (0.1, 0.1))
    assert report.players[0].interaction == pytest.approx(2 * (0.1 * 300) ** 2 / 2, rel=2e-3)


def test_callback_keeps_what_it_measures():
    game = Game(lambda p, t, _: p * t, lambda p, t, _: -p * t)
    seen = DriftMicroscope(game, (0.1, 0.1), every=2, options={"scheme": "alternating"})
    for step in range(4):
        seen(step, (1.0, 1.0 + step), None)
    assert list(seen.reports) == [0, 2]
    assert {row["at"] for row in seen.to_dict()} == {0, 2}


@pytest.mark.parametrize("scale", [1e-12, 1e14])
def test_sizes_whose_squares_leave_single_precision(scale):
    """``L_D = s (phi theta + phi^2)``, ``L_G = -s phi theta``: halves of Hessians times gradients."""
    game = Game(lambda p, t, b: scale * (p * t + p**2), lambda p, t, b: -scale * p * t)
    with jax.enable_x64(False):
        found = measure_drift(game, (1.0, 1.0), None, (1e-4, 1e-4)).total
    unit = (1e-4 * scale) ** 2
    assert found.self_term == pytest.approx(3 * unit, rel=1e-5, abs=0)
    assert found.interaction == pytest.approx(np.hypot(0.5, 1.5) * unit, rel=1e-5, abs=0)


@pytest.mark.parametrize("player", [0, 1])
def test_a_loss_that_is_no_number_has_no_drift_though_its_gradients_are_numbers(player):
    losses = [lambda p, t, b: p * t, lambda p, t, b: -p * t]
    whole = losses[player]
    losses[player] = lambda p, t, b: whole(p, t, b) + jnp.where(p > 5, 0.0, jnp.nan)
    game = Game(*losses)
    assert np.isfinite(game.gradients((1.0, 1.0), None)).all()
    report = measure_drift(game, (1.0, 1.0), None, (0.1, 0.1))
    assert np.isnan(
        [row[name] for row in report.to_dict() for name in ("step", "interaction", "error")]
    ).all()
    assert report.summary().startswith("no drift: the losses are ")
    assert np.isnan(report.losses[player])
    assert report.losses[1 - player] == (-1, 1)[player]


def test_a_pair_may_be_a_list_and_no_numbers_are_no_zeros():
    game = Game(lambda p, t, b: p * t + p**2, lambda p, t, b: -p * t)
    assert measure_drift(game, [1.0, 1.0], None, (0.1, 0.1)) == measure_drift(
        game, (1.0, 1.0), None, (0.1, 0.1)
    )
    lost = measure_drift(game, (np.nan, 1.0), None, (0.1, 0.1)).total
    assert np.isnan([lost.self_cosine, lost.self_share, lost.interaction_share]).all()
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda p: measure_drift(game, p, None, (0.1, 0.1)).total.step)((1.0, 1.0))
    for every in (0, 2.5, "2"):
        with pytest.raises(ValueError, match=f"every is {every!r}; pass a whole number"):
            DriftMicroscope(game, (0.1, 0.1), every=every)


def test_half_precision_is_measured_in_single():
    """Its points would be rounded by more than the drift."""

    def loss(p, t, b):
        return jnp.sum(jnp.sin(p * t) + p**2)

    game, at = Game(loss, lambda p, t, b: -loss(p, t, b)), np.array([0.5, -0.25, 0.75])
    single, half = (
        measure_drift(game, (jnp.asarray(at, t), jnp.asarray(at, t)), None, (0.01, 0.01)).total
        for t in (jnp.float32, jnp.bfloat16)
    )
    assert half.error == pytest.approx(single.error, rel=1e-3)


def test_variables_of_flax_are_leaves_of_their_layer():
    class Variable(NamedTuple):
        """What a parameter of flax.nnx is to JAX: a node with one attribute."""

        value: jax.Array

    side = {"hidden": {"bias": Variable(jnp.ones(2)), "kernel": Variable(jnp.ones(2))}}
    game = Game(lambda p, t, b: _sum(p) * _sum(t), lambda p, t, b: -_sum(p) * _sum(t))
    report = measure_drift(game, (side, side), None, (0.1, 0.1))
    assert [layer.layer for layer in report.layers] == ["['hidden']", "['hidden']"]


def _sum(tree):
    return jax.tree.reduce(lambda total, leaf: total + leaf.sum(), tree, 0.0)
