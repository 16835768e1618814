from __future__ import annotations

import math

import pytest
import torch
from networks import golden

from chaos import eigenbasis_dissimilarity, random_similarity, subspace_similarity

TOL = 1e-12


def test_golden():
    assert (
        abs(subspace_similarity(golden("metrics/A"), golden("metrics/B")) - golden("metrics/subspace_sim_AB"))
        < TOL
    )
    assert abs(random_similarity(4, 6, 12) - golden("metrics/random_baseline_AB")) < TOL


@pytest.mark.parametrize("kind", ["l2", "l1", "ce", "bce"])
def test_golden_dissimilarities(kind):
    value = eigenbasis_dissimilarity(golden("metrics/U"), golden("metrics/W"), kind)
    assert abs(value - golden(f"metrics/dissim_{kind}")) < TOL


def test_golden_weighted():
    weights = (golden("metrics/su"), golden("metrics/sv"))
    value = eigenbasis_dissimilarity(golden("metrics/U"), golden("metrics/W"), "l2", weights)
    assert abs(value - golden("metrics/dissim_l2_weighted")) < TOL


def test_containment_orthogonality_and_invariance():
    Q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    assert subspace_similarity(Q[:, :3], Q[:, :5]) == pytest.approx(1, abs=TOL)
    assert subspace_similarity(Q[:, :3], Q[:, 3:5]) == pytest.approx(0, abs=TOL)
    R = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    A, B = Q[:, :3], torch.linalg.qr(torch.randn(8, 4, dtype=torch.float64)).Q
    assert subspace_similarity(A @ R, B) == pytest.approx(subspace_similarity(A, B), abs=TOL)


def test_random_expectation():
    """Mean of 400 pairs within five standard errors."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(400):
        A, B = (
            torch.linalg.qr(torch.randn(12, k, generator=generator, dtype=torch.float64)).Q for k in (3, 5)
        )
        values.append(subspace_similarity(A, B))
    values = torch.tensor(values)
    assert abs(values.mean() - random_similarity(3, 5, 12)) < 5 * values.std() / 20


def test_inputs_are_not_changed_and_are_orthonormalised():
    A = torch.randn(6, 2, dtype=torch.float64)
    before = A.clone()
    with pytest.warns(UserWarning, match="not orthonormal"):
        assert subspace_similarity(A, A) == pytest.approx(1)
    assert torch.equal(A, before)


def test_empty_is_nan_with_a_reason():
    with pytest.warns(UserWarning, match="empty"):
        assert math.isnan(subspace_similarity(torch.eye(3)[:, :0], torch.eye(3)))


def test_bad_input():
    with pytest.raises(ValueError, match="dimensions 3 and 4"):
        subspace_similarity(torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match="Unknown kind 'l3'"):
        eigenbasis_dissimilarity(torch.eye(3), torch.eye(3), "l3")


def test_columns_that_depend_on_each_other_span_less():
    e = torch.eye(4, dtype=torch.float64)
    line = torch.ones(4, 1, dtype=torch.float64) / 2
    with pytest.warns(UserWarning, match="not orthonormal"):
        found = subspace_similarity(torch.ones(4, 2, dtype=torch.float64), e[:, 2:])
    assert found == pytest.approx(subspace_similarity(line, e[:, 2:])) == pytest.approx(0.5)
    with pytest.warns(UserWarning, match="not orthonormal"), pytest.warns(UserWarning, match="is empty"):
        assert math.isnan(subspace_similarity(torch.zeros(4, 2), e[:, 2:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_mix(dtype):
    e = torch.eye(4, dtype=torch.float64)
    assert subspace_similarity(e[:, :2].to(dtype), e[:, 1:3]) == 0.5
    assert subspace_similarity(e[:, :2].numpy(), e[:, 1:3]) == 0.5
    assert eigenbasis_dissimilarity(e.to(dtype), -e) == 0.0


def test_what_is_no_basis_is_refused():
    e = torch.eye(4)
    for wrong in (e[:, 0], e.cfloat(), e * math.nan):
        with pytest.raises(ValueError, match="pass real, finite columns"):
            subspace_similarity(wrong, e)
    for wrong in (e[:, :3], e[:3]):
        with pytest.raises(ValueError, match="they must agree"):
            eigenbasis_dissimilarity(wrong, e)
    for a, b in ((5, 1), (0, 1)):
        with pytest.raises(ValueError, match="lie between 1 and n = 4"):
            random_similarity(a, b, 4)
