import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eigengame.core import (
    Config,
    init,
    initial_vectors,
    mu_direction,
    rayleigh,
    sample_steps,
    scan_steps,
    step,
    step_operator,
)
from eigengame.metrics import angles, subspace_distance

UNIT = 1e-6  # deviation of a float32 row norm
SGD = optax.sgd(0.1, momentum=0.9, nesterov=True)
KEY = jax.random.key(0)


def spectrum_problem(d=30):
    """Covariance with a geometric spectrum from 10 to 0.1 and a rotated eigenbasis."""
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    values = np.geomspace(10, 0.1, d)
    return np.sqrt(values * d)[:, None] * Q, Q, values  # X'X / d = Q' diag(values) Q


def test_golden_trajectory(x64, golden):
    optimizer = optax.sgd(float(golden["lr"]), float(golden["momentum"]), nesterov=True)
    config = Config(optimizer, reduction="sum", utilities="alpha")
    state = init(KEY, 4, 12, optimizer, V=golden["V0"], dtype=jnp.float64)
    for t, batch in enumerate(golden["X"]):
        state, metrics = step(state, batch, config)
        np.testing.assert_allclose(metrics["utilities"], golden["util_steps_sum"][t], rtol=1e-10)
        np.testing.assert_allclose(state.V, golden["V_steps_sum"][t], atol=1e-9)
        np.testing.assert_allclose(state.opt_state[0].trace, golden["trace_steps_sum"][t], rtol=1e-9)


def test_golden_trajectory_in_float32(golden):
    optimizer = optax.sgd(float(golden["lr"]), float(golden["momentum"]), nesterov=True)
    state = init(KEY, 4, 12, optimizer, V=golden["V0"])
    state, _ = scan_steps(state, jnp.asarray(golden["X"], jnp.float32), Config(optimizer, reduction="sum"))
    np.testing.assert_allclose(state.V, golden["V_steps_sum"][-1], atol=1e-5)


def test_scan_equals_single_steps(rng):
    batches = rng.standard_normal((6, 8, 5)).astype(np.float32)
    config = Config(SGD)
    single = init(KEY, 2, 5, SGD)
    for batch in batches:
        single, _ = step(single, batch, config)
    scanned, metrics = scan_steps(init(KEY, 2, 5, SGD), batches, config)
    np.testing.assert_allclose(scanned.V, single.V, atol=1e-6)
    assert metrics["rayleigh"].shape == (6, 2)


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("algorithm", ["mu", "alpha"])
def test_unprojected_full_batch_converges_for_any_step(x64, algorithm, eta):
    # normalisation turns the step into a shifted power iteration: large steps are harmless
    X, Q, values = spectrum_problem()
    config = Config(optax.sgd(eta / values[0]), algorithm=algorithm)
    state = init(KEY, 6, 30, config.optimizer, dtype=jnp.float64)
    covariance = jnp.asarray(X.T @ X / len(X))
    state = run_operator(state, covariance, config, 3000)
    assert angles(state.V, Q[:6]).max() < 1e-6


@pytest.mark.parametrize(("algorithm", "project"), [("mu", True), ("gha", False)])
@pytest.mark.parametrize(("eta", "converges"), [(1.0, True), (3.0, False)])
def test_projected_mu_and_gha_have_a_step_limit(x64, algorithm, project, eta, converges):
    X, Q, values = spectrum_problem()
    config = Config(optax.sgd(eta / values[0]), algorithm=algorithm, project=project)
    state = init(KEY, 6, 30, config.optimizer, dtype=jnp.float64)
    state = run_operator(state, jnp.asarray(X.T @ X / len(X)), config, 3000)
    worst = angles(state.V, Q[:6]).max()
    assert (worst < 1e-6) == converges


def run_operator(state, matrix, config, num_steps):
    def one(_, carry):
        return step_operator(carry, lambda V: V @ matrix, config)[0]

    return jax.jit(lambda s: jax.lax.fori_loop(0, num_steps, one, s))(state)


def test_rows_stay_unit_over_1e5_steps(rng):
    data = jnp.asarray(rng.standard_normal((512, 16)), jnp.float32)
    state = init(KEY, 4, 16, SGD)
    config = Config(SGD)
    for _ in range(100):
        state, _ = sample_steps(state, data, 1000, 16, config)
        np.testing.assert_allclose(jnp.linalg.norm(state.V, axis=1), 1, atol=UNIT)
    assert int(state.step) == 100_000
    assert int(state.count) == 1_600_000


