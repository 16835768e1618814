"""Speed of exact curvature, against torch.func, plain double backward and three libraries.

The limit of products and of the largest eigenvalue is one gradient of the same loss: their ratio to it is the
number of gradients they cost. That of a dense Hessian is writing n x n numbers.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import functional_call

from chaos.lyapunov import LyapunovTracker
from chaos.models import cnn, mlp
from chaos.o2grad import LossSurface
from gdyn_reproduce.benchmark import LIMIT, OURS, Case, Contender, main, optional
from gdyn_reproduce.data import load

CE = nn.CrossEntropyLoss()
NETWORK, LANCZOS_STEPS = (256, 600, 300, 10), 10
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


def curvlinops(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """The Hessian as an operator of curvlinops."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(model, CE, list(model.parameters()), [(x, y)], check_deterministic=False)


def eigenthings(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """The Hessian as an operator of hessian-eigenthings."""
    from hessian_eigenthings import HessianOperator

    return HessianOperator(model, [(x, y)], lambda model, batch: CE(model(batch[0]), batch[1]))


def pyhessian(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """The Hessian of PyHessian, which keeps the graph in the gradients of its model."""
    from pyhessian import hessian

    twin = copy.deepcopy(model)

    def make() -> Any:
        twin.zero_grad(set_to_none=True)
        return hessian(twin, CE, data=(x, y), cuda=False)

    return make


def products(*sizes: int, kept: bool = False) -> Contenders:
    """One product with the graph built anew, or one of many that keep it."""
    model, (x, y) = trained(*sizes), digits(64)
    surface, parameters = LossSurface(model, CE), tuple(model.parameters())
    v = torch.randn(surface.n)
    pieces = [a.view_as(p) for a, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]

    def double_backward() -> object:
        gradient = torch.autograd.grad(CE(model(x), y), parameters, create_graph=True)
        return torch.autograd.grad(gradient, parameters, pieces)

    def by_pyhessian() -> Callable[[], object]:
        from pyhessian.utils import hessian_vector_product

        make = pyhessian(model, x, y)
        held = make()

        def product() -> object:
            of = held if kept else make()
            return hessian_vector_product(of.gradsH, of.params, pieces)

        return product

    def by_curvlinops() -> Callable[[], object]:
        operator = curvlinops(model, x, y)
        return lambda: operator @ v

    def by_eigenthings() -> Callable[[], object]:
        operator = eigenthings(model, x, y)
        return lambda: operator.matvec(v)

    common: Contenders = {
        "PyHessian": optional(by_pyhessian),
        LIMIT: lambda: torch.autograd.grad(CE(model(x), y), parameters),
    }
    if kept:
        operator = surface.operator(None, (x, y))
        return {OURS: lambda: operator.matvec(v), **common}
    return {
        OURS: lambda: surface.hvp(None, x, y, v),
        "double backward": double_backward,
        "curvlinops": optional(by_curvlinops),
        "hessian-eigenthings": optional(by_eigenthings),
        **common,
    }


def largest_eigenvalue() -> Contenders:
    """The largest eigenvalue of a trained network to a residual of 1 %."""
    model, (x, y) = trained(*NETWORK), digits(512)
    surface, parameters = LossSurface(model, CE), tuple(model.parameters())
    start = torch.randn(surface.n).numpy()

    def by_curvlinops() -> Callable[[], object]:
        operator = curvlinops(model, x, y)
        return lambda: eigsh(operator.to_scipy(), 1, which="LA", tol=1e-2, v0=start, ncv=12)

    def by_eigenthings() -> Callable[[], object]:
        from hessian_eigenthings import lanczos

        operator = eigenthings(model, x, y)
        return lambda: lanczos(operator, k=1, max_iter=LANCZOS_STEPS, which="LA", seed=0)

    def by_pyhessian() -> Callable[[], object]:
        make = pyhessian(model, x, y)
        return lambda: make().eigenvalues(tol=1e-2)

    return {
        OURS: lambda: surface.top_eigenpairs(None, (x, y), 1, tol=1e-2),
        "curvlinops and eigsh": optional(by_curvlinops),
        "hessian-eigenthings": optional(by_eigenthings),
        "PyHessian": optional(by_pyhessian),
        LIMIT: lambda: torch.autograd.grad(CE(model(x), y), parameters),
    }


def dense(hidden: int) -> Contenders:
    """The dense Hessian by every backend."""
    torch.manual_seed(0)
    model, (x, y) = mlp(inter_dim=hidden), digits(8)
    fast, generic = LossSurface(model, CE), LossSurface(model, CE, backend="generic")
    out = torch.empty(fast.n, fast.n)
    return {
        OURS: lambda: fast.hessian(None, x, y).dense(),
        "ours, generic": lambda: generic.hessian(None, x, y).dense(),
        "torch.func.hessian": torch_hessian(model, x, y),
        LIMIT: lambda: out.fill_(1),
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
    Case(
        "product",
        "Hessian times a vector, n = 337 510, batch 64",
        partial(products, *NETWORK),
        note="a product finds out whether the model's code is torch's own, checks batch and point, and puts "
        "buffers and the random state back; that takes a quarter of a millisecond whatever the size, and the "
        "flat vectors are the rest of what it takes beyond a plain double backward",
    ),
    Case(
        "kept",
        "Hessian times a vector, one of many at a point, n = 337 510, batch 64",
        partial(products, *NETWORK, kept=True),
        note="two passes back through a graph that exists; PyHessian's vectors are not flat",
    ),
    Case(
        "largest-eigenvalue",
        "largest eigenvalue to a residual of 1 %, n = 337 510, batch 512",
        largest_eigenvalue,
        note=f"about {LANCZOS_STEPS} products; hessian-eigenthings, which does not stop by itself, was "
        "given that number; PyHessian's value is 3 % off, as it stops where the estimate changes by 1 %",
    ),
    Case(
        "dense",
        "dense Hessian, n = 5 350, batch 8",
        partial(dense, 20),
        note="the limit only writes the matrix, into memory that is there; ours computes it in a sweep, and "
        "with the default allocator in fresh memory, which comes in large pages",
    ),
    Case(
        "cnn",
        "dense Hessian of the CNN, batch 2",
        convolutional,
        note="torch.func.hessian takes about 80 gradients, so that 40 times faster would be two of them; the "
        "check of a result by one product takes three",
    ),
    Case(
        "eigenpairs",
        "Hessian and all eigenpairs, n = 5 350, batch 8",
        eigenpairs,
        note="at a batch of 64 the core has 1 290 rows instead of 370, and nine tenths of the time are its "
        "eigendecomposition",
    ),
    *(
        Case(
            f"growth-product-{n}",
            f"Hessian times a vector, n = {f'{n:,}'.replace(',', ' ')}, batch 64",
            partial(products, *sizes),
            growth="Hessian times a vector over parameters",
            size=n,
        )
        for n, sizes in (
            (4549, (256, 17, 10)),
            (52074, (256, 160, 64, 10)),
            (151750, (256, 300, 240, 10)),
            (773310, (256, 800, 700, 10)),
        )
    ),
    *(
        Case(
            f"growth-dense-{hidden}",
            f"dense Hessian, n = {267 * hidden + 10}, batch 8",
            partial(dense, hidden),
            growth="dense Hessian over parameters",
            size=267 * hidden + 10,
        )
        for hidden in (2, 5, 10, 20)
    ),
)

if __name__ == "__main__":
    main("chaos", CASES)
