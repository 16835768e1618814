"""The networks of the paper and their small versions."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from jaxtyping import Float
from torch import Tensor, nn

from gdyn_common.errors import unknown
from gdyn_common.seeding import named_seed


def mlp(*sizes: int, dropout: float = 0.0) -> nn.Sequential:
    """Return a ReLU network of fully connected layers; inputs are flattened.

    Example:
        >>> sum(p.numel() for p in mlp(784, 1024, 1024, 10).parameters())
        1863690
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(inputs, outputs))
        if index < len(sizes) - 2:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def mnist_cnn() -> nn.Sequential:
    """Return conv 64 (5x5) - pool - conv 128 (5x5) - pool - 1000 - 10 for 28x28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 128, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128 * 16, 1000), nn.ReLU(), nn.Linear(1000, 10),
    )  # fmt: skip


def small_cnn(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Sequential:
    """Return two pooled 3x3 convolutions (16, 32) and two fully connected layers, for benchmarks."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, 38), nn.ReLU(), nn.Linear(38, classes),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = norm(outputs), norm(outputs)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d g v"]:
        """Return relu(shortcut + body)."""
        body = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(body + shortcut)


class ResNet(nn.Module):
    """Residual network for 32x32 images: three stages of 16, 32 and 64 channels.

    Args:
        depth: 6 b + 2 with b blocks per stage; 8 and 32 are the paper's.
        classes: Number of classes.
        norm: Layer after each convolution: "none", "batch" or "group".
    """

    def __init__(self, depth: int = 8, classes: int = 10, norm: str = "none") -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth is {depth}; it must be 6 b + 2, for example 8, 14, 20 or 32.")
        norms: dict[str, Callable[[int], nn.Module]] = {
            "none": lambda channels: nn.Identity(),
            "batch": nn.BatchNorm2d,
            "group": lambda channels: nn.GroupNorm(8, channels),
        }
        if norm not in norms:
            raise ValueError(unknown("norm", norm, norms))
        make, blocks = norms[norm], (depth - 2) // 6
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.norm = make(16)
        stages = [(16, 16, 1), *[(16, 16, 1)] * (blocks - 1), (16, 32, 2), *[(32, 32, 1)] * (blocks - 1)]
        stages += [(32, 64, 2), *[(64, 64, 1)] * (blocks - 1)]
        self.blocks = nn.Sequential(*(ResidualBlock(*stage, make) for stage in stages))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return logits."""
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """Residual network of 18 layers for 224x224 images, with batch norm (He et al. 2016, option B).

    Args:
        classes: Number of classes.

    Example:
        >>> sum(p.numel() for p in ResNet18(1000).parameters())
        11689512
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        stages = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        stages += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        self.features = nn.Sequential(*stem, *(_ProjectedBlock(*stage) for stage in stages))
        self.head = nn.Linear(512, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return logits."""
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


class _ProjectedBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class VAE(nn.Module):
    """Variational autoencoder of flat images in [0, 1], for `variance.losses.negative_elbo`.

    Args:
        pixels: Size of an image.
        hidden: Width of the hidden layers.
        latent: Dimension of the code.
    """

    def __init__(self, pixels: int = 784, hidden: int = 400, latent: int = 20) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def forward(self, x: Float[Tensor, "n ..."]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of the reconstruction, mean and log-variance of the code."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decoder(code), mean, log_variance


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "digits-mlp": lambda classes: mlp(64, 128, 128, classes),
    "mnist-mlp": lambda classes: mlp(784, 1024, 1024, classes),
    "mnist-cnn": lambda classes: mnist_cnn(),
    "small-cnn": lambda classes: small_cnn(classes=classes),
    "resnet8": lambda classes: ResNet(8, classes),
    "resnet18": lambda classes: ResNet18(classes),
    "resnet32": lambda classes: ResNet(32, classes, "batch"),
}


def build(name: str, classes: int, seed: int) -> nn.Module:
    """Return a named network with weights from a seed, leaving the global random state alone.

    Raises:
        ValueError: Unknown name.
    """
    if name not in MODELS:
        raise ValueError(unknown("model", name, MODELS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "init"))
        return MODELS[name](classes)
