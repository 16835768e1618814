"""The random streams that training draws from, and a model's buffers, to be replayed or put back."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["RandomStreams", "check_loss", "check_model", "graph_tensors", "unchanged"]


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

    That is parameters with their gradients, buffers, modes, and what a module keeps as an attribute, such as
    a hidden state or a list that grows. The block works on copies: a graph that is kept must not see them
    change.

    >>> model = nn.BatchNorm1d(2)
    >>> with unchanged(model):
    ...     _ = model.train()(torch.randn(4, 2) + 5)
    >>> model.running_mean.tolist()
    [0.0, 0.0]
    """
    streams = RandomStreams.now()
    kept = [(module, dict(module.__dict__)) for model in models for module in model.modules()]
    weights = [(p, p.data, p.grad, p.requires_grad) for model in models for p in model.parameters()]
    gradients = [(grad, grad.clone()) for _, _, grad, _ in weights if grad is not None]
    same = [*(module for module, _ in kept), *(p for p, *_ in weights)]
    memo: dict[int, Any] = {id(x): x for x in (*same, *(t for model in models for t in graph_tensors(model)))}
    for module, own in kept:
        module.__dict__.update({name: _copied(value, memo) for name, value in own.items()})
    for p, data, *_ in weights:  # an embedding with max_norm changes weights in its forward pass
        p.data = data.clone()
    try:
        yield
    finally:
        streams.restore()
        for module, own in kept:
            module.__dict__.clear()
            module.__dict__.update(own)
        for p, data, grad, requires_grad in weights:
            p.data = data
            if p.grad is not grad:
                p.grad = grad
            p.requires_grad_(requires_grad)
        for grad, values in gradients:
            grad.data.copy_(values)


def check_model(model: nn.Module) -> nn.Module:
    """Return a model if it is a module whose weights exist, else raise TypeError or ValueError."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}; pass a torch.nn.Module.")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise ValueError(
            "the model has lazy layers, whose weights have no shape yet; run it on a batch first."
        )
    return model


def check_loss(loss: object) -> Tensor:
    """Return a loss if it is a real scalar tensor with a gradient, else raise TypeError."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss is a {type(loss).__name__}; return the scalar tensor itself.")
    if loss.numel() != 1 or not loss.is_floating_point() or not loss.requires_grad:
        raise TypeError(
            f"the loss is a {loss.dtype} tensor of shape {tuple(loss.shape)}, requires_grad="
            f"{loss.requires_grad}; return a real scalar that was not detached."
        )
    return loss


def graph_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield what a model keeps in attributes and has a graph, which torch refuses to copy."""
    waiting: list[Any] = [vars(module) for module in model.modules()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor) and not value.is_leaf:
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | deque):
            waiting += value


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of an attribute, or itself if it belongs to torch or cannot be copied, as a lock."""
    if type(value).__module__.startswith("torch") and not isinstance(value, Tensor | torch.Generator):
        return value
    if isinstance(value, dict) and not value:  # most are tables without hooks
        return value.copy()
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # of any kind: the classes are the user's
        return value
