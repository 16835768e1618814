"""Independent named random streams from one integer.

Every source of randomness of a run has a name, and its stream depends on the run's seed and that
name only: adding a consumer, or changing the order in which they start, moves no other stream.

>>> int(generator(7, "init").integers(100)) == int(generator(7, "init").integers(100))
True
>>> named_seed(7, "init") == named_seed(7, "batches")
False
>>> named_seed(7, "model", 3)
2509160664
"""

from __future__ import annotations

import hashlib
import json
import operator

import numpy as np

Name = str | int


def _sequence(seed: int, names: tuple[Name, ...]) -> np.random.SeedSequence:
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed is {seed!r}; pass a non-negative integer.") from None
    if seed < 0:
        raise ValueError(f"seed is {seed}; pass a non-negative integer.")
    plain = [name if isinstance(name, str) else operator.index(name) for name in names]
    # SHA-256 of the JSON list is the same on every machine and process (Python's hash is salted),
    # and keeps ("ab", "c"), ("a", "bc") and ("abc",) apart, as well as 1 and "1".
    digest = hashlib.sha256(json.dumps(plain).encode()).digest()
    return np.random.SeedSequence(seed, spawn_key=tuple(np.frombuffer(digest, dtype="<u4").tolist()))


def generator(seed: int, *names: Name) -> np.random.Generator:
    """Return the random stream called `names` of the run seeded with `seed`.

    Args:
        seed: The run's seed, any non-negative integer.
        names: Path of the stream, strings or integers, for instance ``"init", 3``.

    Raises:
        ValueError: If the seed is negative.
        TypeError: If the seed or a name is neither an integer nor (for names) a string.
    """
    return np.random.default_rng(_sequence(seed, names))


def named_seed(seed: int, *names: Name) -> int:
    """Return the integer seed called `names`, for libraries with generators of their own.

    It lies in [0, 2**32): the largest range that `torch.manual_seed`, `jax.random.key` and
    NumPy's legacy `RandomState` all use in full. (JAX silently drops the upper bits of a larger
    seed unless 64-bit types are enabled, so that a run would depend on that switch.)

    Args:
        seed: The run's seed, any non-negative integer.
        names: Path of the stream, strings or integers.

    Raises:
        ValueError: If the seed is negative.
        TypeError: If the seed or a name is neither an integer nor (for names) a string.
    """
    return int(_sequence(seed, names).generate_state(1, np.uint32)[0])
