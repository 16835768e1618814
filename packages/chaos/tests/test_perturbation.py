from __future__ import annotations

import math

import pytest
import torch
from networks import flat, golden_network
from torch import nn

from chaos import perturb
from chaos.perturbation import STRATEGIES, perturbation_vector

N = 53


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64)).Q
    return torch.linspace(-0.3, 0.2, N, dtype=torch.float64), vectors


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_norm_is_exact_and_model_moves_by_it(strategy, pairs):
    model, *_ = golden_network("mlp_relu")
    before = flat(model)
    v = perturb(model, 0.1, strategy, pairs, torch.Generator().manual_seed(1))
    assert abs(v.norm() - 0.1) < 1e-15
    assert (flat(model) - before - v).abs().max() < 1e-15


def test_directions(pairs):
    exponents, vectors = pairs
    for strategy, index in (("max_chaos", -1), ("max_convergence", 0)):
        v = perturbation_vector(N, 1.0, strategy, pairs)
        assert abs(v @ vectors[:, index]).item() == pytest.approx(1)
        assert v[v.abs().argmax()] > 0
    for strategy, outside in (("randn_chaos", exponents < 0), ("randn_convergence", exponents > 0)):
        v = perturbation_vector(N, 1.0, strategy, pairs, torch.Generator().manual_seed(0))
        assert (vectors[:, outside].T @ v).abs().max() < 1e-14


def test_sign_convention_is_independent_of_the_solver(pairs):
    exponents, vectors = pairs
    flipped = (exponents, -vectors)
    a, b = (perturbation_vector(N, 1.0, "max_chaos", p) for p in (pairs, flipped))
    assert torch.equal(a, b)


def test_same_generator_same_perturbation():
    a, b = (
        perturbation_vector(N, 0.1, "randn", generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((N, 0.1, "chaos"), "Unknown strategy 'chaos'; choose one of max_chaos"),
        ((N, 0.0, "randn"), "distance is 0.0"),
        ((N, 0.1, "max_chaos"), "needs eigenpairs of a tangent matrix; only 'randn' works without"),
        ((N, 0.1, "max_chaos", (torch.ones(4), torch.eye(4))), "eigenpairs have n = 4; the model has n = 53"),
        ((4, 0.1, "randn_convergence", (torch.ones(4), torch.eye(4))), "4 are positive and 0 negative"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        perturbation_vector(*arguments)


@pytest.mark.parametrize(
    ("dtype", "distance"), [(torch.float32, 1e-9), (torch.bfloat16, 1e-3), (torch.float64, 1e-300)]
)
def test_what_the_type_of_the_parameters_rounds_away_is_refused(dtype, distance):
    torch.manual_seed(0)
    model = nn.Linear(5, 4).to(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="but the parameters would move by"):
        perturb(model, distance, "randn")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


W, V = torch.tensor([-1.0, 1.0]), torch.eye(3)[:, :2]


@pytest.mark.parametrize(
    ("distance", "pairs", "error", "message"),
    [
        (math.nan, (W, V), ValueError, "must be positive and finite"),
        (math.inf, (W, V), ValueError, "must be positive and finite"),
        (0.1, (W[:1], V), ValueError, "one column for each exponent"),
        (0.1, (W * math.nan, V), ValueError, "one column for each exponent"),
        (0.1, (W[:0], V[:, :0]), ValueError, "one column for each exponent"),
        (0.1, (W, 0 * V), ValueError, "direction has length 0"),
        (0.1, {"values": W}, TypeError, "lyapunov is a dict"),
    ],
)
def test_pairs_and_distances_that_give_no_direction(distance, pairs, error, message):
    with pytest.raises(error, match=message):
        perturbation_vector(3, distance, "max_chaos", pairs)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="nothing to perturb"):
        perturb(nn.Tanh(), 0.1, "randn")
