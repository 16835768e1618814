"""Second derivatives that autograd has wrong are refused, once per surface, and kinks are not."""

from __future__ import annotations

import pytest
import torch
from gauntlet import Net
from torch import nn

from chaos.o2grad import LossSurface


def cube(of_saved):
    """z^3 / 6 with a backward pass that does something to what was saved."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z**3 / 6

        @staticmethod
        def backward(ctx, g):
            return g * of_saved(ctx.saved_tensors[0]) ** 2 / 2

    return Cube.apply


def by_numpy(z):
    return torch.from_numpy(z.detach().numpy())


def surface_of(function, dtype=torch.float64):
    """Its Hessian by the weights w of a linear layer is X' diag(X w) X."""
    torch.manual_seed(0)
    model = Net(lambda net, x: function(net.linear(x)), linear=nn.Linear(3, 1, bias=False)).to(dtype)
    x = torch.randn(6, 3).to(dtype)
    H = x.T @ (model.linear(x).detach() * x)
    return LossSurface(model, lambda output: output.sum()), x, H


TOOLS = {
    "hessian": lambda s, x: s.hessian(None, x, None),
    "hvp": lambda s, x: s.hvp(None, x, None, torch.ones(3)),
    "rows": lambda s, x: s.hessian_rows(None, x, None, slice(1)),
    "per sample": lambda s, x: list(s.hessian_per_sample(None, x, None)),
    "blocks": lambda s, x: s.block_diagonal(None, x, None),
    "eigenpairs": lambda s, x: s.top_eigenpairs(None, (x, None), 1),
    "trace of a loader": lambda s, x: s.trace(None, [(x[:3], None), (x[3:], None)]),
}


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "of_saved", [torch.detach, lambda z: z.data, by_numpy], ids=["detach", "data", "numpy"]
)
def test_a_backward_pass_that_cannot_be_differentiated_is_refused(tool, dtype, of_saved):
    surface, x, _ = surface_of(cube(of_saved), dtype)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"second derivatives are wrong.*\(here Cube\)"):
            tool(surface, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_backward_pass_that_can_be_differentiated_is_right(dtype):
    surface, x, H = surface_of(cube(lambda z: z), dtype)
    tolerance = 100 * torch.finfo(dtype).eps
    assert torch.allclose(surface.hessian(None, x, None).dense(), H, tolerance, tolerance)
    found = surface.operator(None, (x, None)).matvec(torch.eye(3))
    assert torch.allclose(found, H, tolerance, tolerance)


def test_one_wrong_parameter_among_large_ones_is_seen():
    """By itself: in the norm of the whole product it is a thousandth."""
    torch.manual_seed(0)
    wrong = cube(torch.detach)
    model = Net(
        lambda net, x: net.large(x).square().sum() + 1e-3 * wrong(net.small(x)).sum(),
        large=nn.Linear(9, 9),
        small=nn.Linear(9, 1, bias=False),
    ).double()
    surface = LossSurface(model, lambda output: output)
    with pytest.raises(ValueError, match=r"\(here Cube\)"):
        surface.hvp(None, torch.randn(6, 9, dtype=torch.float64), None, torch.ones(surface.n))


def once(function):
    """Mark the backward pass as one that cannot be differentiated."""
    kind = function.__self__
    kind.backward = staticmethod(torch.autograd.function.once_differentiable(kind.backward))
    return function


class Gradientless(torch.autograd.Function):
    """Its backward pass takes what it is given out of the graph."""

    @staticmethod
    def forward(ctx, z):
        return 2 * z

    @staticmethod
    def backward(ctx, g):
        return 2 * g.detach()


@pytest.mark.parametrize(
    ("function", "slope", "products"),
    [
        (cube(lambda z: z), lambda z: z**2 / 2, True),
        (cube(torch.detach), lambda z: z**2 / 2, True),  # a Jacobian is right without second derivatives
        (once(cube(lambda z: z)), lambda z: z**2 / 2, False),
        (Gradientless.apply, lambda z: 2 + 0 * z, False),
        (lambda z: z + Gradientless.apply(z), lambda z: 3 + 0 * z, False),
    ],
    ids=["right", "detached", "once", "no graph", "half a graph"],
)
def test_gauss_newton_of_functions_with_a_backward_pass_of_their_own(function, slope, products):
    """For squares of three outputs per sample it is 2 J' J, in closed form."""
    torch.manual_seed(0)
    model = Net(lambda net, x: function(net.linear(x)), linear=nn.Linear(2, 3, bias=False)).double()
    x, y = torch.randn(4, 2).double(), torch.zeros(4, 3).double()
    J = torch.stack([torch.kron(torch.diag(slope(model.linear(a)).detach()), a) for a in x]).flatten(0, 1)
    surface = LossSurface(model, nn.MSELoss(reduction="sum"))
    assert torch.allclose(surface.gauss_newton(None, x, y).dense(), 2 * J.T @ J, rtol=1e-12)
    data, V = [(x[:1], y[:1]), (x[1:], y[1:])], torch.randn(6, 2).double()
    if products:
        assert torch.allclose(surface.operator(None, data, "gauss_newton").matvec(V), 2 * J.T @ (J @ V))
    else:
        with pytest.raises(ValueError, match="cannot be differentiated, so there are no products"):
            surface.operator(None, data, "gauss_newton").matvec(V)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gauss_newton_with_a_loss_whose_second_derivative_is_wrong(dtype):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).to(dtype), torch.randn(4, 3).to(dtype)
    functions = cube(torch.detach), cube(torch.clone)
    wrong, right = (LossSurface(model, lambda o, f=f: f(o).sum()) for f in functions)
    for tool in (
        lambda s: s.gauss_newton(None, x, None).dense(),
        lambda s: s.operator(None, (x, None), "gauss_newton").matvec(torch.eye(8)),
    ):
        with pytest.raises(ValueError, match=r"second derivatives are wrong.*\(here Cube\)"):
            tool(wrong)
        assert torch.allclose(tool(right), right.hessian(None, x, None).dense(), 1e-4, 1e-5)


