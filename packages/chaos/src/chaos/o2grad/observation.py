"""Evaluating a module without leaving a trace in it, and noticing what it does besides computing.

The module's parameters and buffers are swapped for copies; what that does not reach is recorded before and
put back after: attributes of modules, buffers of the loss, modes of batch norm, and the random state of
PyTorch on every device, of NumPy and of Python. A random state that moved says that the loss is random, so
that it has no curvature.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

_EMBEDDINGS = nn.Embedding, nn.EmbeddingBag
_States = tuple[list[torch.Tensor], list[Any]]  # of PyTorch; of NumPy and Python


@dataclass
class Watch:
    """What happened during an evaluation.

    Attributes:
        random_moved: Whether the random state was used.
    """

    random_moved: bool = False


@contextmanager
def untouched(*parts: object) -> Iterator[Watch]:
    """Run a block and put back whatever it changed in these modules and in the random state.

    Batch norm in training mode uses batch statistics and keeps its running ones; attention runs in the form
    that has second derivatives; compiled modules run as they were written; inference mode, autocast and the
    cache of parametrizations are off, whatever surrounds the call.

    Args:
        parts: Modules; other objects are passed over.
    """
    modules = modules_of(parts)
    is_torch = runs_only_torch(parts)
    buffers = [(b, b.detach().clone()) for m in modules for b in m._buffers.values() if b is not None]
    before = _random_state(of_torch_only=is_torch)
    watch = Watch()
    try:
        with ExitStack() as stack:
            stack.enter_context(_attributes_kept(modules))
            for module in modules:
                _make_differentiable(module)
            stack.enter_context(plain_autograd())
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
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def plain_autograd() -> Iterator[None]:
    """Leave inference mode and autocast, and read no weights that parametrizations keep."""
    recording, caching = torch.is_grad_enabled(), parametrize._cache_enabled
    parametrize._cache_enabled = 0  # a kept weight belongs to the point of an earlier evaluation
    try:
        # leaving inference mode switches recording on
        with torch.inference_mode(mode=False), torch.set_grad_enabled(recording), full_precision():
            yield
    finally:
        parametrize._cache_enabled = caching


@contextmanager
def swapped(parts: Iterable[object], new: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Let modules compute with other tensors; after that, all attributes are as before.

    A derivative is taken inside as well: checkpoints run the module again in the backward pass.

    Args:
        parts: Modules; other objects are passed over.
        new: Replacements by the identity of a parameter or buffer, under every name that it has.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> with swapped([model], {id(model.weight): torch.full((1, 1), 3.0)}):
        ...     model(torch.ones(1, 1))
        tensor([[3.]])
    """
    modules = modules_of(parts)
    with _attributes_kept(modules):
        for module in modules:
            for held in (module._parameters, module._buffers):
                for name, old in held.items():
                    if id(old) in new:
                        held[name] = new[id(old)]  # type: ignore[assignment]  # of whichever kind
        yield


def modules_of(parts: Iterable[object]) -> list[nn.Module]:
    """Return every module within modules once, outer ones first; other objects are passed over."""
    return [module for part in parts if isinstance(part, nn.Module) for module in _names(part)]


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """The names of modules, as ``named_modules`` gives them in a tenth of its time."""
    found: dict[nn.Module, str] = {}
    left = [("", model)]
    while left:
        name, module = left.pop()
        if module not in found:
            found[module] = name
            prefix = f"{name}." if name else ""
            left += [(prefix + key, c) for key, c in reversed(module._modules.items()) if c is not None]
    return found


def named_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the parameters and the buffers of a model, each under its first name."""
    found: tuple[dict[str, torch.Tensor], ...] = {}, {}
    seen: set[int] = set()
    for module, name in _names(model).items():
        prefix = f"{name}." if name else ""
        for tensors, held in zip(found, (module._parameters, module._buffers), strict=True):
            for key, tensor in held.items():  # type: ignore[attr-defined]  # both are dictionaries
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    tensors[prefix + key] = tensor
    return found[0], found[1]


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
    if isinstance(module, _EMBEDDINGS):
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
        with untouched(model), torch.no_grad():
            evaluate()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""  # inner modules return before outer ones


def check_is_function(model: nn.Module) -> None:
    """Refuse a module whose output is no function of its parameters, naming the layer.

    Raises:
        ValueError: If a dropout layer is active, a layer rewrites its own weights, or is TorchScript.
    """
    for module, name in _names(model).items():
        reason = _no_function(module)
        if reason:
            raise ValueError(reason.format(place=repr(name or "(root)")))


def _no_function(module: nn.Module) -> str:
    if isinstance(module, (torch.jit.ScriptModule, nn.DataParallel)):
        kind = type(module).__name__
        return f"Module {{place}} is a {kind}, whose parameters cannot be swapped; pass the module within."
    if isinstance(module, _EMBEDDINGS) and module.max_norm is not None:
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


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module does what its class says and nothing else.

    Forward hooks, hooks of all modules, and a ``forward`` or ``__call__`` of the instance's own say no. Hooks
    of the backward pass do too, since they may change a gradient.
    """
    everywhere = torch.nn.modules.module
    own = vars(module)
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        everywhere._global_forward_hooks,
        everywhere._global_forward_pre_hooks,
        everywhere._global_backward_hooks,
        everywhere._global_backward_pre_hooks,
    )
    return (
        not any(hooks)
        and "forward" not in own
        and type(module).__call__ is nn.Module.__call__
        and own.get("_compiled_call_impl") is None
    )


def runs_only_torch(parts: Sequence[object]) -> bool:
    """Whether to call these modules and functions runs nothing but layers of PyTorch, with no code of others.

    So nothing draws numbers elsewhere, keeps values, or runs in the backward pass. Attention, whose kernels
    are chosen, and embeddings, which may scale their gradients, are left out.
    """
    return bool(parts) and all(
        all(map(_is_of_torch, modules_of([part])))
        if isinstance(part, nn.Module)
        # by identity: what wraps a function of PyTorch has its name and its module, too
        else part is getattr(functional, getattr(part, "__name__", ""), None)
        for part in parts
    )


def _is_of_torch(module: nn.Module) -> bool:
    return (
        type(module).__module__.startswith("torch.nn.modules.")
        and not isinstance(module, (nn.MultiheadAttention, *_EMBEDDINGS))
        and is_plain(module)
        and True not in map(callable, vars(module).values())
        and not any(p is not None and p._backward_hooks for p in module._parameters.values())
    )
