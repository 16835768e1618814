import numpy as np
import pytest

from eigengame.core import rayleigh, utilities

TOLERANCE = 1e-10


@pytest.mark.parametrize(
    ("kind", "reduction", "name"),
    [
        ("alpha", "sum", "seed_utilities_sum"),
        ("alpha", "mean", "alpha_utilities_mean"),
        ("mu", "mean", "mu_utilities_mean"),
    ],
)
def test_golden(x64, golden, kind, reduction, name):
    ours = utilities(golden["V0"], golden["X"][0], kind, reduction=reduction)
    np.testing.assert_allclose(ours, golden[name], rtol=TOLERANCE)


@pytest.mark.parametrize("kind", ["alpha", "mu"])
def test_at_the_eigenvectors_utilities_are_the_eigenvalues(x64, rng, kind):
    X = rng.standard_normal((30, 6))
    values, vectors = np.linalg.eigh(X.T @ X / 30)
    np.testing.assert_allclose(utilities(vectors[:, ::-1].T[:3], X, kind), values[::-1][:3], rtol=1e-10)


def test_rayleigh_ignores_the_length_of_a_vector(x64, rng):
    V, X = rng.standard_normal((2, 5)), rng.standard_normal((7, 5))
    np.testing.assert_allclose(rayleigh(3 * V, X), rayleigh(V, X), rtol=1e-12)


def test_unknown_kind(rng):
    with pytest.raises(ValueError, match="kind is 'beta'; allowed are 'alpha' and 'mu'"):
        utilities(np.eye(2), np.eye(2), "beta")