def test_a_float64_model_that_computes_in_float32_inside_has_a_gauss_newton_operator():
    torch.manual_seed(0)
    model = Net(lambda net, x: net.linear(x).float().tanh().double(), linear=nn.Linear(3, 2)).double()
    surface, x, y = LossSurface(model, nn.MSELoss()), torch.randn(4, 3).double(), torch.randn(4, 2).double()
    found = surface.operator(None, (x, y), "gauss_newton").matvec(torch.eye(8))
    assert torch.allclose(found, surface.gauss_newton(None, x, y).dense(), 1e-4, 1e-5)


def test_gauss_newton_of_targets_in_a_dictionary():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2).double(), torch.randn(4, 3).double(), {"value": torch.randn(4, 2).double()}
    surface = LossSurface(model, lambda output, y: nn.functional.mse_loss(output, y["value"]))
    assert torch.allclose(surface.gauss_newton(None, x, y).dense(), surface.hessian(None, x, y).dense())


def test_gauss_newton_of_a_layer_that_the_output_does_not_depend_on():
    model = Net(lambda net, x: net.used(x), used=nn.Linear(2, 1), idle=nn.Linear(2, 1))
    surface, x, y = LossSurface(model, nn.MSELoss(), layers=["idle"]), torch.ones(2, 2), torch.zeros(2, 1)
    assert not surface.gauss_newton(None, x, y).dense().any()
    assert not surface.operator(None, (x, y), "gauss_newton").matvec(torch.ones(3)).any()


def relu_net(compute, dtype):
    torch.manual_seed(0)
    layers = {"first": nn.Linear(8, 512), "second": nn.Linear(512, 64), "last": nn.Linear(64, 3)}
    model = Net(compute, **layers).to(dtype)
    return LossSurface(model, nn.CrossEntropyLoss()), torch.randn(512, 8).to(dtype), torch.arange(512) % 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("single", [False, True], ids=["any type", "one type"])
def test_kinks_are_not_refused(dtype, single):
    """Also in single precision alone, whose longer steps cross many of them."""
    own = torch.float32 if single else None

    def compute(net, x):
        h = net.second(net.first(x).relu()).relu()
        return net.last(h + torch.zeros(64, dtype=own or h.dtype))

    if single and dtype == torch.float64:
        compute = lambda net, x: net.last(net.second(net.first(x).relu()).float().relu().double())  # noqa: E731
    surface, x, y = relu_net(compute, dtype)
    v = torch.ones(surface.n, dtype=dtype)
    parameters = list(surface.model.parameters())
    gradients = torch.autograd.grad(surface.loss(surface.model(x), y), parameters, create_graph=True)
    dot = sum((g * 1.0).sum() for g in gradients)
    expected = torch.cat(
        [p.reshape(-1) for p in torch.autograd.grad(dot, parameters, materialize_grads=True)]
    )
    assert torch.allclose(surface.hvp(None, x, y, v), expected, 1e-3, 1e-4)


class Own(nn.Tanh):
    """A layer that is code of a user's own."""


@pytest.mark.parametrize(("kind", "first"), [(Own, 3), (nn.Tanh, 1)])
def test_the_look_is_taken_once_and_never_at_layers_of_pytorch(kind, first, monkeypatch):
    calls, forward = [], nn.Tanh.forward
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: calls.append(x.dtype) or forward(self, x))
    x, y = torch.randn(4, 5), torch.arange(4) % 3
    surface = LossSurface(nn.Sequential(nn.Linear(5, 4), kind(), nn.Linear(4, 3)), nn.CrossEntropyLoss())
    counts = []
    for _ in range(3):
        surface.hvp(None, x, y, torch.ones(surface.n))
        counts.append(len(calls))
    assert counts == [first, first + 1, first + 2]  # first also the point and one near it
    assert set(calls) == {torch.float32}


