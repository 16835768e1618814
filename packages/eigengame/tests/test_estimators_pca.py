import json
from pathlib import Path

import numpy as np
import optax
import pytest
from scipy.sparse import csc_array
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from eigengame import EigenGame, checkpoint
from eigengame.core.solver import step
from eigengame.metrics import angles


@parametrize_with_checks(
    [
        EigenGame(n_components=2, batch_size=64, random_state=0),
        EigenGame(n_components=2, batch_size=64, n_epochs=1, tol=None, random_state=0),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def fitted(data, **options):
    settings = {"batch_size": 100, "n_epochs": 20, "tol": None, "random_state": 0} | options
    return EigenGame(4, **settings).fit(data)


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
    model = EigenGame(8, batch_size=100, n_epochs=20, tol=None, random_state=0).fit(data)
    back = model.inverse_transform(model.transform(data))
    assert np.linalg.norm(back - data) < 1e-5 * np.linalg.norm(data - data.mean(axis=0))


def test_a_large_mean_costs_no_digits(data):
    far = data + np.float32(1e4)
    model = fitted(far)
    exact = (far.astype(np.float64) - model.mean_) @ model.components_.T.astype(np.float64)
    # the result is rounded to single precision once; single-precision products would err by 1e-3
    np.testing.assert_allclose(model.transform(far), exact, rtol=1e-6, atol=1e-6)


def test_sparse_rows_give_the_dense_result(data):
    from scipy.sparse import csr_array

    sparse = data * (np.random.default_rng(1).random(data.shape) < 0.3)
    np.testing.assert_array_equal(
        fitted(csr_array(sparse), n_epochs=1).components_, fitted(sparse, n_epochs=1).components_
    )


def test_streams_of_any_batch_sizes(data):
    def batches():
        yield from np.split(data, [1, 30, 333, 900])

    exact = PCA(4).fit(data)
    model = EigenGame(4, batch_size=100, n_epochs=20, tol=None, random_state=0).fit(batches)
    assert angles(model.components_, exact.components_).max() < 0.1
    assert model.n_samples_seen_ == 20_000
    with pytest.warns(ConvergenceWarning, match="have not converged.*pass data that can be read again"):
        once = EigenGame(4, batch_size=100, random_state=0).fit(batches())
    assert once.n_samples_seen_ == 1000
    again = EigenGame(4, batch_size=100, random_state=0).fit(batches)
    np.testing.assert_allclose(again.components_, fitted(data, n_epochs="auto").components_, atol=1e-4)
    assert angles(again.components_, exact.components_).max() < 0.02


def test_at_most_two_compiled_shapes(data):
    before = step._cache_size()
    model = EigenGame(3, batch_size=64, random_state=0)
    for rows in (10, 3, 64, 9, 33, 150):
        model.partial_fit(data[:rows])
    assert step._cache_size() - before <= 2


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


def test_a_tighter_tolerance_takes_more_passes(data):
    loose, tight = (fitted(data, n_epochs="auto", tol=tol) for tol in (0.1, 1e-4))
    assert loose.n_passes_ <= tight.n_passes_
    exact = PCA(4).fit(data.astype(float)).components_
    assert angles(tight.components_, exact).max() < 1e-4
    assert np.all(angles(tight.components_, exact) <= tight.angle_bounds_ + 3e-5)


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
    cold = EigenGame(k, batch_size=100, n_epochs=1, tol=None, random_state=0).fit(data[:200])
    warm = EigenGame(k, batch_size=100, n_epochs=1, tol=None, warm_start=True, random_state=0).fit(data[:200])
    assert cold.score(data) == warm.score(data)


def test_warm_start_with_another_width(data):
    with pytest.raises(ValueError, match="last fit had 8 features and X has 5"):
        fitted(data).set_params(warm_start=True).fit(data[:, :5])


@pytest.mark.parametrize("n_epochs", [1, "auto"])
def test_players_without_variance_are_unresolved(rng, n_epochs):
    X = rng.standard_normal((400, 2)) @ rng.standard_normal((2, 10))
    model = EigenGame(
        4, batch_size=50, n_epochs=n_epochs, tol=None if n_epochs == 1 else 0.02, random_state=0
    )
    if n_epochs == "auto":
        with pytest.warns(ConvergenceWarning, match=r"Components \[2, 3\] have no variance above"):
            model.fit(X)
    else:
        model.fit(X)
    np.testing.assert_allclose(model.components_ @ model.components_.T, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(model.explained_variance_ratio_.sum(), 1, atol=0.05)
    if n_epochs == "auto":
        assert model.unresolved_.tolist() == [2, 3]
        np.testing.assert_allclose(
            model.explained_variance_ratio_, PCA(4).fit(X).explained_variance_ratio_, atol=1e-5
        )


def test_every_component_of_digits():
    """All 64, of which three have no variance."""
    X = load_digits().data
    with pytest.warns(ConvergenceWarning, match="Components"):
        model = EigenGame(64, tol=1e-3, random_state=0).fit(X)
    assert model.explained_variance_ratio_.sum() == pytest.approx(1, abs=1e-6)
    assert model.unresolved_.tolist() == [61, 62, 63]
    np.testing.assert_allclose(model.inverse_transform(model.transform(X)), X, atol=1e-3)


def test_more_components_than_rows(rng):
    X = rng.standard_normal((6, 20))
    model = EigenGame(10, random_state=0).fit(X)
    assert model.unresolved_.tolist() == [5, 6, 7, 8, 9]
    np.testing.assert_allclose(model.explained_variance_[:5], PCA(5).fit(X).explained_variance_, rtol=1e-4)


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
        (
            {"n_components": 0},
            r"'n_components' parameter of EigenGame must be an int in the range \[1, inf\).*Got 0",
        ),
        ({"n_components": 1.5}, r"'n_components' .* a float in the range \(0\.0, 1\.0\) or None. Got 1.5"),
        ({"n_components": 0.5, "n_epochs": 1}, "n_components=0.5 needs data that can be read again"),
        ({"tol": 0}, "'tol' .* Got 0"),
        ({"batch_size": 0}, "'batch_size' .* Got 0"),
        ({"momentum": 1.0}, r"'momentum' .* in the range \[0\.0, 1\.0\). Got 1.0"),
        ({"center": "exact"}, "'center' .* {'running'} or None. Got 'exact'"),
        ({"learning_rate": -1.0}, "'learning_rate' .* Got -1.0"),
        ({"dtype": "float64"}, r"needs 64-bit JAX: run inside `with jax.enable_x64\(True\):`"),
        ({"algorithm": "beta"}, "'algorithm' .* Got 'beta'"),
    ],
)
def test_bad_settings(data, options, message):
    with pytest.raises(ValueError, match=message):
        EigenGame(**{"n_components": 2, **options}).fit(data)


def test_another_width_later(data):
    model = EigenGame(2, random_state=0).partial_fit(data)
    with pytest.raises(ValueError, match="X has 7 features, but EigenGame is expecting 8"):
        model.partial_fit(data[:, :7])


def test_an_iterator_can_be_read_once(data):
    with pytest.raises(ValueError, match="n_epochs=2 but X is an iterator, which can be read once"):
        EigenGame(2, n_epochs=2).fit(iter([data]))


GAP = 1.05 ** -np.arange(60.0)  # neighbouring variances differ by 5 %


@pytest.mark.parametrize(
    ("name", "k"), [("digits", 8), ("isotropic", 4), ("gap", 8), ("gap of a callable", 8), ("sparse gap", 8)]
)
def test_defaults_find_what_scikit_learn_finds(rng, name, k):
    X = {
        "digits": lambda: load_digits().data,
        "isotropic": lambda: rng.standard_normal((500, 20)),
    }.get(name, lambda: rng.standard_normal((3000, 60)) * np.sqrt(GAP) + 3)()
    given = {
        "gap of a callable": lambda: lambda: np.array_split(X, 17),
        "sparse gap": lambda: csc_array(X),
    }.get(name, lambda: X)()
    model, exact = EigenGame(k, random_state=0).fit(given), PCA(k, svd_solver="full").fit(X)
    cosines = np.abs(np.sum(model.components_ * exact.components_, axis=1))
    assert cosines.min() > 0.999
    assert np.all(np.arccos(np.minimum(cosines, 1)) <= model.angle_bounds_ + 2e-3)
    assert model.converged_
    for name in (
        "explained_variance_",
        "explained_variance_ratio_",
        "singular_values_",
        "noise_variance_",
    ):
        np.testing.assert_allclose(getattr(model, name), getattr(exact, name), rtol=1e-3)
    np.testing.assert_allclose(model.mean_, exact.mean_, atol=1e-4)


def test_what_has_not_converged_is_said(rng):
    X = rng.standard_normal((500, 20))
    with pytest.warns(
        ConvergenceWarning, match=r"Components \[0, 1, 2, 3\] have not converged.*n_epochs='auto'"
    ):
        model = EigenGame(4, n_epochs=1, random_state=0).fit(X)
    assert not model.converged_
    assert model.angle_bounds_.max() > 0.5


def test_without_a_tolerance_nothing_is_warned_of_and_the_default_is_met(data):
    model = EigenGame(3, tol=None, random_state=0).fit(data)
    assert model.converged_
    assert model.angle_bounds_.max() < 0.02
    assert not EigenGame(3, tol=None, n_epochs=1, random_state=0).fit(data[:300]).converged_


def test_equal_variances_are_said():
    X = np.concatenate([np.eye(6), -np.eye(6)]) * [3, 3, 2, 1, 1, 1]
    with pytest.warns(ConvergenceWarning, match=r"Components \[0, 1\] share their value"):
        model = EigenGame(2, random_state=0).fit(X)
    np.testing.assert_allclose(
        np.abs(model.components_[:, :2] @ model.components_[:, :2].T), np.eye(2), atol=1e-4
    )


def test_small_data_are_solved_exactly_when_asked(data):
    model, exact = EigenGame(4, algorithm="auto", random_state=0).fit(data), PCA(4).fit(data.astype(float))
    assert (model.solver_, model.n_iter_, model.converged_) == ("exact", 0, True)
    np.testing.assert_allclose(np.abs(model.components_), np.abs(exact.components_), atol=1e-6)
    np.testing.assert_allclose(model.explained_variance_, exact.explained_variance_, rtol=1e-5)
    wide = EigenGame(3, algorithm="auto", random_state=0).fit(data[:5, :].T)
    np.testing.assert_allclose(
        wide.explained_variance_, PCA(3).fit(data[:5].T).explained_variance_, rtol=1e-5
    )


def test_a_share_of_the_variance(rng):
    X = rng.standard_normal((300, 80))
    for share in (0.3, 0.9):
        model, exact = EigenGame(share, random_state=0).fit(X), PCA(share).fit(X)
        assert model.n_components_ == exact.n_components_
        assert model.transform(X).shape == exact.transform(X).shape


def test_a_share_of_the_variance_counts_its_own_components_only(rng):
    """Others were tried on the way; rows of rank 11 leave some of those without variance."""
    X = rng.standard_normal((12, 50))
    model = EigenGame(0.9, whiten=True, random_state=0).fit(X)
    k = PCA(0.9).fit(X).n_components_
    assert model.n_components_ == k < 11
    for name in ("explained_variance_", "angle_bounds_", "residuals_", "variance_errors_"):
        assert getattr(model, name).shape == (k,)
    assert model.unresolved_.size == 0
    np.testing.assert_allclose(model.transform(X).std(axis=0, ddof=1), 1, rtol=1e-3)


def test_whitened_scores_have_unit_variance_and_go_back(data):
    model = fitted(data, n_epochs="auto", whiten=True)
    scores = model.transform(data)
    np.testing.assert_allclose(np.cov(scores.T), np.eye(4), atol=0.02)
    plain = fitted(data, n_epochs="auto")
    np.testing.assert_allclose(
        model.inverse_transform(scores), plain.inverse_transform(plain.transform(data)), atol=1e-3
    )


def test_covariance_of_the_model(data):
    exact = PCA(4).fit(data)
    np.testing.assert_allclose(
        fitted(data, n_epochs="auto", tol=1e-3).get_covariance(), exact.get_covariance(), atol=0.05
    )


@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "rmsprop"])
def test_optimisers_that_rescale_coordinates(rng, name):
    import optax

    X = rng.standard_normal((4000, 20)) * np.r_[5, 4, 3, 2, np.ones(16)]
    optimizer = getattr(optax, name)(1e-3)
    model = EigenGame(4, optimizer=optimizer, n_epochs=60, tol=None, random_state=0).fit(X)
    assert np.abs(np.diagonal(model.components_)).min() > 0.98


