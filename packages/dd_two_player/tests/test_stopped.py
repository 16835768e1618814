"""Losses that stop gradients: their own gradients are right, derivatives of these may not be."""

import haiku as hk
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
from dd_two_player.stopped import held_constant

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


def through(name):
    """Return ``x`` behind a stop that stands inside of something."""
    return {
        "plain": stop,
        "jit": jax.jit(stop),
        "checkpoint": lambda x: jax.checkpoint(lambda y: jnp.sin(stop(y)))(jnp.arcsin(x)),
        "vmap": lambda x: jax.vmap(stop)(x[None])[0],
        "scan": lambda x: jax.lax.scan(lambda c, y: (c + stop(x) * y, None), 0.0, jnp.full(4, 0.25))[0],
        "while": lambda x: jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, stop(x)), (0, x))[1],
        "cond": lambda x: jax.lax.cond(x > -9.0, stop, lambda y: y, x),
        "custom_jvp": lambda x: jax.nn.relu(stop(x)),
        "inner gradient": lambda x: jax.grad(lambda y: y * stop(x))(1.0),
    }[name]


INSIDE = "plain", "jit", "checkpoint", "vmap", "scan", "while", "cond", "custom_jvp", "inner gradient"
BOTH = Regularization.cancel_interaction().coefficients(Drift.of((0.2, 0.2)).coefficients)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", INSIDE)
def test_a_stop_in_one_term_of_a_loss_and_not_in_another_is_refused(name, jitted):
    """By hand: the field is (3 g, -d) and its mixed derivative 3, where autodiff sees the 1 of the critic."""
    behind = through(name)
    game = Game(lambda d, g, b: d * g + 2.0 * d * behind(g), lambda d, g, b: -d * g)
    at = (jnp.float32(2.0), jnp.float32(0.5))
    find = lambda p: game.gradients(p, None, BOTH)  # noqa: E731
    with pytest.raises(ValueError, match="loss of disc uses gen behind stop_gradient"):
        (jax.jit(find) if jitted else find)(at)
    plain = game.gradients(at, None)
    assert [float(x) for x in plain] == pytest.approx([1.5, -2.0])


def test_the_drift_of_the_same_game_without_stop_is_that_of_hand():
    game = Game(lambda d, g, b: 3.0 * d * g, lambda d, g, b: -d * g)
    found = game.gradients((2.0, 0.5), None, BOTH)
    # rate / 2 times J_DG u_G = 3 * -2 and J_GD u_D = -1 * 1.5: what cancels adds them with the sign turned
    extra = [float(x) - y for x, y in zip(found, (1.5, -2.0), strict=True)]
    assert [abs(e) for e in extra] == pytest.approx([0.6, 0.15], rel=1e-5)


def test_a_gradient_penalty_whose_points_are_stopped_is_refused_and_trains_plainly():
    """WGAN-GP: the critic sees the generator, the penalty sees its samples stopped."""

    def critic(disc, x):
        return jnp.tanh(x @ disc["w"]) * disc["v"]

    def losses(held):
        def disc_loss(disc, gen, batch):
            slope = jax.grad(critic, 1)
            points = 0.5 * (batch + held(made(gen)))
            norms = jnp.linalg.norm(jax.vmap(slope, (None, 0))(disc, points), axis=1)
            return (critic(disc, made(gen)) - critic(disc, batch)).mean() + ((norms - 1.0) ** 2).mean()

        return disc_loss, lambda disc, gen, batch: -critic(disc, made(gen)).mean()

    params = (PARAMS[0] | {"v": jnp.float32(0.7)}, PARAMS[1])
    cheap, whole = (Game(*losses(held)) for held in (stop, lambda x: x))
    with pytest.raises(ValueError, match=r"loss of disc uses gen\['scale'\] behind stop_gradient in some"):
        cheap.gradients(params, BATCH, TERMS)
    with pytest.raises(ValueError, match="behind stop_gradient"):
        measure_drift(cheap, params, BATCH, RATES)
    # the generator's terms need the discriminator's derivative, which is whole
    only = PlayerTerms(False, False, True)
    game = cheap, whole
    one, other = (g.player_gradient("gen", params, BATCH, TERMS.gen, mask=only) for g in game)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)
    one, other = (g.gradients(params, BATCH) for g in game)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)
    assert np.isfinite(measure_drift(whole, params, BATCH, RATES).total.error)


def test_a_players_own_parameters_behind_a_stop_are_refused_only_where_its_self_term_needs_them():
    """By hand: of ``d stop(d)`` the gradient is d, and its derivative 1; autodiff says 0."""
    game = Game(lambda d, g, b: d * stop(d) + d * g, lambda d, g, b: -d * g)
    at = (jnp.float32(2.0), jnp.float32(0.5))
    found = game.gradients(at, None, BOTH)
    # J_DG u_G = -2 and J_GD u_D = -2.5, times rate / 2
    assert [float(x) for x in found] == pytest.approx([2.5 + 0.2, -2.0 + 0.25], rel=1e-5)
    every = Regularization.cancel_and_strengthen().coefficients(Drift.of((0.2, 0.2)).coefficients)
    for tool in (
        lambda: game.gradients(at, None, every),
        lambda: jacobian(modified_field(game), at),
        lambda: measure_drift(game, at, None, RATES),
    ):
        with pytest.raises(ValueError, match="loss of disc uses disc behind stop_gradient"):
            tool()


