"""Which exponents are zero: closed forms, and networks whose null directions are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from chaos import LyapunovTracker, local_exponents
from chaos.exponents import Spectrum, snap_neutral
from chaos.o2grad import Eigenpairs, LossSurface
from chaos.perturbation import perturbation_vector

W = torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.5, 1.5], dtype=torch.float64)


def rotation(n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=generator)).Q


def rotated(dtype=torch.float64, steps=50, **options):
    """Tracker of a quadratic with three null directions, in a basis that makes every product round."""
    V = rotation(6, dtype)
    H = V * W.to(dtype) @ V.T
    tracker = LyapunovTracker(6, 0.1, dtype=dtype, **options)
    for _ in range(steps):
        tracker.update(H)
    return tracker, V


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_null_directions_are_neutral_whatever_the_rounding(dtype, steps):
    spectrum = rotated(dtype, steps)[0].spectrum()
    assert (spectrum.chaotic(), spectrum.contracting(), spectrum.edge()) == (1, 2, 3)


def test_a_large_spread_hides_neutral_directions_not_expanding_ones():
    """In float32 eps sigma_max reaches 0.2 after 150 steps of factor 1.1."""
    spectrum = rotated(torch.float32, 150)[0].spectrum()
    assert spectrum.chaotic() == 1
    assert spectrum.num_unresolved + spectrum.edge() == 5
    assert spectrum.exponents[-1] == pytest.approx(math.log(1.1), rel=1e-4)


def test_null_directions_are_neutral_for_the_qr_method():
    V = rotation(6)
    tracker, _ = rotated(method="qr", steps=47, initial=V[:, [5, 4, 1, 2, 3, 0]])
    spectrum = tracker.spectrum()
    assert (spectrum.chaotic(), spectrum.contracting(), spectrum.edge()) == (1, 2, 3)


def test_random_combinations_leave_neutral_directions_out():
    """Without the rule, signs of rounding errors send about half of the null space into each set."""
    tracker, V = rotated()
    pairs = tracker.vectors()
    generator = torch.Generator().manual_seed(1)
    for strategy in ("randn_chaos", "randn_convergence"):
        v = perturbation_vector(6, 1.0, strategy, pairs, generator)
        assert (V[:, 1:4].T @ v).norm() < 1e-12
    assert math.isclose(
        abs(float(V[:, 0] @ perturbation_vector(6, 1.0, "randn_chaos", pairs, generator))), 1.0
    )


def test_unseen_inputs_of_a_network_are_neutral():
    """Weights of pixels that are always zero have no gradient: 2 pixels times 4 units."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    surface = LossSurface(model, nn.CrossEntropyLoss())
    generator = torch.Generator().manual_seed(0)
    tracker = LyapunovTracker(surface.n, 0.1)
    for _ in range(30):
        x = torch.randn(5, 6, dtype=torch.float64, generator=generator)
        x[:, :2] = 0
        H = surface.hessian(None, x, torch.arange(5) % 3)
        tracker.update(H.dense())
    assert tracker.spectrum().edge() >= 8 + 1  # and the common shift of the output biases


def test_the_rule_keeps_what_is_resolved():
    logs = torch.tensor([-torch.inf, -1e-10, 1e-10, 1.0], dtype=torch.float64)
    assert torch.equal(snap_neutral(logs, 1000, math.e), logs)
    assert snap_neutral(logs, 1000, 1e9)[1:3].tolist() == [0.0, 0.0]  # below eps sigma_max


def test_counts_add_up():
    spectrum = Spectrum(torch.tensor([-torch.inf, -0.1, 0.0, 0.0, 0.2]), 1, 10, "svd")
    assert (spectrum.chaotic(), spectrum.contracting(), spectrum.edge()) == (1, 2, 2)


def test_local_exponents_beyond_the_edge():
    """The edge is w = 2/h; above it a step expands with a sign change."""
    pairs = Eigenpairs.of(torch.diag(torch.tensor([4.0, 6.0, 0.0], dtype=torch.float64)))
    assert local_exponents(pairs, 0.5).tolist() == pytest.approx([0.0, 0.0, math.log(2)])
