import numpy as np
import pytest
import torch

from instability.pde import linear as linear_pde
from instability.pde import nonlinear as nonlinear_pde
from instability.pde.descent import DescentOptions
from instability.pde.one_layer import OneLayerNetwork


def autograd_loss(image, kernel, label, beta):
    z = torch.nn.functional.conv2d(torch.as_tensor(image)[None, None], kernel[None, None])[0, 0]
    p = (z * torch.sigmoid(beta * z)).mean()
    return torch.nn.functional.binary_cross_entropy_with_logits(p, torch.tensor(float(label), dtype=p.dtype))


@pytest.fixture(params=[(9, 9, 3), (8, 13, 4), (7, 5, 5)], ids=str)
def case(request):
    height, width, k = request.param
    rng = np.random.default_rng(3)
    return rng.normal(size=(height, width)), torch.tensor(rng.normal(size=(k, k)))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("beta", [1.0, 5.0])
def test_gradient_equals_autograd(case, label, beta):
    image, kernel = case
    kernel.requires_grad_()
    expected = autograd_loss(image, kernel, label, beta)
    expected.backward()
    loss, gradient = OneLayerNetwork(image, kernel.shape[0], label=label, beta=beta).evaluate(kernel.detach())
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    torch.testing.assert_close(gradient, kernel.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("label", [0, 1])
def test_gradient_equals_central_differences(case, label):
    image, kernel = case
    network = OneLayerNetwork(image, kernel.shape[0], label=label)
    gradient = network.evaluate(kernel)[1]
    h = 1e-5  # truncation h**2 and rounding eps / h are both about 1e-10
    for index in np.ndindex(*kernel.shape):
        step = torch.zeros_like(kernel)
        step[index] = h
        slope = (network.evaluate(kernel + step)[0] - network.evaluate(kernel - step)[0]) / (2 * h)
        assert gradient[index].item() == pytest.approx(slope, abs=1e-8)


def test_linear_field_is_the_first_order_expansion_at_zero(case):
    """With the residual held at -1/2: r'(z) = 1/2 + z/2 + O(z^3), so the difference falls as the cube."""
    image, direction = case
    network = OneLayerNetwork(image, direction.shape[0])
    errors = []
    for size in (1e-2, 1e-3):
        kernel = size * direction
        p_residual = -1 / (1 + np.exp(logit(image, kernel)))
        frozen = network.evaluate(kernel)[1] * (-0.5 / p_residual)
        linear = network.evaluate_linear(kernel, normalize="mean")[1]
        errors.append((frozen - linear).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(1000, rel=0.1)


def logit(image, kernel):
    z = torch.nn.functional.conv2d(torch.as_tensor(image)[None, None], kernel[None, None])[0, 0]
    return float((z * torch.sigmoid(z)).mean())


def test_sum_normalisation_uses_the_mean_of_the_whole_image(case):
    image, kernel = case
    k = kernel.shape[0]
    field = OneLayerNetwork(image, k).evaluate_linear(torch.zeros_like(kernel))[1]
    torch.testing.assert_close(field, torch.full_like(kernel, -0.25 * image.mean()))


@pytest.mark.parametrize("label", [2, -1, 0.5, True, "1"])
def test_labels_must_be_binary(label):
    with pytest.raises(ValueError, match="label must be 0 or 1"):
        OneLayerNetwork(np.zeros((4, 4)), 2, label=label)


@pytest.mark.parametrize("module", [nonlinear_pde, linear_pde])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rates": 0.0}, "learning_rates must be positive"),
        ({"learning_rates": []}, "learning_rates is empty"),
        ({"perturbations": []}, "perturbations is empty"),
        ({"perturbations": [True]}, "pass an int >= 1"),
        ({"weight_decays": -1.0}, "weight_decays must be finite and not negative"),
        ({"learning_rates": [1.0, 2.0], "weight_decays": [1.0, 2.0, 3.0]}, "cannot be zipped"),
        ({"num_steps": -1}, "num_steps must not be negative"),
    ],
)
def test_bad_settings(module, change, message):
    settings = {"learning_rates": 0.1, "weight_decays": 1.0, "num_steps": 1} | change
    with pytest.raises(ValueError, match=message):
        module.simulate(np.zeros((4, 4)), np.zeros((2, 2)), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"nesterov": True}, "nesterov=True needs momentum"),
        ({"loss": "other"}, "Allowed: 'consistent', 'mixed'"),
    ],
)
def test_bad_options(settings, message):
    with pytest.raises(ValueError, match=message):
        DescentOptions(**settings)
