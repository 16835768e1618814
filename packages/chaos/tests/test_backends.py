"""All backends are exact: golden arrays, an independent oracle, and each other on random networks."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import dense_oracle, golden, golden_network, golden_symmetric
from torch import nn

from chaos.o2grad import BACKENDS, LossSurface, Residual

SMALL = ["mlp_relu", "mlp_sigmoid", "cnn_relu", "conv1d_sigmoid", "residual_bn"]
HESSIAN_TOL = 1e-12  # golden arrays are reproduced to rounding; entries are of order one
EIGENVALUE_TOL = 1e-11
AGREEMENT = 1e-11  # backends sum the same numbers in different orders


def surfaces(model, loss, x, y):
    """The Hessian of every backend that applies."""
    for backend in BACKENDS:
        surface = LossSurface(model, loss, backend=backend)
        if backend in ("auto", "generic"):
            yield backend, surface.hessian(None, x, y)
        else:
            with contextlib.suppress(ValueError):  # checked by name below: a backend may not apply
                yield backend, surface.hessian(None, x, y)


@pytest.mark.parametrize("name", SMALL)
def test_golden_hessians(name):
    model, x, y = golden_network(name)
    expected = golden_symmetric(f"{name}/hessian")
    for backend, H in surfaces(model, nn.CrossEntropyLoss(), x, y):
        assert (H.dense() - expected).abs().max() < HESSIAN_TOL, backend
        values = H.eigh().all_values()
        assert (values - golden(f"{name}/eigvals")).abs().max() < EIGENVALUE_TOL, backend


@pytest.mark.parametrize("name", SMALL)
def test_golden_gradients(name):
    model, x, y = golden_network(name)
    value, gradient = LossSurface(model, nn.CrossEntropyLoss()).value_and_gradient(None, x, y)
    assert abs(value - golden(f"{name}/loss")) < HESSIAN_TOL
    assert (gradient - golden(f"{name}/grad")).abs().max() < HESSIAN_TOL


def test_golden_per_sample():
    name = "conv1d_sigmoid"
    model, x, y = golden_network(name)
    surface = LossSurface(model, nn.CrossEntropyLoss())
    each = torch.stack([H.dense() for H in surface.hessian_per_sample(None, x, y)])
    assert (each - golden(f"{name}/hessian_per_sample")).abs().max() < HESSIAN_TOL
    assert (each.mean(0) - surface.hessian(None, x, y).dense()).abs().max() < HESSIAN_TOL


@pytest.mark.parametrize("name", ["paper_mlp", "paper_cnn"])
def test_golden_paper_size(name):
    model, x, y = golden_network(name)
    H = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y)
    assert abs(H.trace() - golden(f"{name}/trace")) < HESSIAN_TOL
    assert abs(H.core.norm() - golden(f"{name}/fro")) < HESSIAN_TOL
    values, expected = H.eigh().all_values(), golden(f"{name}/nonzero_eigvals")
    padded = torch.cat([expected, expected.new_zeros(H.n - len(expected))]).sort().values
    assert (values - padded).abs().max() < 2e-10  # the stored list leaves out |w| <= 1e-10


def test_paper_mlp_uses_370_coordinates():
    model, x, y = golden_network("paper_mlp")
    H = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y)
    pairs = H.eigh()
    assert (H.n, H.frame.rank, H.backend) == (5350, 370, "compression+sweep")
    assert pairs.num_zero == 5350 - 228
    assert (int(pairs.positive().sum()), int(pairs.negative().sum())) == (150, 78)


ACTIVATIONS = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.LeakyReLU]
LOSSES = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(reduction="sum"),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)),
    nn.CrossEntropyLoss(ignore_index=1),
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.L1Loss(),
    nn.SmoothL1Loss(),
]


def classes(batch, loss, generator):
    if isinstance(loss, nn.CrossEntropyLoss):
        y = torch.randint(3, (batch,), generator=generator)
        y[0] = 0  # at least one target that no option ignores
        return y
    return torch.randn(batch, 3, generator=generator, dtype=torch.float64)


def check_agreement(model, loss, x, y):
    """With products by autograd: a wrong entry changes its row's product with every random vector."""
    model.double()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
    g = torch.cat([gradient.reshape(-1) for gradient in gradients])
    V = torch.randn(len(g), 3, dtype=g.dtype, generator=torch.Generator().manual_seed(0))
    columns = [torch.autograd.grad(g @ v, parameters, retain_graph=True, materialize_grads=True) for v in V.T]
    expected = torch.stack([torch.cat([part.reshape(-1) for part in column]) for column in columns], 1)
    scale = max(1.0, float(expected.abs().max()))
    names = []
    for backend, H in surfaces(model, loss, x, y):
        assert (H.dense() @ V - expected).abs().max() < AGREEMENT * scale, backend
        assert (H.diagonal() - H.dense().diagonal()).abs().max() < AGREEMENT * scale, backend
        names.append(backend)
    return names


