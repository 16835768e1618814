"""State of an object as plain containers of tensors and numbers, which tensors-only checkpoints can hold."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from variance.errors import ConfigError


class Stateful:
    """An object whose state is some of its attributes.

    Attributes:
        STATE: Their names; a leading underscore is left out in what is stored.
        KINDS: Pairs of name and class, where objects are made by its `from_state_dict`.

    Example:
        >>> class Counter(Stateful):
        ...     STATE = ("_count",)
        ...     _count = 2
        >>> Counter().state_dict()
        {'count': 2}
    """

    STATE: ClassVar[tuple[str, ...]] = ()
    KINDS: ClassVar[tuple[tuple[str, Any], ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """Return all state, as nested plain containers of tensors and numbers."""
        return {name.lstrip("_"): _plain(getattr(self, name)) for name in self.STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in self.STATE:
            stored, kind = state[name.lstrip("_")], dict(self.KINDS).get(name)
            value = _restored(getattr(self, name), stored) if kind is None else _rebuilt(kind, stored)
            setattr(self, name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return _words(value)
    if isinstance(value, Tensor):
        return value.clone()  # what is stored stays as it is while the object moves on
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return _plain(value.state_dict()) if hasattr(value, "state_dict") else value


def _restored(own: Any, stored: Any) -> Any:
    if isinstance(own, torch.Generator):
        own.set_state(stored)
    elif isinstance(own, np.random.Generator):
        state, increment, has_uint32, uinteger = stored
        own.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": increment},
            "has_uint32": has_uint32,
            "uinteger": uinteger,
        }
    elif hasattr(own, "load_state_dict"):
        own.load_state_dict(stored)
    elif isinstance(stored, dict):
        return {key: _restored(None, part) for key, part in stored.items()}
    elif isinstance(stored, list):
        return [_restored(None, part) for part in stored]
    elif isinstance(stored, Tensor):
        return stored.numpy().copy() if isinstance(own, np.ndarray) else stored.clone()
    else:
        return stored
    return own


def _rebuilt(kind: Any, stored: Any) -> Any:
    if isinstance(stored, list):
        return [kind.from_state_dict(_restored(None, part)) for part in stored]
    return None if stored is None else kind.from_state_dict(_restored(None, stored))


def _words(generator: np.random.Generator) -> list[int]:
    """Return the state of a PCG64 generator as numbers."""
    state: Any = generator.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise ConfigError(
            f"generators of type {state['bit_generator']} cannot be stored; use numpy.random.default_rng."
        )
    return [*(int(state["state"][key]) for key in ("state", "inc")), state["has_uint32"], state["uinteger"]]
