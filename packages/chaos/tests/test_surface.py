"""What a loss surface promises besides the numbers: nothing is touched, bad input is told in one line."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from gauntlet import Net
from networks import dense_oracle, golden_network
from torch import nn

from chaos import CGD, TrainingMap
from chaos.o2grad import LossSurface, ParameterLayout, Residual

CE = nn.CrossEntropyLoss()


class TransformerBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.feed(self.second(x))


class Transformer(nn.Module):
    """Two layers with attention, layer norm and an embedding."""

    def __init__(self, tokens=5, width=4, classes=3):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(TransformerBlock(width), TransformerBlock(width))
        self.head = nn.Linear(width, classes)

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)).mean(1))


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer().double(), torch.randint(5, (3, 4)), torch.tensor([0, 2, 1])


def test_transformer(transformer):
    model, x, y = transformer
    surface = LossSurface(model, CE)
    H = surface.hessian(None, x, y)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = dense_oracle(model, CE, x, y)
    assert H.backend == "generic"
    assert (H.dense() - expected).abs().max() < 1e-11
    V = torch.randn(surface.n, 3, dtype=torch.float64)
    assert (surface.hvp(None, x, y, V) - expected @ V).abs().max() < 1e-11


def test_no_forward_rule_falls_back_to_reverse():
    """A custom function with a double backward but no forward mode."""

    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(z):
            return z**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])

        @staticmethod
        def backward(ctx, grad):
            return 3 * grad * ctx.saved_tensors[0] ** 2

    torch.manual_seed(0)
    model = Net(lambda net, x: Cube.apply(net.linear(x)), linear=nn.Linear(3, 3)).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    H = LossSurface(model, CE).hessian(None, x, y).dense()
    assert (H - dense_oracle(model, CE, x, y)).abs().max() < 1e-12


def test_a_product_that_takes_contiguous_tensors_only():
    """Experts of a mixture multiply in groups, an operation that cannot be batched."""
    torch.manual_seed(0)
    x = torch.randn(8, 16)

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 16, 16) / 4)

        def forward(self, x):
            ends = torch.tensor([3, 8], dtype=torch.int32)
            return nn.functional.grouped_mm(x, self.weight, offs=ends).tanh()

    model, y = Experts(), torch.zeros(8, 16)
    V = torch.randn(512, 2)

    def loss(weight):
        parts = x[:3] @ weight[0], x[3:] @ weight[1]
        return torch.cat(parts).tanh().square().mean()

    columns = [torch.autograd.functional.hvp(loss, model.weight.detach(), v.view(2, 16, 16))[1] for v in V.T]
    found = LossSurface(model, nn.MSELoss()).operator(None, (x, y)).matvec(V)
    assert torch.allclose(found, torch.stack([c.flatten() for c in columns], 1), rtol=1e-4, atol=1e-7)


def test_operation_without_second_derivative_is_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad * 2

    model = Net(lambda net, x: Once.apply(net.linear(x)).square(), linear=nn.Linear(2, 2)).double()
    with pytest.raises(ValueError, match=r"no second derivative.*once_differentiable"):
        LossSurface(model, CE).hessian(None, torch.ones(2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize("backend", ["auto", "generic"])
def test_the_module_is_untouched(backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    model[1].train()
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    CE(model(x), y).backward()
    before = copy.deepcopy(model)
    gradients = [p.grad.clone() for p in model.parameters()]
    random_state = torch.random.get_rng_state()
    surface = LossSurface(model, CE, dtype=torch.float64, backend=backend)
    surface.hessian(None, x, y)
    surface.value_and_gradient(None, x, y)
    surface.hvp(None, x, y, torch.ones(surface.n))
    surface.gauss_newton(None, x, y)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert model.training
    assert model[1].track_running_stats
    for old, new in zip(before.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(old, new)
        assert old.dtype == new.dtype
    for gradient, p in zip(gradients, model.parameters(), strict=True):
        assert torch.equal(gradient, p.grad)


def test_central_differences_of_the_gradient():
    model, x, y = golden_network("mlp_sigmoid")
    surface = LossSurface(model, CE)
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    v = torch.randn(surface.n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-5
    plus, minus = (surface.value_and_gradient(theta + s * step * v, x, y)[1] for s in (1, -1))
    difference = (plus - minus) / (2 * step)
    assert (surface.hessian(None, x, y).matvec(v) - difference).abs().max() < 1e-8  # O(step^2) and rounding


def test_symmetries():
    """Softmax shift is a null vector; rescaling a ReLU unit gives H v = -(gradient, sign-flipped)."""
    model, x, y = golden_network("mlp_relu")
    surface = LossSurface(model, CE)
    _, g = surface.value_and_gradient(None, x, y)
    H = surface.hessian(None, x, y)
    shift = torch.zeros(surface.n, dtype=torch.float64)
    shift[surface.layout.slices["2.bias"]] = 1
    assert H.matvec(shift).abs().max() < 1e-15
    for unit in range(5):
        mask = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        mask["0.weight"][unit], mask["0.bias"][unit], mask["2.weight"][:, unit] = 1, 1, -1
        signs = surface.layout.flatten(mask)
        theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        v = signs * theta
        assert abs(g @ v) < 1e-15
        assert (H.matvec(v) + signs * g).abs().max() < 1e-14


def test_gauss_newton():
    model, x, y = golden_network("mlp_sigmoid")
    surface = LossSurface(model, CE)
    G = surface.gauss_newton(None, x, y)
    J = surface.jacobian(None, x)
    p = model(x).softmax(1).detach()
    A = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / len(x)
    expected = torch.einsum("bcn,bcd,bdm->nm", J, A, J)
    assert G.frame.rank == 15
    assert (G.dense() - expected).abs().max() < 1e-14
    assert G.eigh().values.min() > 0
    linear = nn.Linear(4, 3).double()
    surface = LossSurface(linear, CE)
    gap = surface.gauss_newton(None, x, y).dense() - surface.hessian(None, x, y).dense()
    assert gap.abs().max() < 1e-14  # a model that is linear in its parameters has no other curvature


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_top_eigenpairs_of_a_loader(which, reduction):
    model, x, y = golden_network("mlp_sigmoid")
    loss = nn.CrossEntropyLoss(reduction=reduction)
    surface = LossSurface(model, loss)
    loader = [(x[:2], y[:2]), (x[2:], y[2:])]
    H = surface.hessian(None, x, y).dense()
    full = torch.linalg.eigvalsh(H)
    order = {"LA": full.flip(0), "SA": full, "LM": full[full.abs().argsort(descending=True)]}[which]
    values, vectors = surface.top_eigenpairs(None, loader, 3, which, tol=1e-10)
    assert (values - order[:3]).abs().max() < 1e-8
    assert (H @ vectors - vectors * values).norm(dim=0).max() < 1e-6


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_trace_and_density_of_a_loader(reduction):
    model, x, y = golden_network("mlp_sigmoid")
    surface = LossSurface(model, nn.CrossEntropyLoss(reduction=reduction))
    loader = [(x[:2], y[:2]), (x[2:], y[2:])]
    H = surface.hessian(None, x, y).dense()
    # Means of 100 (trace) and 10 (density) independent draws: beyond 5 and 8 standard errors, each has a
    # chance below 1e-4 by Student's t with 99 and 9 degrees of freedom.
    found = surface.trace(None, loader)
    assert 0 < found.standard_error < 0.2 * H.trace()
    assert abs(found.value - H.trace()) < 5 * found.standard_error
    density = surface.spectral_density(None, loader, num_steps=12)
    for f, exact in ((lambda w: w, H.trace()), (np.square, H.square().sum())):
        moment = density.integrate(f)
        assert abs(moment.value - exact / surface.n) < 8 * moment.standard_error
    eigenvalues = torch.linalg.eigvalsh(H)
    assert density.nodes.max() == pytest.approx(float(eigenvalues[-1]), rel=1e-3)  # the end converges first
    assert np.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-3)


def test_restricted_and_block_diagonal():
    model, x, y = golden_network("cnn_relu")
    surface = LossSurface(model, CE)
    blocks = surface.hessian(None, x, y).block_diagonal()
    for name, H in surface.block_diagonal(None, x, y).items():
        assert (H.dense() - blocks[name]).abs().max() < 1e-14


def test_hessian_rows():
    model, x, y = golden_network("mlp_relu")
    surface = LossSurface(model, CE)
    H = surface.hessian(None, x, y)
    part = slice(3, 50, 7)
    assert (surface.hessian_rows(None, x, y, part) - H.dense()[part]).abs().max() < 1e-15
    assert (H.rows(part) - H.dense()[part]).abs().max() < 1e-15


def test_parameters_as_dict_or_vector():
    model, x, y = golden_network("mlp_relu")
    surface = LossSurface(model, CE)
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    same = [None, theta, dict(model.named_parameters())]
    cores = [surface.hessian(p, x, y).dense() for p in same]
    assert torch.equal(cores[0], cores[1])
    assert torch.equal(cores[0], cores[2])


def test_hooks_are_respected_by_the_generic_backend():
    model, x, y = golden_network("mlp_relu")
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    H = LossSurface(model, CE).hessian(None, x, y)
    assert "generic" in H.backend
    assert (H.dense() - dense_oracle(model, CE, x, y)).abs().max() < 1e-12


MODEL = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
X, Y = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.hessian(None, X[:0], Y[:0]), "batch is empty"),
        (lambda s: s.hessian(None, X * torch.nan, Y), "x holds non-finite"),
        (lambda s: s.hessian(None, X, Y + 5), "Targets are out of range"),
        (lambda s: s.hessian(None, X, Y[:3]), r"batch_size \(4\) to match target batch_size \(3\)"),
        (lambda s: s.hessian(torch.zeros(5), X, Y), r"params has shape \(5,\); this model has 17"),
        (lambda s: s.hessian(torch.full((17,), torch.nan), X, Y), "params holds non-finite"),
        (lambda s: s.hessian({"0.weight": X}, X, Y), "params lacks 0.bias"),
        (lambda s: s.hvp(None, X, Y, torch.ones(3)), "V has 3 rows; this model has 17"),
        (lambda s: s.restricted(["7"]), "layers names '7'"),
        (lambda s: LossSurface(MODEL, CE, backend="fast"), "Unknown backend 'fast'; choose one of auto"),
        (lambda s: s.hessian(None, X, Y).to("csr"), "Unknown form 'csr'"),
        (lambda s: s.top_eigenpairs(None, (X, Y), 2, "XX"), "Unknown which 'XX'"),
        (lambda s: s.top_eigenpairs(None, (X, Y), 99), "k is 99; it must lie between 1 and n = 17"),
        (lambda s: s.top_eigenpairs(None, [], 2), "data is empty"),
        (
            lambda s: s.trace(None, (X, Y), num_samples=1),
            "num_samples is 1; a standard error needs at least 2",
        ),
        (lambda s: s.spectral_density(None, (X, Y), num_probes=1), "num_probes is 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(LossSurface(MODEL, CE))


def test_unreduced_loss():
    for backend in ("auto", "generic"):
        with pytest.raises(ValueError, match="curvature needs a scalar"):
            LossSurface(MODEL, nn.CrossEntropyLoss(reduction="none"), backend=backend).hessian(None, X, Y)


def test_active_dropout_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="Dropout is active in layer '1'"):
        LossSurface(model, CE).hessian(None, X, Y)
    assert LossSurface(model.eval(), CE).hessian(None, X, Y).n == 6


def test_per_sample_needs_independent_samples():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="Batch norm '1' is in training mode"):
        LossSurface(model, CE).hessian_per_sample(None, X, Y)


def test_memory_budget_names_bytes_and_alternatives():
    big = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 2))
    surface = LossSurface(big, CE, memory_budget=1 << 20)
    x = torch.randn(9, 4)
    with pytest.raises(ValueError, match=r"needs 17,673,\d+ bytes.*hvp, top_eigenpairs or block_diagonal"):
        surface.hessian(None, x, torch.zeros(9, dtype=torch.long))
    assert surface.hvp(None, x, torch.zeros(9, dtype=torch.long), torch.ones(surface.n)).shape == (surface.n,)


def test_nothing_is_n_by_n_where_few_inputs_were_seen():
    """N = 100 230 with 390 coordinates: all eigenpairs and a CGD step, though n x n would be 80 GB."""
    wide = nn.Sequential(nn.Linear(5000, 20), nn.ReLU(), nn.Linear(20, 10)).double()
    x, y = torch.randn(8, 5000, dtype=torch.float64), torch.arange(8)
    H = LossSurface(wide, CE).hessian(None, x, y)
    pairs = H.eigh()
    assert len(H.core) == 20 * 8 + 210
    assert pairs.core_vectors.shape[0] == len(H.core)
    assert pairs.num_zero >= 100_230 - len(H.core)
    optimizer = CGD(wide.parameters(), prune_set="neg")
    CE(wide(x), y).backward()
    optimizer.step(H)
    assert optimizer.last_discarded == int(pairs.negative().sum())
    for form, message in ((H.dense, "80,368,423,200 bytes"), (pairs.dense, "leave the null space out")):
        with pytest.raises(ValueError, match=message):
            form()


def test_nothing_trainable():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        LossSurface(nn.Linear(2, 2).requires_grad_(False), CE)


def test_residual_equals_its_formula():
    body = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    assert torch.equal(Residual(body)(x), x + body(x))


def moved(model):
    """The same network with other parameters and buffers."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*other.parameters(), *(b for b in other.buffers() if b.is_floating_point())):
            tensor.mul_(1.5)
    return other


