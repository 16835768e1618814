"""Ways to disturb an update by about one unit in the last place.

A step subtracts ``rate * direction`` from a parameter. A ``RoundingPerturbation`` replaces the pair by
another whose product is the same in exact arithmetic, or differs from it by rounding only.

Source: Sec. 4.1 of Sun et al. 2022.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "Cast",
    "Rooms",
    "RoundingPerturbation",
    "ScaleDivide",
    "StochasticUlp",
    "check_perturbation",
    "is_power_of_two",
    "perturb_update",
    "underflows",
]


@runtime_checkable
class RoundingPerturbation(Protocol):
    """Anything that maps a direction and a rate to a direction and a rate with nearly the same product."""

    def __call__(self, direction: Tensor, rate: float) -> tuple[Tensor, float]:
        """Return the disturbed direction and rate."""
        ...


def check_perturbation(k: object) -> int:
    """Return ``k`` if it is an int of at least 1, else raise ValueError.

    >>> check_perturbation(3)
    3
    """
    if isinstance(k, bool | np.bool_) or not isinstance(k, int | np.integer) or not 1 <= k < 2**63:
        raise ValueError(
            f"perturbation={k!r} is not allowed: pass an int >= 1 that fits 64 bits. 1 is the plain update, "
            "powers of two change nothing, odd numbers from 3 on perturb."
        )
    return int(k)


def is_power_of_two(k: int) -> bool:
    """Tell whether dividing and multiplying by ``k`` is exact in binary floating point, i.e. a null control.

    >>> [k for k in range(1, 9) if is_power_of_two(k)]
    [1, 2, 4, 8]
    """
    return k > 0 and k & (k - 1) == 0


def perturb_update(
    direction: Float[Tensor, "*shape"], rate: float, k: int
) -> tuple[Float[Tensor, "*shape"], float]:
    """Return ``(direction / k, rate * k)``, whose product is ``rate * direction`` in exact arithmetic.

    Two roundings differ from the plain update: ``direction / k`` per element, at most half a unit in the last
    place, and ``rate * k``, one constant relative error. For powers of two both are exact.

    >>> direction, rate = perturb_update(torch.tensor([1.0]), 0.1, 3)
    >>> direction.item(), rate
    (0.3333333432674408, 0.30000000000000004)
    """
    check_perturbation(k)
    return (direction, rate) if k == 1 else (direction / k, rate * k)


class Rooms:
    """Memory that is used again: on a CPU a new tensor costs more than the arithmetic that fills it.

    >>> rooms = Rooms()
    >>> first, second = rooms.like(torch.ones(4), "a"), rooms.like(torch.zeros(4), "a")
    >>> first.data_ptr() == second.data_ptr()
    True
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._joined: dict[tuple[object, ...], tuple[Tensor, list[Tensor]]] = {}

    def like(self, t: Tensor, name: str) -> Tensor:
        """Return a tensor like ``t`` with any content; the next of that name overwrites it.

        Of the same strides, too: torch rounds in another way where those of two operands differ.
        """
        if t.is_contiguous():
            return self._room(name, t, t.numel()).view(t.shape)
        key = (name, t.shape, t.stride(), t.device, t.dtype)
        if key not in self._kept:
            self._kept[key] = torch.empty_like(t)
        return self._kept[key]

    def flat(self, tensors: list[Tensor], name: str) -> tuple[Tensor, list[Tensor]]:
        """Copy contiguous tensors of one type into one vector; return it and its parts in their shapes."""
        key = (name, tensors[0].device, tensors[0].dtype, *(t.shape for t in tensors))
        if key not in self._joined:
            if len(self._joined) == _JOINED:
                self._joined.clear()
            flat = self._room(name, tensors[0], sum(t.numel() for t in tensors))
            parts = flat.split([t.numel() for t in tensors])
            self._joined[key] = flat, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
        flat, parts = self._joined[key]
        torch._foreach_copy_(parts, tensors)
        return flat, parts

    def _room(self, name: str, t: Tensor, size: int) -> Tensor:
        """Return ``size`` entries of a room that grows to the largest that was asked for."""
        key = (name, t.device, t.dtype)
        if key not in self._kept or len(self._kept[key]) < size:
            self._joined.clear()  # of views of the room that was too small
            self._kept[key] = t.new_empty(size)
        return self._kept[key][:size]


_JOINED = 256
"""Sets of tensors whose views are kept; where the set changes with each step, they are made anew."""


