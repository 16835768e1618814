"""Data sets: sizes, scaling, batches."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from chaos.paper.data import load_data

SIZES = {
    "digits": (1437, 360, 8),
    "digits16": (1437, 360, 16),
    "synthetic": (400, 200, 16),
}


@pytest.mark.parametrize("name", SIZES)
def test_shapes(name):
    data = load_data(name)
    train, test, side = SIZES[name]
    assert data.x_train.shape == (train, 1, side, side)
    assert data.x_test.shape == (test, 1, side, side)
    assert data.num_inputs == side**2
    assert set(data.y_train.tolist()) == set(range(10))
    assert data.x_train.dtype == torch.float32


@pytest.mark.data("usps")
def test_usps_has_912_steps_and_a_last_batch_of_3():
    data = load_data("usps")
    assert (len(data.x_train), len(data.x_test)) == (7291, 2007)
    assert data.steps_per_epoch(8) == 912
    last = list(islice(data.batches(0, 8), 912))[-1]
    assert len(last) == 3
    unit = load_data("usps", "unit")
    assert (unit.x_train.min(), unit.x_train.max()) == (0, 1)


@pytest.mark.data("fashion_mnist")
def test_fashion_mnist_is_resized():
    data = load_data("fmnist", "unit")
    assert data.x_train.shape == (60000, 1, 16, 16)
    assert 0 <= data.x_train.min() < data.x_train.max() <= 1


def test_scaling():
    unit, center, standard = (
        load_data("digits", kind, dtype=torch.float64) for kind in ("unit", "center", "standard")
    )
    assert (unit.x_train.min(), unit.x_train.max()) == (0, 1)
    mean, std = unit.x_train.mean(), unit.x_train.std()
    assert (center.x_train - (unit.x_train - mean)).abs().max() < 1e-14
    assert (standard.x_train - (unit.x_train - mean) / std).abs().max() < 1e-12
    assert (standard.x_test - (unit.x_test - mean) / std).abs().max() < 1e-12
    assert "normalize=center" in center.source


def test_batches_are_epochs_of_permutations():
    data = load_data("synthetic")
    steps = data.steps_per_epoch(7)
    batches = list(islice(data.batches(3, 7), 2 * steps))
    assert [len(b) for b in batches[:steps]] == [7] * 57 + [1]
    first, second = (np.concatenate(batches[i * steps : (i + 1) * steps]) for i in (0, 1))
    assert sorted(first) == sorted(second) == list(range(400))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("start", [1, 57, 58, 100])
def test_batches_continue_in_the_middle(start):
    data = load_data("synthetic")
    whole = list(islice(data.batches(3, 7), 120))[start:]
    part = list(islice(data.batches(3, 7, start), 120 - start))
    assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("mnist",), ValueError, "dataset=mnist is unknown. Allowed: usps, fmnist, digits, digits16"),
        (("digits", "max"), ValueError, "normalize=max is unknown. Allowed: standard, center, unit"),
        (("usps", "standard", "/nowhere"), FileNotFoundError, "usps"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        load_data(*arguments)
