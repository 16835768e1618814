import math

import pytest
import torch
from torch import nn

from instability.paper.resnet import ResNet, resnet


def test_depth_56_has_the_published_layers():
    model = resnet(56)
    assert sum(p.numel() for p in model.parameters()) == 855_770
    assert dict(model.named_parameters())["layer2.5.conv1.weight"].shape == (32, 32, 3, 3)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("depth", [8, 20, 110])
def test_depth_counts_weighted_layers(depth):
    model = resnet(depth)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth  # and the linear layer; shortcuts do not count


def test_initialisation_has_he_variance():
    weight = resnet(20).layer3[1].conv1.weight.detach()
    expected = math.sqrt(2 / (9 * 64))
    assert weight.std().item() == pytest.approx(expected, rel=0.03)  # 36 864 samples: 0.4 % standard error
    assert resnet(20).layer1[0].bn1.weight.eq(1).all()


def test_swish_variant_is_smooth_and_relu_is_not_used():
    model = ResNet((1,), (4,), activation="swish", channels_in=1)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


@pytest.mark.parametrize("depth", [2, 7, 21])
def test_bad_depth(depth):
    with pytest.raises(ValueError, match=f"depth={depth} is not 6n"):
        resnet(depth)


def test_bad_stages_and_activation():
    with pytest.raises(ValueError, match="one entry per stage"):
        ResNet((1, 1), (4,))
    with pytest.raises(ValueError, match="Allowed: 'relu', 'swish'"):
        resnet(8, activation="gelu")
