"""Networks of the tests: those of the golden arrays, and random ones for property tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chaos.o2grad import Residual

GOLDEN = np.load(Path(__file__).parent / "golden" / "chaos.npz")


def _paper_cnn() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]

    blocks = [*block(1, 4), *block(4, 4), *block(4, 8), *block(8, 8)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8, 10))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mlp_relu": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "mlp_sigmoid": lambda: nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)),
    "cnn_relu": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
    "conv1d_sigmoid": lambda: nn.Sequential(
        nn.Conv1d(1, 2, 3, padding=1), nn.Sigmoid(), nn.AvgPool1d(2, 2), nn.Flatten(), nn.Linear(10, 3)
    ),
    "residual_bn": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), Residual(nn.Linear(4, 4), nn.Sigmoid()), nn.Linear(4, 3)
    ),
    "paper_mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 20), nn.ReLU(), nn.Linear(20, 10)),
    "paper_cnn": _paper_cnn,
}


def golden(key: str) -> Tensor:
    return torch.from_numpy(GOLDEN[key])


def golden_network(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The stored network in float64 with its batch."""
    model = ARCHITECTURES[name]().double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(golden(f"{name}/param{i}"))
    return model, golden(f"{name}/x"), golden(f"{name}/y")


def golden_symmetric(key: str) -> Tensor:
    stored = golden(key)
    if stored.ndim == 2:
        return stored
    n = int((2 * len(stored)) ** 0.5)
    matrix = torch.zeros(n, n, dtype=stored.dtype)
    rows, columns = torch.tril_indices(n, n)
    matrix[rows, columns] = stored
    return matrix + matrix.tril(-1).T


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def dense_oracle(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Hessian row by row with reverse-mode autograd only: independent of every backend."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
    g = torch.cat([gradient.reshape(-1) for gradient in gradients])
    rows = []
    for entry in g:
        pieces = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return torch.stack(rows)
