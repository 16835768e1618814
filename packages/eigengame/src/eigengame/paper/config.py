"""Where figures and commands compute, in which floating type, and checks that they share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from gdyn_reproduce.data import Dataset, load_dataset
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run, RunOptions

__all__ = ["ComputeOptions", "DataOptions", "check_positive", "on_device", "per_seed"]


@dataclass
class ComputeOptions(RunOptions):
    """What the configurations of all figures share.

    Attributes:
        device: cpu, cuda, cuda:1, tpu; null takes what JAX takes.
        dtype: float32 or float64.
    """

    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype={self.dtype} is unknown. Allowed: float32, float64.")
        self.devices()

    def devices(self) -> list[jax.Device]:
        """Return the devices that the key means, the one that computes first.

        Raises:
            ValueError: If JAX does not see it.

        Example:
            >>> ComputeOptions(device="cpu:0").devices()[0].platform
            'cpu'
        """
        platform, _, number = (self.device or "").partition(":")
        try:
            found = jax.devices(platform or None)[int(number or 0) :]
        except (RuntimeError, ValueError):
            found = []
        if not found:
            seen = ", ".join(map(str, jax.devices()))
            raise ValueError(f"device={self.device} is not present here; JAX sees {seen}. Use device=cpu.")
        return found

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute on the device and in the floating type while the context lasts."""
        with jax.default_device(self.devices()[0]), jax.enable_x64(self.dtype == "float64"):
            yield


@dataclass
class DataOptions(ComputeOptions):
    """What the configurations of figures with data sets share."""

    data_root: str | None = None
    download: bool = False

    def training_set(self, name: str) -> Dataset:
        """Return the samples for training of a data set, where they came from, and their hashes.

        Example:
            >>> DataOptions().training_set("digits").x.shape[1:]
            (8, 8)
        """
        return load_dataset(name, "train", self.data_root, self.download)


C = TypeVar("C", bound=ComputeOptions)


def on_device(compute: Callable[[C, Run], Result]) -> Callable[[C, Run], Result]:
    """Decorate a figure's `compute`: it runs where, and in the type that, its configuration says."""

    @wraps(compute)
    def placed(config: C, run: Run) -> Result:
        with config.computing():
            return compute(config, run)

    return placed


def per_seed(
    run: Run, name: str, compute: Callable[[int], dict[str, NDArray]], seeds: Iterable[int]
) -> dict[str, NDArray]:
    """Return the arrays of one piece of the run per seed, stacked; `name` begins those of the pieces."""
    pieces = [run.piece(f"{name}seed={seed}", partial(compute, seed)) for seed in seeds]
    return {key: np.stack([piece[key] for piece in pieces]) for key in pieces[0]}


def check_positive(**values: float) -> None:
    """Refuse values that are not positive, by name."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive.")