common_settings = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@common_settings
@given(
    depth=st.integers(0, 3),
    width=st.integers(1, 4),
    inputs=st.integers(1, 7),
    batch=st.integers(1, 5),
    bias=st.booleans(),
    residual=st.booleans(),
    duplicate=st.booleans(),
    norm=st.sampled_from(["none", "eval", "train"]),
    activation=st.sampled_from(ACTIVATIONS),
    loss=st.sampled_from(LOSSES),
    seed=st.integers(0, 10_000),
)
def test_backends_agree_on_random_mlps(
    depth, width, inputs, batch, bias, residual, duplicate, norm, activation, loss, seed
):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    size = inputs
    for _ in range(depth):
        layers.append(nn.Linear(size, width, bias=bias))
        size = width
        if norm != "none" and batch > 1:
            layers.append(nn.BatchNorm1d(width, affine=bias))
        layers.append(activation())
        if residual:
            layers.append(Residual(nn.Linear(width, width, bias=bias), activation()))
    model = nn.Sequential(*layers, nn.Linear(size, 3, bias=bias))
    x = torch.randn(batch, inputs, generator=generator, dtype=torch.float64)
    # Two equal samples have no variance: each batch norm of it divides rounding by sqrt(1e-5).
    if duplicate and not (norm == "train" and batch == 2):
        x[-1] = x[0]
    y = classes(batch, loss, generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean += 0.3
            module.train(norm == "train")
    check_agreement(model, loss, x, y)


@common_settings
@given(
    channels=st.sampled_from([(2, 1), (2, 2), (4, 2)]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    pool=st.sampled_from(["max", "avg", "none"]),
    dimensions=st.integers(1, 2),
    activation=st.sampled_from([nn.ReLU, nn.Sigmoid, nn.Tanh]),
    seed=st.integers(0, 10_000),
)
def test_backends_agree_on_random_cnns(
    channels, kernel, stride, padding, dilation, batch, bias, pool, dimensions, activation, seed
):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    width, groups = channels
    conv, norm, pools = (
        (nn.Conv1d, nn.BatchNorm1d, (nn.MaxPool1d, nn.AvgPool1d))
        if dimensions == 1
        else (nn.Conv2d, nn.BatchNorm2d, (nn.MaxPool2d, nn.AvgPool2d))
    )
    layers = [conv(1, width, kernel, stride, padding, dilation, bias=bias), activation()]
    if pool != "none":
        layers.append((pools[0] if pool == "max" else pools[1])(2, ceil_mode=bias))
    layers += [
        norm(width).eval(),
        conv(width, width, 2, padding=1, groups=groups, bias=bias),
        activation(),
        nn.Flatten(),
    ]
    body = nn.Sequential(*layers)
    x = torch.randn(batch, 1, *[7] * dimensions, generator=generator, dtype=torch.float64)
    body.double()
    model = nn.Sequential(body, nn.Linear(body(x).shape[1], 3))
    loss = nn.CrossEntropyLoss()
    assert "sweep" in check_agreement(model, loss, x, classes(batch, loss, generator))


def test_kinks_follow_torch():
    """ReLU at exactly 0 and equal maxima: the active linear piece, in every backend."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
        nn.Tanh(),
        nn.Linear(3, 3),
    )
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    x = torch.ones(2, 1, 4, 4, dtype=torch.float64)
    x[0] = 0
    assert check_agreement(model, nn.CrossEntropyLoss(), x, torch.tensor([0, 1])) == [
        "auto",
        "generic",
        "sweep",
    ]


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    model = Tied().double()
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 2])
    assert LossSurface(model, nn.CrossEntropyLoss()).n == 9 + 3 + 3
    assert check_agreement(model, nn.CrossEntropyLoss(), x, y) == ["auto", "generic"]
    chain = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    chain[2].weight = chain[0].weight
    assert check_agreement(chain, nn.CrossEntropyLoss(), x, y) == ["auto", "generic"]


def test_zero_and_duplicate_samples_lower_the_rank():
    model = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(5, 9, dtype=torch.float64)
    x[1], x[2] = x[0], 0
    H = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, torch.tensor([0, 1, 2, 0, 1]))
    assert H.frame.q == 4
    check_agreement(model, nn.CrossEntropyLoss(), x, torch.tensor([0, 1, 2, 0, 1]))


def test_frozen_parameters_and_layers():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, 1, 2])
    full = dense_oracle(model, nn.CrossEntropyLoss(), x, y)
    for layers, part in ((["2"], slice(28, 43)), (["0.bias"], slice(24, 28)), (["0"], slice(0, 28))):
        for backend in ("auto", "generic", "sweep"):
            surface = LossSurface(model, nn.CrossEntropyLoss(), layers=layers, backend=backend)
            H = surface.hessian(None, x, y).dense()
            assert (H - full[part, part]).abs().max() < AGREEMENT
    model[0].weight.requires_grad_(False)
    H = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y).dense()
    assert (H - full[24:, 24:]).abs().max() < AGREEMENT


def test_sweep_in_small_pieces_equals_one_piece():
    model, x, y = golden_network("cnn_relu")
    expected = golden_symmetric("cnn_relu/hessian")
    surface = LossSurface(model, nn.CrossEntropyLoss(), backend="sweep", memory_budget=116 * 116 * 8)
    assert (surface.hessian(None, x, y).dense() - expected).abs().max() < HESSIAN_TOL


def test_generic_in_small_chunks_reports_progress():
    model, x, y = golden_network("mlp_relu")
    seen = []
    budget = 53 * 53 * 8
    surface = LossSurface(model, nn.CrossEntropyLoss(), backend="generic", memory_budget=budget)
    H = surface.hessian(None, x, y, progress=lambda done, total: seen.append((done, total)))
    assert (H.dense() - golden("mlp_relu/hessian")).abs().max() < HESSIAN_TOL
    assert seen[-1] == (53, 53)
    assert len(seen) > 1
