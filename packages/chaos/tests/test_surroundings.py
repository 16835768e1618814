"""What stands around a call, or within a model, and must neither change a number nor be changed."""

from __future__ import annotations

import copy
import functools
import random

import pytest
import torch
from gauntlet import Net, classes, draw, mlp
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from chaos import LyapunovTracker, TrainingMap
from chaos.o2grad import Eigenpairs, LossSurface

CE = nn.CrossEntropyLoss()


def by_autograd(model, loss, x, y):
    """Gradient and Hessian from the module itself."""
    parameters = list(model.parameters())
    value = loss(model(x), y)
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters, create_graph=True)])
    rows = [
        torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True)
        if g.requires_grad
        else [torch.zeros_like(p) for p in parameters]
        for g in flat
    ]
    return flat.detach(), torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


AROUND = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no grad": torch.no_grad,
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", AROUND)
def test_what_surrounds_a_call_changes_no_number(name, dtype):
    torch.manual_seed(0)
    model, x, y = mlp(12).to(dtype), draw(4, 12).to(dtype), classes(4)
    gradient, H = by_autograd(model, CE, x, y)
    v, n = torch.linspace(-1, 1, len(H), dtype=dtype), len(H)
    surface = LossSurface(model, CE)
    gauss_newton = surface.gauss_newton(None, x, y).dense()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    tolerance = 30 * torch.finfo(dtype).eps
    with AROUND[name]():
        found = surface.hessian(None, x, y)
        pairs = [
            (surface.value_and_gradient(None, x, y)[1], gradient),
            (found.dense(), H),
            (found.matvec(v), H @ v if name != "autocast" else (H.double() @ v.double()).to(dtype)),
            (found.eigh().combine(found.eigh().values * found.eigh().coefficients(v)), found.matvec(v)),
            (surface.hessian_rows(None, x, y, slice(0, 3)), H[:3]),
            (surface.hvp(None, x, y, v), found.matvec(v)),
            (surface.operator(None, (x, y)).matvec(v), found.matvec(v)),
            (surface.operator(None, [(x[:2], y[:2]), (x[2:], y[2:])]).matvec(v), found.matvec(v)),
        ]
        operator = surface.operator(None, (x, y), "gauss_newton")
        pairs += [(operator.matvec(v), (gauss_newton.double() @ v.double()).to(dtype)) for _ in range(2)]
        fisher = surface.operator(None, (x, y), "fisher").trace(num_samples=3)
        top, _ = surface.top_eigenpairs(None, (x, y), 1)
        tracker = LyapunovTracker(n, 0.1, dtype=dtype)
        tracker.update(found)
        run = TrainingMap(surface, sgd, [(x, y)] * 2)
        tangent = run.product(v)
    for a, b in pairs:
        assert (a - b).abs().max() <= tolerance
    assert fisher.value > 0
    assert abs(top - torch.linalg.eigvalsh(H)[-1]) <= tolerance
    assert (tracker.Y - (torch.eye(n, dtype=dtype) - 0.1 * H)).abs().max() <= tolerance
    plain = TrainingMap(surface, sgd, [(x, y)] * 2)
    assert torch.equal(run.end, plain.end)
    assert torch.equal(tangent, plain.product(v))


def test_the_cache_of_parametrizations_is_not_read():
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).T

    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double(), draw(4, 5), classes(4)
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    _, H = by_autograd(model, CE, x, y)
    surface, v = LossSurface(model, CE), torch.ones(len(H), dtype=torch.float64)
    with parametrize.cached():
        kept = model[0].weight
        for _ in range(2):
            assert (surface.hvp(None, x, y, v) - H @ v).abs().max() < 1e-12
        assert model[0].weight is kept


def test_a_cache_outside_of_all_modules_is_noticed():
    cache = {}

    def caching(net, x):
        if "weight" not in cache:
            cache["weight"] = net.a.weight.sin()
        return F.linear(x, cache["weight"]) * net.b(x)

    model = Net(caching, a=nn.Linear(5, 3), b=nn.Linear(5, 3)).double()
    surface, x, y = LossSurface(model, CE), draw(4, 5), classes(4)
    surface.value_and_gradient(None, x, y)
    for tool in (surface.value_and_gradient, surface.hessian):
        with pytest.raises(ValueError, match="keeps a value of an earlier evaluation"):
            tool(None, x, y)


