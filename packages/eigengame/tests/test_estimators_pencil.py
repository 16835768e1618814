import math
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from eigengame import EigenGameCCA, EigenGameGEVP, EigenGameICA, EigenGamePLS, EigenGameSpectralEmbedding
from eigengame.estimators.frames import mean_of
from eigengame.exact import pencil
from eigengame.metrics import cosine_similarities


def two_views(rng, num_samples, dim=8, latents=4, noise=0.5):
    """Two views of the same Gaussian latents, each mixed linearly, plus noise; centred."""
    shared = rng.standard_normal((num_samples, latents))
    views = [
        shared @ rng.standard_normal((latents, dim)) + noise * rng.standard_normal((num_samples, dim))
        for _ in range(2)
    ]
    return [view - view.mean(axis=0) for view in views]


def exact_pencil(views):
    x, y = views
    C = np.cov(np.concatenate([x, y], axis=1).T, ddof=0)
    B = np.zeros_like(C)
    split = x.shape[1]
    B[:split, :split], B[split:, split:] = C[:split, :split], C[split:, split:]
    return C - B, B


def joint_vectors(model):
    return np.concatenate(model._vectors(), axis=1)


@parametrize_with_checks(
    [
        EigenGameCCA(n_components=1, n_epochs=2, batch_size=8, random_state=0),
        EigenGameICA(n_components=1, n_epochs=20, random_state=0),
        EigenGameGEVP(n_components=1, n_iter=20, random_state=0),
        EigenGameSpectralEmbedding(n_components=1, affinity="precomputed", n_iter=20, random_state=0),
    ]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # few steps, tied values
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.slow  # differs from EigenGameCCA in one function of `pencils` only
def test_scikit_learn_contract_of_pls():
    check_estimator(EigenGamePLS(n_components=1, n_epochs=20, random_state=0))


@pytest.mark.parametrize("refine", [True, False])
def test_cca_finds_the_exact_vectors(rng, refine):
    views = two_views(rng, 512)
    model = EigenGameCCA(4, n_epochs=200 if refine else 2000, refine=refine, random_state=0).fit(*views)
    exact = pencil(*exact_pencil(views), k=4)
    assert cosine_similarities(joint_vectors(model), exact.vectors).min() > 0.999
    assert model.unresolved_.size == 0
    np.testing.assert_allclose(model.eigenvalues_, exact.values, atol=1e-3)
    x, y = model.transform(*views)
    correlations = [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(4)]
    np.testing.assert_allclose(correlations, exact.values, atol=0.01)
    assert model.score(*views) == pytest.approx(exact.values.mean(), abs=0.01)


def svd_correlations(x, y, k):
    """Canonical correlations as singular values between orthonormal bases of the views (Bjorck and Golub)."""
    bases = []
    for view in (x, y):
        centred = view - view.mean(axis=0)
        left, singular, _ = np.linalg.svd(
            centred / np.maximum(centred.std(axis=0), 1e-12), full_matrices=False
        )
        bases.append(left[:, singular > 1e-10 * singular[0]])
    return np.linalg.svd(bases[0].T @ bases[1])[1][:k]


@pytest.mark.parametrize(
    "units",
    [(1e-3, 1e-3), (1e4, 1e-3), (np.geomspace(1, 1e4, 8), 1.0), (1.0, np.geomspace(1e-5, 1e5, 8))],
    ids=["small", "mixed", "columns of x", "columns of y"],
)
@pytest.mark.parametrize("batch_size", [None, 64])
def test_cca_does_not_depend_on_units(rng, units, batch_size):
    x, y = two_views(rng, 600)
    x, y = x * units[0] + 5 * np.max(units[0]), y * units[1]
    model = EigenGameCCA(3, batch_size=batch_size, n_epochs=20, random_state=0).fit(x, y)
    np.testing.assert_allclose(model.eigenvalues_, svd_correlations(x, y, 3), atol=1e-4)
    scores = model.transform(x, y)
    found = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(*(s.T.astype(float) for s in scores), strict=True)]
    np.testing.assert_allclose(found, svd_correlations(x, y, 3), atol=1e-3)


def test_cca_of_views_without_full_rank(rng):
    x, y = two_views(rng, 300)
    x = np.concatenate([x, x[:, :2], np.ones((300, 1))], axis=1)
    model = EigenGameCCA(3, random_state=0).fit(x, y)
    np.testing.assert_allclose(model.eigenvalues_, svd_correlations(x, y, 3), atol=1e-4)
    with pytest.warns(ConvergenceWarning, match="Components"):  # all correlations are 1
        few = EigenGameCCA(2, random_state=0).fit(x[:6], y[:6])
    np.testing.assert_allclose(few.eigenvalues_, 1, atol=1e-4)


