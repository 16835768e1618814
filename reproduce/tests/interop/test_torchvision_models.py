"""The tools on `torchvision.models.resnet18`, against plain autograd; nothing of the model changes."""

import copy

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
loss = torch.nn.functional.cross_entropy


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def model():
    """A network whose running statistics are fixed, as curvature needs one function of the weights."""
    torch.manual_seed(1)
    network = torchvision.models.resnet18(num_classes=3).eval()
    before = copy.deepcopy(network.state_dict())
    yield network
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not network.training
    assert all(p.grad is None for p in network.parameters())


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def test_loss_surface(model, batch):
    from chaos import LossSurface

    x, y = batch
    parameters = list(model.parameters())
    surface = LossSurface(model, loss)
    assert surface.n == sum(p.numel() for p in parameters)
    gradient = flat(torch.autograd.grad(loss(model(x), y), parameters, create_graph=True))
    direction = torch.randn(surface.n) / surface.n**0.5
    product = flat(torch.autograd.grad(gradient @ direction, parameters))
    value, ours = surface.value_and_gradient(None, x, y)
    torch.testing.assert_close(value, loss(model(x), y).detach())
    torch.testing.assert_close(ours, gradient.detach())
    torch.testing.assert_close(surface.hvp(None, x, y, direction), product, rtol=1e-3, atol=1e-5)


def test_measure_model(model, batch):
    """With one example a draw, the variance of the estimate is that of the per-example gradients."""
    from variance.measurement import measure_model

    x, y = batch
    parameters = list(model.parameters())
    losses = loss(model(x), y, reduction="none")
    each = torch.stack([flat(torch.autograd.grad(one, parameters, retain_graph=True)) for one in losses])
    exact = each.double().var(dim=0, correction=0).mean().item()
    found = measure_model(model, loss, x, y, batch_size=1, num_draws=60)
    assert abs(found["avg_var"] - exact) < 4 * found["avg_var_se"] + 0.05 * exact


def test_numerical_sensitivity(batch):
    from instability import numerical_sensitivity

    report = numerical_sensitivity(
        lambda: torchvision.models.resnet18(num_classes=3),
        [batch],
        lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        steps=2,
        perturbations=(1, 1, 3),
    )
    assert report.controls_hold
    assert 0 < report.divergence.max() < 1
