"""Evaluating a module without leaving a trace in it, and noticing what it does besides computing.

The module's parameters and buffers are swapped for copies; what that does not reach is recorded before and
put back after: attributes of modules, buffers of the loss, modes of batch norm, and the random state of
PyTorch on every device, of NumPy and of Python. A random state that moved says that the loss is random, so
that it has no curvature.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm


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
    modules = _modules(parts)
    buffers = [(b, b.detach().clone()) for module in modules for b in module.buffers(recurse=False)]
    before = _random_state()
    watch = Watch()
    try:
        with ExitStack() as stack:
            stack.enter_context(_attributes_kept(modules))
            for module in modules:
                _make_differentiable(module)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(_plain_autograd())
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
        after = _random_state()
        watch.random_moved = not _equal_states(before, after)
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
def _plain_autograd() -> Iterator[None]:
    recording, caching = torch.is_grad_enabled(), parametrize._cache_enabled
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(recording))  # which leaving inference mode switches on
        stack.enter_context(full_precision())
        parametrize._cache_enabled = 0  # a kept weight belongs to the point of an earlier evaluation
        try:
            yield
        finally:
            parametrize._cache_enabled = caching


@contextmanager
def swapped(model: nn.Module, values: Mapping[str, torch.Tensor], *others: object) -> Iterator[None]:
    """Let a module compute with other tensors; after that, all attributes are as before.

    A derivative is taken inside as well: checkpoints run the module again in the backward pass.

    Args:
        model: The module.
        values: Parameters and buffers by name; a tensor with several names is swapped under each.
        others: What is called with the model, for example the loss.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> with swapped(model, {"weight": torch.full((1, 1), 3.0)}):
        ...     model(torch.ones(1, 1))
        tensor([[3.]])
    """
    with _attributes_kept(_modules((model, *others))):
        named = (*model.named_parameters(), *model.named_buffers())
        new: dict[int, Any] = {id(tensor): values[name] for name, tensor in named if name in values}
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                held.update({name: new[id(old)] for name, old in held.items() if id(old) in new})
        yield


def _modules(parts: Iterable[object]) -> list[nn.Module]:
    return [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]


@contextmanager
def _attributes_kept(modules: list[nn.Module]) -> Iterator[None]:
    saved = [(part, part.copy()) for module in modules for part in _parts(module)]
    try:
        yield
    finally:
        for part, entries in saved:
            part.clear()
            part.extend(entries) if isinstance(part, list) else part.update(entries)


def _parts(module: nn.Module) -> list[Any]:
    """The attributes of a module, and what it holds in dictionaries, lists and sets: parameters, caches."""
    return [vars(module), *(part for part in vars(module).values() if type(part) in (dict, list, set))]


def _make_differentiable(module: nn.Module) -> None:
    """Let a module compute the same value in a form whose second derivatives are right; undone at the end."""
    if isinstance(module, _NormBase) and module.training and module.track_running_stats:
        module.track_running_stats = False
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
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


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return torch.random.get_rng_state(), cuda, np.random.get_state(), random.getstate()  # noqa: NPY002


def _equal_states(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    torch_before, cuda_before, numpy_before, python_before = before
    torch_after, cuda_after, numpy_after, python_after = after
    return (
        torch.equal(torch_before, torch_after)
        and len(cuda_before) == len(cuda_after)
        and all(torch.equal(a, b) for a, b in zip(cuda_before, cuda_after, strict=True))
        and numpy_before[2:] == numpy_after[2:]
        and np.array_equal(numpy_before[1], numpy_after[1])
        and python_before == python_after
    )


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.random.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
    np.random.set_state(state[2])  # noqa: NPY002
    random.setstate(state[3])


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
    for name, module in model.named_modules():
        place = repr(name or "(root)")
        if isinstance(module, torch.jit.ScriptModule | nn.DataParallel):
            raise ValueError(
                f"Module {place} is a {type(module).__name__}, whose parameters cannot be swapped; pass the "
                "module within."
            )
        if getattr(module, "max_norm", None) is not None and isinstance(
            module, nn.Embedding | nn.EmbeddingBag
        ):
            raise ValueError(
                f"Embedding {place} has max_norm, so each forward pass rewrites its weights and the loss is "
                "no function of them. Set max_norm=None after renormalising once."
            )
        if module.training and _dropout(module):
            raise ValueError(
                f"Dropout is active in layer {place}, so the loss has no fixed curvature. "
                "Call .eval() on that layer, or set its probability to 0."
            )


def _dropout(module: nn.Module) -> float:
    if isinstance(module, _DropoutNd):
        return float(module.p)
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
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