@pytest.mark.parametrize("backend", ["auto", "generic"])
def test_a_float64_model_that_computes_in_float32_inside(backend):
    class Steep(nn.Module):
        def forward(self, x):
            h = x.float()
            for _ in range(8):
                h = torch.sin(3 * h)
            return h.to(x.dtype)

    torch.manual_seed(0)
    model, x, y = mlp(), draw(4, 5), classes(4)
    model[1] = Steep()
    _, H = by_autograd(model, CE, x, y)
    found = LossSurface(model, CE, backend=backend).hessian(None, x, y)
    assert (found.dense() - H).abs().max() < 1e-5 * H.abs().max()


def test_half_precision_inside_is_refused():
    class Half(nn.Sequential):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    surface = LossSurface(Half(*mlp().float()), CE)
    for tool in (surface.hessian, lambda *batch: surface.hvp(*batch, torch.ones(39))):
        with pytest.raises(ValueError, match="half precision inside"):
            tool(None, draw(4, 5).float(), classes(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tensors_of_a_loss_have_the_type_of_the_computation(dtype):
    torch.manual_seed(0)
    model, x, y = mlp().to(dtype), draw(4, 5).to(dtype), classes(4)
    weight = torch.tensor([1.0, 5.0, 2.0], dtype=dtype)
    loss, wide = nn.CrossEntropyLoss(weight=weight), nn.CrossEntropyLoss(weight=weight.double())
    gradient, H = by_autograd(copy.deepcopy(model).double(), wide, x.double(), y)
    surface = LossSurface(model, loss, dtype=torch.float64)
    v = torch.ones(len(H), dtype=torch.float64)
    assert (surface.hessian(None, x, y).dense() - H).abs().max() < 1e-12
    assert (surface.value_and_gradient(None, x, y)[1] - gradient).abs().max() < 1e-12
    assert (surface.full_hvp(None, [(x[:3], y[:3]), (x[3:], y[3:])], v) - H @ v).abs().max() < 1e-12
    reference = LossSurface(copy.deepcopy(model).double(), wide).gauss_newton(None, x, y)
    operator = surface.operator(None, (x, y), "gauss_newton")
    for _ in range(2):
        assert (operator.matvec(v) - reference.matvec(v)).abs().max() < 1e-12
    assert loss.weight is weight


def test_gauss_newton_of_one_number_per_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    surface, x, y = LossSurface(model, nn.MSELoss()), draw(4, 5), draw(4)
    rows = [torch.autograd.grad(out, model.parameters(), retain_graph=True) for out in model(x)]
    J = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    assert (surface.jacobian(None, x)[:, 0] - J).abs().max() < 1e-14
    assert (surface.gauss_newton(None, x, y).dense() - J.T @ J / 2).abs().max() < 1e-14


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_matrix_that_is_not_finite_has_no_eigenvalues(value):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 1] = value
    with pytest.raises(FloatingPointError, match="holds NaN or infinity"):
        Eigenpairs.of(matrix)
    with pytest.raises(FloatingPointError, match="holds NaN or infinity"):
        Eigenpairs.from_pairs(matrix.diagonal(), torch.eye(3, dtype=torch.float64))
    x = {"x": torch.ones(1, dtype=torch.float64)}
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    model.forward = lambda x: (model.w * x).abs().sqrt().sum()
    surface = LossSurface(model, lambda output: output)
    with pytest.raises(FloatingPointError, match="holds NaN or infinity"):
        surface.hessian(None, x, None).eigh()
    with pytest.raises(ValueError, match="matvec returned NaN or infinity"):
        surface.top_eigenpairs(None, x, 1)


def test_a_loader_that_fills_the_same_memory_is_compared_with_itself_no_more():
    """A mean over tokens is no mean over samples; two views of one batch would not show it."""
    torch.manual_seed(0)
    x, y, counts = draw(8, 5), classes(8), (4, 1)

    class Loader:
        def __iter__(self):
            inputs, targets = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
            for part, count in zip((slice(0, 4), slice(4, 8)), counts, strict=True):
                inputs.copy_(x[part])
                targets.copy_(torch.where(torch.arange(4) < count, y[part], -1))
                yield inputs, targets

    def token_mean(output, y):
        return F.cross_entropy(output, y, ignore_index=-1)

    with pytest.raises(ValueError, match="neither the mean over samples nor the sum"):
        LossSurface(mlp(), token_mean).operator(None, Loader())


def test_float32_within_float64_over_a_loader():
    class Steep(nn.Module):
        def forward(self, x):
            return torch.sin(30 * x.float()).to(x.dtype)

    torch.manual_seed(0)
    model, x, y = mlp(), draw(8, 5), classes(8)
    model[1] = Steep()
    _, H = by_autograd(model, CE, x, y)
    v, parts = torch.ones(len(H), dtype=torch.float64), [(x[:3], y[:3]), (x[3:], y[3:])]
    for loss in (CE, lambda o, t: F.cross_entropy(o.float(), t)):
        operator = LossSurface(model, loss).operator(None, parts)
        assert (operator.matvec(v) - H @ v).abs().max() < 1e-5 * (H @ v).abs().max()
        assert LossSurface(model, loss).operator(None, parts, "fisher").matvec(v).isfinite().all()


def test_what_belongs_to_all_samples_is_not_cut_up():
    """A mask of positions has a first axis, too, which does not count samples."""

    def masked(net, tokens, mask):
        h = net.embed(tokens)
        return net.head(F.scaled_dot_product_attention(h, h, h, attn_mask=mask).tanh().mean(1))

    torch.manual_seed(0)
    model = Net(masked, embed=nn.Embedding(7, 4), head=nn.Linear(4, 3)).double()
    tokens, y = torch.randint(7, (6, 4)), classes(6)
    mask = torch.ones(4, 4).tril().bool()
    surface = LossSurface(model, lambda o, t: F.cross_entropy(o, t))
    whole = surface.hessian(None, (tokens, mask), y).dense()
    per_sample = [H.dense() for H in surface.hessian_per_sample(None, (tokens, mask), y)]
    assert (torch.stack(per_sample).mean(0) - whole).abs().max() < 1e-12
    parts = [((tokens[rows], mask), y[rows]) for rows in (slice(0, 3), slice(3, 6))]
    v = torch.ones(surface.n, dtype=torch.float64)
    assert (surface.full_hvp(None, parts, v) - whole @ v).abs().max() < 1e-12
    whole_fisher = surface.operator(None, ((tokens, mask), y), "fisher").matvec(v)
    assert (surface.operator(None, parts, "fisher").matvec(v) - whole_fisher).abs().max() < 1e-12


def test_parameters_without_values_or_on_several_devices_are_refused():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, device="meta"))
    with pytest.raises(ValueError, match="The parameters are on cpu, meta"):
        LossSurface(model, CE)
    assert LossSurface(model, CE, layers=["0"]).n == 24


