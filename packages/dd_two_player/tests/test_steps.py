import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dd_two_player.drift import Coefficients, PlayerTerms
from dd_two_player.gans import losses
from dd_two_player.gans.model import Batch, Gan, GanState
from dd_two_player.gans.networks import Network, build_discriminator, build_generator
from dd_two_player.gans.optimizers import make_optimizer, make_schedule
from dd_two_player.gans.steps import (
    Hyperparameters,
    TrainState,
    UpdateRule,
    draw_latents,
    init_train_state,
    make_step,
)
from dd_two_player.regularization import Regularization

SGD = (make_optimizer("sgd"), make_optimizer("sgd"))


def golden_gan(small):
    network = Network(lambda key, x: None, lambda params, state, x, training: (small.mlp(params, x), state))
    return Gan(network, network, losses.discriminator_goodfellow_loss, losses.generator_saturating_loss, 3)


def start(small, optimizers=SGD):
    params = small.params()
    opt = tuple(o.init(p) for o, p in zip(optimizers, params, strict=True))
    return TrainState(params, GanState({}, {}, {}), opt, jnp.zeros((), jnp.int32), jax.random.key(0))


def rows(array):
    return Coefficients(*(PlayerTerms(*map(float, row)) for row in array))


@pytest.mark.parametrize("i", range(3))
def test_golden_short_trainings(small, i):
    golden = small.golden
    setting = golden[f"train/{i}/setting"]
    multiplier = rows(golden[f"train/{i}/dd_multiplier"])
    rule = UpdateRule(
        "simultaneous" if setting[4] else "alternating",
        (int(setting[2]), int(setting[3])),
        ("disc", "gen")[int(setting[5])],
        convention="original",
        mask=Regularization(multiplier).mask(),
    )
    optimizers = (make_optimizer(str(golden[f"train/{i}/optimizer"])),) * 2
    step = jax.jit(make_step(golden_gan(small), rule, optimizers))
    state = start(small, optimizers)
    hyper = Hyperparameters((float(setting[0]), float(setting[1])), multiplier)
    x, z = golden[f"train/{i}/x"], golden[f"train/{i}/z"]
    width = rule.batches_per_step
    for n in range(int(setting[6])):
        part = slice(n * width, (n + 1) * width)
        state, _ = step(state, hyper, Batch(jnp.asarray(x[part]), jnp.asarray(z[part])))
    for player, params in zip(("disc", "gen"), state.params, strict=True):
        small.assert_tree(params, f"train/{i}/final/{player}")


@pytest.mark.parametrize("order", [1, 2, 4])
def test_golden_runge_kutta(small, order):
    golden, rate = small.golden, float(small.golden[f"rk{order}/step_size"])

    def interleaved(name):
        both = np.stack([golden[f"rk{order}/{name}_disc"], golden[f"rk{order}/{name}_gen"]], 1)
        return jnp.asarray(both.reshape(-1, *both.shape[2:]))

    step = jax.jit(make_step(golden_gan(small), UpdateRule("runge_kutta", rk_order=order), SGD))
    moved, _ = step(start(small), Hyperparameters((rate, rate)), Batch(interleaved("x"), interleaved("z")))
    for player, before, after in zip(("disc", "gen"), small.params(), moved.params, strict=True):
        gradient = jax.tree.map(lambda a, b: (a - b) / rate, before, after)
        small.assert_tree(gradient, f"rk{order}/grad/{player}")


def toy_gan(**kwargs):
    return Gan(
        build_discriminator("MLP", (8,)),
        build_generator("PointMLP", (2,), (8,)),
        losses.discriminator_goodfellow_loss,
        losses.generator_saturating_loss,
        num_latents=3,
        **kwargs,
    )


def data(rule, size=8, seed=0):
    return jax.random.normal(jax.random.key(seed), (rule.batches_per_step, size, 2))


def test_runge_kutta_orders(small):
    """Global error over a fixed horizon on a fixed batch, against much finer classical steps."""
    gan, batch = golden_gan(small), Batch(small.batch()["x"][None], small.batch()["z"][None])

    def integrator(order):
        step = make_step(
            gan, UpdateRule("runge_kutta", (1, 1), "disc", order, shared_batch=True, fresh_stages=False), SGD
        )

        @jax.jit
        def run(steps):
            hyper = Hyperparameters((2.0 / steps, 1.5 / steps))
            return jax.lax.fori_loop(0, steps, lambda _, s: step(s, hyper, batch)[0], start(small)).params

        return lambda steps: np.concatenate([np.ravel(a) for a in jax.tree.leaves(run(steps))])

    runs = {order: integrator(order) for order in (1, 2, 4)}
    exact = runs[4](128)
    for order, run in runs.items():
        errors = [np.linalg.norm(run(n) - exact) for n in (8, 16)]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


RULES = {
    "simultaneous": UpdateRule(),
    "shared": UpdateRule(shared_batch=True),
    "alternating": UpdateRule("alternating", (2, 1), "gen"),
    "rk2": UpdateRule("runge_kutta", rk_order=2),
    "rk4-same": UpdateRule("runge_kutta", fresh_stages=False, shared_batch=True),
    "two": UpdateRule(estimator="two_data_estimate_grad_fn"),
}


