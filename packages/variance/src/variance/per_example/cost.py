"""Which formulation of a per-example quantity is cheapest for one layer.

Every candidate is priced as arithmetic plus memory traffic, in seconds on a nominal core; only ratios matter.
The choice depends on shapes alone and is cached per shape.

* `outer`: one position; everything follows from products of the factors a and b.
* `positions`: several positions; sums over pairs of positions, (t x t) products of the factors.
* `kernels`: materialise the (o x i) gradient of a chunk of examples, by batched matrix product or grouped
  convolution.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Task = Literal["squared_norms", "gram", "second_moments", "inner_products"]
Formulation = Literal["outer", "positions", "kernels"]

FLOPS_PER_SECOND = 3e10
BYTES_PER_SECOND = 5e9
CHUNK_BYTES = 32 * 2**20
"""Largest piece of materialised per-example kernels that is alive at a time."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one recorded weight layer: n examples, t positions, o outputs, i inputs per output."""

    n: int
    t: int
    o: int
    i: int
    groups: int = 1
    is_convolution: bool = False
    itemsize: int = 4


@dataclass(frozen=True)
class Choice:
    """The chosen formulation and the estimated seconds of every candidate."""

    formulation: Formulation
    seconds: dict[str, float]


@lru_cache(maxsize=4096)
def choose(task: Task, shape: Shape, directions: int = 1) -> Choice:
    """Price all formulations that apply and return the cheapest.

    Args:
        task: The wanted quantity.
        shape: Sizes of the layer.
        directions: Number of directions of `inner_products`.

    Example:
        >>> choose("squared_norms", Shape(n=128, t=1, o=1024, i=784)).formulation
        'outer'
        >>> choose("squared_norms", Shape(n=128, t=1024, o=16, i=144, is_convolution=True)).formulation
        'kernels'
    """
    seconds = {
        name: flops / FLOPS_PER_SECOND + moved / BYTES_PER_SECOND
        for name, (flops, moved) in _prices(task, shape, directions).items()
    }
    best = min(seconds, key=lambda name: seconds[name])
    return Choice(best, seconds)  # type: ignore[arg-type]


def _prices(task: Task, s: Shape, k: int) -> dict[str, tuple[float, float]]:
    """Return (operations, bytes moved) of each candidate."""
    factors = s.n * s.t * (s.i + s.o)
    kernels = (2.0 * s.n * s.t * s.o * s.i, s.itemsize * (factors + 2.0 * s.n * s.o * s.i))
    extra = {
        "squared_norms": 2 * s.n * s.o * s.i,
        "gram": 2 * s.n**2 * s.o * s.i,
        "second_moments": 2 * s.n * s.o * s.i,
        "inner_products": 2 * s.n * s.o * s.i * k,
    }
    prices: dict[str, tuple[float, float]] = {"kernels": (kernels[0] + extra[task], kernels[1])}
    if s.groups != 1:
        return prices
    if s.t == 1:
        outer = {
            "squared_norms": 2 * factors,
            "gram": 2 * s.n * factors,
            "second_moments": 2 * s.n * s.o * s.i,
            "inner_products": 2 * s.n * s.o * s.i * k,
        }
        moved = factors + (s.o * s.i * k if task in ("second_moments", "inner_products") else 0)
        return {"outer": (outer[task], s.itemsize * moved)}
    unfolding = 3.0 * s.n * s.t * s.i * s.is_convolution
    if task == "squared_norms":
        prices["positions"] = (2.0 * s.t * factors, s.itemsize * (factors + unfolding + 3.0 * s.n * s.t**2))
    elif task == "gram":
        pairs = float((s.n * s.t) ** 2)
        prices["positions"] = (2.0 * pairs * (s.i + s.o), s.itemsize * (factors + unfolding + 3.0 * pairs))
    elif task == "inner_products":
        prices["positions"] = (
            2.0 * s.n * s.t * s.o * s.i * k,
            s.itemsize * (factors + unfolding + 2.0 * s.n * s.t * s.o * k),
        )
    return prices
