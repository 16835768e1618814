"""The cost model: closed forms of its prices, limits, and the pieces it allows to be materialised."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from variance.losses import cross_entropy
from variance.per_example import cost, quantities
from variance.per_example.capturing import capture
from variance.per_example.cost import BYTES_PER_SECOND, FLOPS_PER_SECOND, Shape, choose

TASKS = ("squared_norms", "gram", "second_moments", "inner_products")
sizes = st.integers(1, 2000)


def test_prices_of_a_linear_layer_in_closed_form() -> None:
    """Norms of n rank-1 matrices: 2 n (i + o) operations and n (i + o) numbers read."""
    found = choose("squared_norms", Shape(n=10, t=1, o=30, i=20)).seconds["outer"]
    assert found == pytest.approx(2 * 10 * 50 / FLOPS_PER_SECOND + 4 * 10 * 50 / BYTES_PER_SECOND)


@given(st.sampled_from(TASKS), st.integers(1, 300), st.integers(1, 50), sizes, sizes, st.integers(1, 200))
def test_the_choice_is_the_cheapest_candidate(task: str, n: int, t: int, o: int, i: int, k: int) -> None:
    found = choose(task, Shape(n, t, o, i, is_convolution=t > 1), k)  # type: ignore[arg-type]
    assert found.seconds[found.formulation] == min(found.seconds.values()) > 0
    assert ("outer" in found.seconds) == (t == 1)


@given(st.sampled_from(TASKS), st.integers(1, 300), st.integers(1, 50), sizes, sizes)
def test_wider_numbers_and_larger_batches_never_cost_less(task: str, n: int, t: int, o: int, i: int) -> None:
    shape = Shape(n, t, o, i)
    base = choose(task, shape).seconds  # type: ignore[arg-type]
    for larger in (dataclasses.replace(shape, itemsize=8), dataclasses.replace(shape, n=n + 1)):
        other = choose(task, larger).seconds  # type: ignore[arg-type]
        assert all(other[name] >= base[name] for name in base)


@pytest.mark.parametrize(
    ("t", "o", "i", "formulation"), [(4, 512, 4608, "positions"), (784, 64, 25, "kernels")]
)
def test_few_positions_want_pairs_and_small_kernels_are_materialised(
    t: int, o: int, i: int, formulation: str
) -> None:
    """Pairs of positions cost t (i + o) per position, kernels o i: deep and early layers of a CNN."""
    assert choose("squared_norms", Shape(128, t, o, i, is_convolution=True)).formulation == formulation


@pytest.mark.parametrize("task", TASKS)
def test_grouped_convolutions_have_no_factors(task: str) -> None:
    assert list(choose(task, Shape(8, 49, 16, 9, groups=4, is_convolution=True)).seconds) == ["kernels"]  # type: ignore[arg-type]


def test_pieces_stay_below_the_limit_and_cover_every_example_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 3))
    found = capture(model, cross_entropy, torch.randn(7, 2, 5, 5), torch.randint(3, (7,)))
    (_, layer), _ = quantities.weight_layers(found)
    limit = 2 * 3 * 18 * 4 + 1  # two examples of 3 x 18 float32
    monkeypatch.setattr(quantities, "CHUNK_BYTES", limit)
    pieces = list(quantities.kernel_chunks(layer))
    assert [rows.stop - rows.start for rows, _ in pieces] == [2, 2, 2, 1]
    assert all(kernels.nbytes <= limit for _, kernels in pieces)
    torch.testing.assert_close(torch.cat([kernels for _, kernels in pieces]), layer.kernels())
    monkeypatch.setattr(quantities, "CHUNK_BYTES", 1)  # one example at a time is the least
    assert len(list(quantities.kernel_chunks(layer))) == 7


def test_the_limit_is_the_one_the_module_documents() -> None:
    assert quantities.CHUNK_BYTES == cost.CHUNK_BYTES