@pytest.mark.parametrize(("name", "batches"), zip(RULES, (2, 1, 3, 4, 1, 4), strict=True))
def test_batches_per_step(name, batches):
    assert RULES[name].batches_per_step == batches


def test_changing_values_does_not_retrace_and_a_step_is_deterministic():
    gan = toy_gan(spectral_norm="apply")
    recipe = Regularization.cancel_and_strengthen()
    rule = UpdateRule(mask=recipe.mask(), estimator="unbiased_estimate_fn_lowest_variance")
    traces = []
    inner = make_step(gan, rule, SGD)

    @jax.jit
    def step(*arguments):
        traces.append(1)
        return inner(*arguments)

    state = init_train_state(gan, SGD, jax.random.key(0), data(rule)[0])
    batch = draw_latents(state.key, state.step, data(rule), 3)
    moved = [
        step(state, Hyperparameters((r, 0.1), recipe.dd_coeffs_multiplier), batch)[0].params[0]
        for r in (0.1, 0.2, 0.1)
    ]
    assert len(traces) == 1
    first, other, again = (np.concatenate([np.ravel(a) for a in jax.tree.leaves(m)]) for m in moved)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, again)


def test_losses_advance_their_own_spectral_vectors_only():
    gan = toy_gan(spectral_norm="apply")
    state = init_train_state(gan, SGD, jax.random.key(0), data(UpdateRule())[0])
    batch = jax.tree.map(lambda a: a[0], draw_latents(state.key, state.step, data(UpdateRule()), 3))
    _, after_gen = gan.gen_loss(*state.params, batch, state.state)
    _, after_disc = gan.disc_loss(*state.params, batch, state.state)
    jax.tree.map(np.testing.assert_array_equal, after_gen.spectral, state.state.spectral)
    path = next(iter(state.state.spectral))
    assert not np.array_equal(after_disc.spectral[path]["u0"], state.state.spectral[path]["u0"])


def test_drift_coefficients_follow_the_rate_schedule():
    """At a factor of two the cancelled step equals the one at twice the rates."""
    gan, recipe = toy_gan(), Regularization.cancel_interaction()
    rule = UpdateRule(mask=recipe.mask())
    state = init_train_state(gan, SGD, jax.random.key(0), data(rule)[0])
    batch = draw_latents(state.key, state.step, data(rule), 3)

    def params(rates, schedule):
        hyper = Hyperparameters(rates, recipe.dd_coeffs_multiplier)
        return jax.jit(make_step(gan, rule, SGD, rate_schedule=schedule))(state, hyper, batch)[0].params

    scheduled = params((0.1, 0.2), make_schedule({0: 2.0}))
    direct = params((0.2, 0.4), None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), scheduled, direct)


def test_regularisers_after_the_stages_add_once():
    gan = toy_gan()
    recipe = Regularization.sga(0.3)
    plain_rule = UpdateRule("runge_kutta", rk_order=1)
    after_rule = UpdateRule("runge_kutta", rk_order=1, after_mask=recipe.mask())
    inside_rule = UpdateRule("runge_kutta", rk_order=1, mask=recipe.mask())
    state = init_train_state(gan, SGD, jax.random.key(0), data(plain_rule)[0])
    batch = draw_latents(state.key, state.step, data(plain_rule)[:1].repeat(2, 0), 3)
    batch = jax.tree.map(lambda a: a[:1].repeat(2, 0), batch)
    terms = recipe.explicit_non_dd_coeffs
    after = jax.jit(make_step(gan, after_rule, SGD))(
        state, Hyperparameters((0.1, 0.1), after_explicit=terms), batch
    )[0]
    inside = jax.jit(make_step(gan, inside_rule, SGD))(
        state, Hyperparameters((0.1, 0.1), explicit=terms), batch
    )[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.params, inside.params
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scheme": "rk4"}, "scheme is 'rk4'; allowed: simultaneous, alternating, runge_kutta."),
        ({"num_updates": (2, 1)}, "simultaneous updates take one update per player and step"),
        ({"scheme": "runge_kutta", "rk_order": 3}, "rk_order is 3; allowed: 1, 2, 4."),
        ({"estimator": "biased"}, "estimator is 'biased'; allowed: biased_estimate_grad_fn"),
        (
            {"after_mask": Regularization.sga(1.0).mask()},
            "rk_after_explicit_coeffs needs the scheme runge_kutta",
        ),
    ],
)
def test_bad_rules(kwargs, message):
    with pytest.raises(ValueError, match=message):
        UpdateRule(**kwargs)


