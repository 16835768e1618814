import numpy as np
import pytest
import torch

from instability.rounding import Cast, ScaleDivide, StochasticUlp, check_perturbation, perturb_update

DIRECTION = torch.randn(4000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("k", [0, -1, True, False, 1.5, 3.0, "3", None])
def test_only_positive_ints_are_perturbations(k):
    with pytest.raises(ValueError, match=r"perturbation=.* is not allowed: pass an int >= 1"):
        check_perturbation(k)


@pytest.mark.parametrize("k", [1, 2, 4, 8, 1024])
def test_powers_of_two_leave_the_product_alone(k):
    direction, rate = perturb_update(DIRECTION, 0.1, k)
    assert torch.equal(direction * rate, DIRECTION * 0.1)


@pytest.mark.parametrize("k", [3, 5, 7, 9, 11])
def test_one_step_changes_the_share_of_entries_the_spec_measured(k):
    """11 to 19 % of the entries in float32 at lr 0.1 there; it depends on the size of p against lr * d."""
    start = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    direction, rate = perturb_update(DIRECTION, 0.1, k)
    moved = (start.add(direction, alpha=-rate) != start.add(DIRECTION, alpha=-0.1)).float().mean().item()
    assert 0.05 < moved < 0.25


@pytest.mark.parametrize("ulps", [1, 3])
def test_stochastic_ulp_moves_by_at_most_its_ulps_and_is_centred(ulps):
    moved, rate = StochasticUlp(torch.Generator().manual_seed(0), ulps)(DIRECTION, 0.1)
    # Floats of one sign are ordered as their bits are.
    distance = np.abs(moved.numpy().view(np.int32) - DIRECTION.numpy().view(np.int32))
    assert rate == 0.1
    assert set(np.unique(distance)) == set(range(ulps + 1))
    # Mean of a uniform integer in [-u, u]: standard error < u / sqrt(4000); 5 of them, failure below 1e-6.
    assert abs(np.mean(np.sign(moved.numpy() - DIRECTION.numpy()) * distance)) < 5 * ulps / np.sqrt(4000)


def test_cast_to_a_wider_type_changes_nothing():
    assert torch.equal(Cast(torch.float64)(DIRECTION, 0.1)[0], DIRECTION)
    assert not torch.equal(Cast(torch.bfloat16)(DIRECTION, 0.1)[0], DIRECTION)


def test_bad_arguments():
    with pytest.raises(ValueError, match="not a floating type"):
        Cast("bfloat16")
    with pytest.raises(ValueError, match="not a floating type"):
        Cast(torch.int32)
    with pytest.raises(ValueError, match="ulps=0"):
        StochasticUlp(torch.Generator(), 0)
    assert repr(ScaleDivide(3)) == "ScaleDivide(3)"


def test_numbers_without_a_next_one_are_left_alone():
    info = torch.finfo(torch.float32)
    direction = torch.tensor([torch.inf, -torch.inf, torch.nan, info.max, -info.max]).repeat(20)
    moved, _ = StochasticUlp(torch.Generator().manual_seed(0), ulps=2)(direction, 0.1)
    assert torch.equal(moved.isinf(), direction.isinf())
    assert torch.equal(moved.sign().nan_to_num(), direction.sign().nan_to_num())
    assert (moved[direction == info.max] < info.max).any()


@pytest.mark.parametrize(
    "make", [lambda: StochasticUlp(torch.Generator().manual_seed(0)), lambda: Cast(torch.bfloat16)]
)
def test_both_parts_of_complex_directions_are_perturbed(make):
    direction = torch.randn(200, dtype=torch.cfloat, generator=torch.Generator().manual_seed(1))
    moved, _ = make()(direction, 0.1)
    parts, _ = make()(torch.view_as_real(direction), 0.1)
    assert torch.equal(torch.view_as_real(moved), parts)
    assert (moved.imag != direction.imag).any()
    torch.testing.assert_close(moved, direction, rtol=1e-2, atol=0)
