"""The image of a direction under the tangent of a map, exact or by central differences."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.autograd import forward_ad

from instability.streams import RandomStreams

__all__ = ["Map", "State", "by_differences", "by_jvp", "has_tangent"]

State = Mapping[str, Tensor]
Map = Callable[[dict[str, Tensor], int], State]
NO_TANGENT = re.compile(r"forward[- ]?(mode )?AD|forward gradient|automatic differentiation")


def by_jvp(step: Map, state: State, tangents: State, number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the next state and the image of a direction, by forward-mode differentiation."""
    with forward_ad.dual_level():
        duals = {  # of copies, since a step may work in place
            name: forward_ad.make_dual(value.clone(), tangents[name].clone()) for name, value in state.items()
        }
        after = step(duals, number)
        pairs = {name: forward_ad.unpack_dual(after[name]) for name in state}
        return {name: primal.detach().clone() for name, (primal, _) in pairs.items()}, _flat(
            {
                name: torch.zeros_like(primal) if tangent is None else tangent
                for name, (primal, tangent) in pairs.items()
            }
        )


def by_differences(step: Map, state: State, tangents: State, number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the same from two steps beside the state, under the same random numbers."""
    streams = RandomStreams.now()
    size, length = float(_flat(state).norm()), float(_flat(tangents).norm())
    eps = torch.finfo(next(iter(state.values())).dtype).eps
    h = eps ** (1 / 3) * (size or 1.0) / length
    ends = []
    for sign in (1, -1):
        streams.restore()
        ends.append(_flat(_detached(step({n: v + sign * h * tangents[n] for n, v in state.items()}, number))))
    streams.restore()
    copies = {name: value.clone() for name, value in state.items()}  # since a step may work in place
    return _detached(step(copies, number)), (ends[0] - ends[1]) / (2 * h)


def has_tangent(step: Map, state: State, tangents: State, number: int) -> bool:
    """Whether forward-mode differentiation follows a step: it agrees with a difference.

    A step that detaches its state, goes through NumPy or writes to ``p.data`` loses the tangent silently.

    Raises:
        ValueError: the step makes two results of one state.
    """
    streams, found = RandomStreams.now(), []
    try:
        for push in (by_jvp, by_differences):
            streams.restore()
            found.append(push(step, state, tangents, number))
    except RuntimeError as error:
        if not NO_TANGENT.search(str(error)):
            raise
        return False
    finally:
        streams.restore()
    (first, exact), (second, difference) = found
    for name in state:
        level = torch.finfo(state[name].dtype).eps ** 0.5
        if not torch.allclose(first[name], second[name], rtol=level, atol=level, equal_nan=True):
            raise ValueError(
                f"the step makes two results of one state ({name} differs): it keeps something; make that "
                "part of the state."
            )
    return bool((exact - difference).norm() <= 0.05 * difference.norm())


def _detached(state: State) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.items()}


def _flat(state: State) -> Tensor:
    return torch.cat([value.detach().reshape(-1).to(torch.float64) for value in state.values()])
