"""Named, seeded, restartable streams of batches over one population."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from gdyn_common.seeding import generator as named_generator
from variance.data import Population, examples_of
from variance.errors import ConfigError, require_count
from variance.losses import require_equally_many
from variance.objective import Batch
from variance.randomness import Seed, number_of
from variance.sampling.index_samplers import (
    Draw,
    IndexSampler,
    UniformSampler,
)
from variance.state import Stateful

MakeSampler = Callable[[int, np.random.Generator], IndexSampler]
"""`make(num_examples, generator)`."""


class DataStream(Stateful):
    """Batches in an order that depends on the seed and the stream's name only.

    A fork has its own generator and position: drawing from it moves nothing else. With workers, batches are
    loaded ahead by a copy of the sampler, while the state of the stream is that of the batches already handed
    out.

    Args:
        population: Where examples come from.
        batch_size: Default number of examples per batch.
        seed: Seed of the run.
        name: Name of this stream.
        make_sampler: Who decides the indices; uniform epochs by default.
        num_workers: Processes that load ahead.

    Example:
        >>> from variance.data import TensorPopulation
        >>> stream = DataStream(TensorPopulation(torch.zeros(4, 1), torch.zeros(4)), 2, seed=0)
        >>> sorted(torch.cat([stream.next().indices, stream.next().indices]).tolist())
        [0, 1, 2, 3]
    """

    STATE = ("sampler", "_augmentation")

    def __init__(
        self,
        population: Population,
        batch_size: int,
        *,
        seed: Seed = 0,
        name: tuple[str | int, ...] = ("train",),
        make_sampler: MakeSampler = UniformSampler,
        num_workers: int = 0,
    ) -> None:
        if not hasattr(population, "fetch"):
            raise ConfigError(
                f"{type(population).__name__} cannot fetch by index; wrap it in TensorPopulation or "
                "DatasetPopulation."
            )
        require_count("batch_size", batch_size)
        require_count("num_workers", num_workers, 0)
        self.population, self.batch_size = population, batch_size
        self.seed, self.name, self.num_workers = number_of(seed), name, num_workers
        self._make_sampler = make_sampler
        self.sampler = make_sampler(len(population), named_generator(self.seed, *name, "order"))
        self._augmentation = named_generator(self.seed, *name, "augmentation")
        self._ahead: Iterator[Batch] | None = None

    def fork(self, *name: str | int, make_sampler: MakeSampler | None = None) -> "DataStream":
        """Return an independent stream over the same population; the same name gives the same stream."""
        return DataStream(
            self.population,
            self.batch_size,
            seed=self.seed,
            name=(*self.name, "fork", *name),
            make_sampler=make_sampler or self._make_sampler,
        )

    def next(self, count: int | None = None) -> Batch:
        """Return the next batch, of `count` examples where given (not with workers)."""
        draw = self.sampler.draw(self.batch_size if count is None else count)
        seed = int(self._augmentation.integers(2**63))
        if self.num_workers == 0:
            return load(self.population, draw, seed)
        if count not in (None, self.batch_size):
            raise ConfigError("a stream with workers has one batch size; fork it for another.")
        if self._ahead is None:
            first = [(draw, seed)]
            ahead = copy.deepcopy((self.sampler, self._augmentation))
            plan = _Plan(*ahead, self.batch_size, first)
            self._ahead = iter(
                DataLoader(
                    _Loads(self.population),
                    batch_sampler=plan,
                    num_workers=self.num_workers,
                    collate_fn=_only,
                    generator=torch.Generator().manual_seed(0),  # instead of the global one
                    multiprocessing_context="fork",
                )
            )
        return next(self._ahead)

    def restart_workers(self) -> None:
        """Forget batches loaded ahead; needed after the sampler was changed from outside."""
        self._ahead = None

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.restart_workers()


def load(population: Population, draw: Draw, seed: int) -> Batch:
    """Fetch a draw, augmented by a generator of its own."""
    found = population.fetch(draw.indices, np.random.default_rng(seed))
    return Batch(found.inputs, found.targets, found.indices, draw.weights.to(found.weights))


class _Plan:
    """What will be drawn, computed ahead on a copy of the sampler."""

    def __init__(
        self,
        sampler: IndexSampler,
        augmentation: np.random.Generator,
        size: int,
        first: list[tuple[Draw, int]],
    ) -> None:
        self._sampler, self._augmentation, self._size, self._first = sampler, augmentation, size, first

    def __iter__(self) -> Iterator[list[tuple[Draw, int]]]:
        yield self._first
        while True:
            draw = self._sampler.draw(self._size)
            yield [(draw, int(self._augmentation.integers(2**63)))]


class _Loads(Dataset[Batch]):
    """A data set whose keys are whole draws."""

    def __init__(self, population: Population) -> None:
        self._population = population

    def __getitem__(self, key: tuple[Draw, int]) -> Batch:
        return load(self._population, *key)


def _only(batches: list[Batch]) -> Batch:
    return batches[0]


class IterableStream:
    """Batches of an endless source without indices: enough for plain gradients and online clustering.

    Args:
        dataset: Yields batches: (inputs, targets), or mappings of keywords that hold their own targets.
    """

    def __init__(self, dataset: Iterable[Any]) -> None:
        self._batches = iter(dataset)
        self._count = 0

    def next(self) -> Batch:
        """Return the next batch; indices count examples from the start of the stream.

        Raises:
            StopIteration: The source ended.
        """
        inputs, targets = examples_of(next(self._batches))
        size = require_equally_many(inputs, targets)
        indices = torch.arange(size) + self._count
        self._count += size
        return Batch(inputs, targets, indices, torch.ones(size))
