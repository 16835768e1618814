"""Parameters that share memory with other tensors of a model.

Training moves what lies in one place together, but autograd takes each tensor for a variable of its own. One
parameter under several names is no such case: it has one gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor


def check_memory(parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Refuse parameters that overlap in memory with each other, with themselves or with other tensors.

    Args:
        parameters: Those that are differentiated or trained, by name; each under one name.
        others: Buffers and other parameters.

    Raises:
        ValueError: If an entry of a parameter is also an entry elsewhere.

    Example:
        >>> whole = torch.zeros(4)
        >>> check_memory({"a": whole[:2], "b": whole[2:]}, {})
        >>> check_memory({"a": whole[:3], "b": whole[2:]}, {})
        Traceback (most recent call last):
        ValueError: Parameters 'a' and 'b' share memory, so they move together, but have a gradient each. \
Use one parameter for both, or copies.
    """
    held: defaultdict[int, list[tuple[int, str, Tensor]]] = defaultdict(list)
    for name, tensor in (dict(others) | dict(parameters)).items():
        if tensor.layout is torch.strided and tensor.device.type != "meta" and tensor.numel():
            held[tensor.untyped_storage().data_ptr()].append((int(tensor.storage_offset()), name, tensor))
            if name in parameters and _span(tensor) < tensor.numel():
                raise ValueError(
                    f"Parameter {name!r} of shape {tuple(tensor.shape)} has entries that share memory, as "
                    "expand() makes them. Use a copy."
                )
    for together in held.values():
        together.sort(key=lambda one: one[0])
        for index, (start, name, tensor) in enumerate(together):
            for begin, other, later in together[index + 1 :]:
                if begin >= start + _span(tensor):
                    break
                if (name in parameters or other in parameters) and _overlap(tensor, later):
                    first, second = sorted((name, other))
                    raise ValueError(
                        f"Parameters {first!r} and {second!r} share memory, so they move together, but have "
                        "a gradient each. Use one parameter for both, or copies."
                    )


def _span(tensor: Tensor) -> int:
    """Return the number of places from the first entry to the last."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one storage have an entry in common; the first begins no later."""
    apart = int(second.storage_offset() - first.storage_offset())
    taken = torch.zeros(max(_span(first), apart + _span(second)), dtype=torch.bool)
    taken.as_strided(first.shape, first.stride()).fill_(value=True)
    return bool(taken.as_strided(second.shape, second.stride(), apart).any())
