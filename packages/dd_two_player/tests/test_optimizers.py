import re

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from dd_two_player.gans.optimizers import OPTIMIZERS, make_optimizer, make_schedule
from dd_two_player.runge_kutta import apply_updates


def moved(optimizer, gradients, rate=0.1):
    params, state = jnp.array([1.0, -2.0]), optimizer.init(jnp.zeros(2))
    for gradient in gradients:
        direction, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = apply_updates(params, direction, rate)
    return np.asarray(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_and_ignores_the_rate_in_its_state(name):
    gradients = [[1.0, -1.0], [0.5, -2.0]]
    slow, fast = (moved(make_optimizer(name), gradients, rate) for rate in (0.1, 0.2))
    start = np.array([1.0, -2.0])
    np.testing.assert_allclose(fast - start, 2 * (slow - start), rtol=1e-5)
    assert ((slow - start) * [1, -1] < 0).all()


def test_sgd_with_momentum_and_clip():
    clipped = make_optimizer("sgd", momentum=0.5, clip=1.0)
    np.testing.assert_allclose(moved(clipped, [[4.0, 0.5], [0.0, 0.0]]), [1 - 0.15, -2 - 0.075], rtol=1e-6)


def test_plain_sgd_stores_nothing():
    assert not jnp.asarray(len(make_optimizer("sgd").init(jnp.zeros(2))))


def test_adam_first_step_is_the_sign():
    np.testing.assert_allclose(moved(make_optimizer("adam"), [[3.0, -0.2]]), [0.9, -1.9], rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "rmsporp"}, "Did you mean 'rmsprop'"),
        ({"name": "chain"}, "Unknown optimizer 'chain'"),
        ({"name": "rmsprop", "options": {"beta": 1}}, "rmsprop does not take"),
        ({"name": "sgd", "options": {"beta": 1}}, "sgd has no options beta"),
        ({"name": "no_module:here"}, "optimizer 'no_module:here' is not there"),
        ({"name": "sgd", "momentum": 1.0}, "momentum is 1.0; it must be in"),
        ({"name": "adam", "b1": 2.0}, "b1 is 2.0; it must be in"),
        ({"name": "adam", "b2": float("nan")}, "b2 is nan; it must be in"),
        ({"name": "builtins:dict"}, "builtins:dict returns a dict, no transformation of optax"),
        ({"name": "sgd", "clip": 0.0}, "clip is 0.0; it must be positive"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_optimizer(**kwargs)


def test_schedule_entries_are_checked():
    with pytest.raises(ValueError, match=r"schedule entry 5: -1\.0 needs"):
        make_schedule({5: -1.0})


@pytest.mark.parametrize(
    ("name", "options"),
    [("rmsprop", {"decay": 0.8}), ("optimistic_adam", {}), ("adamw", {"weight_decay": 0.1})],
)
def test_any_optimiser_of_optax_moves_as_optax_says(name, options):
    gradients = [[3.0, -0.2], [1.0, 0.4], [0.5, 0.1]]
    params, theirs = jnp.array([1.0, -2.0]), getattr(optax, name)(learning_rate=0.1, **options)
    state = theirs.init(params)
    for gradient in gradients:
        updates, state = theirs.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved(make_optimizer(name, options=options), gradients), params, rtol=1e-5)


def test_what_needs_the_loss_is_no_direction():
    with pytest.raises(ValueError, match="Unknown optimizer 'lbfgs'"):
        make_optimizer("lbfgs")


@pytest.mark.parametrize("name", ["fromage", "optax.contrib:schedule_free_sgd"])
def test_what_is_not_proportional_to_its_rate_is_no_direction(name):
    """At rate r, schedule-free descent of rate 1 times r is another method: its state moves with rate 1."""
    with pytest.raises(ValueError, match=f"the updates of optimizer {name} are not proportional"):
        make_optimizer(name).init({"w": jnp.ones((2, 3))})


def test_own_optimisers_of_a_tree_of_parameters_under_jit():
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    ours, theirs = make_optimizer("optax.contrib:muon"), optax.contrib.muon(0.1)
    direction = ours.update(params, jax.jit(ours.init)(params), params)[0]
    expected = theirs.update(params, theirs.init(params), params)[0]
    np.testing.assert_allclose(-0.1 * direction["w"], expected["w"], rtol=1e-5)
