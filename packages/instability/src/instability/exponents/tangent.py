"""The image of a direction under the tangent of a map, exact or by central differences."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from instability.streams import RandomStreams

__all__ = ["Map", "State", "by_differences", "by_jvp", "has_tangent"]

State = Mapping[str, Tensor]
Map = Callable[[dict[str, Tensor], int], State]
NO_TANGENT = re.compile(r"forward[- ]?(mode )?AD|forward gradient|automatic differentiation|checkpoint")


class _Followed(TorchFunctionMode):
    """Let a tangent pass ``out=``, for which torch has no forward derivative; refuse half precision.

    Attributes:
        eps: relative rounding of the coarsest type that something computed from the state has.
    """

    def __init__(self, *, duals: bool) -> None:
        super().__init__()
        self._duals, self.eps = duals, 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        out = kwargs.pop("out") if isinstance(kwargs.get("out"), Tensor) else None
        result = func(*args, **kwargs)
        is_coarse = (
            isinstance(result, Tensor) and result.is_floating_point() and result.dtype != torch.float64
        )
        if is_coarse and not self._is_constant(result):
            if result.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"the step computes in {result.dtype}, whose steps have no tangent; compute it in "
                    "float32 or float64, or use SensitivityProbe."
                )
            self.eps = max(self.eps, torch.finfo(result.dtype).eps)
        return result if out is None else out.copy_(result)

    def _is_constant(self, result: Tensor) -> bool:
        if not self._duals or forward_ad.unpack_dual(result).tangent is not None:
            return False
        return result.is_leaf or not result.requires_grad  # a leaf is a new parameter, made of nothing


class _Widened(TorchFunctionMode):
    """Compute in double precision what takes both single and double, or would round double to single."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        kinds = {leaf.dtype for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
        works_in_place = re.fullmatch(r"__i\w+__|\w*[^_]_", getattr(func, "__name__", ""))
        if torch.float64 in kinds and not works_in_place:
            if func is Tensor.float:
                return args[0]
            given = tree_map_only(Tensor, lambda t: t.double() if t.dtype == torch.float32 else t, given)
            given = tree_map_only(torch.dtype, lambda d: torch.float64 if d == torch.float32 else d, given)
        return func(*given[0], **given[1])