def test_refining_a_stream(data):
    model = EigenGame(3, batch_size=100, random_state=0)
    for part in np.array_split(data, 10):
        model.partial_fit(part)
    assert not model.converged_
    model.refine(data)
    assert model.converged_
    assert angles(model.components_, PCA(3).fit(data).components_).max() < 0.02
    before = model.components_
    model.partial_fit(data[:100])
    assert angles(model.components_, before).max() < 0.1
    with pytest.raises(ValueError, match="refine reads it several times"):
        model.refine(iter([data]))


@pytest.mark.parametrize("share", [0.8, 0.99, np.float32(0.8)])
def test_a_share_of_the_variance_of_fewer_columns_than_players(data, share):
    exact = PCA(float(share)).fit(data)
    assert EigenGame(share, random_state=0).fit(data).n_components_ == exact.n_components_


@pytest.mark.parametrize(
    "change",
    [
        {"n_components": 4},
        {"learning_rate": 1e-9},
        {"momentum": 0.5},
        {"center": None},
        {"optimizer": optax.sgd(0.1)},
    ],
)
def test_a_fit_does_not_go_on_with_other_settings(data, change):
    """They are built into the state, which would go on with the old ones in silence."""
    model = EigenGame(2, random_state=0).partial_fit(data).set_params(**change)
    for go_on in (model.partial_fit, model.refine):
        with pytest.raises(ValueError, match=f"{next(iter(change))} was .* when this fit began and is"):
            go_on(data)
    assert model.set_params(batch_size=64).fit(data).converged_


