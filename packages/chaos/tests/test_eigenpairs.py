from __future__ import annotations

import pytest
import torch
from networks import golden_network
from torch import nn

from chaos.o2grad import Eigenpairs, LossSurface, zero_tolerance


@pytest.fixture
def case():
    model, x, y = golden_network("mlp_relu")
    H = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y)
    return H.dense(), H.eigh()


def test_reconstruction_and_counts(case):
    H, pairs = case
    assert (pairs.vectors * pairs.values @ pairs.vectors.T - H).abs().max() < 1e-14
    assert pairs.num_zero == 28
    assert len(pairs.values) + pairs.num_zero == pairs.n
    assert int(pairs.positive().sum() + pairs.negative().sum()) == 25
    assert (pairs.vectors.T @ pairs.vectors - torch.eye(25)).abs().max() < 1e-13


def test_dense_has_all_pairs_in_order(case):
    H, pairs = case
    values, vectors = pairs.dense()
    assert torch.equal(values, values.sort().values)
    assert (vectors.T @ vectors - torch.eye(53)).abs().max() < 1e-13
    assert (vectors * values @ vectors.T - H).abs().max() < 1e-14


def test_project_and_apply(case):
    H, pairs = case
    v = torch.randn(53, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keep = pairs.positive()
    once = pairs.project(v, keep)
    assert (pairs.project(once, keep) - once).abs().max() < 1e-14
    assert pairs.coefficients(once)[~keep].abs().max() < 1e-14
    everything = pairs.project(v, torch.ones_like(keep), keep_null=True)
    assert (everything - v).abs().max() < 1e-14
    assert (pairs.apply(lambda w: w, v) - H @ v).abs().max() < 1e-14
    expected = torch.linalg.matrix_exp(H) @ v
    assert (pairs.apply(torch.exp, v) - expected).abs().max() < 1e-13


def test_chaotic_is_tested_on_the_eigenvalue():
    values = torch.tensor([-1e-5, 1e-5, 3000.0], dtype=torch.float32)
    pairs = Eigenpairs.from_pairs(values, torch.eye(3))
    assert pairs.tol == zero_tolerance(values) > 1e-5  # float32: the small ones are zeros beside 3000
    assert pairs.chaotic(1e-3).tolist() == [True]
    pairs = Eigenpairs.from_pairs(torch.tensor([-1e-5, 1e-5, 1.0]), torch.eye(3))
    assert pairs.chaotic(1e-3).tolist() == [True, False, False]  # (1 - hw)^2 is 1 in float32


def test_zero_rows_do_not_reach_the_solver():
    matrix = torch.zeros(6, 6, dtype=torch.float64)
    matrix[1, 1], matrix[4, 4], matrix[1, 4], matrix[4, 1] = 1.0, 2.0, 0.5, 0.5
    pairs = Eigenpairs.of(matrix)
    assert pairs.num_zero == 4
    assert (pairs.vectors * pairs.values @ pairs.vectors.T - matrix).abs().max() < 1e-15
    assert Eigenpairs.of(torch.zeros(3, 3)).num_zero == 3


def test_float32_counts_are_close_to_float64():
    """Only eigenvalues near the tolerance may change side (raw float32 eigh calls half of them negative)."""
    model, x, y = golden_network("paper_mlp")
    counts = {}
    for dtype in (torch.float32, torch.float64):
        pairs = LossSurface(model, nn.CrossEntropyLoss(), dtype=dtype).hessian(None, x, y).eigh()
        assert pairs.num_zero >= 4980
        counts[dtype] = int(pairs.negative().sum()), pairs
    exact = counts[torch.float64][1].values
    doubtful = int((exact.abs() < 2 * counts[torch.float32][1].tol).sum())
    assert abs(counts[torch.float32][0] - counts[torch.float64][0]) <= doubtful
    assert doubtful < 40
