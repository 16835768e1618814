"""Build what a ``NetworkConfig`` describes."""

from __future__ import annotations

import torch
from torch import nn

from gdyn_common.seeding import named_seed
from instability.determinism import check_device
from instability.paper.config import NetworkConfig
from instability.paper.data import ImageSet, load_images
from instability.paper.resnet import ResNet, resnet
from instability.paper.vgg16 import VGG16

__all__ = ["build_model", "load_configured_images"]


def build_model(config: NetworkConfig, images: ImageSet, seed: int, activation: str = "") -> nn.Module:
    """Return the configured network, initialised from ``seed``; torch's generator is left as it was."""
    options = {
        "activation": activation or config.activation,
        "channels_in": images.num_channels,
        "num_classes": int(images.train_y.max()) + 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "initialisation"))
        if config.model == "tiny":
            model: nn.Module = ResNet((config.tiny_blocks,), (config.tiny_width,), **options)  # type: ignore[arg-type]
        elif config.model == "vgg16":
            model = VGG16(**options)  # type: ignore[arg-type]
        else:
            model = resnet(config.depth, **options)  # type: ignore[arg-type]
    return model.to(device=check_device(config.device), dtype=getattr(torch, config.dtype))


def load_configured_images(config: NetworkConfig, seed: int) -> ImageSet:
    """Return the configured data."""
    return load_images(
        config.dataset,
        root=config.data_root,
        download=config.download,
        train_size=config.train_size,
        random_labels=config.random_labels,
        seed=seed,
    )
