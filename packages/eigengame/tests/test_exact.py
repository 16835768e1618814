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


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([[1.0, 2.0], [0.0, 1.0]],), "A is not symmetric"),  # the upper triangle was not read
        ((np.eye(2), [[1.0, 2.0], [0.0, 1.0]]), "B is not symmetric"),
        ((np.array([[1, 1j], [-1j, 1]]),), "A has masked, complex or sparse entries"),
        ((np.ones((2, 3)),), r"A has shape \(2, 3\)"),
    ],
)
def test_what_is_no_symmetric_matrix_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        exact.pencil(*arguments)


@pytest.mark.parametrize(
    ("X", "options", "match"),
    [
        (np.ma.masked_greater(np.eye(3), 0.5), {}, "X has masked"),  # masked entries counted
        (np.eye(3) * 1j, {}, "complex"),
        (np.eye(3), {"chunk": -1}, "chunk > 0"),  # was a covariance of zeros
        (np.ones((1, 3)), {"ddof": 1}, "n > ddof"),
        (np.full((3, 2), np.nan), {}, "X holds entries that are NaN"),
    ],
)
def test_what_is_no_table_of_numbers_has_no_covariance(X, options, match):
    with pytest.raises(ValueError, match=match):
        exact.covariance(X, **options)
