"""Image sets and their batches; every copy of a run is handed the same augmented tensors.

Batches are a pure function of seed and step, so a resumed run sees exactly what the interrupted one would
have seen.

Source: Sec. 4.1 of Sun et al. 2022 (CIFAR-10: random crop with padding 4, horizontal flip, normalisation).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdyn_common.seeding import generator
from gdyn_reproduce.data import load_dataset

__all__ = ["CIFAR10_MEAN", "CIFAR10_STD", "ImageSet", "load_images"]

CIFAR10_MEAN = (0.507, 0.487, 0.441)
CIFAR10_STD = (0.267, 0.256, 0.276)
PADDING = 4


@dataclass(frozen=True)
class ImageSet:
    """Training and test images with their normalisation; axis order ``image, channel, height, width``.

    Attributes:
        name: of the data set.
        train_x: raw training images.
        train_y: their labels.
        test_x: raw test images.
        test_y: their labels.
        mean: per channel, subtracted from ``raw / scale``.
        std: per channel, divided by.
        scale: raw value that counts as 1.
        augment: crop and flip training images.
        source: where the arrays came from, for the record.
    """

    name: str
    train_x: np.ndarray
    train_y: Int[np.ndarray, "n"]
    test_x: np.ndarray
    test_y: Int[np.ndarray, "m"]
    mean: Float[np.ndarray, "channel"]
    std: Float[np.ndarray, "channel"]
    scale: float
    augment: bool
    source: dict[str, object]

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return int(self.train_x.shape[1])

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches in one epoch, the last one possibly smaller."""
        return -(-len(self.train_x) // batch_size)

    def batch(self, seed: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return the normalised images and labels of one training step."""
        epoch, index = divmod(step, self.steps_per_epoch(batch_size))
        order = generator(seed, "order", epoch).permutation(len(self.train_x))
        chosen = order[index * batch_size : (index + 1) * batch_size]
        images = self.train_x[chosen]
        if self.augment:
            images = crop_and_flip(images, generator(seed, "augmentation", step))
        return self._normalise(images), torch.from_numpy(self.train_y[chosen])

    def test_batches(self, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test set in order."""
        for start in range(0, len(self.test_x), batch_size):
            part = slice(start, start + batch_size)
            yield self._normalise(self.test_x[part]), torch.from_numpy(self.test_y[part])

    def _normalise(self, images: np.ndarray) -> Tensor:
        scaled = images.astype(np.float32) / np.float32(self.scale)
        mean, std = (v.astype(np.float32)[:, None, None] for v in (self.mean, self.std))
        return torch.from_numpy((scaled - mean) / std).contiguous(memory_format=torch.channels_last)


def crop_and_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift each image by up to 4 pixels (zeros come in) and mirror half of them.

    >>> crop_and_flip(np.ones((2, 1, 8, 8), np.uint8), np.random.default_rng(0)).shape
    (2, 1, 8, 8)
    """
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    down, across = rng.integers(0, 2 * PADDING + 1, (2, count, 1))
    mirrored = rng.random((count, 1)) < 0.5
    rows = down + np.arange(height)
    columns = across + np.where(mirrored, np.arange(width)[::-1], np.arange(width))
    # Advanced indices on both sides of the channel slice put the channel last.
    cropped = padded[np.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return np.ascontiguousarray(np.moveaxis(cropped, -1, 1))


def load_images(
    name: str,
    *,
    root: str | None = None,
    download: bool = False,
    train_size: int = 0,
    random_labels: float = 0.0,
    seed: int = 0,
) -> ImageSet:
    """Load an image set with the paper's preprocessing.

    Args:
        name: ``cifar10`` or ``cifar10_small`` (augmented), ``fashion_mnist``, ``mnist``, ``digits``,
            ``textures32``.
        root: data folder; default ``$GDYN_DATA_DIR``.
        download: allow fetching missing files.
        train_size: images used for training, 0 for all of the training split. With ``digits`` the two splits
            are joined first and the rest is for testing.
        random_labels: share of training labels replaced at random, to keep gradients alive.
        seed: of the replaced labels.

    >>> images = load_images("digits", train_size=1200)
    >>> images.train_x.shape, len(images.test_y), images.batch(0, 0, 32)[0].shape
    ((1200, 1, 8, 8), 597, torch.Size([32, 1, 8, 8]))
    """
    if not 0 <= random_labels <= 1:
        raise ValueError(f"random_labels={random_labels} must lie in [0, 1].")
    train, test = (load_dataset(name, split, root, download) for split in ("train", "test"))
    (train_x, test_x), (train_y, test_y) = (
        (_channels_first(train.x), _channels_first(test.x)),
        (train.y, test.y),
    )
    if name == "digits" and train_size:
        x, y = np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y])
        (train_x, test_x), (train_y, test_y) = np.split(x, [train_size]), np.split(y, [train_size])
    elif train_size:
        train_x, train_y = train_x[:train_size], train_y[:train_size]
    if len(train_x) == 0 or len(test_x) == 0 or train_size > len(train_x):
        raise ValueError(
            f"train_size={train_size} does not fit {name}: {len(train_x)} training images are there."
        )
    is_cifar = name.startswith("cifar10")
    scale = 16.0 if name == "digits" else 255.0
    mean, std = (
        (np.array(CIFAR10_MEAN), np.array(CIFAR10_STD)) if is_cifar else _channel_statistics(train_x / scale)
    )
    return ImageSet(
        name=name,
        train_x=train_x,
        train_y=_with_random_labels(train_y, random_labels, seed),
        test_x=test_x,
        test_y=test_y,
        mean=mean,
        std=std,
        scale=scale,
        augment=is_cifar,
        source=dict(train.provenance()),
    )


def _channels_first(x: np.ndarray) -> np.ndarray:
    return x[:, None] if x.ndim == 3 else np.ascontiguousarray(np.moveaxis(x, -1, 1))


def _channel_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=(0, 2, 3)), x.std(axis=(0, 2, 3))


def _with_random_labels(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = generator(seed, "random labels")
    replaced = rng.random(len(labels)) < share
    return np.where(replaced, rng.integers(0, labels.max() + 1, len(labels)), labels)