@pytest.mark.parametrize("algorithm", ["mu", "alpha", "gha"])
def test_children_never_change_parents(rng, algorithm):
    batches = rng.standard_normal((50, 16, 9)).astype(np.float32)
    config = Config(SGD, algorithm=algorithm)
    few, _ = scan_steps(init(KEY, 3, 9, SGD), batches, config)
    many, _ = scan_steps(init(KEY, 7, 9, SGD), batches, config)
    np.testing.assert_allclose(many.V[:3], few.V, atol=1e-6)


def test_initial_vectors_depend_on_the_player_only():
    np.testing.assert_array_equal(initial_vectors(KEY, 6, 10)[:4], initial_vectors(KEY, 4, 10))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(initial_vectors(KEY, 2, 10), initial_vectors(jax.random.key(1), 2, 10))


def test_float32_follows_float64_on_digits():
    from sklearn.datasets import load_digits

    X = load_digits().data
    X = X - X.mean(axis=0)
    rng = np.random.default_rng(0)
    rows = rng.integers(len(X), size=(1000, 64))
    reference = None
    for scale, tolerance in [(1.0, 1e-4), (1e-4, 1e-4), (1e4, 1e-4)]:
        optimizer = optax.sgd(0.1 / (180 * scale**2), momentum=0.9, nesterov=True)
        if reference is None:
            with jax.enable_x64(True):
                start = np.asarray(init(KEY, 8, 64, optimizer).V, np.float64)
                start /= np.linalg.norm(start, axis=1, keepdims=True)
                state = init(KEY, 8, 64, optimizer, V=start, dtype=jnp.float64)
                reference = np.asarray(scan_steps(state, X[rows], Config(optimizer))[0].V)
        state = init(KEY, 8, 64, optimizer, V=start)
        batches = (scale * X[rows]).astype(np.float32)
        ours = scan_steps(state, batches, Config(optimizer))[0].V
        assert angles(ours, reference).max() < tolerance


class TestRetractions:
    def test_oja_keeps_an_orthonormal_basis(self, rng):
        X = rng.standard_normal((20, 6)).astype(np.float32)
        config = Config(optax.sgd(0.1), algorithm="oja")
        state, _ = step(init(KEY, 3, 6, config.optimizer), X, config)
        np.testing.assert_allclose(state.V @ state.V.T, np.eye(3), atol=1e-6)

    def test_oja_on_a_pytree(self, rng):
        X = rng.standard_normal((20, 6)).astype(np.float32)
        config = Config(optax.sgd(0.1), algorithm="oja")
        flat = init(KEY, 3, 6, config.optimizer)
        tree = init(KEY, 3, (4, 2), config.optimizer, V=(flat.V[:, :4], flat.V[:, 4:]))
        after, _ = step(tree, (X[:, :4], X[:, 4:]), config)
        expected, _ = step(flat, X, config)
        np.testing.assert_allclose(np.concatenate(after.V, axis=1), expected.V, atol=1e-6)

    def test_gha_stays_in_the_ball(self, rng):
        X = 10 * rng.standard_normal((20, 6)).astype(np.float32)
        config = Config(optax.sgd(0.1), algorithm="gha")
        state = init(KEY, 3, 6, config.optimizer)
        for _ in range(20):
            state, _ = step(state, X, config)
        assert float(jnp.linalg.norm(state.V, axis=1).max()) <= 1 + UNIT


class TestCentering:
    def test_running_mean_and_total_variance_are_exact(self, rng):
        X = (rng.standard_normal((70, 5)) + 100).astype(np.float32)
        config = Config(SGD, center=True, moments=True)
        state = init(KEY, 2, 5, SGD, moments=True)
        for start in range(0, 70, 16):
            part = X[start : start + 16]
            padded = np.pad(part, ((0, 16 - len(part)), (0, 0)))
            state, _ = step(state, padded, config, len(part))
        np.testing.assert_allclose(state.mean, X.mean(axis=0), rtol=1e-5)
        assert float(state.aux.total) == pytest.approx(X.var(axis=0).sum(), rel=1e-4)
        assert int(state.count) == 70

    def test_padding_rows_change_nothing(self, rng):
        X = rng.standard_normal((10, 5)).astype(np.float32)
        config = Config(SGD, center=True, moments=True)
        exact, _ = step(init(KEY, 2, 5, SGD, moments=True), X, config)
        padded, _ = step(
            init(KEY, 2, 5, SGD, moments=True),
            np.pad(X, ((0, 6), (0, 0)), constant_values=np.nan),
            config,
            10,
        )
        np.testing.assert_allclose(padded.V, exact.V, atol=1e-6)
        np.testing.assert_allclose(padded.aux.products, exact.aux.products, rtol=1e-5, atol=1e-6)


