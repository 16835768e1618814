"""Synthetic data, a function of the seed alone; train and test share the population."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8

from gdyn_common.seeding import generator

Labels = Int[np.ndarray, " n"]


def gaussians(
    split: str,
    *,
    seed: int = 0,
    num_samples: int = 1000,
    num_classes: int = 4,
    dim: int = 2,
    separation: float = 3.0,
) -> tuple[Float[np.ndarray, "n dim"], Labels]:
    """Draw from a balanced mixture of unit Gaussians, one per class.

    Args:
        split: Names the stream of samples; the class means are common to all splits.
        seed: Determines means and samples.
        num_samples: Points drawn.
        num_classes: Mixture components.
        dim: Dimension.
        separation: Standard deviation of each coordinate of the class means.

    >>> x, y = gaussians("train", num_samples=8)
    >>> x.shape, y.tolist()
    ((8, 2), [0, 1, 2, 3, 0, 1, 2, 3])
    """
    means = separation * generator(seed, "gaussians", "means").standard_normal((num_classes, dim))
    y = np.arange(num_samples) % num_classes
    noise = generator(seed, "gaussians", split).standard_normal((num_samples, dim))
    return (means[y] + noise).astype(np.float32), y


def teacher(
    split: str, *, seed: int = 0, num_samples: int = 1000, dim: int = 100, width: int = 100
) -> tuple[Float[np.ndarray, "n dim"], Labels]:
    """Draw standard normal points, labelled by the sign of a random one-hidden-layer ReLU network.

    Features are rows of unit norm; the network's mean over 10 000 other points is subtracted, so
    that the two classes are about equally frequent.

    Args:
        split: Names the stream of samples; the network is common to all splits.
        seed: Determines network and samples.
        num_samples: Points drawn.
        dim: Input dimension.
        width: Hidden units of the network.
    """
    weights = generator(seed, "teacher", "network")
    features = weights.standard_normal((dim, width))
    features /= np.linalg.norm(features, axis=0)
    top = weights.standard_normal(width)
    centre = (np.maximum(weights.standard_normal((10_000, dim)) @ features, 0) @ top).mean()
    x = generator(seed, "teacher", split).standard_normal((num_samples, dim))
    outputs = np.maximum(x @ features, 0) @ top - centre
    return x.astype(np.float32), (outputs > 0).astype(np.int64)


def textures32(
    split: str, *, seed: int = 0, num_samples: int = 2000, noise: float = 20.0
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Labels]:
    """Draw coloured shapes and textures, ten balanced classes, in the format of CIFAR-10.

    Classes: disc, ring, square, frame, cross, triangle; stripes across, along and diagonal; checks.
    Colours, position, size and phase are random.

    Args:
        split: Names the stream of samples.
        seed: Determines the samples.
        num_samples: Images drawn.
        noise: Standard deviation of the pixel noise, of 255.
    """
    random = generator(seed, "textures32", split)
    y = np.arange(num_samples) % 10
    column = (num_samples, 1, 1)
    rows, cols = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    v = rows - random.uniform(11, 20, column)  # relative to the random centre
    u = cols - random.uniform(11, 20, column)
    size = random.uniform(6, 11, column)
    angle = 2 * np.pi / random.uniform(5, 9, column)  # of a stripe of that period
    radius, box = np.hypot(u, v), np.maximum(np.abs(u), np.abs(v))
    across, along = np.sin(angle * v), np.sin(angle * u)
    masks = [
        radius < size,
        (radius < size) & (radius > 0.6 * size),
        box < size,
        (box < size) & (box > 0.6 * size),
        (box < size) & (np.minimum(np.abs(u), np.abs(v)) < 0.3 * size),
        (np.abs(v) < size) & (np.abs(u) < (v + size) / 2),
        across > 0,
        along > 0,
        np.sin(angle * (u + v) / np.sqrt(2)) > 0,
        across * along > 0,
    ]
    mask = np.choose(y[:, None, None], masks)[..., None]
    front, back = random.uniform(0, 255, (2, num_samples, 1, 1, 3))
    # Too close a pair of colours would hide the shape.
    back = np.where(np.abs(front - back).max(-1, keepdims=True) < 80, 255 - front, back)
    pixels = np.where(mask, front, back) + noise * random.standard_normal((num_samples, 32, 32, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), y