def underflows(direction: Float[Tensor, "*shape"], k: int, rooms: Rooms) -> Bool[Tensor, "*shape"] | None:
    """Tell which entries lose digits when they are divided by ``k``, as the quotient would be subnormal.

    Such entries are left alone, since dividing them is not exact even for powers of two. ``None`` if there
    are none, which one look at the smallest entry tells.

    >>> underflows(torch.tensor([1.0, 1e-38, 0.0]), 2, Rooms()).tolist()
    [False, True, False]
    >>> underflows(torch.tensor([1.0, 0.0]), 2, Rooms()) is None
    True
    """
    if direction.is_complex():  # each part rounds by itself
        small = underflows(torch.view_as_real(direction.resolve_conj()), k, rooms)
        return None if small is None else small.any(-1)
    if not direction.numel():
        return None
    size = torch.abs(direction, out=rooms.like(direction, "size"))
    limit = k * torch.finfo(direction.dtype).tiny
    if float(size.amin()) >= limit or float(torch.threshold_(size, 0.0, torch.inf).amin()) >= limit:
        return None
    return size < limit


class ScaleDivide:
    """The paper's perturbation: multiply the rate by an integer and divide the direction by it.

    Args:
        k: 1 is the plain update; 2, 4, 8, ... are null controls; 3, 5, 7, 9, 11 are the paper's.
    """

    def __init__(self, k: int) -> None:
        self.k = check_perturbation(k)

    def __call__(self, direction: Tensor, rate: float) -> tuple[Tensor, float]:
        """Apply ``perturb_update``."""
        return perturb_update(direction, rate, self.k)

    def __repr__(self) -> str:
        return f"ScaleDivide({self.k})"


class StochasticUlp:
    """Move each entry of the direction by a random whole number of units in the last place.

    Args:
        generator: the source of randomness; two copies given equally seeded generators move alike.
        ulps: the largest move; every entry gets an integer between ``-ulps`` and ``ulps``.

    >>> perturb = StochasticUlp(torch.Generator().manual_seed(0))
    >>> moved, rate = perturb(torch.ones(1000), 0.1)
    >>> sorted(set(((moved - 1) / torch.finfo(torch.float32).eps).tolist()))  # below 1 units halve
    [-0.5, 0.0, 1.0]
    """

    def __init__(self, generator: torch.Generator, ulps: int = 1) -> None:
        if isinstance(ulps, bool) or not isinstance(ulps, int) or ulps < 1:
            raise ValueError(f"ulps={ulps!r} is not allowed: pass an int >= 1.")
        self.generator = generator
        self.ulps = ulps

    def __call__(self, direction: Tensor, rate: float) -> tuple[Tensor, float]:
        """Move every entry that is finite and stays so; the rate stays."""
        if direction.is_complex():
            moved, rate = self(torch.view_as_real(direction), rate)
            return torch.view_as_complex(moved), rate
        device = self.generator.device
        moves = torch.randint(
            -self.ulps, self.ulps + 1, direction.shape, generator=self.generator, device=device
        ).to(direction.device)
        moves[(direction == 0) | ~direction.isfinite()] = 0  # these have no unit in the last place
        moved = direction.clone()
        for step in range(1, self.ulps + 1):
            up = torch.nextafter(moved, torch.full_like(moved, torch.inf))
            down = torch.nextafter(moved, torch.full_like(moved, -torch.inf))
            moved = torch.where(moves >= step, up, torch.where(moves <= -step, down, moved))
            moved = torch.where(moved.isfinite(), moved, direction)
        return moved, rate

    def __repr__(self) -> str:
        return f"StochasticUlp(ulps={self.ulps})"


class Cast:
    """Round the direction to another floating type and back: the perturbation of mixed precision.

    Args:
        dtype: the type to round to, e.g. ``torch.bfloat16``; a type at least as wide as the update's changes
            nothing.

    >>> Cast(torch.bfloat16)(torch.tensor([1.001]), 0.1)
    (tensor([1.]), 0.1)
    """

    def __init__(self, dtype: torch.dtype) -> None:
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype={dtype!r} is not a floating type; pass e.g. torch.bfloat16.")
        self.dtype = dtype

    def __call__(self, direction: Tensor, rate: float) -> tuple[Tensor, float]:
        """Round every entry; the rate stays."""
        if direction.is_complex():
            return torch.view_as_complex(self(torch.view_as_real(direction), rate)[0]), rate
        return direction.to(self.dtype).to(direction.dtype), rate

    def __repr__(self) -> str:
        return f"Cast({self.dtype})"