def own_softmax(x):
    powers = jnp.exp(x - stop(x.max(-1, keepdims=True)))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("softmax", [jax.nn.softmax, own_softmax])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_stop_that_makes_no_difference_passes(jitted, scale, softmax):
    """The largest entry is stopped in softmax and logsumexp; a term of one player moves no other."""

    def loss(disc, gen, batch):
        logits = scale * jnp.outer(batch[:, 0], disc["w"]) + made(gen)
        attention = softmax(logits @ logits.T)
        known = jax.nn.logsumexp(attention @ logits, axis=1) - jax.nn.log_softmax(logits)[:, 0]
        return known.mean() + stop(gen["shift"] ** 2).sum()

    def by_hand(disc, gen, batch):
        logits = scale * jnp.outer(batch[:, 0], disc["w"]) + made(gen)
        weights = jnp.exp(logits @ logits.T)
        attention = weights / weights.sum(1, keepdims=True)
        known = jnp.log(jnp.exp(attention @ logits).sum(1)) - jnp.log(
            jnp.exp(logits)[:, 0] / jnp.exp(logits).sum(1)
        )
        return known.mean()

    def find(loss):
        game = Game(loss, lambda *a: -loss(*a))
        tool = lambda p, b: game.gradients(p, b, TERMS)  # noqa: E731
        return (jax.jit(tool) if jitted else tool)(PARAMS, BATCH)

    found = find(loss)
    if scale == 1.0:  # exponentials by hand overflow at the other
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, find(by_hand))


def test_of_jaxs_own_functions_nothing_is_computed(monkeypatch):
    """Their stops are known to make no difference: no second compilation for a network with attention."""
    monkeypatch.setattr("dd_two_player.stopped._drawn", lambda *_: pytest.fail("numbers were drawn"))
    loss = lambda d, g, b: (jax.nn.softmax(d * g * b) * jax.nn.log_softmax(b)).sum()  # noqa: E731
    game = Game(loss, lambda d, g, b: jax.nn.logsumexp(d * g * b))
    assert np.isfinite(game.gradients((2.0, 0.5), jnp.arange(3.0), BOTH)).all()


def test_losses_that_look_at_their_types_are_compared_in_these():
    """By hand: the terms add rate / 2 times J_DG u_G = 2 and J_GD u_D = 0.5, as without a look."""
    weights = {"float32": 1.0}

    def plain(d, g, b):
        assert g.dtype == jnp.float32
        return d * g * weights[g.dtype.name]

    at = (jnp.float32(2.0), jnp.float32(0.5))
    found = Game(plain, lambda *a: -plain(*a)).gradients(at, None, BOTH)
    assert [float(x) for x in found] == pytest.approx([0.5 + 0.1 * 2.0, -2.0 + 0.1 * 0.5], rel=1e-5)
    half_stopped = lambda d, g, b: plain(d, g, b) + d * stop(g)  # noqa: E731
    with pytest.raises(ValueError, match="uses gen behind stop_gradient in some"):
        Game(half_stopped, lambda *a: -plain(*a)).gradients(at, None, BOTH)


def test_a_random_loss_is_looked_at_inside_of_a_compiled_step_and_its_log_stays_empty():
    """Keys and closures may be traced; numbers that are drawn for the comparison reach no callback."""
    logged = []

    def loss(disc, gen, batch):
        noise = jax.random.normal(batch["key"], ()) + batch["scale"]
        jax.debug.callback(lambda x: logged.append(float(x)), disc)
        return disc * gen * jax.nn.softmax(jnp.array([disc, gen]))[0] + disc * noise * stop(noise)

    game = Game(loss, lambda d, g, b: -d * g)

    @jax.jit
    def step(params, key, scale):
        return jax.vmap(lambda s: game.gradients(params, {"key": key, "scale": s}, BOTH))(scale)

    found = step((jnp.float32(2.0), jnp.float32(0.5)), jax.random.key(3), jnp.ones(2))
    jax.effects_barrier()
    assert np.isfinite(found[0]).all()
    assert logged
    assert set(logged) == {2.0}


def test_what_is_held_constant_on_purpose_passes():
    game = Game(lambda d, g, b: d * g * held_constant(g), lambda d, g, b: -d * g)
    # autodiff of g c: J_DG = c = 0.5, times u_G = -2 and rate / 2; the field itself is g^2
    assert float(game.gradients((2.0, 0.5), None, BOTH)[0]) == pytest.approx(0.25 + 0.1 * 0.5 * 2.0, rel=1e-5)


def test_the_vectors_of_haikus_spectral_norm_are_state():
    """Compared with the same network whose two vectors are given as numbers."""

    def network(x):
        w = hk.get_parameter("w", [2, 3], init=hk.initializers.RandomNormal())
        return jnp.tanh(x @ hk.SpectralNorm(eps=1e-12)(w)).sum(1)

    net = hk.transform_with_state(network)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    disc, state = net.init(jax.random.key(1), x)
    u64, w64 = np.asarray(state["spectral_norm"]["u0"], float), np.asarray(disc["~"]["w"], float)
    v64 = u64 @ w64.T / np.linalg.norm(u64 @ w64.T)
    u64 = v64 @ w64 / np.linalg.norm(v64 @ w64)

    def by_layer(disc, x):
        return net.apply(disc, state, None, x)[0].mean()

    def by_hand(disc, x):
        w = disc["~"]["w"]
        return jnp.tanh(x @ (w / (v64 @ w @ u64.T)[0, 0])).sum(1).mean()

    found = []
    for critic in (by_layer, by_hand):
        game = Game(
            lambda d, g, b, c=critic: c(d, made(g)) - c(d, b), lambda d, g, b, c=critic: -c(d, made(g))
        )
        found.append(game.gradients((disc, PARAMS[1]), x, TERMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), *found)
