"""Evaluating a module without leaving a trace in it, and noticing what it does besides computing.

The module's parameters and buffers are swapped for copies; what that does not reach is recorded before and
put back after: attributes of modules, buffers of the loss, modes of batch norm, and the random state of
PyTorch on every device, of NumPy and of Python. A random state that moved says that the loss is random, so
that it has no curvature.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from chaos.o2grad.parts import EMBEDDINGS, Parts

_States = tuple[list[torch.Tensor], list[Any]]  # of PyTorch; of NumPy and Python


@dataclass
class Watch:
    """What happened during an evaluation.

    Attributes:
        random_moved: Whether the random state was used.
    """

    random_moved: bool = False


@contextmanager
def untouched(parts: Parts) -> Iterator[Watch]:
    """Run a block and put back whatever it changed in a model, in its loss and in the random state.

    Batch norm in training mode uses batch statistics and keeps its running ones; attention runs in the form
    that has second derivatives; compiled modules run as they were written; inference mode, autocast and the
    cache of parametrizations are off, whatever surrounds the call. Threads take turns.
    """
    with _one_at_a_time:
        yield from _untouched(parts)


_one_at_a_time = RLock()
"""Two evaluations of one model would each put back what the other had swapped."""


def _untouched(parts: Parts) -> Iterator[Watch]:
    is_torch = parts.runs_only_torch  # whose layers write into no buffers but those that are swapped
    modules = [] if is_torch else parts.modules
    buffers = [(b, b.detach().clone()) for m in modules for b in m._buffers.values() if b is not None]
    before = _random_state(of_torch_only=is_torch)
    watch = Watch()
    try:
        with ExitStack() as stack:
            if parts.changing:
                stack.enter_context(_attributes_kept(parts.changing))
                for module in parts.changing:
                    _make_differentiable(module)
            _enter_plain_autograd(stack)
            if not is_torch:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                if "torch._dynamo" in sys.modules and hasattr(
                    torch.compiler, "set_stance"
                ):  # else nothing is compiled
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield watch
    finally:
        for buffer, value in buffers:
            if not same(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
        watch.random_moved = not _equal_states(before, _random_state(of_torch_only=is_torch))
        if watch.random_moved:
            _set_random_state(before)


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch off autocast, which would round the operands of matrix products; also a decorator."""
    with ExitStack() as stack:
        _leave_autocast(stack)
        yield


@contextmanager
def plain_autograd() -> Iterator[None]:
    """Leave inference mode and autocast, and read no weights that parametrizations keep."""
    with ExitStack() as stack:
        _enter_plain_autograd(stack)
        yield


def _enter_plain_autograd(stack: ExitStack) -> None:
    stack.callback(setattr, parametrize, "_cache_enabled", parametrize._cache_enabled)
    parametrize._cache_enabled = 0  # a kept weight belongs to the point of an earlier evaluation
    if torch.is_inference_mode_enabled():
        recording = torch.is_grad_enabled()
        stack.enter_context(torch.inference_mode(mode=False))  # which switches recording on
        stack.enter_context(torch.set_grad_enabled(recording))
    _leave_autocast(stack)


def _leave_autocast(stack: ExitStack) -> None:
    for kind in ("cpu", "cuda", "mps", "xpu"):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))


