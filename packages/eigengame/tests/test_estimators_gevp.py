import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning

from eigengame import EigenGameGEVP, EigenGameSpectralEmbedding
from eigengame.metrics import cosine_similarities


def gevp_pair(rng, d=12, condition=10.0):
    A = rng.standard_normal((d, d))
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return A + A.T, Q * np.geomspace(1, 1 / condition, d) @ Q.T


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize(("scale_a", "scale_b", "condition"), [(1, 1, 10), (1e-6, 1e3, 10), (1e4, 1, 1e6)])
def test_gevp_against_scipy(rng, maximize, scale_a, scale_b, condition):
    """Values of both signs, either end of the spectrum, any scale, an ill-conditioned B."""
    A, B = gevp_pair(rng, condition=condition)
    A, B = A * scale_a, B * scale_b
    values, vectors = eigh(A, B)
    order = slice(None, None, -1) if maximize else slice(None)
    model = EigenGameGEVP(3, maximize=maximize, random_state=0).fit(A, B=B)
    np.testing.assert_allclose(model.eigenvalues_, values[order][:3], rtol=1e-6)
    assert cosine_similarities(model.components_, vectors[:, order].T[:3]).min() > 0.999
    np.testing.assert_allclose(model.components_ @ B @ model.components_.T, np.eye(3), atol=1e-8)
    assert model.unresolved_.size == 0


def test_what_gevp_has_not_found_is_said(rng):
    A, B = gevp_pair(rng, 200, 1e3)
    with pytest.warns(ConvergenceWarning, match="have not converged.*raise max_passes"):
        EigenGameGEVP(3, n_iter=1, max_passes=1, random_state=0).fit(A, B=B)


def test_gevp_takes_functions_and_sparse_matrices(rng):
    A = np.diag(np.arange(1.0, 7.0)).astype(np.float32)
    dense = EigenGameGEVP(2, random_state=0).fit(A).eigenvalues_
    np.testing.assert_allclose(
        EigenGameGEVP(2, random_state=0).fit(csr_array(A)).eigenvalues_, dense, rtol=1e-5
    )
    scale = np.arange(1.0, 7.0, dtype=np.float32)
    found = EigenGameGEVP(2, random_state=0).fit(lambda V: V * scale, dim=6).eigenvalues_
    np.testing.assert_allclose(found, dense, rtol=1e-5)


def test_an_asymmetric_operator_is_refused(rng):
    A = jnp.asarray(rng.standard_normal((6, 6)))
    with pytest.raises(ValueError, match=r"A is not symmetric: .* Pass \(A \+ A'\) / 2"):
        EigenGameGEVP(1, n_iter=5, random_state=0).fit(lambda V: V @ A, dim=6)


@pytest.mark.parametrize("form", [np.asarray, csr_array], ids=["dense", "sparse"])
def test_an_asymmetric_block_in_another_unit_is_refused(form):
    """Next to 1e9 an absolute tolerance overlooks it, but B brings both to the same size."""
    A, B = np.diag([1e9, 1.0, 1.0]), np.diag([1e9, 1.0, 1.0])
    A[1, 2] = 0.5
    with pytest.raises(ValueError, match="A is not symmetric"):
        EigenGameGEVP(1, random_state=0).fit(form(A), B=form(B))


@pytest.mark.parametrize("form", [np.asarray, csr_array], ids=["dense", "sparse"])
def test_features_of_very_different_units(form):
    b = np.r_[1e12, np.ones(7), 1e-12]
    found = EigenGameGEVP(3, random_state=0).fit(form(np.diag(b * np.arange(1.0, 10))), B=form(np.diag(b)))
    np.testing.assert_allclose(found.eigenvalues_, [9, 8, 7])
    assert found.angle_bounds_.max() < 1e-3


@pytest.mark.parametrize("condition", [1e9, 1e14])
def test_a_nearly_singular_b_is_solved_or_said(rng, condition):
    """scipy.linalg.eigh has the same rounding errors: the condition times that of a double."""
    A, B = gevp_pair(rng, 12, condition)
    B = (B + B.T) / 2
    model = EigenGameGEVP(3, random_state=0)
    if condition == 1e14:
        with pytest.warns(ConvergenceWarning, match="epsilon if B is nearly singular"):
            model.fit(A, B=B)
    else:
        np.testing.assert_allclose(
            model.fit(A, B=B).eigenvalues_, eigh(A, B, eigvals_only=True)[::-1][:3], rtol=1e-5
        )