def test_blocks_and_products_at_another_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    other, x, y = moved(model), torch.randn(4, 5, dtype=torch.float64), torch.arange(4) % 3
    flat = nn.utils.parameters_to_vector(other.parameters())
    expected = torch.autograd.functional.hessian(
        lambda v: CE(torch.func.functional_call(other, ParameterLayout.of(other).unflatten(v), (x,)), y),
        flat.detach(),
    )
    surface = LossSurface(model, CE)
    for params in (flat, dict(other.named_parameters())):
        blocks = surface.block_diagonal(params, x, y)
        for name, rows in surface.layout.slices.items():
            assert blocks[name].layout.names == (name,)
            assert (blocks[name].dense() - expected[rows, rows]).abs().max() < 1e-14


def test_what_is_held_fixed_cannot_be_given_by_params():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    other, x, y = moved(model), torch.randn(4, 5, dtype=torch.float64), torch.arange(4) % 3
    whole, part = LossSurface(model, CE), LossSurface(model, CE, layers=["0"])
    with pytest.raises(ValueError, match=r"for '1.running_var', which is held fixed"):
        whole.hessian(other.state_dict(), x, y)
    with pytest.raises(ValueError, match=r"for '1.weight', which is held fixed"):
        part.hessian(dict(other.named_parameters()), x, y)
    assert torch.equal(part.hessian(model.state_dict(), x, y).dense(), part.hessian(None, x, y).dense())
    transposed = {name: p.T if p.ndim == 2 else p for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"'0.weight' as \(5, 4\); the model has \(4, 5\)"):
        whole.hessian(transposed, x, y)