@contextmanager
def swapped(parts: Parts, new: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Let modules compute with other tensors; after that, all attributes are as before.

    A derivative is taken inside as well: checkpoints run the module again in the backward pass.

    Args:
        parts: The model and its loss.
        new: Replacements by the identity of a parameter or buffer, under every name that it has.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> with swapped(Parts(model), {id(model.weight): torch.full((1, 1), 3.0)}):
        ...     model(torch.ones(1, 1))
        tensor([[3.]])
    """
    with _attributes_kept(parts.changing) if parts.changing else nullcontext():
        before = [
            (held, key, held.get(key), new[id(own)]) for held, key, own in parts.places if id(own) in new
        ]
        for held, key, _, other in before:
            held[key] = other
        try:
            yield
        finally:
            for held, key, now, _ in before:
                held[key] = now


@contextmanager
def _attributes_kept(modules: list[nn.Module]) -> Iterator[None]:
    holders: list[Any] = []  # the attributes, and what they hold in dictionaries, lists and sets
    for module in modules:
        own = vars(module)
        holders += [own, *[part for part in own.values() if type(part) in (dict, list, set)]]
    saved = [(part, part.copy()) for part in holders]
    try:
        yield
    finally:
        for part, entries in saved:
            if part or entries:  # most are empty
                part.clear()
                part.extend(entries) if isinstance(part, list) else part.update(entries)


def _make_differentiable(module: nn.Module) -> None:
    """Let a module compute the same value in a form whose second derivatives are right; undone at the end."""
    if isinstance(module, _NormBase) and module.training and module.track_running_stats:
        module.track_running_stats = False
    if isinstance(module, EMBEDDINGS):
        module.sparse = False  # a sparse gradient cannot be differentiated again
    if isinstance(module, _WeightNorm):
        # PyTorch's fused weight norm has a wrong second derivative: its Hessian is not even symmetric.
        vars(module)["forward"] = partial(_weight_norm, module.dim)


def _weight_norm(dim: int, magnitude: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    return direction * (magnitude / torch.norm_except_dim(direction, 2, dim))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal, counting NaN as equal to NaN."""
    return torch.equal(a, b) or (
        a.shape == b.shape and bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())
    )


def _random_state(*, of_torch_only: bool = False) -> _States:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    others = [] if of_torch_only else [np.random.get_state(), random.getstate()]  # noqa: NPY002
    return [torch.random.get_rng_state(), *cuda], others


def _equal_states(before: _States, after: _States) -> bool:
    if len(before[0]) != len(after[0]) or not all(map(torch.equal, before[0], after[0])):
        return False
    if not before[1]:
        return True
    (_, keys, *rest), python = before[1]
    (_, keys_now, *rest_now), python_now = after[1]
    return rest == rest_now and np.array_equal(keys, keys_now) and python == python_now


def _set_random_state(state: _States) -> None:
    (own, *cuda), others = state
    torch.random.set_rng_state(own)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    if others:
        np.random.set_state(others[0])  # noqa: NPY002
        random.setstate(others[1])


def random_layer(model: nn.Module, evaluate: Callable[[], object]) -> str:
    """Return the name of the innermost module that uses the random state; empty if it is none of them."""
    found: list[str] = []
    states: list[tuple[Any, ...]] = []

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if not _equal_states(states.pop(), _random_state()):
                found.append(name or "(root)")

        return hook

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_: states.append(_random_state())))
        hooks.append(module.register_forward_hook(leave(name)))
    try:
        with untouched(Parts(model)), torch.no_grad():
            evaluate()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""  # inner modules return before outer ones


def check_is_function(names: Mapping[nn.Module, str]) -> None:
    """Refuse a module whose output is no function of its parameters, naming the layer.

    Args:
        names: Every module within it, with its name.

    Raises:
        ValueError: If a dropout layer is active, a layer rewrites its own weights, or is TorchScript.
    """
    for module, name in names.items():
        reason = _may_be_no_function(type(module)) and _no_function(module)  # type: ignore[arg-type]
        if reason:
            raise ValueError(reason.format(place=repr(name or "(root)")))


@lru_cache
def _may_be_no_function(kind: type) -> bool:
    return issubclass(
        kind,
        (torch.jit.ScriptModule, nn.DataParallel, _DropoutNd, nn.MultiheadAttention, nn.RNNBase, *EMBEDDINGS),
    )


def _no_function(module: nn.Module) -> str:
    if isinstance(module, (torch.jit.ScriptModule, nn.DataParallel)):
        kind = type(module).__name__
        return f"Module {{place}} is a {kind}, whose parameters cannot be swapped; pass the module within."
    if isinstance(module, EMBEDDINGS) and module.max_norm is not None:
        return (
            "Embedding {place} has max_norm, so each forward pass rewrites its weights and the loss is no "
            "function of them. Set max_norm=None after renormalising once."
        )
    if module.training and _dropout(module):
        return (
            "Dropout is active in layer {place}, so the loss has no fixed curvature. "
            "Call .eval() on that layer, or set its probability to 0."
        )
    return ""


def _dropout(module: nn.Module) -> float:
    if isinstance(module, _DropoutNd):
        return float(module.p)
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return float(module.dropout)
    return 0.0