class TestOperators:
    def test_hessian_of_a_quadratic(self):
        A = jnp.diag(jnp.array([5.0, 3.0, 1.0, 0.5]))
        gradient = jax.grad(lambda w: w @ A @ w / 2)
        product = jax.vmap(lambda v: jax.jvp(gradient, (jnp.ones(4),), (v,))[1])
        config = Config(optax.sgd(1.0))
        state = init(KEY, 2, 4, config.optimizer)
        for _ in range(60):
            state, metrics = step_operator(state, product, config)
        np.testing.assert_allclose(metrics["rayleigh"], [5, 3], rtol=1e-5)
        assert bool(metrics["finite"])

    def test_kernel_matrix(self, x64, rng):
        points = rng.standard_normal((20, 2))
        kernel = jnp.asarray(np.exp(-np.square(points[:, None] - points[None]).sum(-1)))
        config = Config(optax.sgd(1.0))
        state = run_operator(init(KEY, 3, 20, config.optimizer, dtype=jnp.float64), kernel, config, 2000)
        _, vectors = np.linalg.eigh(kernel)
        assert angles(state.V, vectors[:, ::-1].T[:3]).max() < 1e-6


class TestDegenerate:
    def test_repeated_eigenvalues_give_the_subspace(self, x64):
        A = jnp.diag(jnp.array([2.0, 2.0, 2.0, 1.0, 0.5]))
        config = Config(optax.sgd(1.0))
        state = run_operator(init(KEY, 3, 5, config.optimizer, dtype=jnp.float64), A, config, 500)
        assert subspace_distance(state.V, np.eye(5)[:3]) < 1e-8

    def test_as_many_players_as_dimensions(self, x64):
        A = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        config = Config(optax.sgd(1.0))
        state = run_operator(init(KEY, 3, 3, config.optimizer, dtype=jnp.float64), A, config, 500)
        assert angles(state.V, np.eye(3)).max() < 1e-6

    def test_one_dimension(self, rng):
        state, metrics = step(
            init(KEY, 1, 1, SGD), rng.standard_normal((4, 1)).astype(np.float32), Config(SGD)
        )
        assert abs(float(state.V[0, 0])) == pytest.approx(1)
        assert bool(metrics["finite"])

    @pytest.mark.parametrize("algorithm", ["mu", "alpha", "gha", "oja"])
    def test_fewer_samples_than_players_and_low_rank(self, rng, algorithm):
        X = np.outer([1.0, 2.0], rng.standard_normal(6)).astype(np.float32)  # n = 2 < k = 4, rank 1
        config = Config(optax.sgd(0.1), algorithm=algorithm)
        state = init(KEY, 4, 6, config.optimizer)
        for _ in range(50):
            state, metrics = step(state, X, config)
            assert bool(metrics["finite"])
        assert angles(state.V[:1], X[:1]).max() < 1e-3

    def test_constant_columns(self, rng):
        X = rng.standard_normal((32, 4)).astype(np.float32)
        X[:, 2] = 7.0
        config = Config(SGD, center=True)
        state = init(KEY, 2, 4, SGD)
        for _ in range(200):
            state, metrics = step(state, X, config)
        assert bool(metrics["finite"])
        assert float(jnp.abs(state.V[:, 2]).max()) < 1e-3

    @pytest.mark.parametrize("algorithm", ["mu", "alpha", "gha", "oja"])
    def test_an_all_zero_batch_leaves_v(self, algorithm):
        config = Config(SGD, algorithm=algorithm, center=True)
        state = init(KEY, 3, 5, SGD)
        if algorithm == "oja":
            state, _ = step(state, np.zeros((4, 5), np.float32), config)
        after, metrics = step(state, np.zeros((4, 5), np.float32), config)
        np.testing.assert_allclose(after.V, state.V, atol=UNIT)
        assert bool(metrics["finite"])


