"""The sweep's parts: columns without zeros, the cut anywhere, layers forward and backward."""

from __future__ import annotations

import pytest
import torch
from networks import dense_oracle
from torch import nn

import chaos.o2grad.cut
import chaos.o2grad.sweep
import chaos.o2grad.triangle
from chaos.models import cnn
from chaos.o2grad import LossSurface, Residual
from chaos.o2grad.convolution import Convolution
from chaos.o2grad.jacobian import Jacobian, UnitColumns
from chaos.o2grad.parameters import ParameterLayout
from chaos.o2grad.tree import build_tree
from chaos.o2grad.triangle import LowerTriangle

ROUNDING = 1e-12  # sums of a few hundred products of order one in double precision


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def columns():
    """Columns 4 to 18 of three units with two positions: a weight of four entries each, and a bias."""
    values = torch.randn(2, 3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return UnitColumns(values, widths=(4, 1), start=4)


def test_unit_columns_are_ordered_by_tensor_then_unit(columns):
    dense = columns.dense((3, 2))
    assert dense.shape == (2, 15, 3, 2)
    for unit in range(3):
        for j in range(4):
            assert torch.equal(dense[:, 4 * unit + j, unit], columns.values[:, unit, j])
        assert torch.equal(dense[:, 12 + unit, unit], columns.values[:, unit, 4])
    assert dense.count_nonzero() == columns.values.numel()


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("cached", [1, 1 << 19], ids=["unit by unit", "all at once"])
def test_sandwich_of_mixed_columns_equals_the_dense_one(monkeypatch, columns, coupled, cached):
    monkeypatch.setattr(chaos.o2grad.triangle, "_CACHED", cached)
    generator = torch.Generator().manual_seed(1)
    J = Jacobian(torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=generator), columns)
    A = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    A = (A + A.T).view(2, 6, 2, 6)
    if not coupled:
        A = torch.stack([A[0, :, 0], A[1, :, 1]])
    flat = J.all_dense((3, 2)).dense.flatten(2)
    full = A if coupled else torch.stack([torch.stack([A[0], 0 * A[0]], 1), torch.stack([0 * A[1], A[1]], 1)])
    expected = torch.einsum("bpf,bfcg,cqg->pq", flat, full, flat)
    triangle = LowerTriangle(19, A)
    triangle.add_sandwich(J, A)
    assert (triangle.symmetric() - expected).abs().max() < ROUNDING


def test_bend_of_mixed_columns_equals_the_dense_one(columns):
    generator = torch.Generator().manual_seed(2)
    J = Jacobian(torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=generator), columns)
    bend = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    flat = J.all_dense((3, 2)).dense.flatten(2)
    triangle = LowerTriangle(19, bend)
    triangle.add_bend(J, bend)
    expected = torch.einsum("bpf,bf,bqf->pq", flat, bend, flat)
    assert (triangle.symmetric() - expected).abs().max() < ROUNDING


def test_triangle_of_several_panels():
    X = torch.randn(500, 3, dtype=torch.float64)
    triangle = LowerTriangle(500, X)
    triangle.add_product(X, X.T)
    assert (triangle.symmetric() - X @ X.T).abs().max() < ROUNDING


#: In front of these layers of `every_kind` the cut may be, or behind the last.
PLACES = [3, 8, 9, 11, 13, 15, 16]