class Own(nn.Sequential):
    """The same network as code of a user's own, which is guarded in full."""


@pytest.mark.parametrize("kind", [nn.Sequential, Own])
def test_guards_are_the_same_for_layers_of_torch_and_for_others(kind):
    torch.manual_seed(0)
    model, x, y = kind(*mlp()), draw(4, 5), classes(4)
    _, H = by_autograd(model, CE, x, y)
    surface, v = LossSurface(model, CE), torch.linspace(-1, 1, len(H), dtype=torch.float64)
    operator = surface.operator(None, (x, y))
    for product in (lambda: surface.hvp(None, x, y, v), lambda: operator.matvec(v)):
        for around in AROUND.values():
            with around():
                assert (product() - H @ v).abs().max() < 1e-14
    model[1].register_forward_hook(lambda module, inputs, output: output * torch.rand(()).item())
    with pytest.raises(ValueError, match="random"):
        surface.hvp(None, x, y, v)


def test_what_wraps_a_function_of_torch_is_code_of_a_user():
    """Also where it takes over the name and the module of what it wraps."""
    torch.manual_seed(0)
    model, x, y = mlp(), draw(4, 5), classes(4)
    captured = model[0].weight

    @functools.wraps(F.cross_entropy)
    def penalised(output, target):
        return F.cross_entropy(output, target) + captured.square().sum()

    @functools.wraps(F.cross_entropy)
    def noisy(output, target):
        return F.cross_entropy(output, target) + random.random()

    v = torch.ones(LossSurface(model, CE).n, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"reaches parameter '0\.weight' by a reference of its own"):
        LossSurface(model, penalised).hvp(None, x, y, v)
    before = random.getstate()
    with pytest.raises(ValueError, match="random"):
        LossSurface(model, noisy).hvp(None, x, y, v)
    assert random.getstate() == before
