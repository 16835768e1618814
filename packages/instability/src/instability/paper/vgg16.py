"""VGG16 for small images: thirteen 3x3 convolutions with batch norm, five poolings, one linear layer.

Source: Simonyan and Zisserman 2015, configuration D, in the usual form for 32x32 inputs (one linear
layer instead of three, global average before it).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from instability.paper.resnet import Activation, make_activation

__all__ = ["VGG16"]

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG16 with batch norm.

    Args:
        activation: ``"relu"`` or ``"swish"``.
        channels_in: channels of the images, which must be at least 32x32 or padded to it.
        num_classes: outputs.

    >>> sum(p.numel() for p in VGG16().parameters())
    14724042
    """

    def __init__(
        self, *, activation: Activation = "relu", channels_in: int = 3, num_classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for widths in STAGES:
            for width in widths:
                layers += [nn.Conv2d(channels_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
                layers.append(make_activation(activation))
                channels_in = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels_in, num_classes)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch cls"]:
        """Return logits."""
        return self.fc(self.features(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]  # modules are untyped
