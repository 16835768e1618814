"""Populations and their variants: duplicates, corruption, imbalance, augmentation, bad input."""

import numpy as np
import pytest
import torch

from variance.data import IndexedDataset, TensorPopulation, shift_and_flip
from variance.errors import ConfigError


def test_variants_of_a_data_set() -> None:
    base = TensorPopulation(torch.arange(100.0).unsqueeze(1), torch.arange(100) % 10)
    copied = IndexedDataset(base, duplicates=(3, 5), seed=1)
    assert len(copied) == 115
    assert torch.bincount(copied.source).sort(descending=True).values[:4].tolist() == [6, 6, 6, 1]
    corrupted = IndexedDataset(base, corrupt_percent=20, seed=1)
    assert corrupted.corrupted.sum() == 20
    assert corrupted.corrupted[:20].all()
    assert torch.equal(corrupted.targets[20:], base.targets[20:])
    assert not IndexedDataset(base, corrupt_percent=20, shuffle_ids=True, seed=1).corrupted[:20].all()
    skewed = IndexedDataset(base, imbalance=(3, 2.5), seed=1)
    assert int((skewed.targets == 3).sum()) == 25
    assert len(skewed) == 115
    small = IndexedDataset(base, max_size=7, seed=1)
    batch = small.fetch(torch.tensor([0, 6]))
    assert len(small) == 7
    assert batch.inputs.flatten().long().remainder(10).tolist() == batch.targets.tolist()


def test_constructing_a_data_set_leaves_global_randomness_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    IndexedDataset(
        TensorPopulation(torch.zeros(9, 1), torch.zeros(9).long()), corrupt_percent=50, duplicates=(2, 2)
    )
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duplicates": (10, 1)}, "duplicated examples is 10; pass a whole number from 1 to 9"),
        ({"corrupt_percent": 101}, "corrupt_percent is 101; pass a number of at least 0, of at most 100"),
        ({"imbalance": (7, 2.0)}, "class 7 has 0 examples"),
        ({"max_size": 0}, "max_size is 0"),
    ],
)
def test_bad_variants(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IndexedDataset(TensorPopulation(torch.zeros(9, 1), torch.zeros(9).long()), **options)  # type: ignore[arg-type]


def test_an_empty_population_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 inputs and 0 targets"):
        TensorPopulation(torch.zeros(0, 1), torch.zeros(0))


def test_shift_and_flip_keeps_pixels() -> None:
    images = torch.rand(8, 3, 6, 6) + 1
    out = shift_and_flip(images, np.random.default_rng(0), padding=0)
    assert all(torch.equal(o, i) or torch.equal(o, i.flip(2)) for o, i in zip(out, images, strict=True))
    assert any(torch.equal(o, i.flip(2)) for o, i in zip(out, images, strict=True))


def test_negative_indices_are_refused() -> None:
    population = TensorPopulation(torch.zeros(9, 1), torch.zeros(9).long())
    with pytest.raises(ConfigError, match=r"indices run from -1 to 3; allowed are 0 to 8"):
        population.fetch(torch.tensor([3, -1]))
    with pytest.raises(ConfigError, match="allowed are 0 to 8"):
        IndexedDataset(population, corrupt_percent=50).fetch(torch.tensor([9]))
