"""Streams: independent repeatable forks, and endless sources without indices."""

import pytest
import torch
from torch import nn

from variance.data import DatasetPopulation
from variance.errors import ConfigError
from variance.estimators import SGB, GCOnline
from variance.gradient_clustering import OnlineClustering
from variance.losses import cross_entropy
from variance.objective import Objective, Point
from variance.stream import DataStream, IterableStream


def test_forks_are_independent_and_repeatable(problem) -> None:  # type: ignore[no-untyped-def]
    one, two = problem.stream(), problem.stream()
    fork = one.fork("measure")
    first = [fork.next().indices.tolist() for _ in range(20)]
    assert [one.next().indices.tolist() for _ in range(20)] == [
        two.next().indices.tolist() for _ in range(20)
    ]
    again = two.fork("measure")
    assert [again.next().indices.tolist() for _ in range(20)] == first
    assert [problem.stream().fork("other").next().indices.tolist()] != first[:1]


def test_iterable_data_feed_online_clustering_but_have_no_stratified_sampler() -> None:
    class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            generator = torch.Generator().manual_seed(0)
            while True:
                yield torch.randn(10, 5, generator=generator), torch.randint(3, (10,), generator=generator)

    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    objective, stream = Objective(model, cross_entropy), IterableStream(Endless())
    online = GCOnline(objective, OnlineClustering(3))
    draws = []
    for step in range(5):
        batch = stream.next()
        online.on_frequent(step, Point.of(model), batch)
        draws.append(SGB(objective).direction(Point.of(model), batch).values)
    assert online.clustering.num_batches == 5
    assert batch.indices.tolist() == list(range(40, 50))
    with pytest.raises(ConfigError, match=r"has no length or no indices.*TensorPopulation"):
        DatasetPopulation(Endless())
    with pytest.raises(ConfigError, match="cannot fetch by index; wrap it"):
        DataStream(Endless(), 4)  # type: ignore[arg-type]


def test_a_batch_beyond_the_population_is_refused(problem) -> None:  # type: ignore[no-untyped-def]
    """Without replacement a batch that holds everything twice would have no variance at all."""
    with pytest.raises(ConfigError, match="a batch of 49 exceeds the 48 examples; draw with replacement"):
        problem.stream(49).next()
    assert len(problem.stream(48).next()) == 48


def test_endless_sources_may_yield_mappings() -> None:
    stream = IterableStream([{"x": torch.zeros(3, 2)}, (torch.zeros(2, 2), torch.zeros(2)), torch.zeros(2)])
    assert stream.next().indices.tolist() == [0, 1, 2]
    assert stream.next().indices.tolist() == [3, 4]
    with pytest.raises(ConfigError, match="must be \\(input, target\\) pairs or mappings"):
        stream.next()
