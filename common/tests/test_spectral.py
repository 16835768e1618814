"""Operators against dense NumPy oracles, angles against their closed form."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from gdyn_common.spectral import (
    ConvergenceError,
    hutchinson_trace,
    lanczos,
    lanczos_tridiagonal,
    power_iteration,
    principal_angles,
    stochastic_lanczos_density,
    subspace_distance,
)

ROUNDING = 1e-12  # a few hundred float64 operations on numbers of order one


def rng(seed=0):
    return np.random.default_rng(seed)


def orthogonal(dim, seed=0):
    return np.linalg.qr(rng(seed).standard_normal((dim, dim)))[0]


def symmetric(eigenvalues, seed=0):
    basis = orthogonal(len(eigenvalues), seed)
    matrix = (basis * eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2


def laplacian_eigenvalues(side=15):
    one = 2 - 2 * np.cos(np.pi * np.arange(1, side + 1) / (side + 1))
    return np.add.outer(one, one).ravel()


BULK = rng(1).uniform(-0.5, 0.5, 200)
SPECTRA = {
    "simple": np.linspace(-1, 3, 100),
    "triple": np.r_[[3, 3, 3, 2], BULK],
    "tenfold": np.r_[np.ones(10), BULK],
    "both ends": np.r_[[2, 2, -2, -2], BULK],
    "cluster": np.r_[1 + 1e-7 * np.arange(4), BULK],
    "laplacian": laplacian_eigenvalues(),
    "hessian": np.r_[[50, 50, 20, 5, -5], np.exp(-rng(2).uniform(0, 10, 200))],
    "top is zero": -np.r_[np.zeros(3), rng(3).uniform(0.1, 10, 200)],
    "low rank": np.r_[[3, 3, -2], np.zeros(200)],
    "identity": np.ones(50),
    "zero": np.zeros(50),
    "tiny": np.array([2.0, -1.0, 2.0]),
    "scaled": 1e8 * np.r_[[3, 3, 1], BULK],
}


def expected_extremes(eigenvalues, k, which):
    ascending = np.sort(eigenvalues)
    if which == "LM":
        return np.sort(np.abs(ascending))[::-1][:k]
    high = {"LA": k, "SA": 0, "BE": (k + 1) // 2}[which]
    return np.r_[ascending[::-1][:high], ascending[: k - high][::-1]]


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_finds_extremes_with_multiplicity(name, which):
    eigenvalues = SPECTRA[name]
    matrix, dim, scale = symmetric(eigenvalues), len(eigenvalues), np.abs(eigenvalues).max()
    # The low end of "hessian" has gaps of 1e-8 of its norm: only the whole space resolves them.
    basis_size = dim if name == "hessian" and which in ("SA", "BE") else None
    for k in {1, 2, 3, min(5, dim), min(12, dim)}:
        pairs = lanczos(
            lambda v: matrix @ v, dim, k, which=which, tol=1e-9, generator=rng(k), basis_size=basis_size
        )
        found = np.sort(np.abs(pairs.values))[::-1] if which == "LM" else pairs.values
        np.testing.assert_allclose(found, expected_extremes(eigenvalues, k, which), atol=2e-9 * scale)
        assert (np.diff(pairs.values) <= 0).all()
        np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(k), atol=ROUNDING)
        measured = np.linalg.norm(matrix @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
        np.testing.assert_allclose(pairs.residuals, measured, atol=1e-13 * scale)
        assert (pairs.residuals <= 2e-9 * scale).all()


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-10])
def test_lanczos_misses_no_copy_at_any_tolerance(tol):
    """Stated probability of a miss: about 1e-5 for each of the 40 searches."""
    eigenvalues = laplacian_eigenvalues()
    matrix = symmetric(eigenvalues)
    for seed in range(20):
        for k in (3, 5):
            pairs = lanczos(lambda v: matrix @ v, len(matrix), k, tol=tol, generator=rng(seed))
            np.testing.assert_allclose(pairs.values, np.sort(eigenvalues)[::-1][:k], atol=2 * tol * 8)


def test_lanczos_agrees_with_eigsh_where_eigsh_is_reliable():
    matrix = symmetric(SPECTRA["simple"])
    pairs = lanczos(lambda v: matrix @ v, 100, 4, tol=1e-11, generator=rng())
    values, vectors = scipy.sparse.linalg.eigsh(matrix, k=4, which="LA", v0=np.ones(100))
    np.testing.assert_allclose(pairs.values, values[::-1], rtol=ROUNDING)
    np.testing.assert_allclose(np.abs(np.sum(pairs.vectors * vectors[:, ::-1], axis=0)), 1, rtol=ROUNDING)


def test_lanczos_spends_few_products_on_a_separated_top():
    matrix = symmetric(SPECTRA["hessian"])
    pairs = lanczos(lambda v: matrix @ v, len(matrix), 3, generator=rng())
    assert pairs.num_matvecs <= 40  # 205 would be the dense matrix


@pytest.mark.parametrize("kind", ["read-only", "reused buffer", "writes into its argument"])
def test_a_matvec_may_do_with_arrays_what_it_likes(kind):
    """JAX returns read-only arrays; others compute in place. The oracle is the same function without."""
    spectrum, buffer = np.array([9.0, -4.0, 2.0, 1.5, 1.0, 0.5]), np.empty(6)

    def matvec(v):
        if kind == "writes into its argument":
            v *= spectrum
            return v
        if kind == "reused buffer":
            return np.multiply(spectrum, v, out=buffer)
        product = spectrum * v
        product.setflags(write=False)
        return product

    def results(product):
        rng = np.random.default_rng
        density = stochastic_lanczos_density(product, 6, num_probes=3, num_steps=4, generator=rng(3))
        return [
            *vars(lanczos(product, 6, 3, generator=rng(0))).values(),
            *vars(lanczos_tridiagonal(product, 6, 4, generator=rng(1))).values(),
            *vars(power_iteration(product, 6, generator=rng(2))).values(),
            *vars(density).values(),
            *vars(hutchinson_trace(product, 6, num_samples=4, generator=rng(4))).values(),
        ]

    for got, expected in zip(results(matvec), results(lambda v: spectrum * v), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_lanczos_takes_float32_products():
    matrix = symmetric(SPECTRA["triple"]).astype(np.float32)
    pairs = lanczos(lambda v: matrix @ v.astype(np.float32), len(matrix), 4, tol=1e-5, generator=rng())
    np.testing.assert_allclose(pairs.values, [3, 3, 3, 2], atol=1e-5)  # float32 rounding is 4e-7 here


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 4.0]), min_size=1, max_size=40),
    st.integers(1, 8),
    st.sampled_from(["LA", "SA", "LM", "BE"]),
)
def test_lanczos_on_random_degenerate_spectra(eigenvalues, k, which):
    matrix, k = symmetric(np.array(eigenvalues)), min(k, len(eigenvalues))
    size = max(k + 2, 12)
    pairs = lanczos(lambda v: matrix @ v, len(matrix), k, which=which, generator=rng(5), basis_size=size)
    found = np.sort(np.abs(pairs.values))[::-1] if which == "LM" else pairs.values
    np.testing.assert_allclose(found, expected_extremes(eigenvalues, k, which), atol=1e-7)


def test_same_generator_same_bits_and_start_is_used():
    matrix = symmetric(SPECTRA["simple"])
    one, two = (lanczos(lambda v: matrix @ v, 100, 3, generator=rng(8)) for _ in range(2))
    assert one.vectors.tobytes() == two.vectors.tobytes()
    warm = lanczos(lambda v: matrix @ v, 100, 1, generator=rng(8), start=one.vectors[:, 0], tol=1e-6)
    assert warm.num_matvecs <= 2


def test_tridiagonal_factorisation():
    matrix = symmetric(SPECTRA["simple"])
    steps = lanczos_tridiagonal(lambda v: matrix @ v, 100, 30, generator=rng())
    dense = np.diag(steps.diagonal) + np.diag(steps.off_diagonal, 1) + np.diag(steps.off_diagonal, -1)
    np.testing.assert_allclose(steps.basis.T @ matrix @ steps.basis, dense, atol=ROUNDING)
    np.testing.assert_allclose(steps.basis.T @ steps.basis, np.eye(30), atol=ROUNDING)
    full = lanczos_tridiagonal(lambda v: matrix @ v, 100, 500, generator=rng())
    ritz = scipy.linalg.eigvalsh_tridiagonal(full.diagonal, full.off_diagonal)
    np.testing.assert_allclose(ritz, SPECTRA["simple"], atol=ROUNDING)


def test_tridiagonal_stops_where_the_krylov_space_ends():
    assert lanczos_tridiagonal(lambda v: 2 * v, 10, 5, generator=rng()).diagonal == pytest.approx([2.0])
    assert len(lanczos_tridiagonal(lambda v: 0 * v, 10, 5, generator=rng()).diagonal) == 1


def test_power_iteration():
    matrix = symmetric(np.r_[-4.0, BULK])
    pair = power_iteration(lambda v: matrix @ v, len(matrix), tol=1e-10, generator=rng())
    assert pair.value == pytest.approx(-4, abs=ROUNDING)
    assert np.linalg.norm(matrix @ pair.vector - pair.value * pair.vector) == pytest.approx(pair.residual)
    again = power_iteration(lambda v: matrix @ v, len(matrix), tol=1e-9, generator=rng(), start=pair.vector)
    assert again.iterations == 1
    assert power_iteration(lambda v: 0 * v, 3, generator=rng()).value == 0


def test_no_convergence_is_an_error():
    with pytest.raises(ConvergenceError, match=r"^power iteration: residual .* after 50 products; raise tol"):
        power_iteration(lambda v: np.array([1, -1.0]) * v, 2, max_iterations=50, generator=rng())
    matrix = symmetric(SPECTRA["laplacian"])
    with pytest.raises(ConvergenceError, match=r"^lanczos \(SA\): after 40 products \d of 3 eigenpairs miss"):
        lanczos(lambda v: matrix @ v, len(matrix), 3, which="SA", max_iterations=40, generator=rng())


def test_hutchinson_is_unbiased_with_the_stated_variance():
    matrix = rng(4).standard_normal((30, 30))
    matrix = matrix + matrix.T
    deviation = math.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)))
    num = 4000
    estimate = hutchinson_trace(lambda v: matrix @ v, 30, num_samples=num, generator=rng())
    # 5 standard errors: failure probability 6e-7. The spread has relative error 1/sqrt(2 num).
    assert abs(estimate.value - np.trace(matrix)) < 5 * deviation / math.sqrt(num)
    assert estimate.standard_error == pytest.approx(deviation / math.sqrt(num), rel=0.08)


def test_density_within_its_stated_error():
    eigenvalues = SPECTRA["triple"]
    matrix, dim = symmetric(eigenvalues), len(eigenvalues)
    density = stochastic_lanczos_density(
        lambda v: matrix @ v, dim, num_probes=40, num_steps=60, generator=rng(), bandwidth=0.1
    )
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=ROUNDING)
    assert np.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-5)  # tails: 5 sigma
    for f in (np.square, np.exp, np.cos, lambda x: (x > 1.5).astype(float)):
        estimate = density.integrate(f)
        exact = float(np.mean(f(eigenvalues)))
        # Student's t with 39 degrees of freedom beyond 6: probability 5e-7.
        assert abs(estimate.value - exact) < 6 * estimate.standard_error + ROUNDING
    smooth = np.exp(-0.5 * ((density.grid[:, None] - eigenvalues) / 0.1) ** 2) / (
        0.1 * math.sqrt(2 * math.pi)
    )
    exact = smooth.mean(axis=1)
    # A probe's smoothed density fluctuates by about sqrt(2/dim) of its peak, 40 probes by a sixth of it.
    assert np.abs(density.density - exact).max() < 5 * math.sqrt(2 / dim / 40) * exact.max()


def test_density_is_exact_for_a_diagonal_operator_and_survives_exhaustion():
    diagonal = np.r_[np.ones(6), np.full(2, 5.0)]
    density = stochastic_lanczos_density(
        lambda v: diagonal * v, 8, num_probes=3, num_steps=8, generator=rng()
    )
    assert density.integrate(lambda x: (x > 3).astype(float)).value == pytest.approx(0.25, abs=ROUNDING)
    zero = stochastic_lanczos_density(lambda v: 0 * v, 8, num_probes=2, num_steps=4, generator=rng())
    assert zero.integrate(np.square).value == 0
    assert np.trapezoid(zero.density, zero.grid) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_principal_angles_to_1e12_from_zero_to_a_right_angle(scale):
    angles = np.array([math.pi / 2, math.pi / 2 - 1e-9, 1.2, math.pi / 4, 1e-3, 1e-9, 0.0])
    k, frame = len(angles), orthogonal(40, 3)
    a = frame[:, :k]
    b = a * np.cos(angles) + frame[:, k : 2 * k] * np.sin(angles)
    mix_a, mix_b = (orthogonal(k, seed) + np.eye(k) * 0.1 for seed in (5, 6))
    found = principal_angles(scale * a @ mix_a, b @ mix_b)
    np.testing.assert_allclose(found, angles, rtol=0, atol=1e-12)
    np.testing.assert_allclose(principal_angles(b, a), angles, rtol=0, atol=1e-12)


def test_small_angles_keep_their_relative_accuracy():
    for angle in (1e-4, 1e-7, 1e-10):
        b = np.array([[math.cos(angle)], [math.sin(angle)], [0.0]])
        assert principal_angles(np.eye(3)[:, :1], b)[0] == pytest.approx(angle, rel=1e-12, abs=0)
        assert subspace_distance(np.eye(3)[:, :1], b) == pytest.approx(math.sin(angle) ** 2, rel=1e-12, abs=0)


def test_subspace_distance_is_the_projector_formula():
    a, b = rng(1).standard_normal((20, 4)), rng(2).standard_normal((20, 4))
    project_a, project_b = a @ np.linalg.pinv(a), b @ np.linalg.pinv(b)
    exact = 1 - np.trace(project_a @ project_b) / 4
    assert subspace_distance(a, b) == pytest.approx(exact, abs=ROUNDING)
    assert subspace_distance(a, a @ orthogonal(4)) < 1e-28
    assert subspace_distance(a, a[:, :2]) < 1e-28
    assert subspace_distance(np.eye(6)[:, :3], np.eye(6)[:, 3:]) == 1


COUNT = "a standard error needs at least 2."
INDEPENDENT = "pass linearly independent vectors."
BAD_CALLS = {
    "num_eigenpairs is 4; pass 1 to dim=3.": lambda: lanczos(np.copy, 3, 4, generator=rng()),
    "which is 'SM'; pass one of LA, SA, LM, BE.": lambda: lanczos(np.copy, 3, 1, which="SM", generator=rng()),
    "tol is 0; pass a positive number such as 1e-8.": lambda: lanczos(np.copy, 3, 1, tol=0, generator=rng()),
    "basis_size is 5; it must exceed num_eigenpairs + 1 = 5.": lambda: lanczos(
        np.copy, 9, 4, basis_size=5, generator=rng()
    ),
    "start has shape (3,), norm 0; pass a finite non-zero vector of shape (3,).": lambda: lanczos(
        np.copy, 3, 1, start=[0, 0, 0], generator=rng()
    ),
    "dim is 0; the operator must act on at least one dimension.": lambda: power_iteration(
        np.copy, 0, generator=rng()
    ),
    "matvec returned shape (2,); it must map (3,) to (3,).": lambda: power_iteration(
        lambda v: v[:2], 3, generator=rng()
    ),
    "matvec returned NaN or infinity; check the parameters it is evaluated at.": lambda: power_iteration(
        lambda v: v * np.nan, 3, generator=rng()
    ),
    "num_steps is 0; make at least one.": lambda: lanczos_tridiagonal(np.copy, 3, 0, generator=rng()),
    f"num_samples is 1; {COUNT}": lambda: hutchinson_trace(np.copy, 3, num_samples=1, generator=rng()),
    f"num_probes is 1; {COUNT}": lambda: stochastic_lanczos_density(
        np.copy, 3, num_probes=1, num_steps=2, generator=rng()
    ),
    "num_points is 1000, bandwidth 0.0; pass at least 2 and a positive width.": lambda: (
        stochastic_lanczos_density(np.copy, 3, num_probes=2, num_steps=2, bandwidth=0.0, generator=rng())
    ),
    "a has shape (2, 3); pass (dim, k), vectors as columns, k <= dim (transpose it?).": lambda: (
        principal_angles(np.ones((2, 3)), np.eye(3))
    ),
    f"b has 2 columns of rank 1; {INDEPENDENT}": lambda: principal_angles(np.eye(3), np.ones((3, 2))),
    f"b has 1 columns of rank 0; {INDEPENDENT}": lambda: principal_angles(np.eye(3), np.zeros((3, 1))),
    "a has dim 3 and b has dim 2; both must live in the same space.": lambda: principal_angles(
        np.eye(3), np.eye(2)
    ),
    "a holds complex, NaN or infinite entries; pass finite real vectors.": lambda: subspace_distance(
        np.eye(3) * 1j, np.eye(3)
    ),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_input_messages(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        BAD_CALLS[message]()
    assert str(error.value) == message