def spectral_field(params, vectors, batch):
    """Gradients of both losses, weights divided by the estimate of one fixed ``u0``, written out."""

    def normalised(disc):
        def divide(path, weight):
            if weight.ndim < 2 or weight.size == weight.shape[-1]:
                return weight
            v = vectors[jax.tree_util.keystr(path)]["u0"] @ weight.T
            v = v / jnp.linalg.norm(v)
            u = v @ weight / jnp.linalg.norm(v @ weight)
            return weight / (jax.lax.stop_gradient(v) @ weight @ jax.lax.stop_gradient(u).T)[0, 0]

        return jax.tree_util.tree_map_with_path(divide, disc)

    gan = toy_gan()
    states = gan.init(jax.random.key(0), batch.data)[1]

    def loss_disc(disc, gen):
        return gan.disc_loss(normalised(disc), gen, batch, states)[0]

    def loss_gen(disc, gen):
        return gan.gen_loss(normalised(disc), gen, batch, states)[0]

    return jax.grad(loss_disc, 0)(*params), jax.grad(loss_gen, 1)(*params)


def moved_by(params, slopes, rates):
    return tuple(
        jax.tree.map(lambda x, g, r=r: x - r * g, p, s) for p, s, r in zip(params, slopes, rates, strict=True)
    )


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("shared_rate", [False, True])
def test_runge_kutta_sees_one_state_and_keeps_that_of_its_first_stage(x64, order, shared_rate):
    """As published: all stages share the spectral vectors of the start, which advance once per step."""
    gan, rates = toy_gan(spectral_norm="apply"), (0.4, 0.9)
    rule = UpdateRule(
        "runge_kutta", rk_order=order, shared_batch=True, fresh_stages=False, shared_rate=shared_rate
    )
    state = init_train_state(gan, SGD, jax.random.key(3), data(rule)[0])
    batches = draw_latents(state.key, state.step, data(rule), 3)
    moved, metrics = jax.jit(make_step(gan, rule, SGD))(state, Hyperparameters(rates), batches)

    batch, vectors = jax.tree.map(lambda a: a[0], batches), state.state.spectral
    inner = (rates[0], rates[0]) if shared_rate else rates
    slopes = []
    for node in (0.0, 1.0) if order == 2 else (0.0, 0.5, 0.5, 1.0):
        at = moved_by(state.params, slopes[-1], [node * r for r in inner]) if slopes else state.params
        slopes.append(spectral_field(at, vectors, batch))
    weights = (1 / 2, 1 / 2) if order == 2 else (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    total = jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)), *slopes)
    expected = moved_by(state.params, total, rates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), moved.params, expected)

    _, once = gan.disc_loss(*state.params, batch, state.state)
    for path, found in once.spectral.items():
        np.testing.assert_allclose(moved.state.spectral[path]["u0"], found["u0"], rtol=1e-12)
        assert float(metrics[f"singular_value{path}"]) == pytest.approx(float(found["sigma"]), rel=1e-12)


def test_each_player_is_regularised_after_the_stages_on_its_own_first_batch():
    gan, recipe = toy_gan(), Regularization.sga(0.3)
    plain, after = UpdateRule("runge_kutta"), UpdateRule("runge_kutta", after_mask=recipe.mask())
    state = init_train_state(gan, SGD, jax.random.key(0), data(plain)[0])
    batches = draw_latents(state.key, state.step, data(plain), 3)
    terms = recipe.explicit_non_dd_coeffs

    def params(rule):
        hyper = Hyperparameters((0.1, 0.1), after_explicit=terms)
        return jax.jit(make_step(gan, rule, SGD))(state, hyper, batches)[0].params

    game = gan.game(state.state, jax.random.key(0))
    for player, without, with_terms in zip((0, 1), params(plain), params(after), strict=True):
        batch = jax.tree.map(lambda a, p=player: a[p], batches)

        def norm(own, p=player, batch=batch):
            point = (own, state.params[1]) if p == 0 else (state.params[0], own)
            other = (game.loss_gen, game.loss_disc)[p]
            slope = jax.grad(other, 1 - p)(*point, batch)
            return sum((a**2).sum() for a in jax.tree.leaves(slope)) / 2

        expected = jax.grad(norm)(state.params[player])
        jax.tree.map(
            lambda a, b, e: np.testing.assert_allclose(a - b, 0.1 * 0.3 * e, rtol=2e-3, atol=1e-6),
            without,
            with_terms,
            expected,
        )


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_takes_its_number_of_batches(small, count):
    """Of too few, the last one would be read twice."""
    step = make_step(golden_gan(small), UpdateRule(), SGD)
    batches = Batch(jnp.zeros((count, 4, 2)), jnp.zeros((count, 4, 3)))
    with pytest.raises(ValueError, match=f"a step takes 2 batches along the first axis, got .{count}"):
        step(start(small), Hyperparameters((0.1, 0.1)), batches)


def test_a_spectral_norm_of_another_name_is_refused(small):
    gan = golden_gan(small)
    with pytest.raises(ValueError, match="spectral_norm is 'aply'; allowed: apply, no_op, none"):
        Gan(gan.discriminator, gan.generator, gan.loss_disc, gan.loss_gen, 3, "aply")


def test_an_optimiser_as_optax_returns_it_is_refused_and_does_not_ascend():
    for optimizer in (
        optax.adam(1e-3),
        optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(0.1)),
    ):
        with pytest.raises(ValueError, match="the optimizer of gen returns updates, a step takes directions"):
            init_train_state(toy_gan(), (SGD[0], optimizer), jax.random.key(0), data(UpdateRule())[0])
