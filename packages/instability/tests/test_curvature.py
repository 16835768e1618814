import collections
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from instability.curvature import hessian_vector_product, sharpness


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(20, 5).double(), torch.randint(0, 3, (20,))
    return model, lambda m: nn.functional.cross_entropy(m(x), y)


def dense_hessian(model, loss_of):
    names, values = zip(*model.named_parameters(), strict=True)
    sizes = [v.numel() for v in values]

    def loss(flat):
        pieces = [p.reshape(v.shape) for p, v in zip(flat.split(sizes), values, strict=True)]
        replaced = dict(zip(names, pieces, strict=True))
        return loss_of(lambda x: torch.func.functional_call(model, replaced, (x,)))

    flat = torch.cat([v.detach().flatten() for v in values])
    return torch.autograd.functional.hessian(loss, flat).numpy()


def test_products_equal_the_dense_hessian(problem):
    hessian = dense_hessian(*problem)
    product = hessian_vector_product(*problem)
    vectors = np.random.default_rng(0).normal(size=(3, len(hessian)))
    for v in vectors:
        np.testing.assert_allclose(product(v), hessian @ v, atol=1e-12)


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_sharpness_equals_the_largest_eigenvalue(problem, method):
    largest = np.linalg.eigvalsh(dense_hessian(*problem))[-1]
    assert sharpness(*problem, method=method, tol=1e-6) == pytest.approx(largest, rel=1e-4)
    assert sharpness(*problem, weight_decay=0.5, tol=1e-6) == pytest.approx(largest + 0.5, rel=1e-4)


@pytest.mark.parametrize("kernel", ["MATH", "FLASH_ATTENTION"])
def test_attention_is_computed_by_the_kernel_with_second_derivatives(kernel):
    """Whatever kernel is chosen around the call, as PyTorch's default."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 4).double()
    model = nn.Linear(4, 12, bias=False).double()

    def loss_of(m):
        q, k, v = m(x).split(4, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        largest = np.linalg.eigvalsh(dense_hessian(model, loss_of))[-1]
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, kernel)):
        assert sharpness(model, loss_of, tol=1e-6) == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("aten::_ctc_loss_backward", lambda w: nn.functional.ctc_loss(w.log_softmax(-1), *ONES)),
        ("_cdist_backward", lambda w: torch.cdist(w[0], torch.zeros(3, 2), p=3).sum()),
    ],
)
def test_operation_without_second_derivative_is_named(name, loss):
    model = nn.ParameterList([torch.linspace(-0.3, 0.4, 8).view(2, 2, 2)])
    with pytest.raises(ValueError, match=f"^{name} has no second derivative"):
        hessian_vector_product(model, lambda m: loss(m[0]))


ONES = torch.ones(2, 1).long(), torch.tensor([2, 2]), torch.tensor([1, 1])


def test_unknown_method(problem):
    with pytest.raises(ValueError, match="Allowed: 'lanczos', 'power'"):
        sharpness(*problem, method="qr")


@pytest.mark.parametrize("dim", [3, 300])
def test_a_small_largest_eigenvalue_beside_a_huge_negative_one(dim):
    """Relative to itself, not to the other end: with a diagonal Hessian the answer is known."""
    diagonal = -torch.logspace(-3, 6, dim, dtype=torch.float64)
    diagonal[0], diagonal[1] = 2.0, 1.0
    model = nn.Linear(dim, 1, bias=False).double()
    found = sharpness(model, lambda m: (m.weight.square() * diagonal).sum() / 2)
    assert found == pytest.approx(2.0, rel=2e-4)


class Remembers(nn.Module):
    """A layer whose forward pass changes in place what the layer keeps in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen, self.table = nn.Linear(5, 1).double(), [], {"n": 0}
        self.count, self.sums, self.queue = torch.zeros(()), np.zeros(1), collections.deque()
        self.noise, self.draws = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.python, self.norms = random.Random(0), [nn.BatchNorm1d(1).double()]
        self.register_buffer("steps", torch.zeros(()))
        self.alias = self.steps

    def forward(self, x):
        y = self.norms[0](self.linear(x)) * (1 + torch.rand((), generator=self.noise) * self.draws.random())
        self.seen.append(y)  # with its graph
        self.table["n"] += 1
        self.count += 1
        self.sums += self.python.random()
        self.queue.append(1)
        self.alias += 1
        return y

    def state(self):
        return [
            *(len(self.seen), self.table["n"], float(self.count), self.sums.tolist(), len(self.queue)),
            *(self.noise.get_state().tolist(), self.draws.bit_generator.state, self.python.getstate()),
            *(self.norms[0].running_mean.tolist(), float(self.steps), self.alias is self.steps),
        ]


