"""The core on everything that users of JAX bring, against a sum over players and samples in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eigengame.core import (
    Config,
    alpha_direction,
    gha_direction,
    init,
    mu_direction,
    oja_direction,
    sample_steps,
    scan_steps,
    step,
    step_operator,
    utilities,
)

DIRECTIONS = {"mu": mu_direction, "alpha": alpha_direction, "gha": gha_direction, "oja": oja_direction}
SHAPES = [(1, 1, 1), (1, 5, 1), (3, 5, 1), (5, 5, 7), (3, 40, 8), (4, 4, 1)]


def oracle(name, V, X):
    """One player at a time, one parent at a time, from the definitions."""
    V, X = np.asarray(V, np.float64), np.asarray(X, np.float64)
    C = X.T @ X / len(X)
    found = np.zeros_like(V)
    for i, v in enumerate(V):
        g = C @ v
        for j in range(i + (name == "gha")):
            inner = v @ C @ V[j]
            if name in ("mu", "gha"):
                g = g - inner * V[j]
            elif name == "alpha" and V[j] @ C @ V[j] > 0:
                g = g - inner / (V[j] @ C @ V[j]) * (C @ V[j])
        found[i] = 2 * g if name == "alpha" else g
    return found


def problem(rng, k=3, d=6, n=40):
    V = rng.standard_normal((k, d))
    return (V / np.linalg.norm(V, axis=1, keepdims=True)).astype(np.float32), rng.integers(0, 100, (n, d))


def close(found, expected, tolerance):
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, atol=tolerance * max(np.abs(expected).max(), 1e-30)
    )


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_down_to_one(rng, name, shape):
    V, _ = problem(rng, *shape)
    X = rng.standard_normal((shape[2], shape[1])).astype(np.float32)
    close(DIRECTIONS[name](V, X), oracle(name, V, X), 2e-5)


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        *((kind, 1e-5) for kind in ("bool", "int8", "uint8", "int16", "int32", "int64", "float64")),
        ("float32", 1e-5),
        ("float16", 1e-5),
        ("bfloat16", 1e-5),  # 0..99 are exact in it, and products are taken in the type of the vectors
    ],
)
def test_types_of_the_batch(rng, name, dtype, tolerance):
    V, X = problem(rng)
    X = X % 2 if dtype == "bool" else X
    if dtype not in ("int64", "float64"):  # JAX has neither without x64
        close(DIRECTIONS[name](V, jnp.asarray(X, dtype)), oracle(name, V, X), tolerance)
    if dtype != "bfloat16":
        close(DIRECTIONS[name](V, X.astype(dtype)), oracle(name, V, X), tolerance)  # NumPy, not JAX


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", "float16", "bfloat16"])
@pytest.mark.parametrize("center", [False, True])
def test_steps_on_batches_of_any_type(rng, dtype, center):
    V, X = problem(rng)
    X = X % 2 if dtype == "bool" else X
    config = Config(optax.sgd(1e-4), center=center, moments=True, utilities="mu")
    found = []
    for kind in (dtype, "float32"):
        state, metrics = step(
            init(jax.random.key(0), 3, 6, config.optimizer, V=V, moments=True), jnp.asarray(X, kind), config
        )
        found.append((state.V, state.aux.total, metrics["rayleigh"], metrics["utilities"]))
    for ours, reference in zip(*found, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=2e-5, atol=1e-6)
    assert not np.array_equal(found[0][0], V)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_vectors_in_half_precision_keep_their_type(rng, dtype):
    data = jnp.asarray(rng.standard_normal((500, 8)) * np.r_[5, 3, np.ones(6)], jnp.float32)
    config = Config(optax.sgd(0.01))
    state, metrics = sample_steps(
        init(jax.random.key(0), 2, 8, config.optimizer, dtype=dtype), data, 50, 64, config
    )
    assert state.V.dtype == dtype
    assert bool(metrics["finite"].all())
    assert float(jnp.abs(state.V[0, 0])) > 0.8


def test_double_precision_on_and_off(rng):
    V, X = problem(rng)
    with jax.enable_x64(True):
        close(mu_direction(V.astype(np.float64), X.astype(np.float64)), oracle("mu", V, X), 1e-13)
    assert mu_direction(V.astype(np.float64), X.astype(np.float64)).dtype == jnp.float32


@pytest.mark.parametrize("name", DIRECTIONS)
def test_nested_trees_with_none_and_tuples(rng, name):
    V, X = problem(rng, 3, 12, 20)
    X = X.astype(np.float32)

    def split(rows):
        return {"a": (rows[:, :4].reshape(-1, 2, 2), None), "b": {"c": rows[:, 4:5], "d": rows[:, 5:]}}

    found = DIRECTIONS[name](split(V), split(X))
    flat = np.concatenate([np.asarray(leaf).reshape(3, -1) for leaf in jax.tree.leaves(found)], axis=1)
    close(flat, oracle(name, V, X), 1e-5)


def test_jit_vmap_and_grad_around_our_functions(rng):
    V, X = problem(rng)
    X = X.astype(np.float32)
    close(jax.jit(mu_direction)(V, X), oracle("mu", V, X), 1e-5)
    several = jax.vmap(mu_direction, in_axes=(None, 0))(V, jnp.stack([X, 2 * X]))
    close(several[1], 4 * oracle("mu", V, X), 1e-5)
    # the alpha direction is the gradient of the alpha utility with the parents held fixed
    for i in range(3):
        gradient = jax.grad(lambda v, i=i: utilities(jnp.asarray(V).at[i].set(v), X, "alpha")[i])(V[i])
        close(gradient, oracle("alpha", V, X)[i], 1e-4)


def test_states_under_vmap_and_scan(rng):
    X = rng.standard_normal((5, 32, 6)).astype(np.float32)
    config = Config(optax.sgd(0.1, momentum=0.9), center=True, moments=True)
    make = lambda key: init(key, 2, 6, config.optimizer, moments=True)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 5)
    together, _ = jax.vmap(lambda state, x: step(state, x, config))(jax.vmap(make)(keys), X)
    for index, key in enumerate(keys):
        alone, _ = step(make(key), X[index], config)
        np.testing.assert_allclose(together.V[index], alone.V, atol=1e-6)
    scanned, _ = scan_steps(make(keys[0]), X, config)
    one = make(keys[0])
    for batch in X:
        one, _ = step(one, batch, config)
    np.testing.assert_allclose(scanned.V, one.V, atol=1e-6)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")])
def test_keys_of_any_kind(key):
    config = Config(optax.sgd(0.1))
    state, _ = sample_steps(init(key, 2, 6, config.optimizer), jnp.ones((8, 6)), 2, 4, config)
    assert np.isfinite(np.asarray(state.V)).all()


def test_padding_is_ignored_whatever_it_holds(rng):
    _, X = problem(rng)
    X = X.astype(np.float32)
    for center in (False, True):
        config = Config(optax.sgd(1e-4), center=center, moments=True)
        start = init(jax.random.key(0), 2, 6, config.optimizer, moments=True)
        plain, _ = step(start, X, config)
        padded, _ = step(start, np.pad(X, ((0, 9), (0, 0)), constant_values=np.nan), config, len(X))
        np.testing.assert_allclose(padded.V, plain.V, atol=1e-6)
        none, metrics = step(start, X, config, 0)
        assert bool(metrics["finite"])
        np.testing.assert_allclose(none.V, start.V, atol=1e-6)


def test_nan_and_overflow_are_flagged(rng):
    config = Config(optax.sgd(0.1))
    start = init(jax.random.key(0), 2, 6, config.optimizer)
    for bad in (np.nan, np.inf, 1e30):
        assert not bool(step(start, np.full((4, 6), bad, np.float32), config)[1]["finite"])


def test_an_operator_under_jit(rng):
    A = np.diag(np.linspace(5, 1, 6))
    config = Config(optax.sgd(1.0))
    state = init(jax.random.key(0), 2, 6, config.optimizer)
    run = jax.jit(lambda state: step_operator(state, lambda V: V @ jnp.asarray(A, jnp.float32), config))
    for _ in range(200):
        state, metrics = run(state)
    np.testing.assert_allclose(metrics["rayleigh"], [5.0, 4.2], atol=1e-3)


def test_the_users_arrays_are_left_alone(rng):
    V, X = problem(rng)
    before = V.copy(), X.copy()
    config = Config(optax.sgd(0.1), moments=True)
    step(init(jax.random.key(0), 3, 6, config.optimizer, V=V, moments=True), X, config)
    np.testing.assert_array_equal(V, before[0])
    np.testing.assert_array_equal(X, before[1])
