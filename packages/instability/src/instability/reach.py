"""What a user's function reaches besides its arguments, and whether a loss reaches the weights."""

from __future__ import annotations

import contextlib
import dis
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ProxyTypes

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

__all__ = ["check_copyable", "check_function", "check_number", "check_reached", "held", "left_alone"]


def check_reached(gradients: Iterable[Tensor | None], steps: str = "") -> None:
    """Raise ValueError if a loss has a gradient at none of the weights that are trained.

    One step may by design have nothing to learn: of several, pass what all of them reached.
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

    Python copies no closure: the copies would compute with the layers of the first model.
    """
    own = {id(x) for x in (*model.modules(), *model.parameters())}
    waiting: list[Any] = [value for module in model.modules() for value in vars(module).values()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, MethodType):  # copied with the object that it is bound to
            waiting.append(value.__func__)
        elif isinstance(value, FunctionType) and any(id(x) in own for x in held(value)):
            raise TypeError(
                f"the model keeps the function {value.__qualname__}, which holds one of its own layers and "
                "would share it with every copy; make it a method."
            )


def held(function: Any) -> Iterator[Any]:
    """Yield what a function reaches by closure, defaults, globals and the object it is bound to.

    Likewise for functions among these; of objects that are no modules, their attributes. Globals are those
    that the function's own file names.

    >>> layer = nn.Linear(1, 1)
    >>> any(x is layer for x in held(lambda x: layer(x)))
    True
    """
    names = getattr(getattr(function, "__func__", function), "__globals__", None)
    waiting, seen = [function], set()
    while waiting:
        value = waiting.pop()
        if type(value) in ProxyTypes or id(value) in seen or isinstance(value, type | ModuleType):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            waiting += [value.__self__, value.__func__, *_attributes(value.__self__)]
        elif isinstance(value, FunctionType) and not str(value.__module__).startswith("torch"):
            cells = []
            for cell in value.__closure__ or ():
                with contextlib.suppress(ValueError):  # not filled yet
                    cells.append(cell.cell_contents)
            cells += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            if value.__globals__ is names:
                cells += [names[n] for n in _names(value.__code__) if n in names]
            waiting += cells
            waiting += [entry for cell in cells for entry in _attributes(cell)]


@lru_cache(1024)
def _names(code: CodeType) -> frozenset[str]:
    """Return what a function loads as globals; an attribute of the same name is no global."""
    loads = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return frozenset(loads).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _attributes(value: Any) -> list[Any]:
    """Of a trainer and the like; torch's own objects and functions are no containers."""
    if type(value) in ProxyTypes:  # what they stand for may be gone
        return []
    is_plain = not isinstance(value, nn.Module | Tensor | type | ModuleType | FunctionType | MethodType)
    is_plain = is_plain and not type(value).__module__.startswith(("torch", "numpy", "builtins"))
    return list(vars(value).values()) if is_plain and hasattr(value, "__dict__") else []


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
