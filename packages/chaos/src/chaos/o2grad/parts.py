"""What a model and a loss consist of at one moment, and whether any code but PyTorch's runs in them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

EMBEDDINGS = nn.Embedding, nn.EmbeddingBag
_KINDS = Tensor, nn.Parameter  # other classes bring operations of their own
_CHANGING = nn.RNNBase, _NormBase  # the layers of PyTorch that change their own attributes, or are made to


class Parts:
    """The modules and tensors of a model and its loss, read in one pass.

    Attributes:
        names: Every module of the model once, outer ones first, with its name.
        modules: These, and those of the loss.
        parameters: Those of the model, each under its first name.
        buffers: The same of its buffers.
        places: Every place that holds a tensor: a dictionary of a module, the key, the tensor.
        of_loss: The tensors that only the loss holds.
        runs_only_torch: Whether to call them runs nothing but layers of PyTorch, with no code of others. So
            nothing draws numbers elsewhere, keeps values, or runs in the backward pass. Attention, whose
            kernels are chosen, and embeddings, which may scale their gradients, are left out.
        changing: The modules whose attributes a call may change.
        keeps_inputs: Whether a call surely writes into no batch.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> parts = Parts(nn.Sequential(layer, nn.Tanh(), layer), nn.MSELoss())
        >>> list(parts.names.values()), list(parts.parameters), len(parts.modules), parts.runs_only_torch
        (['', '0', '1'], ['0.weight', '0.bias'], 4, True)
    """

    def __init__(self, model: nn.Module | None = None, loss: object = None) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.places: list[tuple[dict[str, Any], str, Tensor]] = []
        self.names = {} if model is None else self._read(model, self.parameters, self.buffers)
        self.modules, self.of_loss = list(self.names), list[Tensor]()
        is_known = loss is not None
        if isinstance(loss, nn.Module):
            of_model = len(self.places)
            self.modules += self._read(loss, {}, {})
            if len(self.places) > of_model:
                shared = {id(tensor) for _, _, tensor in self.places[:of_model]}
                self.of_loss = [t for _, _, t in self.places[of_model:] if id(t) not in shared]
        elif is_known:  # by identity: what wraps a function of PyTorch has its name and its module, too
            is_known = loss is getattr(functional, getattr(loss, "__name__", ""), None)
        self.runs_only_torch = (
            is_known
            and not _hooks_of_all()
            and all(map(_is_of_torch, self.modules))
            and not any(type(t) not in _KINDS or t._backward_hooks for _, _, t in self.places)
        )
        self.changing, self.keeps_inputs = self.modules, False
        if self.runs_only_torch:
            self.changing = [module for module in self.modules if _is_changing(type(module))]  # type: ignore[arg-type]
            self.keeps_inputs = not any("inplace" in vars(module) for module in self.modules)

    def _read(
        self, root: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> dict[nn.Module, str]:
        """Note the tensors within a module; return its modules with names, as ``named_modules`` does."""
        found: dict[nn.Module, str] = {}
        seen: set[int] = set()
        left = [("", root)]
        while left:
            prefix, module = left.pop()
            if module in found:
                continue
            found[module] = prefix[:-1]
            own = vars(module)
            for held, named in ((own["_parameters"], parameters), (own["_buffers"], buffers)):
                for key, tensor in held.items():
                    if tensor is not None:
                        self.places.append((held, key, tensor))
                        if id(tensor) not in seen:
                            seen.add(id(tensor))
                            named[prefix + key] = tensor
            if inner := own["_modules"]:
                left += [
                    (f"{prefix}{key}.", part) for key, part in reversed(inner.items()) if part is not None
                ]
        return found


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module does what its class says and nothing else.

    Forward hooks, hooks of all modules, and a ``forward`` or ``__call__`` of the instance's own say no. Hooks
    of the backward pass do too, since they may change a gradient.
    """
    return not _hooks_of_all() and _is_plain_itself(module)


def _hooks_of_all() -> bool:
    everywhere = torch.nn.modules.module
    return bool(
        everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
        or everywhere._global_backward_hooks
        or everywhere._global_backward_pre_hooks
    )


def _is_plain_itself(module: nn.Module) -> bool:
    own = vars(module)
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or type(module).__call__ is not nn.Module.__call__
        or own.get("_compiled_call_impl") is not None
    )


def _is_of_torch(module: nn.Module) -> bool:
    return (
        _is_layer_of_torch(type(module))  # type: ignore[arg-type]
        and _is_plain_itself(module)
        and not any(callable(own) or isinstance(own, Tensor) for own in vars(module).values())
    )


@lru_cache
def _is_layer_of_torch(kind: type) -> bool:
    left_out = issubclass(kind, (nn.MultiheadAttention, *EMBEDDINGS))
    return kind.__module__.startswith("torch.nn.modules.") and not left_out


@lru_cache
def _is_changing(kind: type) -> bool:
    return issubclass(kind, _CHANGING)
