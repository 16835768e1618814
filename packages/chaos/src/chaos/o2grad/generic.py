"""Backend 1: exact Hessians of any module by differentiating its backward pass.

Columns are computed in chunks, as many at once as a memory budget allows. Where the backward pass of an
operation cannot be differentiated, forward-over-reverse differentiation is tried instead. It is second
choice, because it does not see what a forward pass hides from autograd (`torch.no_grad`, hooks on tensors).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from chaos.o2grad.parameters import LossFunction

Scalar = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]

#: Bytes per column and activation entry that a chunk holds: value, tangent, adjoint and its tangent, twice
#: for temporaries.
_COPIES = 8
#: Columns per chunk beyond which larger chunks only leave the caches: 512 beats 2048 by a fifth on the MLP.
_LARGEST_CHUNK = 512


def chunk_size(n: int, activations: int, itemsize: int, budget: int) -> int:
    """Number of columns whose intermediates fit the budget.

    Args:
        n: Number of parameters.
        activations: Total entries of all layer outputs for the batch.
        itemsize: Bytes of one entry.
        budget: Bytes.
    """
    return max(1, min(n, _LARGEST_CHUNK, budget // (_COPIES * itemsize * (n + activations))))


class Linearisation:
    """The gradient of a scalar function at a point with its graph, kept for products with the Hessian.

    The first product costs about three gradients, each further one about two: the graph is built once.

    Attributes:
        value: The function's value.

    The point is not copied; it must stay as it is while products are taken.

    Example:
        >>> lines = Linearisation(lambda v: (v**3).sum() / 6, torch.tensor([1.0, 2.0]))
        >>> lines.product(torch.tensor([1.0, 1.0]))
        tensor([1., 2.])
        >>> lines.products(torch.eye(2))
        tensor([[1., 0.],
                [0., 2.]])

    Raises:
        ValueError: If the function reads parameters past the point, or holds an operation whose second
            derivative PyTorch has wrong.
    """

    def __init__(self, function: Scalar, point: Float[Tensor, " n"]) -> None:
        self._function, self._point = function, point
        self._no_reverse: Exception | None = None
        with torch.enable_grad():
            self._leaves, value = value_on_leaves(function, point)
            self._gradients = gradients_of(value, self._leaves, create_graph=True)
        self.value = value.detach()
        try:
            check_graph((value, *self._gradients), function)
        except NotImplementedError as error:
            self._no_reverse = error

    @property
    def gradient(self) -> Float[Tensor, " n"]:
        """The gradient at the point."""
        return torch.cat([part.detach().reshape(-1) for part in self._gradients])

    def product(self, v: Float[Tensor, " n"], *, last: bool = False) -> Float[Tensor, " n"]:
        """Return the Hessian times a vector; the `last` one frees the graph, which is quicker.

        Raises:
            ValueError: As :meth:`products`.
        """
        if self._no_reverse is None:
            try:
                return self._differentiate(v, batched=False, keep=not last)
            except (NotImplementedError, RuntimeError) as error:
                self._fall_back(error)
        return self._forward(v[None], 1)[0]

    def products(self, V: Float[Tensor, "k n"], chunk: int | None = None) -> Float[Tensor, "k n"]:
        """Return the Hessian times each row, `chunk` rows at a time.

        Raises:
            ValueError: If an operation of the function has no second derivative; it is named.
        """
        chunk = chunk or len(V)
        if len(V) == 1:
            return self.product(V[0])[None]
        if self._no_reverse is None:
            try:
                return _in_chunks(lambda W: self._differentiate(W, batched=True, keep=True), V, chunk)
            except (NotImplementedError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
            try:  # an operation without a batching rule: one column at a time
                return torch.stack([self._differentiate(v, batched=False, keep=True) for v in V])
            except (NotImplementedError, RuntimeError) as error:
                self._fall_back(error)
        return self._forward(V, chunk)

    def _fall_back(self, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        self._no_reverse = error

    def _differentiate(self, v: Tensor, *, batched: bool, keep: bool) -> Tensor:
        pieces = v.split([leaf.numel() for leaf in self._leaves], dim=-1)
        curved = [
            (gradient, piece.reshape((*v.shape[:-1], *gradient.shape)))
            for gradient, piece in zip(self._gradients, pieces, strict=True)
            if gradient.requires_grad
        ]
        if not curved:
            return torch.zeros_like(v)
        gradients, directions = zip(*curved, strict=True)
        with warnings.catch_warnings():  # of operations that vmap has no batching rule for; slow, and right
            if batched:
                warnings.filterwarnings("ignore", message="There is a performance drop")
            products = torch.autograd.grad(
                gradients,
                self._leaves,
                directions,
                retain_graph=keep,
                is_grads_batched=batched,
                materialize_grads=True,
            )
        rows = v.shape[:-1]  # of an unreachable parameter there is one row of zeros for all
        return torch.cat(
            [
                part.detach().expand((*rows, *leaf.shape)).reshape((*rows, -1))
                for part, leaf in zip(products, self._leaves, strict=True)
            ],
            dim=-1,
        )

    def _forward(self, V: Tensor, chunk: int) -> Tensor:
        gradient = torch.func.grad(self._function)

        def product(v: Tensor) -> Tensor:
            found: Tensor = torch.func.jvp(gradient, (self._point,), (v,))[1]
            return found

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                return _in_chunks(torch.func.vmap(product), V, chunk)
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"The loss has no second derivative that PyTorch can compute. Reverse mode: "
                f"{_first_line(self._no_reverse)} Forward mode: {_first_line(error)}"
            ) from error


def value_on_leaves(function: Scalar, point: Float[Tensor, " n"]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return leaves and the function's value on them.

    With one leaf for each parameter no backward pass has to put a flat vector together.
    """
    if not isinstance(function, LossFunction):
        leaf = point.detach().requires_grad_()
        return (leaf,), function(leaf)
    parts = {name: part.detach().requires_grad_() for name, part in function.layout.unflatten(point).items()}
    return tuple(parts.values()), function.of_parts(parts)