def test_vectors_of_another_type():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    H = LossSurface(model, CE).hessian(None, torch.randn(4, 5, dtype=torch.float64), torch.arange(4) % 3)
    v = torch.ones(H.n)
    assert torch.equal(H.matvec(v), H.matvec(v.double()))


TOOLS = {
    "hvp": lambda s, x, y: s.hvp(None, x, y, torch.ones(s.n, dtype=s.dtype)),
    "hessian": lambda s, x, y: s.hessian(None, x, y),
    "gauss-newton": lambda s, x, y: s.gauss_newton(None, x, y),
    "of a batch": lambda s, x, y: s.operator(None, (x, y)),
    "gauss-newton of a batch": lambda s, x, y: s.operator(None, (x, y), "gauss_newton"),
    "of a loader": lambda s, x, y: s.trace(None, [(x, y), (x, y)]),
}


@pytest.mark.parametrize("own", [False, True], ids=["layers of PyTorch", "code of a user"])
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_a_loss_that_is_not_finite_has_no_curvature(tool, own):
    """Its Hessian was zero or finite in part."""
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    targets = torch.zeros(6, 3)
    targets[2, 1] = math.nan
    for loss, y in (
        (nn.MSELoss(), targets),
        (nn.CrossEntropyLoss(ignore_index=-1), torch.full((6,), -1)),
    ):
        mine = (lambda output, y, loss=loss: loss(output, y)) if own else loss
        with pytest.raises(ValueError, match="The loss is nan"):
            tool(LossSurface(model, mine), x, y)


