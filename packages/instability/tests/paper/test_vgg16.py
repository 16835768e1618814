import pytest
import torch
from torch import nn

from instability.paper.vgg16 import VGG16


@pytest.mark.parametrize("size", [28, 32])
def test_shapes_and_depth(size):
    model = VGG16(channels_in=1, num_classes=7).eval()
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 7)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 13
