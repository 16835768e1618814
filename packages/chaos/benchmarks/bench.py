"""Speed of exact curvature: against torch.func, plain double backward and curvlinops, and in gradients.

The limit of products and of the largest eigenvalue is one gradient of the same loss: their ratio to it is the
number of gradients they cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from chaos.lyapunov import LyapunovTracker
from chaos.models import cnn, mlp
from chaos.o2grad import LossSurface
from gdyn_reproduce.benchmark import LIMIT, OURS, Case, Contender, main, optional
from gdyn_reproduce.data import load

CE = nn.CrossEntropyLoss()
Contenders = dict[str, Contender]


def digits(batch: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Images of 16 x 16 pixels and their labels."""
    x, y = load("digits16", "train")
    chosen = slice(start, start + batch)
    return torch.tensor(x[chosen], dtype=torch.float32)[:, None], torch.tensor(y[chosen])


def trained(*sizes: int) -> nn.Module:
    """A tanh network after 200 steps of SGD."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(200):
        x, y = digits(32, 32 * (step % 40))
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    return model


def torch_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """``torch.func.hessian`` of the flat parameters: no structure, everything at once."""
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: a.view_as(p) for (n, p), a in zip(named.items(), flat.split(sizes), strict=True)}
        return CE(functional_call(model, parts, (x,)), y)

    flat = nn.utils.parameters_to_vector(named.values()).detach()
    return lambda: torch.func.hessian(loss)(flat)


def products() -> Contenders:
    """One product, with the graph built anew."""
    model, (x, y) = trained(256, 600, 300, 10), digits(64)
    surface, parameters = LossSurface(model, CE), tuple(model.parameters())
    v = torch.randn(surface.n)
    pieces = [a.view_as(p) for a, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]

    def double_backward() -> object:
        gradient = torch.autograd.grad(CE(model(x), y), parameters, create_graph=True)
        return torch.autograd.grad(gradient, parameters, pieces)

    def curvlinops() -> Callable[[], object]:
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(model, CE, list(parameters), [(x, y)], check_deterministic=False)
        return lambda: operator @ v

    operator = surface.operator(None, (x, y))
    operator.matvec(v)
    return {
        OURS: lambda: surface.hvp(None, x, y, v),
        "ours, graph kept": lambda: operator.matvec(v),
        "double backward": double_backward,
        "curvlinops": optional(curvlinops),
        LIMIT: lambda: torch.autograd.grad(CE(model(x), y), parameters),
    }


def largest_eigenvalue() -> Contenders:
    """The largest eigenvalue of a trained network to a residual of 1 %."""
    model, (x, y) = trained(256, 600, 300, 10), digits(512)
    surface, parameters = LossSurface(model, CE), tuple(model.parameters())
    return {
        OURS: lambda: surface.top_eigenpairs(None, (x, y), 1, tol=1e-2),
        LIMIT: lambda: torch.autograd.grad(CE(model(x), y), parameters),
    }


def dense() -> Contenders:
    """The dense Hessian by every backend."""
    torch.manual_seed(0)
    model, (x, y) = mlp(), digits(8)
    fast, generic = LossSurface(model, CE), LossSurface(model, CE, backend="generic")
    return {
        OURS: lambda: fast.hessian(None, x, y).dense(),
        "ours, generic": lambda: generic.hessian(None, x, y).dense(),
        "torch.func.hessian": torch_hessian(model, x, y),
    }


def convolutional() -> Contenders:
    """The dense Hessian of the paper's CNN."""
    torch.manual_seed(0)
    model, (x, y) = cnn(), digits(2)
    surface = LossSurface(model, CE)
    return {
        OURS: lambda: surface.hessian(None, x, y).dense(),
        "torch.func.hessian": torch_hessian(model, x, y),
    }


def eigenpairs() -> Contenders:
    """All eigenpairs at a batch of 8, and at 64 as a contender."""
    torch.manual_seed(0)
    surface, small, large = LossSurface(mlp(), CE), digits(8), digits(64)
    H = surface.hessian(None, *small)
    tracker = LyapunovTracker(H.n, 1e-3, dtype=torch.float32)
    return {
        OURS: lambda: surface.hessian(None, *small).eigh(),
        "batch 64": lambda: surface.hessian(None, *large).eigh(),
        "one step of the tangent matrix": lambda: tracker.update(H),
    }


CASES = (
    Case("product", "Hessian times a vector, n = 337 510, batch 64", products),
    Case("largest-eigenvalue", "largest eigenvalue, n = 337 510, batch 512", largest_eigenvalue),
    Case("dense", "dense Hessian, n = 5 350, batch 8", dense),
    Case("cnn", "dense Hessian of the CNN, batch 2", convolutional),
    Case("eigenpairs", "Hessian and all eigenpairs, n = 5 350, batch 8", eigenpairs),
)

if __name__ == "__main__":
    main("chaos", CASES)
