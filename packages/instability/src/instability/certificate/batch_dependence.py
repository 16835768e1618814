"""Layers that round an example in another way when other examples stand beside it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from instability.certificate.bits import digest, in_float64, map_tensors, tensors
from instability.certificate.run import (
    THROUGH_FLOAT32,
    Training,
    layer_label,
    length,
    streams_digest,
    take,
    widen,
)
from instability.streams import unchanged

__all__ = ["batch_dependent_layers"]


def batch_dependent_layers(training: Training) -> tuple[str, ...]:
    """Name the layers that give the examples of half a batch other bits than in the whole.

    Every call of the first batch is repeated with half of it. Layers that draw random numbers or give other
    bits each time, and those that couple examples by more than rounding (batch norm), are passed over; of
    nested layers the innermost is named. More than rounding is what changes half of the digits; in half
    precision, where that is up to 9 %, a copy of the layer in float64 decides, unless the layer refuses it.
    """
    model, batch = training.start(), next(iter(training.batches))
    size, repeating, hooks = length(batch), False, []
    found: dict[str, str] = {}

    for name, module in model.named_modules():

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            nonlocal repeating
            given = next(tensors([args, kwargs]), None)
            if repeating or given is None or not given.ndim or len(given) != size:
                return
            repeating, before = True, streams_digest()
            try:
                results = []
                for number in (size, size, size // 2):
                    with unchanged(module):  # all from one state: a power iteration goes on with every call
                        results.append(module(*_part(args, size, number), **_part(kwargs, size, number)))
                        drew = before != streams_digest()
                whole, again, half = results
                repeats = digest(*tensors(whole)) == digest(*tensors(again))
                if (
                    not drew
                    and repeats
                    and _differs_by_rounding(_part(whole, size, size // 2), half)
                    and not (
                        any(_half_of_the_digits(t) > THROUGH_FLOAT32 for t in tensors(whole))
                        and _couples_in_float64(module, args, kwargs, size)
                    )
                ):
                    found[name] = layer_label(name, module)
            except (RuntimeError, ValueError, IndexError):  # half of what it was given is not a batch
                return
            finally:
                repeating = False

        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        if size > 1:
            training.loss_of(model, take(batch, slice(None)))
    finally:
        for hook in hooks:
            hook.remove()
    outer = {n for n in found for o in found if o != n and o.startswith(f"{n}." if n else "")}
    return tuple(label for name, label in found.items() if name not in outer)


def _part(value: Any, size: int, number: int) -> Any:
    """Return copies of so many examples: a layer may work in place."""
    return map_tensors(lambda t: (t[:number] if t.ndim and len(t) == size else t).clone(), value)


def _differs_by_rounding(whole: Any, half: Any) -> bool:
    """Whether the bits differ, and by no more than half of the digits."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(tensors(whole), tensors(half), strict=False)]
    if any(a.shape != b.shape for a, b in pairs):
        return False
    moved = [(a, b) for a, b in pairs if digest(a) != digest(b)]
    return bool(moved) and all(_is_close(a, b) for a, b in moved)


def _couples_in_float64(module: nn.Module, args: Any, kwargs: Any, size: int) -> bool:
    """Whether examples change each other there by more than rounding, which half precision cannot tell."""
    results = []
    try:
        wide = widen(copy.deepcopy(module))
        for number in (size, size // 2):
            given = in_float64((_part(args, size, number), _part(kwargs, size, number)))
            with unchanged(wide):
                results.append(_part(wide(*given[0], **given[1]), size, size // 2))
    except (RuntimeError, TypeError, ValueError):
        return False
    pairs = zip(*map(tensors, results), strict=True)
    return not all(_is_close(a.detach(), b.detach(), THROUGH_FLOAT32) for a, b in pairs)


def _is_close(a: Tensor, b: Tensor, least: float = 0.0) -> bool:
    if not (a.is_floating_point() or a.is_complex()):
        return True
    return float((a - b).abs().max()) <= float(a.abs().max()) * max(_half_of_the_digits(a), least)


def _half_of_the_digits(a: Tensor) -> float:
    return float(torch.finfo(a.dtype).eps ** 0.5) if a.is_floating_point() or a.is_complex() else 0.0