def test_refine_takes_what_fit_takes(data):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(data, columns=list("abcdefgh"))
    model = EigenGame(2, random_state=0).partial_fit(frame)
    truth = PCA(2).fit(data).components_
    for rows in (frame, lambda: iter([data[:10], data[10:]])):
        assert np.abs(np.sum(model.refine(rows).components_ * truth, axis=1)).min() > 0.999
    with pytest.raises(ValueError, match="feature names should match"):
        model.refine(frame[frame.columns[::-1]])
    with pytest.raises(ValueError, match="Batch 0 has 7 features; the fit has 8"):
        model.refine(lambda: iter([data[:, :7]]))
    with pytest.raises(ValueError, match="Batch 1 contains NaN"):
        model.refine(lambda: iter([data, np.where(data > 5, np.nan, data)]))


def test_refine_after_an_exact_solution_is_about_the_new_data(data):
    """It returned the old answer, whatever the new rows were."""
    model = EigenGame(2, algorithm="auto", random_state=0).fit(data)
    assert model.solver_ == "exact"
    other = data[:, ::-1].copy()
    truth = PCA(2).fit(other).components_
    assert np.abs(np.sum(model.refine(other).components_ * truth, axis=1)).min() > 0.999
    assert model.solver_ == "game"


def test_an_own_optimizer_has_steps_for_one_unit_only(data):
    with pytest.raises(ValueError, match=r"The data are of size 2e\+12; .* Scale the data"):
        EigenGame(2, optimizer=optax.sgd(0.1)).fit(data.astype(float) * 1e11)


