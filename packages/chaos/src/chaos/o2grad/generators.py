"""Random generators that a loader of data holds, kept where they are.

Each pass over a loader then yields the same batches, and a training that goes on sees what it would have
seen without us.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

_MOST = 1000  # objects looked at: samples in memory hold no generators


@contextmanager
def kept_generators(data: object) -> Iterator[None]:
    """Put back, after a block, the generators that are reached from a loader through attributes.

    These are its own, and those of its samplers, data set and collating function; PyTorch's, NumPy's and
    Python's kinds.

    Example:
        >>> loader = torch.utils.data.DataLoader(range(9), shuffle=True, generator=torch.Generator())
        >>> with kept_generators(loader):
        ...     first = [int(x) for x in loader]
        >>> first == [int(x) for x in loader]
        True
    """
    put_back = list(_found(data))
    try:
        yield
    finally:
        for undo in put_back:
            undo()


def _found(data: object) -> Iterator[Callable[[], Any]]:
    seen: dict[int, object] = {}
    left = [data]
    while left and len(seen) < _MOST:
        found = left.pop(0)
        if id(found) in seen or isinstance(found, torch.Tensor | np.ndarray | torch.nn.Module | type):
            continue
        seen[id(found)] = found
        if isinstance(found, torch.Generator | np.random.RandomState):
            yield partial(found.set_state, found.get_state())  # type: ignore[arg-type]
        elif isinstance(found, np.random.Generator):
            yield partial(setattr, found.bit_generator, "state", found.bit_generator.state)
        elif isinstance(found, random.Random):
            yield partial(found.setstate, found.getstate())
        elif isinstance(found, list | tuple):
            left += found[:_MOST]
        elif isinstance(found, dict):
            left += list(found.values())[:_MOST]
        else:
            left += [*vars(found).values()] if hasattr(found, "__dict__") else []
            left += inspect.getclosurevars(found).nonlocals.values() if inspect.isfunction(found) else []
            left += [getattr(found, "__self__", None)]
