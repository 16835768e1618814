"""How exact is it: every tool of ``chaos`` against an oracle that knows nothing of it, and against a peer.

``python benchmarks/exactness.py`` writes ``docs/packages/chaos-exactness.md``. Errors are the largest
entry of the difference over the largest entry of the oracle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from chaos import LyapunovTracker, TrainingMap, finite_time_exponents
from chaos.models import cnn, mlp
from chaos.o2grad import LossSurface, Residual

PAGE = Path(__file__).parents[3] / "docs/packages/chaos-exactness.md"
CE = nn.CrossEntropyLoss()


class Attention(nn.Module):
    """A layer of a transformer on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Class scores."""
        return self.head(self.layer(self.embed(tokens)).mean(1))


def cases() -> dict[str, tuple[nn.Module, nn.Module, Tensor, Tensor]]:
    """Small networks of every backend: model, loss, inputs, targets."""
    torch.manual_seed(0)
    y = torch.tensor([0, 2, 1, 2])
    vectors, images = torch.randn(4, 12), torch.randn(2, 1, 16, 16)
    residual = nn.Sequential(
        nn.Linear(12, 4), nn.Tanh(), Residual(nn.Linear(4, 4), nn.GELU()), nn.Linear(4, 3)
    )
    hooked = nn.Sequential(nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3))
    hooked[0].register_forward_pre_hook(lambda module, args: (2 * args[0] + 1,))
    norm = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), ignore_index=1)
    return {
        "MLP": (mlp(12, 4, 3), CE, vectors, y),
        "residual": (residual, nn.MSELoss(), vectors, torch.randn(4, 3)),
        "CNN": (cnn(2), CE, images, y[:2]),
        "batch norm, training": (norm, CE, vectors, y),
        "forward hook": (hooked, CE, vectors, y),
        "weighted loss, an ignored class": (mlp(12, 4, 3), weighted, vectors, y),
        "transformer layer": (Attention(), CE, torch.randint(7, (4, 5)), y),
    }


def oracle(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian by ``torch.autograd.functional.hessian``, in the type of the model."""
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}

    def value(flat: Tensor) -> Tensor:
        parts = {n: a.view_as(p) for (n, p), a in zip(named.items(), flat.split(sizes), strict=True)}
        return loss(functional_call(model, parts | {n: b.clone() for n, b in buffers.items()}, (x,)), y)

    flat = nn.utils.parameters_to_vector(named.values()).detach()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(value, flat)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max())


def hessians() -> list[list[str]]:
    """One row for each network: backend, and errors of its tools in float64 and float32."""
    rows = []
    for name, (model, loss, x, y) in cases().items():
        cells = [name]
        for dtype in (torch.float64, torch.float32):
            model, loss = model.to(dtype), loss.to(dtype)
            inputs = x.to(dtype) if x.is_floating_point() else x
            targets = y.to(dtype) if y.is_floating_point() else y
            expected = oracle(model, loss, inputs, targets)
            surface = LossSurface(model, loss)
            H = surface.hessian(None, inputs, targets)
            V = torch.randn(surface.n, 3, dtype=dtype)
            # in float64: of the CNN, LAPACK does not converge in float32
            values = torch.linalg.eigvalsh((expected + expected.T).double() / 2)
            if dtype == torch.float64:
                cells += [str(surface.n), f"`{H.backend}`"]
            cells += [
                f"{error(H.dense(), expected):.0e}",
                f"{error(surface.hvp(None, inputs, targets, V), expected @ V):.0e}",
                f"{error(H.eigh().all_values(), values):.0e}",
            ]
        rows.append(cells)
    return rows


