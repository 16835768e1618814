"""Synthetic problems: random features, noisy linear regression, and four clusters in the plane."""

import numpy as np
import torch
from torch import Tensor

from gdyn_common.seeding import generator
from variance.data import TensorPopulation

BLOCK_NUMBERS = 2**24
"""Temporary values that are alive at a time."""


def random_features(
    num_examples: int,
    *,
    hidden: int = 1000,
    input_dim: int = 100,
    teacher_width: int = 100,
    unit_rows: bool = True,
    duplicates: tuple[int, float] | None = None,
    seed: int = 0,
) -> TensorPopulation:
    """Make a classification problem on fixed ReLU features of Gaussian inputs.

    Labels are the sign of a random-features teacher minus its mean.

    Args:
        num_examples: N.
        hidden: Number of trained weights per class, h_s.
        input_dim: Dimension of x ~ N(0, I).
        teacher_width: Hidden units of the teacher.
        unit_rows: Rows of the feature matrix have unit norm, as the paper says; False gives torch's default
            for a linear layer (rows of norm about 0.58), which the original runs used unintentionally.
        duplicates: `(n, fraction)`: the last fraction of N rows is overwritten by cycling through the first
            n.
        seed: Seed of features, teacher and inputs.
    """

    def rows(count: int, name: str) -> np.ndarray:
        source = generator(seed, "random features", name)
        if not unit_rows:
            return np.asarray(source.uniform(-1, 1, (count, input_dim)) / np.sqrt(input_dim))
        values = source.standard_normal((count, input_dim))
        for block in _blocks(values, input_dim):
            block /= np.linalg.norm(block, axis=1, keepdims=True)
        return values

    x = generator(seed, "random features", "inputs").standard_normal((num_examples, input_dim))
    head = generator(seed, "random features", "teacher head").standard_normal(teacher_width)
    first = rows(teacher_width, "teacher").T
    blocks = _blocks(x, max(input_dim, teacher_width))
    teacher = np.concatenate([np.maximum(block @ first, 0) @ head for block in blocks])
    teacher /= np.sqrt(teacher_width)
    labels = (teacher > teacher.mean()).astype(np.int64)
    features = np.maximum(x @ rows(hidden, "features").T, 0)
    if duplicates is not None:
        count, fraction = duplicates
        copied = round(fraction * num_examples)
        if copied:
            source = np.arange(copied) % count
            features[-copied:], labels[-copied:] = features[source], labels[source]
    return TensorPopulation(torch.from_numpy(features).float(), torch.from_numpy(labels))


def _blocks(rows: np.ndarray, width: int) -> list[np.ndarray]:
    """Split rows so that `BLOCK_NUMBERS` values of the given width are alive at a time."""
    step = max(1, BLOCK_NUMBERS // width)
    return np.split(rows, range(step, len(rows), step))


def linear_regression(
    num_examples: int, dim: int, *, signal_to_noise: float = 10.0, norm: float = 1.0, seed: int = 0
) -> TensorPopulation:
    """Make targets w^T x + noise with x ~ N(0, I), |w| = norm and noise of deviation norm / snr."""
    source = generator(seed, "linear regression")
    w = source.standard_normal(dim)
    w *= norm / np.linalg.norm(w)
    x = source.standard_normal((num_examples, dim))
    y = x @ w + norm / signal_to_noise * source.standard_normal(num_examples)
    return TensorPopulation(torch.from_numpy(x).float(), torch.from_numpy(y).float().unsqueeze(1))


def four_blobs(num_per_blob: int = 50, *, separation: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return points in the plane around (+-s, +-s) with labels by the sign of the first coordinate."""
    source = generator(seed, "four blobs")
    centres = separation * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=float)
    points = np.concatenate([centre + 0.5 * source.standard_normal((num_per_blob, 2)) for centre in centres])
    labels = np.repeat([0, 0, 1, 1], num_per_blob)
    return torch.from_numpy(points).float(), torch.from_numpy(labels)