@pytest.mark.parametrize("form", [np.asarray, csr_array], ids=["dense", "sparse"])
def test_one_asymmetric_entry_is_refused(rng, form):
    """Too small for a random probe of u'Mv - v'Mu; what differs by rounding is averaged."""
    A, B = gevp_pair(rng, 40)
    bent = A.copy()
    bent[0, 1] += 1e-3
    for pair, name in (((bent, B), "A"), ((A, B + bent - A), "B")):
        with pytest.raises(ValueError, match=rf"{name} is not symmetric; pass \({name} \+ {name}.T\) / 2"):
            EigenGameGEVP(1, random_state=0).fit(form(pair[0]), B=form(pair[1]))
    bent[0, 1] = A[0, 1] * (1 + 1e-9)
    found = EigenGameGEVP(2, random_state=0).fit(form(bent), B=form(B))
    np.testing.assert_allclose(found.eigenvalues_, eigh(A, B, eigvals_only=True)[::-1][:2], rtol=1e-6)


def as_function(M):
    return lambda V: V @ jnp.asarray(M, jnp.float32)


@pytest.mark.parametrize("form", [np.asarray, csr_array, as_function], ids=["dense", "sparse", "function"])
@pytest.mark.parametrize("kind", ["negative", "indefinite", "zero on the diagonal"])
def test_a_b_that_is_not_positive_is_refused(rng, form, kind):
    A, B = gevp_pair(rng, 12)
    if kind == "zero on the diagonal":
        if form is as_function:
            pytest.skip("a function has no diagonal to look at")
        B[3] = B[:, 3] = 0
    else:
        B = -B if kind == "negative" else B - 0.5 * np.linalg.eigvalsh(B)[-1] * np.eye(12)
    dim = 12 if form is as_function else None
    with pytest.raises(ValueError, match=r"B is not positive definite: .* Pass epsilon > 0"):
        EigenGameGEVP(2, n_iter=5, random_state=0).fit(form(A), B=form(B), dim=dim)


def test_lambda_star_below_the_top_is_refused():
    with pytest.raises(ValueError, match="is below the Laplacian's largest eigenvalue"):
        EigenGameSpectralEmbedding(lambda_star=0.5).fit([[0, 1], [1, 2]])


@pytest.mark.parametrize(("size_a", "size_b"), [(1e-60, 1.0), (1.0, 1e60), (1e60, 1e-60), (1e-150, 1e150)])
def test_a_pencil_of_any_size(rng, size_a, size_b):
    """In single precision such entries are zero or infinite."""
    A, B = np.diag(np.r_[10.0, 8, 5, np.linspace(3, 0.1, 9)]), np.cov(rng.standard_normal((12, 100)))
    values, vectors = eigh(A, B)
    given = (A * size_a, B * size_b)
    for A_given, B_given in (given, tuple(csr_array(matrix) for matrix in given)):
        model = EigenGameGEVP(3, random_state=0).fit(A_given, B=B_given)
        np.testing.assert_allclose(model.eigenvalues_, values[::-1][:3] * (size_a / size_b), rtol=1e-5)
        exact = vectors[:, ::-1].T[:3] / np.sqrt(size_b)
        assert cosine_similarities(model.components_, exact).min() > 1 - 1e-6
        np.testing.assert_allclose(
            np.einsum("ij,jk,ik->i", model.components_, given[1], model.components_), 1
        )


def test_matrices_where_jax_computes_in_double_precision(x64):
    found = EigenGameGEVP(2, random_state=0).fit(np.diag([1.0, 2.0, 3.0]), B=np.diag([1.0, 1.0, 2.0]))
    np.testing.assert_allclose(found.eigenvalues_, [2, 1.5])


def test_a_function_of_numpy_is_refused_in_one_line():
    for function in (lambda V: np.asarray(V) * 2, lambda V: V * 2 if V.sum() > 0 else V):
        with pytest.raises(
            ValueError, match=r"write it with jax\.numpy, or call it through jax\.pure_callba"
        ):
            EigenGameGEVP(1).fit(function, dim=4)


@pytest.mark.parametrize(
    "operator",
    [
        lambda V: V * jnp.sum(V**2),
        lambda V: V / jnp.linalg.norm(V) * 10,
        lambda V: V / jnp.linalg.norm(V, axis=1, keepdims=True) * 10,
        lambda V: V * jnp.arange(1.0, 1 + len(V))[:, None],
    ],
    ids=["cube", "norm of all", "norm of each", "rows apart"],
)
@pytest.mark.parametrize("name", ["A", "B"])
def test_operators_that_are_not_linear_are_refused(operator, name):
    """Products with it have no eigenvectors; some of these are symmetric for the vectors of one call."""
    one = lambda V: V * jnp.arange(1.0, 6)  # noqa: E731
    pair = {"X": operator, "B": one} if name == "A" else {"X": one, "B": operator}
    with pytest.raises(ValueError, match=f"{name} is not (linear|symmetric)"):
        EigenGameGEVP(1, random_state=0).fit(pair["X"], B=pair["B"], dim=5)


def test_a_second_matrix_in_the_place_of_y_is_refused():
    A = np.diag([3.0, 2.0, 1.0])
    for second in (np.eye(3), csr_array(np.eye(3)), lambda V: V):
        with pytest.raises(ValueError, match=r"pass it by name: fit\(A, B=B\)"):
            EigenGameGEVP(1).fit(A, second)
