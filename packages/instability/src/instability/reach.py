"""What a user's function reaches besides its arguments, and whether a loss reaches the weights."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ProxyTypes

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

__all__ = [
    "check_copyable",
    "check_function",
    "check_number",
    "check_reached",
    "held",
    "left_alone",
    "watch_tensors",
]


def check_reached(gradients: Iterable[Tensor | None], steps: str = "") -> None:
    """Raise ValueError if a loss has a gradient at none of the weights that are trained.

    One step may by design have nothing to learn: of several, pass what all of them reached. Nothing counts
    as reached if there is no gradient.

    >>> check_reached([None, Tensor([0.0])])
    """
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            f"the loss depends on no trained weight of the model that it was given{steps}; let it use its "
            "argument, not another model."
        )


def check_function(value: Any, name: str) -> None:
    """Raise TypeError if a model or an optimiser is given where one is to be made."""
    if isinstance(value, nn.Module | Optimizer) or not callable(value):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a function that makes a new one.")


def check_number(value: Any, name: str) -> float:
    """Return a score as a float, else raise TypeError."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} returned a {type(value).__name__}; let it return one number.") from error


def check_copyable(model: nn.Module) -> None:
    """Raise TypeError if a model keeps a function that holds one of its own layers or weights.

    Python copies no closure: the copies would compute with the layers of the first model. What holds an
    object that knows the whole model, such as a logger, is taken to be no part of the computation.
    """
    own = {id(x) for x in (*model.modules(), *model.parameters())}

    def is_whole(x: Any) -> bool:
        return x is model

    waiting: list[Any] = [value for module in model.modules() for value in vars(module).values()]
    seen: dict[int, Any] = {}
    while waiting:
        value = waiting.pop()
        if type(value) in ProxyTypes or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):  # copied with the object that it is bound to
            waiting.append(value.__func__)
        elif isinstance(value, FunctionType) and _package(value.__globals__["__name__"]) in _OTHERS:
            waiting.append(vars(value).get("__wrapped__"))
        elif isinstance(value, FunctionType | _CACHED):
            function = vars(value).get("__wrapped__", value) if isinstance(value, _CACHED) else value
            if any(id(x) in own for x in held(function, is_whole)):
                raise TypeError(
                    f"the model keeps the function {value.__qualname__}, which holds one of its own layers "
                    "and would share it with every copy; make it a method."
                )
        elif not any(map(is_whole, entries := _entries(value))):
            waiting += entries


_CACHED = type(lru_cache(1)(id))
"""What functools makes of a function to be cached; Python does not copy it either."""


def held(function: Any, leaves_out: Callable[[Any], bool] = lambda _: False) -> Iterator[Any]:
    """Yield what a function reaches: closure, defaults, globals, and the object that it is bound to or is.

    Likewise for functions among these, decorated and partial ones, and for three levels of attributes of
    objects that are no modules, of lists, and of dictionaries with names. Long ones are data: they are left
    out. So are globals of installed packages, and objects with an attribute that ``leaves_out`` names.

    >>> layer = nn.Linear(1, 1)
    >>> any(x is layer for x in held(lambda x: layer(x)))
    True
    """
    names = getattr(getattr(function, "__func__", function), "__globals__", None)
    waiting, seen = deque([(function, 0)]), set()
    while waiting:
        value, level = waiting.popleft()
        if type(value) in ProxyTypes or id(value) in seen or isinstance(value, type | ModuleType):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, partial):
            inside = [(x, level) for x in (value.func, *value.args, *value.keywords.values())]
        elif isinstance(value, MethodType):
            inside = [(value.__self__, level), (value.__func__, level)]
        elif isinstance(value, FunctionType):
            inside = [(x, level) for x in _closed_over(value, names)]
        elif level < 3 and not any(map(leaves_out, entries := _entries(value))):
            inside = [(x, level + 1) for x in entries]
        else:
            inside = []
        waiting += inside


