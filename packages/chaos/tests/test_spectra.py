"""Metrics by formula: a spectrum written down, all names checked against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from networks import golden_network
from torch import nn

from chaos.exponents import Spectrum
from chaos.o2grad import Eigenpairs, LossSurface
from chaos.spectra import gradient_metrics, hessian_metrics, lyapunov_metrics, signal_to_noise

W = torch.tensor([-3.0, -1.0, 0.0, 0.0, 2.0, 30.0], dtype=torch.float64)
H_STEP = 0.1


def test_hessian_and_chaos_metrics():
    metrics = hessian_metrics(Eigenpairs.of(torch.diag(W)), H_STEP)
    growth = (1 - H_STEP * W) ** 2
    expected = {
        "eigvals/hessian:max_eig": 30,
        "eigvals/hessian:min_eig": -3,
        "eigvals/hessian:pos_eigs_cnt": 2,
        "eigvals/hessian:neg_eigs_cnt": 2,
        "eigvals/hessian:zero_eigs_cnt": 2,
        "eigvals/hessian:nnz_eigs": 4,
        "eigvals/hessian:pos_chaotic_eigs_cnt": 1,
        "eigvals/hessian:eigs_mean": float(W.mean()),
        "eigvals/hessian:eigs_std": float(W.std(correction=0)),
        "eigvals/chaos:max_exp_eig": float(growth.max()),
        "eigvals/chaos:min_exp_eig": float(growth.min()),
        "eigvals/chaos:chaotic_cnt": 3,
        "eigvals/chaos:edge_chaotic_cnt": 2,
        "eigvals/chaos:non_chaotic_cnt": 1,
    }
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_counts_partition_all_directions():
    model, x, y = golden_network("mlp_relu")
    pairs = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y).eigh()
    m = hessian_metrics(pairs, 0.3)
    hessian = [m[f"eigvals/hessian:{k}_eigs_cnt"] for k in ("pos", "neg", "zero")]
    chaos = [m[f"eigvals/chaos:{k}_cnt"] for k in ("chaotic", "edge_chaotic", "non_chaotic")]
    assert sum(hessian) == sum(chaos) == 53


def test_a_flat_loss_has_no_spectrum():
    pairs = Eigenpairs.of(torch.zeros(4, 4, dtype=torch.float64))
    metrics = hessian_metrics(pairs, 0.1)
    assert metrics["eigvals/chaos:max_exp_eig"] == metrics["eigvals/chaos:min_exp_eig"] == 1
    assert metrics["eigvals/hessian:zero_eigs_cnt"] == 4


def test_gradient_metrics_against_dense_algebra():
    model, x, y = golden_network("mlp_sigmoid")
    surface = LossSurface(model, nn.CrossEntropyLoss())
    H, g = surface.hessian(None, x, y), surface.value_and_gradient(None, x, y)[1]
    previous = g + torch.ones_like(g)
    copies = g.clone(), previous.clone()
    metrics = gradient_metrics(H, H.eigh(), g, previous)
    dense = H.dense()
    V = torch.linalg.eigh(dense).eigenvectors
    unit = g / g.norm()
    assert metrics["hessian:curvature_along_gradient"] == pytest.approx(float(unit @ dense @ unit))
    assert metrics["eigvecs/grad-hessian_max:cos"] == pytest.approx(float((V[:, -1] @ unit).abs()))
    assert metrics["eigvecs/grad-hessian_min:cos"] == pytest.approx(float((V[:, 0] @ unit).abs()))
    assert metrics["grad_old-grad:overlap"] == pytest.approx(float(unit @ previous / previous.norm()))
    assert metrics["hessian:sparsity"] == pytest.approx(float((dense == 0).double().mean()))
    assert torch.equal(copies[0], g)  # the original normalised in place
    assert torch.equal(copies[1], previous)


def test_zero_gradient_has_no_direction():
    model, x, y = golden_network("mlp_sigmoid")
    H = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y)
    metrics = gradient_metrics(H, H.eigh(), torch.zeros(51, dtype=torch.float64), None)
    assert set(metrics) == {"hessian:sparsity"}


def test_lyapunov_metrics():
    exponents = torch.tensor([-math.inf, -0.2, 0.0, 0.1], dtype=torch.float64)
    metrics = lyapunov_metrics(Spectrum(exponents, 1, 10, "svd"))
    assert metrics == pytest.approx(
        {
            "eigvals/lyapunov:max_exp_eig": math.exp(0.2),
            "eigvals/lyapunov:min_exp_eig": 0.0,
            "eigvals/lyapunov:max_exponent": 0.1,
            "eigvals/lyapunov:chaotic_cnt": 1,
            "eigvals/lyapunov:non_chaotic_cnt": 2,
            "eigvals/lyapunov:edge_chaotic_cnt": 1,
            "eigvals/lyapunov:unresolved_cnt": 1,
        }
    )


def test_signal_to_noise():
    window = torch.tensor([[2.0, 1.0], [2.0, -1.0]])
    assert signal_to_noise(window) == pytest.approx(4.0)  # |(2, 0)|^2 over a mean square deviation of 1
    assert signal_to_noise(torch.ones(3, 2)) == math.inf