def test_what_a_forward_pass_changes_in_place_is_put_back():
    torch.manual_seed(0)
    model, x = Remembers(), torch.randn(8, 5).double()
    model(x).sum().backward()
    before, gradient = model.state(), model.linear.weight.grad.clone()
    values = [sharpness(model, lambda m: m(x).square().sum()) for _ in range(2)]
    assert model.state() == before
    assert values[0] == values[1]
    assert torch.equal(model.linear.weight.grad, gradient)


def test_checkpointed_layers_run_again_without_a_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(8, 5).double()
    plain = sharpness(model, lambda m: m(x).square().sum())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = sharpness(model, lambda m: checkpoint(m, x, use_reentrant=False).square().sum())
    assert found == pytest.approx(plain, rel=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_hides_weights_or_has_a_wrong_second_derivative_is_refused():
    class Wrong(torch.autograd.Function):
        """The square of the norm, whose second derivative is not symmetric."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * grad * (x + (x.cumsum(-1) - x.cumsum(-1).detach()))

    torch.manual_seed(0)
    model, x = nn.Linear(5, 1), torch.randn(8, 5, requires_grad=True)
    with pytest.raises(ValueError, match="pass use_reentrant=False"):
        sharpness(model, lambda m: checkpoint(m, x, use_reentrant=True).square().sum())
    with pytest.raises(ValueError, match="unsymmetric"):
        sharpness(model, lambda m: Wrong.apply(m.weight))
    with pytest.raises(ValueError, match="pass sparse=False"):
        sharpness(nn.Embedding(4, 2, sparse=True), lambda m: m(torch.tensor([0, 1])).square().sum())


class Cubes(torch.autograd.Function):
    """The sum of cubes; the factor of its second derivative is the user's own affair."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.pow(3).sum()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        squares = x.square()
        return 3 * grad * (Cubes.factor * squares + (1 - Cubes.factor) * squares.detach())


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        *((dtype, factor) for dtype in (torch.float64, torch.float32) for factor in (1.0, 0.0, 0.5, 1.2)),
        *((torch.bfloat16, factor) for factor in (1.0, 0.0)),
    ],
)
def test_a_symmetric_but_wrong_second_derivative_is_refused(monkeypatch, dtype, factor):
    """Its own second derivative is `factor` times the right one, 6 x."""
    monkeypatch.setattr(Cubes, "factor", factor)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
    x = torch.randn(8, 5).to(dtype)

    def loss_of(m):
        return m(x).float().square().mean() + Cubes.apply(m[0].weight.float())

    if factor == 1:
        plain = sharpness(model, lambda m: m(x).float().square().mean() + m[0].weight.float().pow(3).sum())
        level = 0.05 if dtype == torch.bfloat16 else 1e-3
        assert sharpness(model, loss_of) == pytest.approx(plain, rel=level)
    else:
        with pytest.raises(ValueError, match="differs from differences of the gradient"):
            sharpness(model, loss_of)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_around(problem, around):
    value = sharpness(*problem)
    with around():
        assert sharpness(*problem) == value


@pytest.mark.parametrize(
    "change", [lambda loss: loss.item(), lambda loss: loss.detach(), lambda loss: loss * torch.ones(2)]
)
def test_a_loss_that_is_none_is_refused(problem, change):
    model, loss_of = problem
    with pytest.raises(TypeError, match=r"the loss is a .*return"):
        sharpness(model, lambda m: change(loss_of(m)))


@pytest.mark.parametrize("values", [lambda p: p, lambda p: p.data], ids=["parameter", "data"])
def test_weights_changed_after_the_product_was_made(problem, values):
    product = hessian_vector_product(*problem)
    with torch.no_grad():
        for p in problem[0].parameters():
            values(p).mul_(0.5)
    with pytest.raises(ValueError, match="make it anew"):
        product(np.ones(57))


def test_a_complex_weight_has_no_real_hessian():
    with pytest.raises(ValueError, match="complex"):
        sharpness(nn.Linear(2, 1, dtype=torch.cdouble), lambda m: m.weight.abs().square().sum())