def test_a_loader_whose_first_batches_hold_ignored_targets_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y, loss = torch.randn(12, 4).double(), torch.arange(12) % 3, nn.CrossEntropyLoss(ignore_index=-1)
    y[:6] = -1
    surface = LossSurface(model, loss)
    v = torch.linspace(-1, 1, surface.n).double()
    loader = [(x[i : i + 3], y[i : i + 3]) for i in range(0, 12, 3)]
    for kind in ("hessian", "gauss_newton", "fisher"):
        product = surface.operator(None, loader, kind).matvec(v)
        assert (product - surface.operator(None, (x[6:], y[6:]), kind).matvec(v)).abs().max() < 1e-13
    model.insert(1, nn.BatchNorm1d(5).double())
    with pytest.raises(ValueError, match="the model couples the samples"):
        LossSurface(model, loss).operator(None, loader)


@pytest.mark.parametrize("V", [np.ones(15), torch.ones(15) + 0j, [1.0] * 15])
def test_what_is_no_vector_is_refused(V):
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.arange(6) % 3
    surface = LossSurface(model, nn.CrossEntropyLoss())
    run = TrainingMap(surface, torch.optim.SGD(model.parameters(), lr=0.1), [(x, y)])
    for product in (
        lambda: surface.hvp(None, x, y, V),
        lambda: surface.operator(None, (x, y)).matvec(V),
        lambda: run.product(V),
        lambda: run.transposed_product(V),
    ):
        with pytest.raises(TypeError, match=r"V is a .*; pass a tensor of real numbers"):
            product()