def every_kind():
    """Every kind of layer, on maps small enough that curvature can be pulled back through all."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.Tanh(),
        nn.AvgPool2d(2, padding=1),
        nn.Conv2d(2, 3, 2),
        nn.BatchNorm2d(3).eval(),
        nn.Sigmoid(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 4),
        Residual(nn.Linear(4, 3), nn.Tanh(), Residual(nn.Linear(3, 3), nn.Sigmoid()), nn.Linear(3, 4)),
        nn.GELU(),
        nn.Linear(4, 6),
        nn.Unflatten(1, (2, 3)),
        nn.AvgPool1d(2),  # its channels are not the units of the layer before
        nn.Flatten(),
        nn.Linear(2, 4),
    ).double()


def root_mean_square(output, target):
    """A loss whose curvature couples all samples."""
    return (output - target).square().mean().sqrt()


LOSSES = [nn.CrossEntropyLoss(), root_mean_square]
FROZEN = [[], ["15.weight", "15.bias"], ["3.weight", "8.bias", "9.body.0.bias"]]


def batch_for(loss):
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    return x, torch.tensor([0, 1, 3]) if loss is LOSSES[0] else torch.randn(3, 4, dtype=torch.float64)


@pytest.mark.parametrize("loss", LOSSES, ids=["alone", "interacting"])
@pytest.mark.parametrize("frozen", FROZEN, ids=["all", "no head", "parts"])
def test_the_cut_may_be_anywhere(monkeypatch, loss, frozen):
    x, y = batch_for(loss)
    model = every_kind()
    expected = dense_oracle(model, loss, x, y)
    kept = torch.tensor(
        [name not in frozen for name, p in model.named_parameters() for _ in range(p.numel())]
    )
    surface = LossSurface(
        model, loss, backend="sweep", layers=[n for n, _ in model.named_parameters() if n not in frozen]
    )
    costs = chaos.o2grad.sweep.costs_of_cuts

    for place in PLACES:

        def only(*arguments, place=place):
            assert sorted(costs(*arguments)) == PLACES
            return {place: 0.0}

        monkeypatch.setattr(chaos.o2grad.sweep, "costs_of_cuts", only)
        H = surface.hessian(None, x, y)
        assert (H.dense() - expected[kept][:, kept]).abs().max() < ROUNDING


@pytest.mark.parametrize("loss", LOSSES, ids=["alone", "interacting"])
def test_one_sample_at_a_time(loss):
    x, y = batch_for(loss)
    model = every_kind()
    n = sum(p.numel() for p in model.parameters())
    # the matrix fits into the budget, the columns of two samples do not
    H = LossSurface(model, loss, memory_budget=8 * n * n).hessian(None, x, y)
    assert H.backend == ("sweep" if loss is LOSSES[0] else "generic")
    assert (H.dense() - dense_oracle(model, loss, x, y)).abs().max() < ROUNDING
    if loss is not LOSSES[0]:
        with pytest.raises(ValueError, match="couples samples whose Jacobians exceed the budget"):
            LossSurface(model, loss, backend="sweep", memory_budget=8 * n * n).hessian(None, x, y)


def test_the_cheapest_cut_of_known_networks():
    """Curvature is pulled through all narrow layers, but not onto maps or layers of many features."""

    def cut(model, *shape):
        seen = []

        def spy(*arguments):
            places = chaos.o2grad.cut.costs_of_cuts(*arguments)
            seen.append(min(places, key=lambda place: places[place]))
            return places

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chaos.o2grad.sweep, "costs_of_cuts", spy)
            LossSurface(model, nn.CrossEntropyLoss()).hessian(
                None, torch.randn(2, *shape), torch.tensor([0, 1])
            )
        return seen[0]

    deep = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())]
    assert cut(nn.Sequential(*deep, nn.Linear(8, 3)), 8) == 2  # only the first layer's rows are left
    assert cut(cnn(), 1, 16, 16) == 13  # the last linear layer, with 8 features; before it there are 32
    # 1200 columns squared, halved, times 2 outputs: 1.4e6; times 3 of each unit, and weighing them: 1.9e6
    assert cut(nn.Sequential(nn.Linear(2, 400), nn.ReLU(), nn.Linear(400, 2)), 2) == 3


def convolution(module, a):
    layer = Convolution(module)
    layer.weight, layer.bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    layer.weight_name = "weight"
    layer.forward(a)
    return layer


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (5, 5)),
        (nn.Conv2d(3, 4, (2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (6, 5)),
        (nn.Conv2d(3, 4, 2, stride=3), (6, 6)),  # some inputs are read by nothing
        (nn.Conv1d(3, 4, 3, stride=2, padding=1, bias=False), (7,)),
    ],
)
def test_convolution_by_patches_and_by_matrix(monkeypatch, module, shape, small):
    monkeypatch.setattr(Convolution, "_is_small", property(lambda layer: small))
    module.double()
    a = torch.randn(2, 3, *shape, dtype=torch.float64)
    layer = convolution(module, a)
    assert (layer.z - module(a)).abs().max() < ROUNDING
    zero = module(torch.zeros_like(a[:1]))
    T = torch.randn(2, 6, 3, *shape, dtype=torch.float64)
    expected = (module(T.flatten(0, 1)) - zero).unflatten(0, (2, 6))
    assert (layer.push(T, slice(None)) - expected).abs().max() < ROUNDING
    unit = UnitColumns(torch.randn(2, 3, 4, a[0, 0].numel(), dtype=torch.float64), (4,))
    moved = layer.push_units(unit.values, slice(None)).flatten(1, 2)
    expected = (module(unit.dense(a.shape[1:]).flatten(0, 1)) - zero).unflatten(0, (2, 12))
    assert (moved - expected).abs().max() < ROUNDING


LAYERS = [
    (nn.Linear(6, 4), (6,)),
    (nn.Conv2d(2, 4, 3, stride=2, padding=1), (12, 9)),  # too large for a matrix
    (nn.Conv2d(2, 4, 3, stride=2, padding=1), (5, 4)),
    (nn.Conv2d(2, 4, 3, groups=2, dilation=2), (7, 6)),
    (nn.Conv1d(2, 3, 2, padding=1), (40,)),
    (nn.MaxPool2d(3, stride=2, padding=1), (2, 7, 6)),
    (nn.MaxPool1d(2, ceil_mode=True), (2, 7)),
    (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (2, 7, 6)),
    (nn.AvgPool1d(2, ceil_mode=True), (2, 7)),
    (nn.BatchNorm2d(2).eval(), (4, 3)),
    (nn.Tanh(), (2, 3)),
]


@pytest.mark.parametrize(("module", "shape"), LAYERS)
def test_pull_is_the_transpose_of_push(module, shape):
    """``<X, push T> = <pull X, T>``, and push is the derivative along a direction."""
    model = nn.Sequential(module).double()
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.BatchNorm2d):
        shape = (2, *shape)
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    a = torch.randn(3, *shape, dtype=torch.float64)
    T = torch.randn(3, 4, *shape, dtype=torch.float64)
    with torch.no_grad():
        layout = ParameterLayout.of(nn.Linear(1, 1))
        (layer,) = build_tree(model, layout, values)
        layer.forward(a)
        pushed = layer.push(T, slice(None))
        X = torch.randn(3, layer.z[0].numel(), 2, dtype=torch.float64)
        pulled = layer.pull(X, slice(None))
    _, expected = torch.func.jvp(lambda t: module(a + t), (torch.zeros_like(a),), (T[:, 1],))
    assert (pushed[:, 1] - expected).abs().max() < ROUNDING
    left = torch.einsum("bfk,bpf->bkp", X, pushed.flatten(2))
    right = torch.einsum("bfk,bpf->bkp", pulled, T.flatten(2))
    assert (left - right).abs().max() < ROUNDING


@pytest.mark.parametrize(
    ("activation", "order"),
    [
        (nn.Tanh(), [0, 2, 1]),
        (nn.GELU(), [0, 1, 2]),  # falls below zero
        (nn.Softplus(threshold=0.1), [0, 1, 2]),  # falls where it turns linear
    ],
)
def test_max_pooling_comes_before_an_increasing_activation(activation, order):
    x, y = torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    model = nn.Sequential(nn.Conv2d(1, 3, 3), activation, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    model.double()
    nodes = build_tree(model, ParameterLayout.of(model), dict(model.named_parameters()))
    assert [node.module for node in nodes[:3]] == [model[i] for i in order]
    H = LossSurface(model, nn.CrossEntropyLoss(), backend="sweep").hessian(None, x, y).dense()
    assert (H - dense_oracle(model, nn.CrossEntropyLoss(), x, y)).abs().max() < ROUNDING


def test_terms_of_a_convolution_equal_mixed_derivatives():
    """``d^2 <delta, conv(W, a)> / dW da`` along columns, dense and by unit, against automatic derivatives."""
    module = nn.Conv2d(3, 4, 2, stride=2, padding=1).double()
    a = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    layer = convolution(module, a)
    layer.delta = torch.randn_like(layer.z)
    unit = UnitColumns(torch.randn(2, 3, 4, 25, dtype=torch.float64), (4,))
    T = unit.dense(a.shape[1:])

    def paired(W, a):
        return (layer.delta * torch.nn.functional.conv2d(a, W, None, 2, 1)).sum()

    mixed = torch.func.jacrev(torch.func.grad(paired), 1)(module.weight.detach(), a)
    expected = torch.einsum("oixybchw,bpchw->oixyp", mixed, T).flatten(2, 3)
    assert (layer.cross(T, slice(None)) - expected).abs().max() < ROUNDING
    by_unit = layer.cross_units(unit.values, slice(None))
    for channel in range(3):
        own = expected[:, channel, :, 4 * channel : 4 * channel + 4]
        assert (by_unit[channel] - own).abs().max() < ROUNDING


def test_residual_that_broadcasts_is_left_to_the_generic_backend():
    model = nn.Sequential(nn.Linear(3, 4), Residual(nn.Linear(4, 1)), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    H = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y)
    assert H.backend == "generic"
    assert (H.dense() - dense_oracle(model, nn.CrossEntropyLoss(), x, y)).abs().max() < ROUNDING
    with pytest.raises(ValueError, match="a residual block changes the shape"):
        LossSurface(model, nn.CrossEntropyLoss(), backend="sweep").hessian(None, x, y)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")], "Conv2d at '0' pads by 'circular'"),
        ([nn.Conv2d(1, 2, 3, padding="same")], "pads by 'zeros', 'same'"),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)], "BatchNorm2d at '1' couples the samples of a batch"),
        ([nn.Conv2d(1, 2, 3), nn.PReLU()], "PReLU at '1' is not a known layer"),
        ([nn.Conv2d(1, 2, 3), nn.Linear(4, 2)], "more than one position per sample"),
    ],
)
def test_what_the_sweep_does_not_know_is_named(layers, message):
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2)).double()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    model(x)
    with pytest.raises(ValueError, match=message):
        LossSurface(model, nn.CrossEntropyLoss(), backend="sweep").hessian(None, x, torch.tensor([0, 1]))
