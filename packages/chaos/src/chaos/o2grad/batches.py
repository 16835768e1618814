"""Batches in the forms that people bring: tensors, tuples, dictionaries, and loaders of them.

A batch is a pair ``(x, y)`` or a mapping. The model is called as ``model(x)`` for a tensor, ``model(*x)`` for
a tuple or list, ``model(**x)`` for a mapping. The loss is called as ``loss(output, y)``, and as
``loss(output)`` where y is ``None``: a batch that is a mapping has its targets inside, as in
``LossSurface(model, lambda output: output.loss)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Any
Batch = Any


def call(model: Callable[..., Any], x: Inputs) -> Any:
    """Call a model with one batch of inputs.

    >>> call(lambda a, b: a + b, {"a": 1, "b": 2}), call(lambda a, b: a + b, (1, 2)), call(abs, -1)
    (3, 3, 1)
    """
    args, kwargs = arguments(x)
    return model(*args, **kwargs)


def arguments(x: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that a batch of inputs stands for."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, tuple | list) else ((x,), {})


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor of nested tuples, lists and mappings; all else stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return _like(tree, [map_tensors(function, value) for value in tree])
    return tree


def _like(old: tuple[Any, ...] | list[Any], items: list[Any]) -> Any:
    """Return the items as a list, a tuple, or a named tuple like the old one: models read its names."""
    if isinstance(old, list):
        return items
    return old._make(items) if hasattr(old, "_make") else tuple(items)


def tensors(tree: Any) -> list[Tensor]:
    """Return every tensor of a tree, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Return the tree with its floating-point tensors in another type."""

    def of(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        return t.detach().to(dtype).requires_grad_() if t.requires_grad else t.to(dtype)

    return map_tensors(of, tree)


def copied(tree: Any) -> Any:
    """Return the tree with tensors of its own: a model may write into its inputs, or differentiate by them.

    >>> x = torch.zeros(2)
    >>> a, b = copied((x, x))
    >>> a is b, a is x  # what is one tensor stays one
    (True, False)
    """
    with torch.enable_grad():
        copies = {id(t): t.clone() if t.requires_grad else t.detach().clone() for t in tensors(tree)}
    return map_tensors(lambda t: copies[id(t)], tree)


def select(tree: Any, samples: slice, batch: int) -> Any:
    """Return some samples of a batch: rows of every tensor with one for each sample; a mask stays whole."""
    return map_tensors(lambda t: t[samples] if t.ndim and len(t) == batch else t, tree)


def num_samples(x: Inputs) -> int:
    """Return the number of samples of a batch: the length of its first tensor.

    Raises:
        ValueError: If the batch holds no tensor, or no sample.
    """
    first = next((t for t in ([x] if isinstance(x, Tensor) else tensors(x)) if t.ndim), None)
    if first is None:
        raise ValueError(
            "The batch holds no tensor with samples; pass a tensor, a tuple or a dictionary of them."
        )
    if len(first) == 0:
        raise ValueError(f"The batch is empty: x has shape {tuple(first.shape)}; pass at least one sample.")
    return len(first)


def join(first: Any, second: Any, batch: int) -> Any:
    """Return two batches as one.

    Args:
        first: Of so many samples as `batch` says.
        second: Another, of any number of samples.
        batch: Number of samples of the first.

    Raises:
        ValueError: If they cannot be put together, for example sequences of different lengths.
    """
    if isinstance(first, Tensor):
        if not first.ndim or (len(first) != batch and torch.equal(first, second)):
            return first  # of all samples together, such as a mask
        try:
            return torch.cat([first, second])
        except RuntimeError as error:
            raise ValueError(str(error)) from None
    if isinstance(first, Mapping):
        return {key: join(value, second[key], batch) for key, value in first.items()}
    if isinstance(first, tuple | list):
        return _like(first, [join(a, b, batch) for a, b in zip(first, second, strict=True)])
    return first


def is_batch(data: object) -> bool:
    """Whether data is one batch and not a loader of them."""
    one = isinstance(data, tuple | Mapping)
    return one or (isinstance(data, list) and any(isinstance(item, Tensor) for item in data))


def pairs(data: Batch | Iterable[Batch]) -> Iterator[tuple[Inputs, Any]]:
    """Yield the pairs ``(x, y)`` of a batch or of a loader; y is ``None`` where the batch is a mapping.

    A tuple, a mapping, and a list that holds a tensor are one batch (a ``DataLoader`` yields lists); anything
    else is a loader.

    Raises:
        TypeError: If an item is no batch.
        ValueError: If there is no batch.
    """
    count = 0
    for item in [data] if is_batch(data) else data:
        count += 1
        if isinstance(item, Mapping):
            yield item, None
        elif isinstance(item, tuple | list) and len(item) == 2:
            yield item[0], item[1]
        else:
            raise TypeError(
                f"data yields {type(item).__name__}; each item must be a pair (x, y) or a dictionary."
            )
    if not count:
        raise ValueError("data is empty: it must yield at least one batch (x, y).")