def test_the_frame_survives_saving(data, tmp_path):
    X = data.astype(float) * 1e-30 + 1e-24
    model = fitted(X, n_epochs=1)
    model.save(tmp_path / "model.npz")
    held, _ = EigenGame.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(held.mean_, model.mean_)
    np.testing.assert_array_equal(
        held.partial_fit(X[:100]).components_, model.partial_fit(X[:100]).components_
    )
    np.testing.assert_array_equal(held.explained_variance_, model.explained_variance_)


@pytest.mark.parametrize(
    "optimizer", [optax.lbfgs(), optax.contrib.dog, 0.1], ids=["lbfgs", "function", "number"]
)
def test_optimizers_that_do_not_apply_are_refused(data, optimizer):
    with pytest.raises(ValueError, match="optimizer"):
        EigenGame(2, optimizer=optimizer).fit(data)


def test_settings_changed_after_a_fit_leave_what_was_found(data):
    model = EigenGame(2, algorithm="auto", random_state=0).fit(data)
    names = ("components_", "explained_variance_", "singular_values_")
    before = [getattr(model, name) for name in names]
    model.set_params(center=None, dtype="float64")
    for name, value in zip(names, before, strict=True):
        assert getattr(model, name).dtype == value.dtype
        np.testing.assert_array_equal(getattr(model, name), value)


def test_a_file_says_what_the_fit_began_with(data, tmp_path):
    """A setting changed after the fit became that of the loaded one, which then went on with it."""
    model = EigenGame(2, random_state=0).fit(data).set_params(center=None)
    with pytest.raises(ValueError, match="center was 'running' when this fit began and is None"):
        model.save(tmp_path / "model.npz")


def test_settings_of_another_version_are_named(data, tmp_path):
    EigenGame(2, random_state=0).fit(data).save(tmp_path / "model.npz")
    arrays, meta = checkpoint.read(tmp_path / "model.npz")
    record = {"format": checkpoint.FORMAT_VERSION, "meta": meta | {"params": meta["params"] | {"colour": 1}}}
    np.savez(tmp_path / "model.npz", **arrays, __meta__=np.array(json.dumps(record)))
    with pytest.raises(ValueError, match=r"does not know: \['colour'\]; fit anew"):
        EigenGame.load(tmp_path / "model.npz")


def test_warnings_point_at_the_line_of_the_user(data):
    """Those of `fit_transform` and of pipelines pointed into scikit-learn."""
    model = EigenGame(2, n_epochs=1, tol=1e-9, random_state=0)
    for use in (model.fit, model.fit_transform, make_pipeline(model).fit):
        with pytest.warns(ConvergenceWarning) as caught:
            use(data)
        assert {Path(warning.filename).name for warning in caught} == {"test_estimators_pca.py"}
