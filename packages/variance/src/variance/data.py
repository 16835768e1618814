"""Populations that return indices, and the variants of a data set the paper studies."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from variance.errors import ConfigError, require_count, require_number
from variance.losses import require_equally_many, take
from variance.objective import Batch
from variance.randomness import Seed, generator_of

Augmentation = Callable[[Tensor, np.random.Generator], Tensor]
"""`augment(inputs, generator)`; all randomness from the generator."""


class Population(Protocol):
    """A finite set of examples that can be fetched by index."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Int[Tensor, "n"], generator: np.random.Generator | None = None) -> Batch:
        """Return examples with unit weights; without a generator nothing is augmented."""


class TensorPopulation:
    """A population held in memory.

    Args:
        inputs: Inputs, examples first.
        targets: Targets, examples first.
        augment: Applied to fetched inputs when a generator is given.

    Example:
        >>> population = TensorPopulation(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]))
        >>> population.fetch(torch.tensor([2])).inputs
        tensor([[4., 5.]])
    """

    def __init__(self, inputs: Any, targets: Any, augment: Augmentation | None = None) -> None:
        self._length = require_equally_many(inputs, targets)
        self.inputs, self.targets, self.augment = inputs, targets, augment

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: Int[Tensor, "n"], generator: np.random.Generator | None = None) -> Batch:
        """Return examples with unit weights."""
        _require_inside(indices, len(self))
        inputs, targets = take((self.inputs, self.targets), indices)
        if self.augment is not None and generator is not None:
            inputs = self.augment(inputs, generator)
        return Batch(inputs, targets, indices, torch.ones(len(indices)))


class DatasetPopulation:
    """A map-style `torch.utils.data.Dataset` of pairs or mappings, seen as a population.

    Args:
        dataset: Data set with a length.
        augment: Applied to stacked inputs when a generator is given.
        collate: Makes a batch of examples.

    Raises:
        ConfigError: The data set has no length, so its examples have no indices.
    """

    def __init__(
        self,
        dataset: "Dataset[Any]",
        augment: Augmentation | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ConfigError(
                f"{type(dataset).__name__} has no length or no indices; stratified sampling needs both. "
                "Materialise it "
                "as TensorPopulation(inputs, targets), or use the online estimator on its batches."
            )
        if len(dataset) == 0:
            raise ConfigError(f"{type(dataset).__name__} is empty.")
        self.dataset, self.augment, self._collate = dataset, augment, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, indices: Int[Tensor, "n"], generator: np.random.Generator | None = None) -> Batch:
        """Return examples with unit weights, loaded one by one."""
        _require_inside(indices, len(self))
        inputs, targets = examples_of(self._collate([self.dataset[int(i)] for i in indices]))
        if self.augment is not None and generator is not None:
            inputs = self.augment(inputs, generator)
        return Batch(inputs, targets, indices, torch.ones(len(indices)))


def examples_of(batch: Any) -> tuple[Any, Any]:
    """Return inputs and targets of a collated batch: a pair, or a mapping that holds its own targets.

    Example:
        >>> examples_of([torch.zeros(2, 3), torch.zeros(2)])[1].shape
        torch.Size([2])
        >>> examples_of({"input_ids": torch.zeros(2, 3)})[1] is None
        True

    Raises:
        ConfigError: Anything else.
    """
    if isinstance(batch, Mapping):
        return dict(batch), None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise ConfigError(
        f"examples are {type(batch).__name__}; they must be (input, target) pairs or mappings of keywords."
    )


