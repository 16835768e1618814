"""Variances far below the squared mean keep their digits in single and in half precision."""

import pytest
import torch
from torch import nn

from variance import (
    GC,
    BatchClustering,
    Objective,
    Point,
    TensorPopulation,
    cluster,
    measure_model,
    per_example,
    statistics,
    stratified_variance,
)

N = 300


def total(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.flatten(1).sum(1)


MODELS = {
    "linear": (lambda: nn.Linear(4, 2), (4,)),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 2)), (2, 4)),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.BatchNorm1d(3).eval()), (4,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_small_variances_are_those_of_the_gradients(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().to(dtype)
    spread = 1e-3 if dtype == torch.float32 else 0.5
    x, y = (10 + spread * torch.randn(N, *shape)).to(dtype), torch.zeros(N)
    rows = []
    for i in range(N):
        found = torch.autograd.grad(total(model(x[i : i + 1]), y).sum(), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]).double())
    g = torch.stack(rows)
    expected = float((g - g.mean(0)).square().sum(1).mean())
    tolerance = 0.02 if dtype == torch.float32 else 0.1  # rounding of the gradients themselves
    found = measure_model(model, total, x, y, batch_size=4, use="all")["trace_cov"]
    assert found == pytest.approx(expected, rel=tolerance)
    assert per_example.trace_of_covariance(model, total, x, y) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("offset", [1.0, 1e2, 1e4])
def test_clusters_and_their_exact_variance_are_those_of_double_precision(offset: float) -> None:
    """Gradients are offset plus noise; single precision holds the noise, but not its square beside theirs."""
    torch.manual_seed(0)
    x, y = 1 + torch.randn(60, 8) / (10 * offset), offset + 0.1 * torch.randn(60, 4)
    assignment = torch.arange(60) % 6

    def weighted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs * targets).sum(1)

    model = nn.Linear(8, 4, bias=False)
    g = per_example.gradients(model.double(), weighted, x.double(), y.double())
    model, objective = model.float(), Objective(model, weighted)
    gc = GC(objective, BatchClustering(6))
    gc.assignment = assignment
    found = gc.exact(Point.of(model), TensorPopulation(x, y), 6).avg_var * g.shape[1]
    assert found == pytest.approx(stratified_variance(g, assignment), rel=1e-3)
    first = cluster(model, weighted, x, y, 3, init=[0, 1, 2], weighting="none", iterations=1)
    distances = torch.cdist(g, g[:3]).square()
    assert float(first.distortions) == pytest.approx(float(distances.min(1).values.sum()), rel=1e-3)
    assert first.assignment.tolist() == distances.argmin(1).tolist()


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_gradients_of_half_precision_have_variances_of_their_own(scale: float) -> None:
    torch.manual_seed(0)
    g = (scale * torch.randn(50, 9)).half()
    ids = torch.arange(50) % 5
    assert statistics.exact(g, 4).trace_cov == pytest.approx(
        statistics.exact(g.double(), 4).trace_cov, rel=1e-9
    )
    assert stratified_variance(g, ids) == pytest.approx(stratified_variance(g.double(), ids), rel=1e-9)