def test_ridge_of_cca_against_scipy(rng):
    x, y = two_views(rng, 300)
    x = x * np.geomspace(1, 30, 8)
    A, B = exact_pencil((x, y))
    values = eigh(A, B + 0.5 * np.eye(16), eigvals_only=True)[::-1]
    model = EigenGameCCA(3, epsilon=0.5, random_state=0).fit(x, y)
    np.testing.assert_allclose(model.eigenvalues_, values[:3], atol=1e-4)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e3])
def test_pls_against_scipy(rng, unit):
    x, y = two_views(rng, 300)
    x, y = x * np.geomspace(1, 30, 8), y * unit
    A, B = exact_pencil((x, y))
    B[8:, 8:] = np.eye(8)
    values, vectors = eigh(A, B)
    model = EigenGamePLS(3, random_state=0).fit(x, y)
    np.testing.assert_allclose(model.eigenvalues_, values[::-1][:3], rtol=1e-3)
    assert cosine_similarities(joint_vectors(model), vectors[:, ::-1].T[:3]).min() > 0.999


def test_small_values_of_pls_next_to_columns_of_large_unit(rng):
    """The values are the singular values of Q_x' y / sqrt(n), Q_x an orthonormal basis of the first view."""
    x, y = two_views(rng, 300)
    y = y * np.geomspace(1, 1e8, 8)
    exact = np.linalg.svd(np.linalg.qr(x)[0].T @ y)[1][:4] / np.sqrt(300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = EigenGamePLS(4, random_state=0).fit(x, y)
    np.testing.assert_allclose(model.eigenvalues_, exact, rtol=1e-4)
    assert not model.unresolved_.size


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_ica_finds_sources_in_the_order_of_their_kurtosis(rng, unit):
    sources = np.stack(
        [rng.uniform(-1, 1, 4000), np.sign(rng.standard_normal(4000)), np.sin(np.arange(4000.0))], axis=1
    )
    mixed = unit * sources @ rng.standard_normal((3, 3))
    model = EigenGameICA(3, maximize=False, random_state=0).fit(mixed)
    np.testing.assert_allclose(model.eigenvalues_, [2.0, 1.5, 1.2], atol=0.05)  # sizes of the excess kurtosis
    found = np.abs(np.corrcoef(model.transform(mixed).T.astype(float), sources.T)[:3, 3:])
    np.testing.assert_allclose([found[0, 1], found[1, 2], found[2, 0]], 1, atol=0.01)


@pytest.mark.parametrize("unit", [1e-100, 1.0, 1e100])
@pytest.mark.parametrize("rows", [100, 2000])
def test_sources_of_equal_kurtosis_are_said(rng, rows, unit):
    mixed = unit * rng.uniform(-1, 1, (rows, 2)) @ rng.standard_normal((2, 2))
    with pytest.warns(UserWarning, match="Components 0 and 1 differ in kurtosis by less than"):
        EigenGameICA(2, maximize=False, random_state=0).fit(mixed)


@pytest.mark.parametrize("maximize", [True, False])
def test_what_gaussian_data_reach_as_well_is_no_source(rng, maximize):
    noise = rng.standard_normal((1000, 4))
    with pytest.warns(
        UserWarning, match=r"Components \[0\] have an excess kurtosis of less than .* no sources"
    ):
        EigenGameICA(1, maximize=maximize, random_state=0).fit(noise)
    source = rng.laplace(size=1000) if maximize else rng.uniform(-1, 1, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EigenGameICA(1, maximize=maximize, random_state=0).fit(np.c_[source, noise[:, 1:]])


@pytest.mark.parametrize("estimator", [EigenGameICA(random_state=0), EigenGameCCA(random_state=0)])
def test_columns_of_categories_are_numbers_or_refused(rng, estimator):
    pandas = pytest.importorskip("pandas")
    x, y = rng.laplace(size=(2, 200, 2))
    codes = rng.integers(0, 3, 200)
    frame = pandas.DataFrame({"a": pandas.Categorical(codes), "b": x[:, 0]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = clone(estimator).fit(frame, y).eigenvalues_
        np.testing.assert_array_equal(given, clone(estimator).fit(np.c_[codes, x[:, 0]], y).eigenvalues_)
    with pytest.raises(ValueError, match="could not convert string to float"):
        estimator.fit(frame.assign(a=pandas.Categorical(["low", "high"] * 100)), y)


def test_minimising_works_for_two_views(rng):
    views = two_views(rng, 512)
    model = EigenGameCCA(2, maximize=False, random_state=0).fit(*views)
    exact = pencil(*exact_pencil(views), k=2)  # the spectrum of CCA is symmetric about zero
    V = joint_vectors(model) * np.r_[np.ones(8), -np.ones(8)]
    assert cosine_similarities(V, exact.vectors).min() > 0.999


@pytest.mark.parametrize("rows", [4096, 3])
def test_cca_with_partial_fit_over_independent_batches(rng, rows):
    """Calls of any size make the same steps: rows wait until there are enough of them."""
    views = two_views(rng, 4096)
    model = EigenGameCCA(1, batch_size=64, learning_rate=0.01, random_state=0)
    for _ in range(20 if rows == 4096 else 1):
        for start in range(0, 4096, rows):
            model.partial_fit(*(view[start : start + rows] for view in views))
    exact = pencil(*exact_pencil(views), k=2)
    if rows == 4096:
        assert model.eigenvalues_[0] == pytest.approx(exact.values[0], rel=0.1)
    else:
        assert model.n_iter_ == 32


def test_grid_search_over_cca(rng):
    views = two_views(rng, 200)
    search = GridSearchCV(EigenGameCCA(random_state=0), {"n_components": [1, 3]}, cv=2).fit(*views)
    assert search.best_params_ == {"n_components": 1}


def test_scores_of_another_y_are_refused(rng):
    model = EigenGameCCA(1, random_state=0).fit(*two_views(rng, 100))
    with pytest.raises(ValueError, match=r"y has shape \(200, 1\); expected \(100, 8\)"):
        model.transform(two_views(rng, 100)[0], np.zeros(200))
    with pytest.raises(ValueError, match="Input y contains NaN"):
        model.transform(two_views(rng, 100)[0], np.full((100, 8), np.nan))


def test_without_batch_size_there_is_no_partial_fit():
    assert not hasattr(EigenGameCCA(), "partial_fit")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EigenGameCCA(3).fit(np.eye(4, 2), np.eye(4, 3)), "n_features=2; ask for at most 2"),
        (lambda: EigenGameICA(0).fit(np.eye(4)), "'n_components' .* Got 0"),
        (lambda: EigenGameGEVP(3).fit(np.eye(2)), "n_components=3 exceeds n_features=2"),
        (lambda: EigenGameGEVP().fit(np.ones((2, 3))), r"A has shape \(2, 3\); a symmetric matrix is square"),
        (lambda: EigenGameGEVP().fit(np.eye(2), B=np.eye(3)), "B must be a matrix of shape"),
        (lambda: EigenGameGEVP().fit(lambda V: V), "pass dim="),
        (lambda: EigenGameGEVP().fit(lambda V: V, dim=4.5), "the dimension d, an integer"),
        (lambda: EigenGameGEVP().fit(np.eye(4), dim=5), "dim=5, but A has 4 rows"),
        (lambda: EigenGameGEVP().fit(lambda V: V * jnp.nan, dim=4), "A maps V .* not finite"),
        (lambda: EigenGameGEVP().fit(lambda V: V[:, :2], dim=4), r"A maps V .* to \(2, 2\)"),
        (lambda: EigenGameSpectralEmbedding(1).fit([[0, 1, 1], [1, 1, np.nan]]), "must be finite"),
        (lambda: EigenGameSpectralEmbedding(1).fit([[0, 1, 1], [1, 1, -1]]), "must not be negative"),
        (
            lambda: EigenGameSpectralEmbedding(1).fit(np.array([[0, 2**24 + 1]], np.float32)),
            "dtype float32, which cannot tell such nodes apart",
        ),
        (
            lambda: EigenGameSpectralEmbedding(1, affinity="precomputed").fit(np.eye(3)),
            "no weight off its diagonal",
        ),
        (
            lambda: EigenGameSpectralEmbedding(1, learning_rate=-1.0).fit([[0, 1]]),
            "'learning_rate' .* Got -1.0",
        ),
        (lambda: EigenGameSpectralEmbedding(1).fit([[0, 1, -1.0]]), "weights of edges must not be negative"),
        (lambda: EigenGameCCA(1, epsilon=-1).fit(np.eye(4), np.eye(4)), "'epsilon' .* Got -1"),
        (lambda: EigenGameSpectralEmbedding(9).fit([[0, 1]]), "exceeds the number of nodes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_direction_that_one_view_lacks_is_unresolved(rng):
    """The second view has rank one: the value of the second pair is rounding error, not a finding."""
    x = rng.standard_normal((10, 3))
    with pytest.warns(ConvergenceWarning):
        model = EigenGameCCA(2, random_state=0).fit(x, np.c_[x[:, 0], 2 * x[:, 0]])
    np.testing.assert_array_equal(model.unresolved_, [1])


def test_bounds_of_a_fit_do_not_outlive_it(rng):
    """After `partial_fit` the vectors are others, and nothing bounds their angles."""
    views = two_views(rng, 600)
    model = EigenGameCCA(2, batch_size=64, n_epochs=2, random_state=0).fit(*views)
    assert model.angle_bounds_.max() < 0.02
    model.partial_fit(*(rng.standard_normal((128, 8)) for _ in views))
    np.testing.assert_array_equal(model.angle_bounds_, np.pi / 2)
    assert np.isnan(model.residuals_).all()


@pytest.mark.parametrize("options", [{}, {"batch_size": 64}], ids=["full", "minibatch"])
def test_how_near_the_plain_game_came_is_said(rng, options):
    views = two_views(rng, 600)
    vectors = pencil(*exact_pencil(views), k=2).vectors
    with pytest.warns(ConvergenceWarning, match="have not converged.*take more epochs, or refine=True"):
        model = EigenGameCCA(2, n_epochs=2, refine=False, random_state=0, **options).fit(*views)
    angles = np.arccos(np.minimum(cosine_similarities(joint_vectors(model), vectors), 1))
    assert np.all(model.angle_bounds_ >= angles)


def with_noise_of_rounding(rng, rows):
    """Constants that a mean misses by a digit, and one that jumps by the distance of two doubles."""
    jumps = np.where(rng.random(len(rows)) < 0.5, np.spacing(3.3), 0)
    return np.c_[rows, np.full(len(rows), 3.3), np.full(len(rows), 1e9 / 7), 3.3 + jumps]


@pytest.mark.parametrize("batch_size", [None, 64])
def test_constant_columns_are_no_finding(rng, batch_size):
    x, y = two_views(rng, 601, dim=5, latents=2)
    options = {"batch_size": batch_size, "n_epochs": 20, "random_state": 0}
    noisy = EigenGameCCA(3, **options).fit(with_noise_of_rounding(rng, x), with_noise_of_rounding(rng, 2 * y))
    np.testing.assert_allclose(noisy.eigenvalues_, svd_correlations(x, y, 3), atol=1e-4)
    np.testing.assert_array_equal(noisy.components_x_[:, -3:], 0)


def test_constant_columns_of_partial_least_squares_make_no_noise(rng):
    """A division by zero was seen by users who turn warnings into errors."""
    X, y = rng.standard_normal((2, 300, 3))
    y[:, 1] = 0
    y[:, 0] += X[:, 2]
    cross = np.linalg.solve(np.linalg.cholesky(np.cov(X.T, ddof=0)), np.cov(X.T, y.T, ddof=0)[:3, 3:])
    model = EigenGamePLS(2, tol=1e-4, random_state=0).fit(X, y)
    np.testing.assert_allclose(model.eigenvalues_, np.linalg.svd(cross)[1][:2], rtol=1e-5)


def test_constant_columns_are_no_source(rng):
    sources = np.c_[rng.uniform(-1, 1, 3000), np.sign(rng.standard_normal(3000))]
    mixed = with_noise_of_rounding(rng, sources @ rng.standard_normal((2, 2)))
    model = EigenGameICA(2, maximize=False, random_state=0).fit(mixed)
    found = np.abs(np.corrcoef(model.transform(mixed).T, sources.T)[:2, 2:])
    assert found[[0, 1], [1, 0]].min() > 0.99


@pytest.mark.parametrize("step", [1e-7, 1e-9])
def test_what_two_nearly_equal_columns_hide_is_found(rng, step):
    """Their difference is perfectly correlated with y: a covariance matrix has lost it, the rows have not."""
    hidden = rng.standard_normal(500)
    x = rng.standard_normal((500, 3))
    x = np.c_[x, x[:, 0] + step * hidden]
    y = np.c_[hidden, rng.standard_normal(500)]
    for cls, value in ((EigenGameCCA, 1.0), (EigenGamePLS, hidden.std())):
        model = cls(1, random_state=0).fit(x, y)
        np.testing.assert_allclose(model.eigenvalues_, value, rtol=0.01)
        assert abs(np.corrcoef(model.transform(x)[:, 0], hidden)[0, 1]) > 0.99


def test_a_column_that_begins_to_vary_in_a_stream(rng):
    """Its unit is not known before it does."""
    x, y = two_views(rng, 2000, dim=3, latents=2, noise=0.1)
    x[:, 0] *= 1e8
    x[:16, 0] = x[16, 0]
    model = EigenGameCCA(1, batch_size=32, learning_rate=0.02, random_state=0)
    model.partial_fit(x[:16], y[:16])
    for _ in range(10):
        model.partial_fit(x, y)
    scores = model.transform(x, y)
    assert abs(np.corrcoef(scores[0][:, 0], scores[1][:, 0])[0, 1]) > 0.95


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_a_call_that_fails_changes_nothing(rng, call):
    x, y = two_views(rng, 128, dim=3, latents=2)
    model = EigenGameCCA(2, batch_size=32, n_epochs=5, random_state=0).fit(x, y)
    before = model.components_x_, model.mean_, model.n_samples_seen_, model.n_features_in_
    with pytest.raises(ValueError, match=r"no variance|expecting 3 features"):
        getattr(model, call)(np.ones((128, 5)), y)
    for held, now in zip(
        before, (model.components_x_, model.mean_, model.n_samples_seen_, model.n_features_in_), strict=True
    ):
        np.testing.assert_array_equal(held, now)


def test_components_that_are_no_finding_are_said(rng):
    signs = np.sign(rng.standard_normal((2000, 2)))
    with pytest.warns(ConvergenceWarning, match=r"Components \[0\] are no finding: no value .* positive"):
        EigenGameICA(1, random_state=0).fit(signs)


def test_the_columns_of_a_second_data_frame_keep_their_order(rng):
    pd = pytest.importorskip("pandas")
    x, y = (pd.DataFrame(view, columns=list("abcd")) for view in two_views(rng, 128, dim=4, latents=2))
    model = EigenGameCCA(1, batch_size=32, n_epochs=2, random_state=0).fit(x, y)
    for call in (model.transform, model.partial_fit, model.score):
        with pytest.raises(ValueError, match=r"y has columns \['d', 'c', 'b', 'a'\]; fitted with \['a'"):
            call(x, y[list("dcba")])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: np.ma.array(x, mask=x > 1), "has masked entries"),
        (lambda x: (1e9 * x).astype("datetime64[ns]"), r"holds datetime64\[ns\]: pass numbers"),
        (lambda x: (1e9 * x).astype("timedelta64[ns]"), r"holds timedelta64\[ns\]: pass numbers"),
        (lambda x: x + 1j, "Complex data not supported"),
        (lambda x: x.astype(str), "holds entries of type <U"),
        (lambda x: (row for row in x), "is a generator: pass an array"),
    ],
    ids=["masked", "dates", "durations", "complex", "text", "generator"],
)
def test_entries_that_are_no_numbers_are_refused(rng, bad, message):
    x, y = two_views(rng, 64, dim=3, latents=2)
    for call in (
        lambda: EigenGameCCA(1).fit(bad(x), y),
        lambda: EigenGameCCA(1).fit(x, bad(y)),
        lambda: EigenGameICA(1).fit(bad(x)),
        lambda: EigenGameCCA(1, batch_size=8).partial_fit(x, bad(y)),
        lambda: EigenGameGEVP(1).fit(bad(x.T @ x)),
        lambda: EigenGameGEVP(1).fit(np.eye(3), B=bad(x.T @ x)),
        lambda: EigenGameSpectralEmbedding(1).fit(bad(np.abs(x[:, :2]))),
        lambda: EigenGameSpectralEmbedding(1, affinity="precomputed").fit(bad(np.abs(x.T @ x))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_rows_in_bfloat16_are_widened(rng):
    x, y = two_views(rng, 300, dim=3, latents=2)
    model = EigenGameCCA(2, random_state=0).fit(jnp.asarray(x, jnp.bfloat16), y)
    rounded = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(model.eigenvalues_, svd_correlations(rounded, y, 2), atol=1e-4)


def test_settings_of_a_stream_stay_those_it_began_with(rng):
    views = two_views(rng, 128)
    model = EigenGameCCA(2, batch_size=64, random_state=0).partial_fit(*views)
    with pytest.raises(ValueError, match="maximize was True when this fit began and is False"):
        model.set_params(maximize=False).partial_fit(*views)
    model.set_params(maximize=True, n_components=4)
    assert model.components_x_.shape == (2, 8)
    assert model.eigenvalues_.shape == (2,)


@pytest.mark.parametrize("scale", [1e-200, 1e-100, 1e100, 1e200])
def test_cca_and_its_scores_at_the_ends_of_double_precision(rng, scale):
    x, y = two_views(rng, 300)
    model = EigenGameCCA(2, random_state=0).fit(x * scale, y / scale)
    exact = svd_correlations(x, y, 2)
    np.testing.assert_allclose(model.eigenvalues_, exact, atol=1e-4)
    scores = model.transform(x * scale, y / scale)
    units = (scale, 1 / scale)
    found = [
        np.corrcoef(*(s[:, i] / unit for s, unit in zip(scores, units, strict=True)))[0, 1] for i in (0, 1)
    ]
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert model.score(x * scale, y / scale) == pytest.approx(exact.mean(), abs=1e-4)


def test_a_constant_view_is_refused_by_name(rng):
    with pytest.raises(ValueError, match="A view has no variance: all its columns are constant"):
        EigenGameCCA(1, random_state=0).fit(np.ones((50, 3)), rng.standard_normal((50, 2)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"batch_size": 256, "n_epochs": 2}], ids=["full", "minibatch"])
def test_pencils_where_jax_computes_in_double_precision(rng, x64, dtype, options):
    """The canonical correlations are the singular values of Q_x' Q_y (Bjoerck and Golub 1973)."""
    x, y = two_views(rng, 512)
    model = EigenGameCCA(2, tol=1e-7, dtype=dtype, random_state=0, **options).fit(x, y)
    truth = np.linalg.svd(np.linalg.qr(x)[0].T @ np.linalg.qr(y)[0])[1][:2]
    assert model.components_x_.dtype == dtype
    np.testing.assert_allclose(model.eigenvalues_, truth, rtol=1e-12 if dtype == "float64" else 1e-7)


def test_double_precision_needs_double_precision_of_jax(rng):
    with pytest.raises(ValueError, match="dtype='float64' needs 64-bit JAX"):
        EigenGameCCA(1, dtype="float64").fit(*two_views(rng, 50))


@pytest.mark.parametrize("first", [0.0, 1e9, -1e9])
def test_a_mean_has_all_its_digits_whatever_the_first_row_is(rng, first):
    rows = rng.standard_normal((999, 3)) + 1e3
    rows[0] = first
    exact = [math.fsum(column) / len(column) for column in rows.T]
    np.testing.assert_allclose(mean_of(rows), exact, rtol=2e-15)


@pytest.mark.parametrize("constant", [0.0, 3.3])
def test_a_column_that_begins_to_vary_after_a_fit_is_refused(rng, constant):
    x, y = two_views(rng, 256)
    still = x.copy()
    still[:, 2] = constant
    model = EigenGameCCA(2, batch_size=64, n_epochs=2, random_state=0).fit(still, y)
    model.partial_fit(still, y)
    before = model.components_x_
    with pytest.raises(ValueError, match=r"Columns \[2\] did not vary in fit and vary now"):
        model.partial_fit(x, y)
    np.testing.assert_array_equal(model.components_x_, before)


def test_a_sparse_second_view_is_refused(rng):
    x, y = two_views(rng, 64)
    model = EigenGameCCA(1).fit(x, y)
    for call in (model.fit, model.transform):
        with pytest.raises(TypeError, match="CCA and PLS take dense views"):
            call(x, csr_array(y))


@pytest.mark.parametrize("unit", [1e-120, 1e120])
def test_values_of_pls_beyond_single_precision(rng, unit):
    """They are multiples of the unit of the second view."""
    X, Y = two_views(rng, 300)
    whitened = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[0]
    exact = np.linalg.svd(whitened.T @ (Y - Y.mean(axis=0)) / np.sqrt(len(X)), compute_uv=False)[:2]
    found = EigenGamePLS(2, random_state=0).fit(X / unit, Y * unit)
    np.testing.assert_allclose(found.eigenvalues_ / unit, exact, rtol=1e-5)
    assert found.unresolved_.size == 0
