"""Training data in [-1, 1], and batches that are a pure function of their number.

Because batch ``i`` of a run depends on the seed and ``i`` only, a restored run needs no data position but its
step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dd_two_player.gans.mixtures import STANDARD_DEVIATION, mixture_modes
from dd_two_player.gans.naming import named
from gdyn_common.errors import unknown
from gdyn_common.seeding import generator
from gdyn_reproduce.data import load_dataset, names

__all__ = ["MIXTURES", "BatchStream", "Samples", "load_samples"]

MIXTURE_SIZE = 20_000
MIXTURES = tuple(STANDARD_DEVIATION)


@dataclass(frozen=True)
class Samples:
    """A data set as stored, with the linear map to [-1, 1].

    Attributes:
        name: Name of the data set.
        raw: ``(n, ...)`` in the stored type; images have a channel axis.
        labels: Class or mode of each sample.
        offset: Stored value that becomes 0.
        scale: Stored difference that becomes 1.
        provenance: Source and hashes, for the record.
    """

    name: str
    raw: np.ndarray
    labels: Int[np.ndarray, " n"]
    offset: float
    scale: float
    provenance: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample."""
        return self.raw.shape[1:]

    def __len__(self) -> int:
        return len(self.raw)

    def scaled(self, indices: Any = slice(None)) -> Float[np.ndarray, "n ..."]:
        """Return samples as float32 in [-1, 1] (mixtures: as they are)."""
        values: np.ndarray = self.raw[indices].astype(np.float32)
        return (values - np.float32(self.offset)) / np.float32(self.scale)


def load_samples(
    name: str, split: str = "train", root: str | None = None, *, download: bool = False
) -> Samples:
    """Load a data set by name.

    Args:
        name: ``mog16``, ``ring8``, or any name of `gdyn_reproduce.data` (``digits``, ``mnist``, ``cifar10``
            ...), or ``module:name`` of a function that returns samples, with one class.
        split: ``train`` or ``test``.
        root: Folder with the data, ``GDYN_DATA_DIR`` by default.
        download: Whether missing files may be fetched.

    Raises:
        ValueError: For an unknown name, with the nearest match, and a function that returns no samples.
        FileNotFoundError: If the files are not there.

    Example:
        >>> digits = load_samples("digits")
        >>> digits.shape, float(digits.scaled().min()), float(digits.scaled().max())
        ((8, 8, 1), -1.0, 1.0)
    """
    if name in MIXTURES:
        stream = generator(0, name, split)
        modes = mixture_modes(name)
        labels = stream.integers(len(modes), size=MIXTURE_SIZE)
        noise = STANDARD_DEVIATION[name] * stream.standard_normal((MIXTURE_SIZE, 2))
        points = (modes[labels] + noise).astype(np.float32)
        return Samples(name, points, labels, 0.0, 1.0, {"name": name, "source": "generated from seed 0"})
    if ":" in name:
        points = _own_points(name)
        labels = np.zeros(len(points), int)
        return Samples(name, points, labels, 0.0, 1.0, {"name": name, "source": "the caller's function"})
    if name not in names():
        raise ValueError(unknown("dataset", name, [*MIXTURES, *names()]))
    found = load_dataset(name, split, root, download)
    raw = found.x[..., None] if found.x.ndim == 3 else found.x
    if raw.dtype == np.uint8 and name != "digits":
        offset, scale = 127.5, 127.5
    else:
        low, high = (0.0, 16.0) if name == "digits" else (-1.0, 1.0)
        offset, scale = (low + high) / 2, (high - low) / 2
    return Samples(name, raw, found.y, offset, scale, found.provenance())


def _own_points(name: str) -> Float[np.ndarray, "n ..."]:
    given = named("dataset", name, {}, [])()
    try:
        found = np.asarray(given)
    except ValueError:  # lists of different lengths
        found = np.asarray(None)
    if found.dtype.kind not in "buifV" or found.dtype.names or found.ndim < 2 or not found.size:
        what = f"{found.dtype} of shape {found.shape}" if found.dtype.kind != "O" else "no array"
        raise ValueError(f"dataset {name} returns {what}; it must return real samples of shape (n, ...).")
    with np.errstate(over="ignore"):  # refused by name
        points = found.astype(np.float32)
    if not np.isfinite(points).all():
        raise ValueError(f"dataset {name} holds values that are not finite in single precision.")
    return points


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> Int[np.ndarray, " n"]:
    order = generator(seed, "epoch", epoch).permutation(count)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class BatchStream:
    """Batches by number: every epoch is a new permutation, its incomplete last batch is dropped.

    Attributes:
        samples: The data set.
        batch_size: Of the whole run, over all devices.
        seed: Of the permutations.
    """

    samples: Samples
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse sizes that leave no batch."""
        if not 0 < self.batch_size <= len(self.samples):
            raise ValueError(
                f"batch_size is {self.batch_size}; {self.samples.name} has {len(self.samples)} samples."
            )

    def indices(self, number: int) -> Int[np.ndarray, " n"]:
        """Return which samples make up a batch."""
        per_epoch = len(self.samples) // self.batch_size
        epoch, position = divmod(number, per_epoch)
        order = _epoch_order(self.seed, epoch, len(self.samples))
        start = position * self.batch_size
        return order[start : start + self.batch_size]

    def step(self, step: int, batches_per_step: int) -> Float[np.ndarray, "batches n ..."]:
        """Return the data of one training step."""
        first = step * batches_per_step
        return np.stack([self.samples.scaled(self.indices(first + i)) for i in range(batches_per_step)])