def _closed_over(function: FunctionType, names: Any) -> Iterator[Any]:
    yield from filter(None, [vars(function).get("__wrapped__")])
    module, path = (str(function.__globals__.get(name, "")) for name in ("__name__", "__file__"))
    if _package(module) in _OTHERS and function.__globals__ is not names:
        return
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            yield cell.cell_contents
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    if function.__globals__ is names or not {"site-packages", "dist-packages"} & {*Path(path).parts}:
        here = function.__globals__
        yield from [here[name] for name in _names(function.__code__) if name in here]


_OTHERS = (sys.stdlib_module_names | {"torch", "numpy", "instability", "gdyn_common"}) - {
    "types",
    "functools",
}
"""Packages whose functions and objects hold nothing of the user; a namespace or a cached function may."""


def _package(module: str) -> str:
    return module.partition(".")[0]


@lru_cache(1024)
def _names(code: CodeType) -> frozenset[str]:
    """Return what a function loads as globals; an attribute of the same name is no global."""
    loads = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return frozenset(loads).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _entries(value: Any) -> list[Any]:
    """Of a trainer, a list of networks and the like; a dictionary by objects or numbers is one by copies."""
    if isinstance(value, list | tuple | dict):
        is_short = len(value) <= 100
        if not isinstance(value, dict):
            return list(value) if is_short else []
        return list(value.values()) if is_short and all(isinstance(name, str) for name in value) else []
    if isinstance(value, nn.Module | Tensor) or _package(type(value).__module__) in _OTHERS:
        return []
    call = getattr(type(value), "__call__", None)  # noqa: B004 - the function itself is what is meant
    return [*getattr(value, "__dict__", {}).values(), *([call] if isinstance(call, FunctionType) else [])]


def watch_tensors(reached: Iterable[Any], modules: Iterable[nn.Module]) -> Callable[[], bool]:
    """Return a function that tells whether a tensor among ``reached`` has changed, those of modules apart.

    Of a dictionary that is reached, a tensor in the place of one of its shape counts, too, such as a new
    average; a single number in the place of another is taken for a log.

    >>> average = {"w": Tensor([0.0, 0.0])}
    >>> changed = watch_tensors([average], [])
    >>> average["w"] = average["w"] + 1
    >>> changed()
    True
    """
    reached = list(reached)
    known = {id(t) for module in modules for t in (*module.parameters(False), *module.buffers(False))}
    loose = [x for x in reached if isinstance(x, Tensor) and id(x) not in known and not x.is_inference()]
    versions = [(x, x._version) for x in loose]
    places = [
        (dictionary, name, x)
        for dictionary in reached
        if isinstance(dictionary, dict)
        for name, x in dictionary.items()
        if isinstance(name, str) and isinstance(x, Tensor) and x.numel() > 1
    ]

    def is_replaced(new: Any, old: Tensor) -> bool:
        return new is not old and isinstance(new, Tensor) and new.shape == old.shape

    return lambda: (
        any(x._version != version for x, version in versions)
        or any(is_replaced(dictionary.get(name), x) for dictionary, name, x in places)
    )


@contextlib.contextmanager
def left_alone(modules: Iterable[nn.Module]) -> Iterator[Callable[[], None]]:
    """Put back what modules keep that take part in a loss, such as a discriminator, and give a way to do so.

    That is gradients, buffers and attributes, also where another object was assigned. Lazy modules that are
    made in the block stay made.

    >>> other = nn.Linear(1, 1, bias=False)
    >>> with left_alone([other]):
    ...     other.weight.sum().backward()
    >>> other.weight.grad is None
    True
    """
    modules = list(modules)
    gradients = [(p, p.grad) for module in modules for p in module.parameters() if p.requires_grad]
    every = {id(inner): inner for module in modules for inner in module.modules()}.values()
    own = [
        (module, dict(vars(module)), dict(module._buffers))
        for module in every
        if not isinstance(module, ScriptModule | LazyModuleMixin)
    ]
    buffers = [(b, b.clone()) for module in modules for b in module.buffers() if not is_lazy(b)]

    def again() -> None:
        for p, _ in gradients:
            p.grad = None
        for module, attributes, slots in own:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(slots)
        for b, values in buffers:
            b.data.copy_(values)

    again()
    try:
        yield again
    finally:
        again()
        for p, gradient in gradients:
            p.grad = gradient
