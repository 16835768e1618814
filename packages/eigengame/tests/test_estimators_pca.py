import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.utils.estimator_checks import parametrize_with_checks

from eigengame import EigenGame
from eigengame.core.solver import step
from eigengame.metrics import angles


@parametrize_with_checks([EigenGame(n_components=2, batch_size=64, random_state=0)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture
def data(rng):
    return (rng.standard_normal((1000, 8)) * [8, 6, 4.5, 3, 1, 1, 1, 1] + 10).astype(np.float32)


def fitted(data, **options):
    return EigenGame(4, batch_size=100, n_epochs=20, random_state=0, **options).fit(data)


@pytest.mark.parametrize("algorithm", ["mu", "oja"])
def test_agrees_with_exact_pca(data, algorithm):
    model, exact = fitted(data, algorithm=algorithm), PCA(4).fit(data)
    assert angles(model.components_, exact.components_).max() < 0.1  # noise floor of minibatches
    np.testing.assert_allclose(model.explained_variance_, exact.explained_variance_, rtol=0.1)
    np.testing.assert_allclose(model.explained_variance_ratio_, exact.explained_variance_ratio_, rtol=0.1)
    np.testing.assert_allclose(model.mean_, exact.mean_, rtol=1e-4)
    assert model.score(data) == pytest.approx(exact.explained_variance_ratio_.sum(), abs=0.01)


def test_largest_entry_of_each_component_is_positive(data):
    V = fitted(data).components_
    assert np.all(V[np.arange(4), np.abs(V).argmax(axis=1)] > 0)


def test_inverse_transform_reconstructs_the_span(data):
    model = EigenGame(8, batch_size=100, n_epochs=20, random_state=0).fit(data)
    back = model.inverse_transform(model.transform(data))
    # the components are orthogonal up to the noise of minibatches
    assert np.linalg.norm(back - data) < 0.15 * np.linalg.norm(data - data.mean(axis=0))


def test_a_large_mean_costs_no_digits(data):
    far = data + np.float32(1e4)
    model = fitted(far)
    exact = (far.astype(np.float64) - model.mean_) @ model.components_.T.astype(np.float64)
    # the result is rounded to single precision once; single-precision products would err by 1e-3
    np.testing.assert_allclose(model.transform(far), exact, rtol=1e-6, atol=1e-6)


def test_sparse_rows_give_the_dense_result(data):
    from scipy.sparse import csr_array

    sparse = data * (np.random.default_rng(1).random(data.shape) < 0.3)
    np.testing.assert_array_equal(fitted(csr_array(sparse)).components_, fitted(sparse).components_)


def test_streams_of_any_batch_sizes(data):
    def batches():
        yield from np.split(data, [1, 30, 333, 900])

    model = EigenGame(4, batch_size=100, n_epochs=20, random_state=0).fit(batches)
    assert angles(model.components_, PCA(4).fit(data).components_).max() < 0.1
    assert model.n_samples_seen_ == 20_000
    once = EigenGame(4, batch_size=100, random_state=0).fit(batches())
    assert once.n_samples_seen_ == 1000


def test_at_most_two_compiled_shapes(data):
    before = step._cache_size()
    model = EigenGame(3, batch_size=64, random_state=0)
    for rows in (10, 3, 64, 9, 33, 150):
        model.partial_fit(data[:rows])
    assert step._cache_size() - before <= 2


def test_uint8_does_not_overflow(rng):
    X = rng.integers(0, 256, size=(300, 5), dtype=np.uint8)
    model = EigenGame(2, batch_size=50, n_epochs=5, random_state=0).fit(X)
    np.testing.assert_allclose(model.mean_, X.mean(axis=0), rtol=1e-4)


def test_a_nan_batch_names_its_index_and_keeps_the_last_state(data):
    model = EigenGame(2, batch_size=100, random_state=0).partial_fit(data[:300])
    good = model.components_
    bad = data[300:600].copy()
    bad[250, 3] = np.nan
    with pytest.raises(ValueError, match=r"Batch 5 contains NaN\. Clean or drop those rows"):
        model.partial_fit(bad)
    assert model.n_samples_seen_ == 500
    assert np.isfinite(model.components_).all()
    assert not np.array_equal(model.components_, good)
    model.partial_fit(data[600:])
    assert model.n_samples_seen_ == 900


def test_a_diverging_optimizer_is_reported(data):
    import optax

    broken = optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (u * np.inf, s))
    with pytest.raises(ValueError, match=r"The update on batch 0 is not finite although the data are"):
        EigenGame(2, optimizer=broken, random_state=0).fit(data)


def test_tolerance_stops_early(data):
    model = EigenGame(2, batch_size=1000, n_epochs=500, tol=1e-4, random_state=0).fit(data)
    assert model.n_iter_ < 500


@pytest.mark.parametrize("k", [2, 6])
def test_warm_start_keeps_what_was_learned_and_adds_players(data, k):
    model = fitted(data).set_params(warm_start=True, n_components=k, n_epochs=1)
    learned = model.components_
    kept = min(k, 4)
    model.fit(data)
    assert model.components_.shape == (k, 8)
    assert model.n_samples_seen_ == len(data)
    # one epoch moves converged vectors within the noise floor; from random ones it leaves them elsewhere
    assert angles(model.components_[:kept], learned[:kept]).max() < 0.1
    cold = EigenGame(k, batch_size=100, random_state=0).fit(data)
    assert angles(cold.components_[:kept], learned[:kept]).max() > 0.2


def test_warm_start_with_another_width(data):
    with pytest.raises(ValueError, match="last fit had 8 features and X has 5"):
        fitted(data).set_params(warm_start=True).fit(data[:, :5])


def test_players_without_variance_are_unresolved(rng):
    X = np.zeros((200, 4), np.float32)
    X[:, 0] = rng.standard_normal(200)
    model = EigenGame(3, batch_size=50, n_epochs=40, random_state=0).fit(X)
    assert 0 not in model.unresolved_
    assert abs(model.components_[0, 0]) == pytest.approx(1, abs=1e-4)


def test_saved_and_loaded_continues_bit_for_bit(tmp_path, data):
    model = EigenGame(2, batch_size=100, random_state=0).partial_fit(data[:500])
    model.save(tmp_path / "m.npz", {"note": 1})
    loaded, extra = EigenGame.load(tmp_path / "m.npz")
    assert extra == {"note": 1}
    np.testing.assert_array_equal(
        loaded.partial_fit(data[500:]).components_, model.partial_fit(data[500:]).components_
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 9}, "n_components=9 exceeds n_features=8; ask for at most 8"),
        ({"n_components": 0}, "n_components is 0; it must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"momentum": 1.0}, r"momentum is 1.0; it must lie in \[0, 1\)"),
        ({"center": "exact"}, "center is 'exact'; allowed are 'running' and None"),
        ({"learning_rate": -1.0}, "pass a positive number, a schedule or 'auto'"),
        ({"dtype": "float64"}, r"needs 64-bit JAX: run inside `with jax.enable_x64\(True\):`"),
        ({"algorithm": "beta"}, "Unknown algorithm 'beta'"),
    ],
)
def test_bad_settings(data, options, message):
    with pytest.raises(ValueError, match=message):
        EigenGame(**{"n_components": 2, **options}).fit(data)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda X: iter([]), "The iterable yielded no batch"),
        (lambda X: iter([X[:, :3], X]), "Batch 1 has 8 features; the earlier ones have 3"),
        (lambda X: np.where(np.arange(1000)[:, None] == 777, np.inf, X), r"Batch \d contains inf"),
    ],
)
def test_bad_data(data, bad, message):
    with pytest.raises(ValueError, match=message):
        EigenGame(2, batch_size=100, random_state=0).fit(bad(data))


def test_another_width_later(data):
    model = EigenGame(2, random_state=0).partial_fit(data)
    with pytest.raises(ValueError, match="X has 7 features, but EigenGame is expecting 8"):
        model.partial_fit(data[:, :7])


def test_an_iterator_can_be_read_once(data):
    with pytest.raises(ValueError, match="n_epochs=2 but X is an iterator, which can be read once"):
        EigenGame(2, n_epochs=2).fit(iter([data]))
