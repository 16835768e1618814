"""Directions as gradients of torch optimisers: closed forms, order of parameters, state."""

import io

import pytest
import torch
from torch import nn

from variance.objective import Point
from variance.paper.optimizer import Optimizer

EXACT = {"rtol": 1e-12, "atol": 0.0}


def build(**options: float) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1, bias=False)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)  # type: ignore[arg-type]
    return model, Optimizer(Point.of(model), optimizer)


def test_momentum_and_weight_decay_follow_their_recursion() -> None:
    """Velocity v <- 0.9 v + d + 0.01 theta, theta <- theta - eta v, with another eta in the second step."""
    model, optimizer = build(momentum=0.9, weight_decay=0.01)
    theta = optimizer.point.flat().clone()
    directions = torch.randn(2, len(theta), dtype=torch.float64)
    v = torch.zeros_like(theta)
    for direction, rate in zip(directions, (0.1, 0.02), strict=True):
        v = 0.9 * v + direction + 0.01 * theta
        theta = theta - rate * v
        optimizer.apply(direction, None if rate == 0.1 else rate)
    torch.testing.assert_close(optimizer.point.flat(), theta, **EXACT)
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(model.parameters()).detach(), theta)


def test_a_direction_is_cut_in_the_order_of_the_parameters() -> None:
    model, optimizer = build()
    before = [p.detach().clone() for p in model.parameters()]
    total = sum(p.numel() for p in before)
    optimizer.apply(torch.arange(total, dtype=torch.float64))
    moved = torch.cat(
        [(old - p.detach()).flatten() for old, p in zip(before, model.parameters(), strict=True)]
    )
    torch.testing.assert_close(moved, 0.1 * torch.arange(total, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_any_torch_optimiser_can_be_used() -> None:
    """The first step of Adam has size lr in every coordinate, whatever the direction's length."""
    model = nn.Linear(3, 2).double()
    optimizer = Optimizer(Point.of(model), torch.optim.Adam(model.parameters(), lr=0.01, eps=0.0))
    before = optimizer.point.flat().clone()
    optimizer.apply(torch.tensor([1e3, -1e-3, 2.0, 5.0, -1.0, 1.0, 3.0, -4.0], dtype=torch.float64))
    torch.testing.assert_close((before - optimizer.point.flat()).abs(), torch.full((8,), 0.01).double())


def test_a_restored_optimiser_continues_bit_for_bit() -> None:
    directions = torch.randn(6, 18, dtype=torch.float64)
    _, whole = build(momentum=0.9)
    for direction in directions:
        whole.apply(direction)
    model, first = build(momentum=0.9)
    for direction in directions[:3]:
        first.apply(direction)
    model[1].running_mean.fill_(7.0)  # type: ignore[union-attr]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    other, second = build(momentum=0.9)
    second.load_state_dict(torch.load(file, weights_only=True))
    for direction in directions[3:]:
        second.apply(direction)
    assert torch.equal(second.point.flat(), whole.point.flat())
    assert torch.equal(other[1].running_mean, torch.full((3,), 7.0).double())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_a_state_with_a_missing_tensor_is_refused(kind: str) -> None:
    _, optimizer = build()
    state = optimizer.state_dict()
    name = next(iter(state["point"][kind]))
    del state["point"][kind][name]
    with pytest.raises(ValueError, match=f"checkpoint has {name}: missing.*belongs to another model"):
        optimizer.load_state_dict(state)


def test_a_direction_of_the_wrong_length_is_refused() -> None:
    _, optimizer = build()
    with pytest.raises(ValueError, match=r"shape \(3,\) does not fit 18 parameters"):
        optimizer.apply(torch.zeros(3, dtype=torch.float64))
