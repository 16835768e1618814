"""Data with known answers: spectra, two views with shared latents, mixed sources, block graphs."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

__all__ = ["block_graph", "mixed_sources", "spectrum", "symmetric_matrix", "two_views"]


def spectrum(
    kind: Literal["linear", "exponential"], size: int, top: float = 1000.0
) -> Float[np.ndarray, " d"]:
    """Return eigenvalues falling from `top` to 1, linearly or exponentially.

    Example:
        >>> spectrum("linear", 4, 4.0)
        array([4., 3., 2., 1.])
    """
    if kind not in ("linear", "exponential"):
        raise ValueError(f"Unknown spectrum {kind!r}. Allowed: 'linear', 'exponential'.")
    return np.linspace(top, 1, size) if kind == "linear" else np.geomspace(top, 1, size)


def symmetric_matrix(
    values: Float[np.ndarray, " d"], generator: np.random.Generator
) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]]:
    """Return a matrix with the given eigenvalues, and its eigenvectors on rows, at a random rotation."""
    vectors = np.linalg.qr(generator.standard_normal((values.size, values.size)))[0]
    return vectors.T * values @ vectors, vectors


class TwoViews(NamedTuple):
    """Samples of two views.

    Attributes:
        x: First view, (n, d).
        y: Second view, (n, d).
    """

    x: NDArray
    y: NDArray


def two_views(
    generator: np.random.Generator, num_samples: int, dim: int = 8, latents: int = 4, noise: float = 0.5
) -> TwoViews:
    """Return two views of the same Gaussian latents, each mixed linearly, plus noise; centred."""
    shared = generator.standard_normal((num_samples, latents))
    views = [
        shared @ generator.standard_normal((latents, dim))
        + noise * generator.standard_normal((num_samples, dim))
        for _ in range(2)
    ]
    return TwoViews(*(view - view.mean(axis=0) for view in views))


def mixed_sources(
    generator: np.random.Generator, num_samples: int = 2000
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Return a mixture of a sine, a square wave and a sawtooth, and the sources (unit variance).

    All three are flatter than a Gaussian: their excess kurtosis is -1.5, -2 and -1.2.
    """
    time = np.linspace(0, 8, num_samples)
    sources = np.stack(
        [np.sin(2 * np.pi * time), np.sign(np.sin(3 * np.pi * time)), 2 * (np.sqrt(2) * time % 1) - 1], axis=1
    )
    sources = sources + 0.02 * generator.standard_normal(sources.shape)
    sources = (sources - sources.mean(axis=0)) / sources.std(axis=0)
    return sources @ generator.standard_normal((3, 3)), sources


def block_graph(
    generator: np.random.Generator, blocks: int = 8, nodes: int = 50, degree: int = 12
) -> tuple[Int[np.ndarray, "m 2"], Int[np.ndarray, " d"]]:
    """Return edges of random graphs joined by one edge per pair of blocks, and each node's block."""
    edges = []
    for block in range(blocks):
        offset = block * nodes
        ring = np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes], axis=1)
        chords = generator.integers(nodes, size=(nodes * degree // 2, 2))
        edges.append(offset + np.concatenate([ring, chords[chords[:, 0] != chords[:, 1]]]))
    bridges = [
        [first * nodes + generator.integers(nodes), second * nodes + generator.integers(nodes)]
        for first in range(blocks)
        for second in range(first + 1, blocks)
    ]
    if bridges:
        edges.append(np.array(bridges))
    unique = np.unique(np.sort(np.concatenate(edges), axis=1), axis=0)
    return unique.astype(np.int64), np.repeat(np.arange(blocks), nodes)