def exponents() -> list[list[str]]:
    """Tangents of training against central differences of training itself, ten steps."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    data = [(torch.randn(4, 6).double(), torch.randint(3, (4,))) for _ in range(10)]

    def end(theta: Tensor, make: Callable[[object], torch.optim.Optimizer]) -> Tensor:
        nn.utils.vector_to_parameters(theta.clone(), model.parameters())
        optimizer = make(model.parameters())
        for x, y in data:
            optimizer.zero_grad()
            CE(model(x), y).backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "SGD": lambda p: torch.optim.SGD(p, 0.3),
        "SGD, momentum 0.9": lambda p: torch.optim.SGD(p, 0.3, 0.9),
        "SGD, Nesterov, weight decay": lambda p: torch.optim.SGD(
            p, 0.2, 0.9, weight_decay=0.05, nesterov=True
        ),
        "Adam": lambda p: torch.optim.Adam(p, 0.01, eps=1e-3),
        "AdamW": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-3, weight_decay=0.1),
        "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, eps=1e-2),
        "RMSprop, centred, momentum 0.5": lambda p: torch.optim.RMSprop(
            p, 0.01, eps=1e-2, momentum=0.5, centered=True
        ),
        "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05, eps=1e-2),
    }
    rows = []
    for name, make in makers.items():
        eye = 1e-5 * torch.eye(len(start), dtype=torch.float64)
        differences = torch.stack([(end(start + e, make) - end(start - e, make)) / 2e-5 for e in eye], 1)
        nn.utils.vector_to_parameters(start.clone(), model.parameters())
        run = TrainingMap(LossSurface(model, CE), make(model.parameters()), data)
        Y, found = run.dense(), finite_time_exponents(run, 3)
        sigma = torch.linalg.svdvals(Y)[:3]
        tracked = "-"
        if name in ("SGD", "SGD, momentum 0.9"):
            tracker, surface = (
                LyapunovTracker(run.n, 0.3, 0.9 if "0.9" in name else 0.0),
                LossSurface(model, CE),
            )
            for t, (x, y) in enumerate(data):
                tracker.update(surface.hessian(run._run[t][0][0], x, y))
            tracked = f"{error(tracker.Y, Y):.0e}"
        rows.append(
            [
                name,
                f"{error(Y, differences):.0e}",
                tracked,
                f"{error(found.values, sigma.log() / len(data)):.0e}",
            ]
        )
    return rows


def peers() -> list[list[str]]:
    """Products with Hessian and Gauss-Newton matrix against curvlinops, over a loader of two batches."""
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    loader = [(torch.randn(8, 12).double(), torch.randint(3, (8,))) for _ in range(2)]
    parameters = dict(model.named_parameters())
    surface, rows = LossSurface(model, CE), []
    V = torch.randn(surface.n, 4, dtype=torch.float64)
    for name, kind, peer in (
        ("Hessian", "hessian", HessianLinearOperator),
        ("Gauss-Newton", "gauss_newton", GGNLinearOperator),
    ):
        try:
            other = peer(model, CE, parameters, loader)
        except (TypeError, AttributeError):  # releases before 3 take a list
            other = peer(model, CE, list(parameters.values()), loader)
        rows.append([name, f"{error(surface.operator(None, loader, kind).matvec(V), other @ V):.0e}"])
    return rows


def table(header: str, rows: list[list[str]]) -> str:
    """A Markdown table."""
    titles = header.split("|")
    lines = [f"| {' | '.join(cells)} |" for cells in [titles, ["---"] * len(titles), *rows]]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    warnings.simplefilter("ignore")
    try:
        rows, missing = peers(), ""
    except ImportError as reason:
        rows, missing = [], f"\nNot measured here: {reason}.\n"
    from importlib.metadata import PackageNotFoundError, version

    try:
        peer = f"curvlinops {version('curvlinops-for-pytorch')}"
    except PackageNotFoundError:
        peer = "curvlinops"
    columns = "64: H|64: H v|64: eigenvalues|32: H|32: H v|32: eigenvalues"
    PAGE.write_text(
        f"""# chaos: how exact is it

This page is generated by `packages/chaos/benchmarks/exactness.py`, with torch {torch.__version__}. Each
number is the largest entry of a difference, divided by the largest entry of the oracle. float64 resolves
2e-16, float32 1e-7.

## Hessians

The oracle is `torch.autograd.functional.hessian` in the same type. It differentiates the backward pass,
and shares no code with ours.

{table("network|n|backend|" + columns, hessians())}

In each of these calls the library also compares its Hessian with one Hessian-vector product of the module.
Where they disagree it warns and takes the slower, general way, or refuses.

What stays fixed is a constant here too. So are the rows of an embedding that `padding_idx` names:
PyTorch gives them no gradient, training does not move them, and their rows and columns of the Hessian
are 0, although the loss may depend on them. A tangent matrix keeps 1 on their diagonal, and 0 elsewhere
in their columns: it says nothing of what another start of these rows would change.

Values that are cut off from the graph (`detach`) are looked for where a model has code of its own, by
differences of the gradient at the first batch, and again where the operations differ. Not seen is what
the same operations cut off at other batches only, as `torch.where(far, h.detach(), h)` does where no
sample of the first batch is far.

## Tangents of training

Ten steps. The second column is the tangent of the whole update map against central differences of training
itself, whose own error is about 1e-8. The third is `LyapunovTracker` against that tangent. The fourth is
of the three largest exponents, by Lanczos, against singular values of the dense matrix.

{table("optimiser|against differences|tracker|exponents", exponents())}

## Against {peer}

Products with four random vectors, float64, over a loader of two batches.

{table("matrix|difference", rows)}
{missing}""",
        encoding="utf-8",
    )
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
