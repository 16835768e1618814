"""What results print: one line, never whole tensors, and words where a number is unknown."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from variance import (
    Direction,
    GradientNoise,
    NoiseScale,
    Point,
    TensorPopulation,
    UniformSampler,
    cluster,
    exact_moves,
    per_example,
    statistics,
)

MODEL = nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 3))
X, Y = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
G = torch.arange(60.0).reshape(20, 3)
CLUSTERING = cluster(MODEL, F.cross_entropy, X, Y, 5, iterations=1)
SHOWN: dict[str, tuple[Any, str]] = {
    "clustering": (CLUSTERING, "50 examples in 5 clusters of"),
    "centres": (CLUSTERING.centres, "Centres(5 clusters; layers 0, 1)"),
    "moves": (exact_moves(G, torch.arange(20) % 2, 3), "20 examples, objective"),
    "unbiased": (statistics.unbiased(G), "UnbiasedStatistics(3 coordinates, num_draws=20, avg_var=315"),
    "exact": (statistics.exact(G, 2), "ExactStatistics(3 coordinates"),
    "reference": (statistics.reference(G, G), "ReferenceStatistics(3 coordinates"),
    "direction": (Direction(torch.tensor([3.0, 4.0]), 0.5), "Direction(2 coordinates of norm 5, loss 0.5)"),
    "draw": (UniformSampler(20).draw(5), "Draw(5 examples, weights 1 to 1)"),
    "batch": (TensorPopulation(X, Y).fetch(torch.arange(7)), "Batch(7 examples)"),
    "point": (Point.of(MODEL), "Point(4 parameters of 323 numbers, 0 buffers)"),
    "capture": (per_example.capture(MODEL, F.cross_entropy, X, Y), "50 examples, 323 coordinates, 2 layers"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_result_is_shown_in_a_line(name: str) -> None:
    found, words = SHOWN[name]
    assert words in repr(found)
    assert len(repr(found)) < 300
    assert "tensor" not in repr(found)


@pytest.mark.parametrize(
    ("scale", "low", "high", "words"),
    [
        (287.0, 210.0, math.inf, "noise scale 287 examples (95 %: 210 to inf), from"),
        (math.nan, 120.0, math.inf, "above 120 examples (lower end of 95 %; the mean gradient is not seen)"),
        (math.nan, math.inf, math.inf, "unknown, as the mean gradient is not seen in the noise"),
        (math.nan, 0.0, math.inf, "unknown, as the mean gradient is not seen in the noise"),
        (math.nan, math.nan, math.nan, "unknown, as the mean gradient is not seen in the noise"),
    ],
)
def test_a_noise_scale_says_in_words_what_is_not_seen(
    scale: float, low: float, high: float, words: str
) -> None:
    names = ("noise_scale", "noise_scale_low", "noise_scale_high")
    drawn = GradientNoise(dict(zip(names, (scale, low, high), strict=True)), 8, 30)
    seen = NoiseScale(scale, low, high, 1.0, -0.1, {}, 20)
    assert words in drawn.summary()
    assert words in repr(seen)
