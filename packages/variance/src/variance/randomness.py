"""The global random states of torch, NumPy and Python: a model or a data set may draw from any of them."""

import operator
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from variance.errors import ConfigError


@dataclass(frozen=True, eq=False)
class RandomState:
    """The three states at one moment (of torch that of the CPU)."""

    torch: Tensor
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> "RandomState":
        """Return the states as they are."""
        return cls(torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)  # noqa: NPY002 - the state that models draw from
        random.setstate(self.python)

    def same_as(self, other: "RandomState") -> bool:
        """Whether nothing was drawn between the two moments.

        Example:
            >>> before = RandomState.now()
            >>> before.same_as(RandomState.now())
            True
        """
        return (
            torch.equal(self.torch, other.torch)
            and np.array_equal(self.numpy[1], other.numpy[1])
            and self.numpy[2:] == other.numpy[2:]
            and self.python == other.python
        )


@contextmanager
def preserved_randomness() -> Iterator[RandomState]:
    """Put the global states, also those of accelerators in use, back after the block."""
    before = RandomState.now()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield before
        finally:
            before.restore()


Seed: TypeAlias = (
    int
    | Sequence[int]
    | np.ndarray
    | Tensor
    | np.random.SeedSequence
    | np.random.BitGenerator
    | np.random.RandomState
    | np.random.Generator
    | None
)
"""What NumPy makes a generator of."""


def generator_of(seed: Seed) -> np.random.Generator:
    """Return a generator as it is, or a new one of a seed, as `numpy.random.default_rng` does.

    Raises:
        ConfigError: Anything else, as a negative number, a fraction, a truth value or text.
    """
    given: Any = seed.tolist() if isinstance(seed, Tensor | np.ndarray) else seed
    parts = given if isinstance(given, list | tuple) else (given,)
    if not any(isinstance(part, bool | str | bytes) for part in parts):
        with suppress(TypeError, ValueError):
            return np.random.default_rng(given)
    raise ConfigError(
        f"seed is {seed!r}; pass a whole number of at least 0, several, a seed or generator of NumPy, or "
        "None."
    )


def number_of(seed: Seed) -> int:
    """Return a whole number as it is, and one drawn from any other seed: for what makes several seeds of it.

    Raises:
        ConfigError: As `generator_of`.

    Example:
        >>> number_of(7), number_of([1, 2]) == number_of((1, 2))
        (7, True)
    """
    generator, given = generator_of(seed), cast("Any", seed)
    try:
        return operator.index(given)
    except TypeError:
        return int(generator.integers(2**63))
