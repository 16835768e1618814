"""Variances far below the squared mean keep their digits in single and in half precision."""

import pytest
import torch
from torch import nn

from variance import measure_model, per_example

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
