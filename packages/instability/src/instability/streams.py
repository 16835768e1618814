"""The random streams that training draws from, and a model's buffers, to be replayed or put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["RandomStreams", "unchanged"]


@dataclass(frozen=True)
class RandomStreams:
    """The state of every global random stream: torch on the CPU and on each GPU, NumPy, and Python.

    >>> streams = RandomStreams.now()
    >>> first = torch.rand(1), np.random.rand(), random.random()
    >>> streams.restore()
    >>> first == (torch.rand(1), np.random.rand(), random.random())
    True
    """

    torch: Tensor
    cuda: tuple[Tensor, ...]
    numpy: dict[str, Any]
    python: tuple[Any, ...]

    @classmethod
    def now(cls) -> RandomStreams:
        """Return the state at this moment."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the global stream is what is meant
        assert isinstance(numpy, dict)
        return cls(torch.get_rng_state(), tuple(cuda), numpy, random.getstate())

    def restore(self) -> None:
        """Put every stream back."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


@contextlib.contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Put the random streams, and all that the models hold, back when the block ends.

    That is parameters, buffers, modes, and what a module keeps as an attribute, such as a hidden state.

    >>> model = nn.BatchNorm1d(2)
    >>> with unchanged(model):
    ...     _ = model.train()(torch.randn(4, 2) + 5)
    >>> model.running_mean.tolist()
    [0.0, 0.0]
    """
    streams = RandomStreams.now()
    kept = [(module, dict(module.__dict__)) for model in models for module in model.modules()]
    weights = [(p, p.data) for model in models for p in model.parameters()]
    for module, own in kept:  # copies, since a graph that is kept must not see its buffers change
        module.__dict__["_buffers"] = {
            n: None if b is None else b.clone() for n, b in own["_buffers"].items()
        }
    for parameter, data in weights:  # an embedding with max_norm changes them in its forward pass
        parameter.data = data.clone()
    try:
        yield
    finally:
        streams.restore()
        for module, own in kept:
            module.__dict__.clear()
            module.__dict__.update(own)
        for parameter, data in weights:
            parameter.data = data
