import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from eigengame import EigenGameCCA, EigenGameGEVP, EigenGameICA, EigenGamePLS, EigenGameSpectralEmbedding
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
    return np.concatenate([np.asarray(view, np.float64) for view in model._state.vectors], axis=1)


@parametrize_with_checks(
    [
        EigenGameCCA(n_components=1, n_epochs=2, batch_size=8, random_state=0),
        EigenGameICA(n_components=1, n_epochs=20, random_state=0),
        EigenGameGEVP(n_components=1, n_iter=20, random_state=0),
        EigenGameSpectralEmbedding(n_components=1, affinity="precomputed", n_iter=20, random_state=0),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.slow  # differs from EigenGameCCA in one function of `pencils` only
def test_scikit_learn_contract_of_pls():
    check_estimator(EigenGamePLS(n_components=1, n_epochs=20, random_state=0))


def test_cca_finds_the_exact_vectors(rng):
    views = two_views(rng, 512)
    model = EigenGameCCA(4, n_epochs=2000, random_state=0).fit(*views)
    exact = pencil(*exact_pencil(views), k=4)
    assert cosine_similarities(joint_vectors(model), exact.vectors).min() > 0.999
    assert model.unresolved_.size == 0
    x, y = model.transform(*views)
    correlations = [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(4)]
    np.testing.assert_allclose(correlations, exact.values, atol=0.01)


def test_minimising_works_for_two_views(rng):
    views = two_views(rng, 512)
    model = EigenGameCCA(2, n_epochs=2000, maximize=False, random_state=0).fit(*views)
    exact = pencil(*exact_pencil(views), k=2)  # the spectrum of CCA is symmetric about zero
    V = joint_vectors(model) * np.r_[np.ones(8), -np.ones(8)]
    assert cosine_similarities(V, exact.vectors).min() > 0.999


def test_cca_with_partial_fit_over_independent_batches(rng):
    views = two_views(rng, 4096)
    model = EigenGameCCA(1, batch_size=64, learning_rate=0.01, random_state=0)
    for _ in range(20):
        model.partial_fit(*views)
    exact = pencil(*exact_pencil(views), k=2)
    assert model.eigenvalues_[0] > 0.95 * exact.values[1]


def test_without_batch_size_there_is_no_partial_fit():
    assert not hasattr(EigenGameCCA(), "partial_fit")


def test_gevp_against_scipy(rng):
    A = rng.standard_normal((8, 8))
    A = A + A.T + 10 * np.eye(8)
    B = rng.standard_normal((8, 20))
    B = B @ B.T / 20 + np.eye(8)
    model = EigenGameGEVP(3, random_state=0).fit(A, B=B)
    exact = pencil(A, B, k=3)
    np.testing.assert_allclose(model.eigenvalues_, exact.values, rtol=1e-3)
    assert cosine_similarities(model.components_, exact.vectors).min() > 0.999
    np.testing.assert_allclose(np.diag(model.components_ @ B @ model.components_.T), 1, rtol=1e-4)


def test_gevp_takes_functions_and_sparse_matrices(rng):
    from scipy.sparse import csr_array

    A = np.diag(np.arange(1.0, 7.0)).astype(np.float32)
    dense = EigenGameGEVP(2, random_state=0).fit(A).eigenvalues_
    np.testing.assert_allclose(
        EigenGameGEVP(2, random_state=0).fit(csr_array(A)).eigenvalues_, dense, rtol=1e-5
    )
    scale = np.arange(1.0, 7.0, dtype=np.float32)
    found = EigenGameGEVP(2, random_state=0).fit(lambda V: V * scale, dim=6).eigenvalues_
    np.testing.assert_allclose(found, dense, rtol=1e-5)


def test_an_asymmetric_operator_warns(rng):
    with pytest.warns(UserWarning, match=r"A is not symmetric: .* Pass \(A \+ A'\) / 2"):
        EigenGameGEVP(1, n_iter=5, random_state=0).fit(rng.standard_normal((6, 6)))


def test_a_b_that_is_not_positive_warns():
    with pytest.warns(UserWarning, match="B is not positive"):
        EigenGameGEVP(1, n_iter=5, random_state=0).fit(np.eye(3), B=-np.eye(3))


def test_players_of_nonpositive_value_are_unresolved():
    model = EigenGameGEVP(3, random_state=0).fit(np.diag([2.0, 1.0, -1.0, -2.0]))
    assert model.unresolved_.tolist() == [2]


def test_lambda_star_below_the_top_is_refused():
    with pytest.raises(ValueError, match="is below the Laplacian's largest eigenvalue"):
        EigenGameSpectralEmbedding(lambda_star=0.5).fit([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EigenGameCCA(3).fit(np.eye(4, 2), np.eye(4, 3)), "n_features=2; ask for at most 2"),
        (lambda: EigenGameICA(0).fit(np.eye(4)), "n_components is 0"),
        (lambda: EigenGameGEVP(3).fit(np.eye(2)), "n_components=3 exceeds n_features=2"),
        (lambda: EigenGameGEVP().fit(np.ones((2, 3))), r"A has shape \(2, 3\); a symmetric matrix is square"),
        (lambda: EigenGameGEVP().fit(np.eye(2), B=np.eye(3)), "B must be a matrix of shape"),
        (lambda: EigenGameGEVP().fit(lambda V: V), "pass dim="),
        (lambda: EigenGameSpectralEmbedding(9).fit([[0, 1]]), "exceeds the number of nodes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