class TestBadInput:
    @pytest.mark.parametrize("k", [0, -1])
    def test_too_few_components(self, k):
        with pytest.raises(ValueError, match="ask for at least one component"):
            init(KEY, k, 3, SGD)

    def test_more_components_than_dimensions(self):
        with pytest.raises(ValueError, match="k=4 exceeds the dimension d=3; ask for at most 3"):
            init(KEY, 4, 3, SGD)

    def test_rows_that_are_not_unit(self):
        with pytest.raises(ValueError, match="Rows of V must have unit norm; the worst deviates by 1"):
            init(KEY, 2, 3, SGD, V=2 * np.eye(2, 3))

    def test_rows_of_the_wrong_number(self):
        with pytest.raises(ValueError, match="V has 3 rows but k=2"):
            init(KEY, 2, 3, SGD, V=np.eye(3))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_non_finite_data_raise_the_flag(self, bad):
        X = np.ones((4, 3), np.float32)
        X[2, 1] = bad
        assert not bool(step(init(KEY, 2, 3, SGD), X, Config(SGD))[1]["finite"])

    def test_unknown_algorithm(self):
        with pytest.raises(
            ValueError, match=r"Unknown algorithm 'beta'\. Allowed: 'mu', 'alpha', 'gha', 'oja'"
        ):
            Config(SGD, algorithm="beta")


def test_pytree_vectors_equal_the_flat_problem(rng):
    X = rng.standard_normal((20, 6)).astype(np.float32)
    config = Config(SGD, center=True, utilities="mu")
    flat = init(KEY, 3, 6, SGD)
    tree = init(
        KEY,
        3,
        {"a": jnp.zeros((2, 2)), "b": 2},
        SGD,
        V={"a": flat.V[:, :4].reshape(3, 2, 2), "b": flat.V[:, 4:]},
    )
    batch = {"a": X[:, :4].reshape(-1, 2, 2), "b": X[:, 4:]}
    after, metrics = step(tree, batch, config)
    expected, flat_metrics = step(flat, X, config)
    np.testing.assert_allclose(after.V["a"].reshape(3, 4), expected.V[:, :4], atol=1e-6)
    np.testing.assert_allclose(metrics["utilities"], flat_metrics["utilities"], rtol=1e-4)


def test_no_temporary_of_size_k_squared_d():
    d, k, n = 1024, 64, 256
    config = Config(SGD)
    compiled = step.lower(init(KEY, k, d, SGD), jnp.ones((n, d)), config).compile()
    limit = 2 * 4 * (n * k + k * d + k * k)
    assert compiled.memory_analysis().temp_size_in_bytes < limit
    assert compiled.cost_analysis()["flops"] < 1.1 * (4 * n * d * k + 2 * n * k * k + 2 * k * k * d)


def test_mean_is_the_direction_actually_used(x64, rng):
    X = rng.standard_normal((10, 5))
    config = Config(optax.sgd(0.3))
    state = init(KEY, 2, 5, config.optimizer, dtype=jnp.float64)
    moved = state.V + 0.3 * mu_direction(state.V, X)
    after, _ = step(state, X, config)
    np.testing.assert_allclose(after.V, moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [optax.lbfgs(), optax.polyak_sgd(), optax.lookahead(optax.sgd(0.1), 5, 0.5), 0.1],
    ids=["lbfgs", "polyak", "lookahead", "number"],
)
def test_optimizers_that_do_not_apply_are_refused(optimizer):
    with pytest.raises(ValueError, match=r"\Aoptimizer"):
        init(jax.random.key(0), 2, 3, optimizer)


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (np.ones((4, 1, 5)), r"shapes \[\(4, 1, 5\)\]; pass \[\('n', 5\)\]"),  # V became (2, 2, 5)
        (np.ones((4, 6)), r"shapes \[\(4, 6\)\]"),
        (np.ones(5), r"shapes \[\(5,\)\]"),
        (np.ones((0, 5)), r"n > 0 of samples"),
        (np.ones((4, 5)) * 1j, "Complex data not supported"),  # the imaginary part was dropped
        ([[1.0] * 5] * 4, "The batch has the structure"),
    ],
)
def test_batches_that_do_not_fit_are_refused_in_one_line(batch, match):
    state = init(KEY, 2, 5, SGD)
    for use in (
        lambda: step(state, batch, Config(SGD)),
        lambda: mu_direction(state.V, batch),
        lambda: rayleigh(state.V, batch),
    ):
        with pytest.raises(ValueError, match=match):
            use()