def by_jvp(step: Map, state: State, tangents: State, number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the next state and the image of a direction, by forward-mode differentiation."""
    with forward_ad.dual_level(), _Followed(duals=True):
        duals = {  # of copies, since a step may work in place
            name: forward_ad.make_dual(value.clone(), tangents[name].clone()) for name, value in state.items()
        }
        after = _called(step, duals, number)
        pairs = {name: forward_ad.unpack_dual(after[name]) for name in state}
        return {name: primal.detach().clone() for name, (primal, _) in pairs.items()}, _flat(
            {
                name: torch.zeros_like(primal) if tangent is None else tangent
                for name, (primal, tangent) in pairs.items()
            }
        )


def by_differences(step: Map, state: State, tangents: State, number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the same from pairs of steps beside the state, under the same random numbers.

    The pairs come closer until two of them agree, since what an optimiser keeps may be far smaller than the
    weights.

    Raises:
        ValueError: no two agree, as for a step that jumps.
    """
    with _Followed(duals=False):
        pairs = _settled(step, state, tangents, number, _eps(state))
        if pairs is None:
            raise _unsettled(number)
        return _detached(step(_copies(state), number)), pairs[0]


def _settled(
    step: Map, state: State, tangents: State, number: int, eps: float
) -> tuple[Tensor, Tensor] | None:
    """Return the image of a direction by two pairs of steps that agree, or None; the streams stay."""
    size, length = float(_flat(state).norm()), float(_flat(tangents).norm())
    last, relative = None, eps ** (1 / 3)
    while relative > eps**0.65:
        h = relative * (size or 1.0) / length
        found, end = _difference(step, state, tangents, number, h)
        if last is not None and (last - found).norm() <= eps**0.25 * found.norm() + 4 * eps * end / h:
            return last, found
        last, relative = found, relative / 10
    return None if found.isfinite().all() else (found, found)  # which the caller names


def _in_double(step: Map, state: State, tangents: State, number: int) -> tuple[Tensor, Tensor] | None:
    """Return the same in double precision, or None if the step insists on its own type."""
    streams = RandomStreams.now()
    wide, along = (
        {name: v.double() if v.dtype == torch.float32 else v for name, v in s.items()}
        for s in (state, tangents)
    )
    try:
        with _Widened():
            return _settled(step, wide, along, number, _eps(wide))
    except (RuntimeError, TypeError, ValueError):
        streams.restore()
        return None


def _difference(step: Map, state: State, tangents: State, number: int, h: float) -> tuple[Tensor, Tensor]:
    """Return the image of a direction by steps from both sides, and the size of what they are made of."""
    streams, ends = RandomStreams.now(), []
    for side in (h, -h):
        moved = {name: value + side * tangents[name] for name, value in state.items()}
        ends.append(_flat(_detached(_called(step, moved, number))))
        streams.restore()
    return (ends[0] - ends[1]) / (2 * h), ends[0].norm()


def _unsettled(number: int) -> ValueError:
    return ValueError(
        f"step {number + 1}: differences of the step do not settle as they get smaller: it jumps, or rounds; "
        "it has no tangent there. Let all of it compute in float64, or use SensitivityProbe."
    )


def has_tangent(step: Map, state: State, tangents: State, number: int) -> bool:
    """Whether forward-mode differentiation follows a step: it agrees with a difference.

    A step that detaches its state, goes through NumPy or writes to ``p.data`` loses the tangent silently.
    The difference is taken in double precision where the step can compute in it: in single precision hardly
    any is clear of both rounding and the kinks of a network with ReLU.

    Raises:
        ValueError: the step makes two results of one state; or it jumps, or rounds.
    """
    streams = RandomStreams.now()
    try:
        with _Followed(duals=True) as followed:
            first, exact = by_jvp(step, state, tangents, number)
        streams.restore()
        second = _detached(step(_copies(state), number))
        for name in state:
            level = torch.finfo(state[name].dtype).eps ** 0.5
            if not torch.allclose(first[name], second[name], rtol=level, atol=level, equal_nan=True):
                raise ValueError(
                    f"the step makes two results of one state ({name} differs): it keeps something; make "
                    "that part of the state."
                )
        streams.restore()
        eps = max(_eps(state), followed.eps)
        pairs = _in_double(step, state, tangents, number)
        if pairs is None:
            pairs = _settled(step, state, tangents, number, eps)
        if pairs is None:
            raise _unsettled(number)
    except RuntimeError as error:
        if not NO_TANGENT.search(str(error)):
            raise
        return False
    finally:
        streams.restore()
    sizes = [value.numel() for value in state.values()]
    columns = [v.split(sizes) for v in (_flat(second), exact, *pairs)]
    rounding = 4 * eps ** (2 / 3) * _flat(tangents).norm() / (_flat(state).norm() or 1)
    for after, found, far, near in zip(*columns, strict=True):
        noise = 4 * (far - near).norm() + rounding * after.norm() + eps**0.5 * far.norm()
        if not (found - far).norm() <= noise:  # each by itself: second moments are far smaller than weights
            return False
    return True


def _called(step: Map, state: dict[str, Tensor], number: int) -> State:
    kinds = {name: (value.shape, value.dtype) for name, value in state.items()}
    after = step(state, number)
    if not isinstance(after, Mapping) or any(
        name not in after or (after[name].shape, after[name].dtype) != kind for name, kind in kinds.items()
    ):
        raise ValueError(
            f"the step must return a dict with the names, shapes and types of its state: {', '.join(kinds)}."
        )
    return after


def _copies(state: State) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}  # since a step may work in place


def _eps(state: State) -> float:
    return torch.finfo(next(iter(state.values())).dtype).eps


def _detached(state: State) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.items()}


def _flat(state: State) -> Tensor:
    return torch.cat([value.detach().reshape(-1).to(torch.float64) for value in state.values()])
