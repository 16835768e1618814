from functools import partial

import numpy as np
import pytest
from scipy.linalg import eigh

from eigengame.core.ritz import Block, locally_optimal, quality, rayleigh_ritz, starting_block

NOISE = 1e-14
JUDGE = partial(quality, k=3, noise=NOISE)


def matrices(rng, d=40, condition=100.0):
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    A = Q * np.geomspace(10, 0.1, d) @ Q.T
    R = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return A, R * np.geomspace(1, 1 / condition, d) @ R.T


@pytest.mark.parametrize("generalised", [False, True])
def test_converges_to_scipy(rng, generalised):
    A, B = matrices(rng)
    B = B if generalised else np.eye(40)
    values, vectors = eigh(A, B)
    V = rng.standard_normal((6, 40))
    block, passes = locally_optimal(
        lambda W: (W @ A, W @ B), rayleigh_ritz(V, V @ A, V @ B), JUDGE, tol=1e-5, max_passes=400
    )
    assert passes < 400
    np.testing.assert_allclose(block.values[:3], values[::-1][:3], rtol=1e-8)
    overlap = np.abs(np.sum(block.V[:3] * (B @ vectors[:, ::-1][:, :3]).T, axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-8)
    np.testing.assert_allclose(block.V @ B @ block.V.T, np.eye(6), atol=1e-8)


def test_bounds_hold(rng):
    """The angle to the true vector is below the bound, and the bound is not idle."""
    A, _ = matrices(rng)
    vectors = np.linalg.eigh(A)[1][:, ::-1].T
    for passes in range(1, 8):
        V = rng.standard_normal((8, 40))
        block, _ = locally_optimal(
            lambda W: (W @ A, W), rayleigh_ritz(V, V @ A), JUDGE, tol=1e-12, max_passes=passes
        )
        found = quality(block, 3, noise=NOISE)
        cosines = np.abs(np.sum(block.V[:3] * vectors[:3], axis=1))
        angles = np.arccos(np.clip(cosines, 0, 1))
        if found.angles.max() < 0.5:
            assert np.all(angles <= found.angles + 1e-7)
            assert np.all(found.angles <= 50 * angles + 1e-6)


def test_without_guards_the_last_vector_is_not_trusted(rng):
    A, _ = matrices(rng)
    vectors = np.linalg.eigh(A)[1][:, ::-1].T
    assert quality(rayleigh_ritz(vectors[:3], vectors[:3] @ A), 3, noise=NOISE).angles[-1] == np.pi / 2
    assert quality(rayleigh_ritz(vectors[:4], vectors[:4] @ A), 3, noise=NOISE).angles[-1] < 1e-6


def test_ties_and_nulls_are_told():
    A = np.diag([3.0, 3.0, 1.0, 0.0])
    found = quality(rayleigh_ritz(np.eye(4), A), 4, noise=NOISE)
    assert found.tied.tolist() == [0, 1]
    assert found.unresolved.tolist() == [3]
    assert found.pending(1e-3).size == 0


def test_dependent_rows_are_dropped(rng):
    V = rng.standard_normal((2, 5))
    block = rayleigh_ritz(np.concatenate([V, V[:1]]), np.concatenate([V, V[:1]]))
    assert block.V.shape == (2, 5)


def test_the_bound_is_the_residual_over_the_gap_to_the_nearest_other_value():
    """A = diag(3, 1, 2): a vector turned from the first axis towards the second, and the third axis."""
    turn, A = 0.1, np.diag([3.0, 1.0, 2.0])
    V = np.array([[np.cos(turn), np.sin(turn), 0], [0, 0, 1.0]])
    value, residual = 3 * np.cos(turn) ** 2 + np.sin(turn) ** 2, np.sin(2 * turn)
    found = quality(Block(V, V @ A, V, np.array([value, 2.0])), k=1, noise=1e-14)
    np.testing.assert_allclose(found.residuals, [residual], rtol=1e-12)
    np.testing.assert_allclose(found.angles, [np.arcsin(residual / (value - 2))], rtol=1e-12)
    np.testing.assert_allclose(found.value_errors, [residual**2 / (value - 2)], rtol=1e-12)


@pytest.mark.parametrize("seed", [2, 19, 22])
def test_a_tolerance_beyond_the_products_gives_the_best_block(seed):
    """Products in single precision: their rounding errors add up once nothing is left to gain."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((400, 8)))[0]
    Z = np.linalg.qr(Q * 0.9 + 0.05 * rng.standard_normal((400, 8)))[0]
    x, y = ((20 * M).astype(np.float32) for M in (Q, Z))
    n = np.float32(400)

    def products(W):
        u, v = W.astype(np.float32)[:, :8], W.astype(np.float32)[:, 8:]
        from_x, from_y = u @ x.T, v @ y.T
        AW = np.c_[from_y @ x / n, from_x @ y / n].astype(float)
        return AW, np.c_[from_x @ x / n, from_y @ y / n].astype(float)

    truth = np.linalg.svd(x.astype(float).T @ y.astype(float) / 400)[1]
    judge = partial(quality, k=2, noise=1.2e-7, size=1.0, zero_is_null=False)
    start = starting_block(rng.standard_normal((6, 16)), products)
    block, _ = locally_optimal(products, start, judge, tol=1e-9, max_passes=100)
    np.testing.assert_allclose(block.values[:2], truth[:2], atol=1e-6)
    assert judge(block).residuals.max() < 2e-6
