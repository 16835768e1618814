"""Layer by layer: factors, kernels and small gradients against autograd, one example at a time."""

import pytest
import torch
from torch import Tensor, nn

from variance.errors import UnsupportedLayer
from variance.per_example.capturing import capture
from variance.per_example.layers import ConvLayer, Layer, WeightLayer, layer_for

EXACT = {"rtol": 1e-10, "atol": 1e-13}  # float64: summation order only


def weighted_sum(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose output gradient is the target itself, so that b is known."""
    return (outputs * targets).flatten(1).sum(1)


def recorded(module: nn.Module, x: Tensor) -> tuple[Layer, Tensor]:
    module = module.double()
    b = torch.randn(module(x).shape, dtype=torch.float64)
    return capture(module, weighted_sum, x, b).layers[""], b


def loop(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    rows = [
        torch.autograd.grad((module(x[n : n + 1]) * b[n : n + 1]).sum(), parameters) for n in range(len(x))
    ]
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "same": nn.Conv2d(4, 6, (3, 5), padding="same"),
    "stride over the edge": nn.Conv2d(4, 6, 3, stride=(3, 2), padding=(0, 1)),
    "dilation": nn.Conv2d(4, 6, (3, 2), dilation=(2, 3), padding=2),
    "reflection": nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"),
    "groups": nn.Conv2d(4, 6, 3, groups=2, stride=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, bias=False),
    "1 x 1": nn.Conv2d(4, 6, 1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    x, module = images(3, 4, 8, 9), CONVOLUTIONS[name]
    layer, b = recorded(module, x)
    assert isinstance(layer, ConvLayer)
    expected = loop(module, x, b)
    for key, value in layer.gradients().items():
        torch.testing.assert_close(value, expected[key], **EXACT)
    torch.testing.assert_close(
        layer.kernels(slice(1, 3)),
        expected["weight"][1:3].flatten(2),
        **EXACT,
    )
    assert layer.num_positions == b[0, 0].numel()
    if layer.groups == 1:
        a, outputs = layer.positions()
        torch.testing.assert_close(
            torch.einsum("nto,nti->noi", outputs, a), expected["weight"].flatten(2), **EXACT
        )
        torch.testing.assert_close(layer.input_means(), a.mean(1), **EXACT)


@pytest.mark.parametrize("call", ["positions", "input_means"])
def test_grouped_convolutions_have_no_rank_1_factor(call: str) -> None:
    layer, _ = recorded(nn.Conv2d(4, 6, 3, groups=2), images(3, 4, 5, 5))
    with pytest.raises(UnsupportedLayer, match="has 2 groups and no single rank-1 factor"):
        getattr(layer, call)()


def test_linear_layers_on_sequences_sum_over_positions() -> None:
    x, module = images(3, 5, 2, 4), nn.Linear(4, 6)
    layer, b = recorded(module, x)
    assert isinstance(layer, WeightLayer)
    assert layer.num_positions == 10
    expected = loop(module, x, b)
    torch.testing.assert_close(layer.kernels(), expected["weight"], **EXACT)
    torch.testing.assert_close(layer.bias_gradients(), expected["bias"], **EXACT)
    torch.testing.assert_close(layer.input_means(), x.flatten(1, 2).mean(1), **EXACT)


NORMS = {
    "layer": (nn.LayerNorm(5), (3, 2, 5)),
    "layer, two axes": (nn.LayerNorm((2, 5)), (3, 4, 2, 5)),
    "layer without bias": (nn.LayerNorm(5, bias=False), (3, 5)),
    "group": (nn.GroupNorm(2, 4, eps=0.1), (3, 4, 2, 5)),
    "group on vectors": (nn.GroupNorm(2, 4), (3, 4)),
    "batch": (nn.BatchNorm2d(4).eval(), (3, 4, 2, 5)),
    "batch on vectors": (nn.BatchNorm1d(4).eval(), (3, 4)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    module, shape = NORMS[name]
    module = module.double()
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
    x = images(*shape)
    layer, b = recorded(module, x)
    expected = loop(module, x, b)
    assert set(layer.gradients()) == set(expected)
    for key, value in layer.gradients().items():
        torch.testing.assert_close(value, expected[key], **EXACT)


def test_embeddings_count_repeated_tokens_and_skip_padding() -> None:
    module, tokens = nn.Embedding(5, 3, padding_idx=2), torch.tensor([[0, 0, 2], [4, 2, 2]])
    layer, b = recorded(module, tokens)
    found = layer.gradients()["weight"]
    torch.testing.assert_close(found, loop(module, tokens, b)["weight"], **EXACT)
    torch.testing.assert_close(found[0, 0], b[0, 0] + b[0, 1], **EXACT)
    assert not found[:, 2].any()


@pytest.mark.parametrize(
    ("module", "handled"),
    [
        (nn.Linear(2, 2), True),
        (nn.Conv1d(2, 2, 1), True),
        (nn.Conv3d(2, 2, 1), False),
        (nn.ConvTranspose2d(2, 2, 1), False),
        (nn.Bilinear(2, 2, 2), False),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), False),
    ],
)
def test_what_is_left_to_vmap(module: nn.Module, handled: bool) -> None:
    assert (layer_for(module) is not None) == handled
