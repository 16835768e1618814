import jax.numpy as jnp
import numpy as np
import optax

from eigengame import reference
from eigengame.core import mu_direction, utilities


def test_one_player_at_a_time_equals_all_at_once(x64, golden):
    V, X, weights = (jnp.asarray(golden[name]) for name in ("V0", "X", "weights"))
    ours = [reference.eg_grads(V[i], weights[i], V, X[0]) for i in range(4)]
    np.testing.assert_allclose(ours, golden["mu_grads_sum"], rtol=1e-10)
    np.testing.assert_allclose(ours, mu_direction(V, X[0], reduction="sum"), rtol=1e-10)


def test_utility_is_the_alpha_one_and_a_scalar(x64, golden):
    V, X, weights = (jnp.asarray(golden[name]) for name in ("V0", "X", "weights"))
    ours = jnp.stack([reference.utility(V[i], weights[i], V, X[0]) for i in range(4)])
    assert ours.shape == (4,)
    np.testing.assert_allclose(ours, golden["seed_utilities_sum"], rtol=1e-10)
    np.testing.assert_allclose(ours, utilities(V, X[0], "alpha", reduction="sum"), rtol=1e-10)


def test_the_gradient_uses_its_argument(x64, golden):
    V, X, weights = (jnp.asarray(golden[name]) for name in ("V0", "X", "weights"))
    moved = V.at[0].set(V[1])
    assert not np.allclose(
        reference.eg_grads(V[3], weights[3], moved, X[0]), reference.eg_grads(V[3], weights[3], V, X[0])
    )


def test_experiment_follows_the_golden_trajectory(x64, golden):
    optimizer = optax.sgd(float(golden["lr"]), momentum=0.9, nesterov=True)
    experiment = reference.Experiment(4, 12, optimizer=optimizer)
    experiment.init(V=jnp.asarray(golden["V0"]))
    for t, batch in enumerate(golden["X"]):
        values = experiment.step(inputs=jnp.asarray(batch)[None])
        np.testing.assert_allclose(values, golden["util_steps_sum"][t], rtol=1e-10)
        np.testing.assert_allclose(experiment.vectors, golden["V_steps_sum"][t], atol=1e-9)


def test_weights_are_golden(golden):
    np.testing.assert_array_equal(reference.player_weights(4), golden["weights"])