def test_sample_steps_refuses_leaves_of_different_lengths():
    """The rows of the shorter leaf were read beyond its end, as its last row."""
    state = init(KEY, 2, {"a": 3, "b": 2}, SGD)
    with pytest.raises(ValueError, match="with one number n > 0 of samples"):
        sample_steps(state, {"a": jnp.ones((9, 3)), "b": jnp.ones((4, 2))}, 3, 2, Config(SGD))


def test_more_valid_rows_than_there_are_count_as_all(rng):
    X = jnp.asarray(rng.standard_normal((8, 5)), jnp.float32)
    state = init(KEY, 2, 5, SGD)
    new, metrics = step(state, X, Config(SGD), 11)
    np.testing.assert_allclose(metrics["rayleigh"], np.mean((X @ state.V.T) ** 2, axis=0), rtol=1e-5)
    assert new.count == 8


def test_single_precision_goes_on_when_batches_are_double(x64, rng):
    X = rng.standard_normal((20, 5))
    config = Config(SGD, center=True, moments=True)
    state, _ = sample_steps(init(KEY, 2, 5, SGD, moments=True), X, 3, 4, config)
    leaves = jax.tree.leaves((state.V, state.mean, state.aux))
    assert all(leaf.dtype == np.float32 for leaf in leaves)


def test_steps_keep_the_precision_that_the_user_set_for_jax():
    state = init(KEY, 2, 5, SGD)
    with jax.default_matmul_precision("highest"):
        of_batch = jax.make_jaxpr(lambda s, x: step(s, x, Config(SGD)))(state, jnp.ones((4, 5)))
        of_operator = jax.make_jaxpr(lambda s: step_operator(s, lambda V: V, Config(SGD)))(state)
    for program in map(str, (of_batch, of_operator)):
        assert program.count("HIGHEST, ") == program.count("dot_general") > 0


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.masked(optax.clip(0.1), {"a": True, "b": False}), optax.sgd(0.1)),
        optax.multi_transform({"fast": SGD, "slow": optax.sgd(0.01)}, {"a": "fast", "b": "slow"}),
    ],
)
def test_optimizers_that_tell_leaves_apart(optimizer, rng):
    state = init(KEY, 1, {"a": 3, "b": 2}, optimizer)
    batch = {"a": jnp.asarray(rng.standard_normal((9, 3))), "b": jnp.zeros((9, 2))}
    new, metrics = step(state, batch, Config(optimizer))
    assert metrics["finite"]
    assert np.linalg.norm(new.V["a"]) > np.linalg.norm(state.V["a"])


def test_settings_that_need_moments_say_so(rng):
    X = rng.standard_normal((8, 5))
    with pytest.raises(ValueError, match="needs moments=True"):
        Config(SGD, adaptive=1.0)
    with pytest.raises(ValueError, match="pass moments=True to init"):
        step(init(KEY, 2, 5, SGD), X, Config(SGD, moments=True))
    with pytest.raises(ValueError, match="pass it as optimizer"):
        step(init(KEY, 2, 5, SGD, moments=True), X, Config(SGD, moments=True, adaptive=1.0))
    with pytest.raises(ValueError, match="allowed are 'alpha', 'mu' and None"):
        Config(SGD, utilities="beta")


def test_rows_of_long_vectors_are_unit_in_half_precision():
    """Squares of their entries vanish in half precision."""
    V = initial_vectors(KEY, 1, 100_000, jnp.float16)
    assert abs(np.linalg.norm(np.asarray(V, np.float64)) - 1) < 1e-3


@pytest.mark.parametrize("V", [np.eye(2, 4), np.eye(2, 5)[:, None]])
def test_first_vectors_of_another_dimension_are_refused(V):
    with pytest.raises(ValueError, match=r"V has shapes .* and k and d say \(2, 5\)"):
        init(KEY, 2, 5, SGD, V=V)


def test_integers_beyond_32_bits_do_not_wrap(rng):
    X = rng.standard_normal((20, 4)) * 1e10
    found = rayleigh(np.eye(4)[:2], X.astype(np.int64))
    np.testing.assert_allclose(found, np.mean(X[:, :2] ** 2, axis=0), rtol=1e-5)