class IndexedDataset:
    """A population with duplicates, corrupted labels, class imbalance or a size cap.

    Applied in this order: cap, imbalance, duplicates, corruption. Every change is a precomputed array, and
    all randomness comes from this instance's seed.

    Args:
        base: The population to change.
        duplicates: `(n, times)`: n random distinct examples, each appended `times` times.
        corrupt_percent: The first p percent of indices receive uniform random labels (which may be the true
            ones).
        shuffle_ids: Corrupt random indices instead of the first ones.
        imbalance: `(class, ratio)`: that class appears floor(ratio) times plus a random part, others once.
        max_size: Keep a random subset of this size.
        num_classes: Number of classes for corruption; the largest target plus one by default.
        seed: Seed of this instance.

    Example:
        >>> base = TensorPopulation(torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]))
        >>> len(IndexedDataset(base, duplicates=(2, 3)))
        10
    """

    def __init__(
        self,
        base: TensorPopulation,
        *,
        duplicates: tuple[int, int] | None = None,
        corrupt_percent: float = 0.0,
        shuffle_ids: bool = False,
        imbalance: tuple[int, float] | None = None,
        max_size: int | None = None,
        num_classes: int | None = None,
        seed: Seed = 0,
    ) -> None:
        generator = generator_of(seed)
        require_number("corrupt_percent", corrupt_percent, 0, 100)
        targets = base.targets.cpu().numpy()
        source = np.arange(len(base))
        if max_size is not None:
            require_count("max_size", max_size)
            source = np.sort(generator.permutation(source)[:max_size])
        if imbalance is not None:
            source = _imbalanced(source, targets, *imbalance, generator)
        if duplicates is not None:
            count, times = duplicates
            require_count("the number of duplicated examples", count, 1, len(source))
            require_count("the times of duplicates", times, 0)
            source = np.concatenate(
                [source, np.repeat(generator.choice(source, count, replace=False), times)]
            )
        self.base, self.source = base, torch.from_numpy(source)
        self.targets = base.targets[self.source].clone()
        self.corrupted = np.zeros(len(source), dtype=bool)
        chosen = generator.permutation(len(source)) if shuffle_ids else np.arange(len(source))
        chosen = chosen[: round(len(source) * float(corrupt_percent) / 100)]
        if len(chosen):
            classes = num_classes or int(targets.max()) + 1
            self.targets[torch.from_numpy(chosen)] = torch.from_numpy(
                generator.integers(classes, size=len(chosen))
            )
            self.corrupted[chosen] = True

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Int[Tensor, "n"], generator: np.random.Generator | None = None) -> Batch:
        """Return examples with unit weights; O(1) per example."""
        _require_inside(indices, len(self))
        found = self.base.fetch(self.source[indices], generator)
        return Batch(found.inputs, self.targets[indices], indices, found.weights)


def _require_inside(indices: Int[Tensor, "n"], num_examples: int) -> None:
    """Refuse what indexing would take for a count from the end, or fail on without a word about the data."""
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= num_examples):
        low, high = int(indices.min()), int(indices.max())
        raise ConfigError(f"indices run from {low} to {high}; allowed are 0 to {num_examples - 1}.")


def _imbalanced(
    source: np.ndarray, targets: np.ndarray, label: int, ratio: float, generator: np.random.Generator
) -> np.ndarray:
    members = source[targets[source] == label]
    require_number("the ratio of imbalance", ratio, 0)
    if len(members) == 0:
        raise ConfigError(f"imbalance=({label}, {ratio}): class {label} has 0 examples.")
    whole, part = divmod(ratio, 1.0)
    extra = generator.permutation(members)[: round(part * len(members))]
    others = source[targets[source] != label]
    return np.sort(np.concatenate([others, np.repeat(members, int(whole)), extra]))


def shift_and_flip(inputs: Tensor, generator: np.random.Generator, *, padding: int = 4) -> Tensor:
    """Augment images as usual for CIFAR: zero-pad, crop at random, mirror half of them.

    Args:
        inputs: Images, (n, channels, height, width).
        generator: Random source.
        padding: Largest shift in pixels.
    """
    n, _, height, width = inputs.shape
    padded = torch.nn.functional.pad(inputs, (padding,) * 4)
    top, left = torch.from_numpy(generator.integers(2 * padding + 1, size=(2, n, 1)))
    rows = (top + torch.arange(height)).unsqueeze(2)
    columns = (left + torch.arange(width)).unsqueeze(1)
    cropped = padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
    mirrored = torch.from_numpy(generator.random(n) < 0.5)[:, None, None, None]
    return torch.where(mirrored, cropped.flip(3), cropped)
