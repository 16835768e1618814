import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigengame import metrics


def test_golden(golden):
    V, truth = golden["metric_V"], golden["pca_eigvecs"]
    np.testing.assert_allclose(metrics.angles(V, truth), golden["metric_angles"], atol=1e-12)
    assert metrics.longest_correct_eigenvector_streak(V, truth) == golden["metric_streak"]
    assert metrics.subspace_distance(V, truth) == pytest.approx(float(golden["metric_subspace"]), abs=1e-12)


@given(st.floats(0, np.pi / 2), st.sampled_from([-1, 1]))
def test_angle_of_a_rotated_vector_whatever_its_sign(theta, sign):
    measured = metrics.angles([[sign * np.cos(theta), np.sin(theta)]], [[1.0, 0.0]])
    assert measured[0] == pytest.approx(theta, abs=1e-14)


def test_tiny_angles_survive():
    assert metrics.angles([[1.0, 1e-12]], [[1.0, 0.0]])[0] == pytest.approx(1e-12, rel=1e-6, abs=0)


def test_streak_stops_at_the_first_miss():
    assert metrics.streak_of_angles([np.pi / 16, np.pi / 4, np.pi / 10]) == 1
    assert metrics.streak_of_angles([0.0, 0.0]) == 2
    assert metrics.streak_of_angles([np.nan, 0.0]) == 0
    assert metrics.streak_of_angles([np.pi / 8]) == 0  # strictly below


def test_subspace_distance_against_projectors(rng):
    V, E = rng.standard_normal((3, 8)), rng.standard_normal((3, 8))
    P = np.linalg.pinv(V) @ V
    U = np.linalg.pinv(E) @ E
    assert metrics.subspace_distance(V, E) == pytest.approx(1 - np.trace(U @ P) / 3, abs=1e-12)


def test_collapsed_vectors_count_as_lost_directions():
    V = np.eye(4)[[0, 0]]
    assert metrics.subspace_distance(V, np.eye(4)[:2]) == pytest.approx(0.5)


def test_subspace_distance_in_another_inner_product(rng):
    V, E = rng.standard_normal((2, 5)), rng.standard_normal((2, 5))
    factor = rng.standard_normal((5, 5))
    ours = metrics.subspace_distance(V, E, B=factor @ factor.T)
    assert ours == pytest.approx(metrics.subspace_distance(V @ factor, E @ factor), abs=1e-10)


def test_identity_inner_product_changes_nothing(rng):
    V, E = rng.standard_normal((2, 5)), rng.standard_normal((2, 5))
    assert metrics.subspace_distance(V, E, B=np.eye(5)) == pytest.approx(metrics.subspace_distance(V, E))


def test_matching_undoes_a_permutation(rng):
    E = np.linalg.qr(rng.standard_normal((6, 6)))[0][:4]
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        np.abs(E[order][metrics.match_vectors(E[order], E)] @ E.T), np.eye(4), atol=1e-12
    )


def test_cosines_are_absolute():
    assert metrics.cosine_similarities([[-1.0, 0.0]], [[1.0, 0.0]])[0] == 1


def test_clustering_accuracy_ignores_names_of_clusters():
    assert metrics.clustering_accuracy([5, 5, 7, 7, 7], [1, 1, 0, 0, 1]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("V", "E", "message"),
    [
        (np.ones(3), np.eye(3), "pass one vector per row"),
        (np.ones((2, 3)), np.eye(4)[:2], "V has dimension 3 but reference has 4"),
        (np.eye(3), np.eye(3)[:2], "V has 3 vectors but reference only 2"),
        (np.zeros((1, 3)), np.eye(3), "zero or non-finite row"),
    ],
)
def test_bad_shapes(V, E, message):
    with pytest.raises(ValueError, match=message):
        metrics.angles(V, E)


def test_b_that_is_not_positive():
    with pytest.raises(ValueError, match="B is not positive"):
        metrics.subspace_distance(np.eye(2), np.eye(2), B=np.diag([1.0, -1.0]))


def test_b_that_is_no_inner_product():
    with pytest.raises(ValueError, match="B is not symmetric, or not finite"):
        metrics.subspace_distance(np.eye(2), np.eye(2), B=np.full((2, 2), np.nan))  # was 1.0
    with pytest.raises(ValueError, match="B is not symmetric"):
        metrics.subspace_distance(np.eye(2), np.eye(2), B=[[1.0, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize("angle", [1e-1, 1e-5, 1e-9])
def test_distance_in_an_inner_product_is_exact_for_tiny_angles(rng, angle):
    """In the inner product of B = L L' the angles are those of the vectors v'L."""
    factor = np.tril(rng.standard_normal((6, 6))) + 4 * np.eye(6)
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    near = (np.cos(angle) * Q[:2] + np.sin(angle) * Q[2:4]) @ np.linalg.inv(factor)
    found = metrics.subspace_distance(near, Q[:2] @ np.linalg.inv(factor), B=factor @ factor.T)
    assert found == pytest.approx(np.sin(angle) ** 2, rel=1e-6, abs=0)


def test_dependent_reference_vectors_are_refused_in_every_inner_product():
    for B in (None, np.eye(3)):
        with pytest.raises(ValueError, match="linearly independent"):
            metrics.subspace_distance(np.eye(3)[:2], np.ones((2, 3)), B=B)


def test_entries_that_are_no_real_numbers():
    for V in (np.ma.masked_less(np.eye(2), 0.5), np.eye(2) + 1j):
        with pytest.raises(ValueError, match="masked, complex or sparse"):
            metrics.angles(V, np.eye(2))


def test_labels_and_values_of_other_shapes():
    with pytest.raises(ValueError, match="one label a sample"):
        metrics.clustering_accuracy(np.zeros((3, 1)), np.zeros(3))  # was 3.0
    with pytest.raises(ValueError, match="one label a sample"):
        metrics.clustering_accuracy([0], [1, 1, 1])
    with pytest.raises(ValueError, match="1 <= k <= l"):
        metrics.captured_value_ratio([1.0, 2.0, 3.0], [3.0, 2.0])  # was 1.2
