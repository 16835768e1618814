"""Raw bits of nested values, and the same change made to all tensors in them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["digest", "in_float64", "map_tensors", "tensors"]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value of the same kind with every tensor in it replaced.

    >>> map_tensors(torch.neg, {"x": (torch.ones(1), "text")})
    {'x': (tensor([-1.]), 'text')}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):  # a copy, since a batch may be more than a dict
        changed: Any = copy.copy(value)
        for key, entry in value.items():
            changed[key] = map_tensors(function, entry)
        return changed
    if isinstance(value, tuple | list):
        entries = [map_tensors(function, entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def in_float64(value: Any) -> Any:
    """Return a value of the same kind with every real or complex tensor in it in double precision.

    >>> in_float64([torch.ones(1, dtype=torch.bfloat16), torch.tensor([2])])
    [tensor([1.], dtype=torch.float64), tensor([2])]
    """

    def widened(t: Tensor) -> Tensor:
        return t.to(torch.cdouble) if t.is_complex() else t.double() if t.is_floating_point() else t

    return map_tensors(widened, value)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside a value."""
    return (entry for entry in _leaves(value) if isinstance(entry, Tensor))


def digest(*values: Any) -> str:
    """Return a hash of the raw bits of all tensors and arrays, NaN and signed zeros included, and of text.

    >>> digest(torch.tensor(0.0)) == digest(torch.tensor(-0.0))
    False
    """
    state = hashlib.blake2b(digest_size=16)
    for entry in _leaves(values):
        if isinstance(entry, Tensor):
            dense = (entry if entry.layout == torch.strided else entry.to_dense()).detach().cpu()
            dense = dense.resolve_conj().resolve_neg().contiguous()
            state.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
            state.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(entry, np.ndarray):
            state.update(f"{entry.dtype}{entry.shape}".encode() + entry.tobytes())
        elif isinstance(entry, int | float | str | None):
            state.update(repr(entry).encode())
    return state.hexdigest()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value
