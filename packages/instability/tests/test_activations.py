import math

import numpy as np
import pytest
import torch

from instability.pde import activations


@pytest.mark.parametrize("length", [16, 17, 33, 36, 48, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_inputs_give_equal_outputs_wherever_they_sit(length, dtype):
    values = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=dtype)
    outputs = activations.stable_sigmoid(values[:, None].repeat(1, length))
    assert (outputs == outputs[:, :1]).all()


def test_scalar_functions_agree_with_numpy():
    x = np.linspace(-40, 40, 81)
    np.testing.assert_allclose([activations.softplus(float(v)) for v in x], np.logaddexp(0, x), rtol=1e-14)
    np.testing.assert_allclose(
        [activations.sigmoid(float(v)) for v in x], np.exp(-np.logaddexp(0, -x)), rtol=1e-14
    )


@pytest.mark.parametrize("logit", [-800.0, -37.0, 0.0, 37.0, 800.0])
@pytest.mark.parametrize("label", [0, 1])
def test_cross_entropy_is_finite_and_has_the_residual_as_slope(logit, label):
    assert math.isfinite(activations.binary_cross_entropy(logit, label))
    h = 1e-4
    slope = (
        activations.binary_cross_entropy(logit + h, label)
        - activations.binary_cross_entropy(logit - h, label)
    ) / (2 * h)
    assert activations.residual(logit, label) == pytest.approx(slope, abs=1e-8)


def test_swish_module_has_the_closed_form_gradient():
    z = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    activations.Swish(beta=5.0)(z).sum().backward()
    s = torch.sigmoid(5 * z.detach())
    torch.testing.assert_close(z.grad, s + 5 * z.detach() * s * (1 - s), rtol=1e-10, atol=1e-12)
