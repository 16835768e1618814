import numpy as np
import pytest

from eigengame import exact


def test_pca_agrees_with_the_singular_value_decomposition(rng):
    X = rng.standard_normal((50, 6)) + 1e3
    found = exact.pca(X, 3)
    _, values, vectors = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.values, values[:3] ** 2 / 50, rtol=1e-8)
    np.testing.assert_allclose(found.vectors, exact.orient(vectors[:3]), atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 7, 50, 100])
def test_chunks_do_not_matter(rng, chunk):
    X = rng.standard_normal((50, 4)) + 5
    C, mean = exact.covariance(X, ddof=1, chunk=chunk)
    np.testing.assert_allclose(C, np.cov(X.T), atol=1e-12)
    np.testing.assert_allclose(mean, X.mean(axis=0), atol=1e-12)


def test_without_centring(rng):
    X = rng.standard_normal((20, 3)) + 2
    np.testing.assert_allclose(exact.covariance(X, center=False)[0], X.T @ X / 20, atol=1e-12)


def test_pencil_is_golden_and_b_orthonormal(golden):
    found = exact.pencil(golden["cca_A"], golden["cca_B"])
    np.testing.assert_allclose(found.values, golden["cca_eigvals"], atol=1e-10)
    np.testing.assert_allclose(found.vectors @ golden["cca_B"] @ found.vectors.T, np.eye(12), atol=1e-9)
    expected = exact.orient(golden["cca_eigvecs"])
    np.testing.assert_allclose(found.vectors[:4], expected[:4], atol=1e-8)


def test_too_many():
    with pytest.raises(ValueError, match=r"k=3 is outside 1\.\.2"):
        exact.pencil(np.eye(2), k=3)