def gradients_of(value: Tensor, leaves: tuple[Tensor, ...], *, create_graph: bool) -> tuple[Tensor, ...]:
    """Return the gradients of a value, zeros where it does not depend on a leaf."""
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    return torch.autograd.grad(value, leaves, create_graph=create_graph, materialize_grads=True)


def check_graph(roots: Iterable[Tensor], function: Scalar, *, second_order: bool = True) -> None:
    """Look through the graph for what would make derivatives silently wrong.

    Raises:
        NotImplementedError: For operations marked ``once_differentiable``: autograd takes them for constants.
        ValueError: For an operation whose second derivative is wrong, or a parameter of the model that is
            reached by a reference, so that it does not follow the point.
    """
    live = function.live if isinstance(function, LossFunction) else {}
    nodes: list[Any] = [root.grad_fn for root in roots]
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = type(node).__name__
        nodes.extend(parent for parent, _ in node.next_functions)
        if kind == "AccumulateGrad" and id(node.variable) in live:
            raise ValueError(
                f"The loss reaches parameter {live[id(node.variable)]!r} by a reference of its own (a "
                "captured tensor, or a value kept from an earlier call), so it does not follow the point "
                "of evaluation. Read it from the model each time: model.get_parameter(name)."
            )
        if kind == "EmbeddingBackward0" and node._saved_scale_grad_by_freq:
            raise ValueError(
                "An embedding has scale_grad_by_freq, so what its backward pass returns is no gradient of "
                "the loss. Set it to False."
            )
        if not second_order:
            continue
        if kind.endswith("Error"):
            raise NotImplementedError("an operation's backward is marked @once_differentiable.")
        if kind.startswith("WeightNormInterface"):
            raise ValueError(
                "PyTorch's fused weight norm has a wrong second derivative. Use "
                "torch.nn.utils.parametrizations.weight_norm instead of torch.nn.utils.weight_norm."
            )


def _in_chunks(product: Callable[[Tensor], Tensor], V: Tensor, chunk: int) -> Tensor:
    parts = [product(rows) for rows in V.split(chunk)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def dense_hessian(
    function: Scalar, point: Float[Tensor, " n"], *, chunk: int, progress: Progress | None = None
) -> Float[Tensor, "n n"]:
    """All rows of the Hessian, chunk by chunk; symmetric up to rounding.

    Raises:
        ValueError: As :meth:`Linearisation.products`.
    """
    n, lines = len(point), Linearisation(function, point)
    H, basis = point.new_empty(n, n), point.new_zeros(min(chunk, n), n)
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        ones = basis[: stop - start, start:stop].diagonal()
        ones.fill_(1)
        H[start:stop] = lines.products(basis[: stop - start])
        ones.zero_()
        if progress is not None:
            progress(stop, n)
    return H