def by_differences(surface, x, y, v, h=1e-4):
    """Second differences of the loss itself, v' H v, which see through detach."""
    values = [surface.value_and_gradient(surface.point(None) + s * v, x, y)[0] for s in (h, 0.0, -h)]
    return float(values[0] - 2 * values[1] + values[2]) / h**2


HIDDEN = {
    "a branch": lambda net, x: net.seen(x) + net.hidden(x).detach(),
    "in the gradient alone": lambda net, x: net.seen(x) * net.hidden(x).detach(),
    "a target": lambda net, x: (net.seen(x) - net.hidden(x).detach()) ** 2,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compute", HIDDEN.values(), ids=HIDDEN)
def test_a_parameter_that_is_read_through_detach_only_is_refused(compute, dtype):
    """Its curvature was zero, which is not that of the loss."""
    torch.manual_seed(0)
    model = Net(compute, seen=nn.Linear(4, 3), hidden=nn.Linear(4, 3)).to(dtype)
    x, y = torch.randn(6, 4).to(dtype), torch.arange(6) % 3
    surface = LossSurface(model, nn.CrossEntropyLoss())
    v = torch.zeros(surface.n, dtype=dtype)
    v[15:] = 1
    if dtype == torch.float64:
        v[15:] = torch.linspace(-1, 1, 15)
        assert abs(by_differences(surface, x, y, v)) > 1e-3
    message = r"'hidden.weight' moves the loss but gets no gradient .*requires_grad_\(False\)"
    for call in (
        lambda: surface.hvp(None, x, y, v),
        lambda: surface.hessian(None, x, y),
        lambda: surface.operator(None, (x, y)).matvec(v),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    model.hidden.requires_grad_(False)
    part = LossSurface(model, nn.CrossEntropyLoss())
    part.hvp(None, x, y, v[:15])
    if dtype == torch.float64:
        w = torch.linspace(-1, 1, 15, dtype=dtype)
        assert abs(by_differences(part, x, y, w) - w @ part.hvp(None, x, y, w)) < 1e-5


def test_what_does_not_move_the_loss_may_be_there():
    """A layer that is not called, and a threshold, at which nothing has a slope."""
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.used(x) * (x[:, :1] > net.threshold),
        used=nn.Linear(4, 3),
        idle=nn.Linear(2, 2),
        threshold=nn.Parameter(torch.zeros(())),
    ).double()
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 3
    surface = LossSurface(model, nn.CrossEntropyLoss())
    v = torch.linspace(-1, 1, surface.n).double()
    assert abs(v @ surface.hvp(None, x, y, v) - by_differences(surface, x, y, v)) < 1e-5


CUT_LATER = {  # by a plain attribute, and for some batches only
    "a flag": lambda net, h, x: h.detach() if net.cut else h,
    "a batch": lambda net, h, x: h.detach() if x.mean() > 5 else h,
    "another branch": lambda net, h, x: h.detach() + x if net.cut else h + x.detach(),
}


@pytest.mark.parametrize("tool", ["hvp", "hessian", "operator"])
@pytest.mark.parametrize("cut", CUT_LATER.values(), ids=CUT_LATER)
def test_what_is_cut_off_after_the_first_product_is_refused(cut, tool):
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.last(net.first(x) * cut(net, net.first(x).tanh(), x)),
        first=nn.Linear(4, 4),
        last=nn.Linear(4, 3),
    ).double()
    model.cut = False
    x, y = torch.randn(6, 4).double(), torch.arange(6) % 3
    surface = LossSurface(model, nn.CrossEntropyLoss())
    v = torch.linspace(-1, 1, surface.n).double()
    calls = {
        "hvp": lambda x: surface.hvp(None, x, y, v),
        "hessian": lambda x: surface.hessian(None, x, y).matvec(v),
        "operator": lambda x: surface.operator(None, [(x, y)]).matvec(v),
    }
    for _ in range(2):
        assert abs(v @ calls[tool](x) - by_differences(surface, x, y, v)) < 1e-5
    model.cut = True
    with pytest.raises(ValueError, match="second derivatives are wrong"):
        calls[tool](x + 10)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_spectral_norm_in_training_mode_is_refused_and_in_evaluation_right(norm, seed):
    torch.manual_seed(100 + seed)
    model = nn.Sequential(norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 4).double(), torch.arange(5) % 3
    surface = LossSurface(model, nn.CrossEntropyLoss())
    v = torch.linspace(-1, 1, surface.n).double()
    with pytest.raises(ValueError, match=r"spectral norm of '0\S*' .* Call \.eval\(\) on the model"):
        surface.hvp(None, x, y, v)
    model.eval()
    assert abs(v @ surface.hvp(None, x, y, v) - by_differences(surface, x, y, v)) < 1e-5
