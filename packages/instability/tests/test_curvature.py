import numpy as np
import pytest
import torch
from torch import nn

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


def test_transformer_attention_works():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 4, 8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert sharpness(layer, lambda m: m(x).square().mean(), tol=1e-3) > 0


def test_operation_without_second_derivative_is_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0] * grad

    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 4, 8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        product = hessian_vector_product(
            attention, lambda m: m(x, x, x, need_weights=False)[0].square().sum()
        )
    with pytest.raises(NotImplementedError, match=r"flash_attention.*has no second derivative"):
        product(np.ones(sum(p.numel() for p in attention.parameters())))


def test_unknown_method(problem):
    with pytest.raises(ValueError, match="Allowed: 'lanczos', 'power'"):
        sharpness(*problem, method="qr")
