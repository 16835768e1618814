"""Backend 1: exact Hessians of any module by forward-over-reverse differentiation.

Columns are computed in chunks, as many at once as a memory budget allows. Where an operation has no
forward-mode rule the columns come from reverse-over-reverse differentiation instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from chaos.o2grad.parameters import LossFunction

Scalar = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]

#: Bytes per column and activation entry that a chunk holds: value, tangent, adjoint and its tangent, twice
#: for temporaries.
_COPIES = 8
#: Columns per chunk beyond which larger chunks only leave the caches: 1024 beats 5350 by a fifth on the MLP.
_LARGEST_CHUNK = 1024


def chunk_size(n: int, activations: int, itemsize: int, budget: int) -> int:
    """Number of columns whose intermediates fit the budget.

    Args:
        n: Number of parameters.
        activations: Total entries of all layer outputs for the batch.
        itemsize: Bytes of one entry.
        budget: Bytes.
    """
    return max(1, min(n, _LARGEST_CHUNK, budget // (_COPIES * itemsize * (n + activations))))


def hvp_columns(
    function: Scalar,
    point: Float[Tensor, " n"],
    directions: Float[Tensor, "k n"],
    *,
    chunk: int,
    progress: Progress | None = None,
) -> Float[Tensor, "k n"]:
    """Hessian-vector products of a scalar function with the rows of ``directions``.

    Example:
        >>> hvp_columns(lambda v: (v**3).sum() / 6, torch.tensor([1.0, 2.0]), torch.eye(2), chunk=2)
        tensor([[1., 0.],
                [0., 2.]])

    Raises:
        ValueError: If an operation of the function has no second derivative; it is named.
    """
    if len(directions) == 1:
        try:
            return Linearisation(function, point).product(directions[0], last=True)[None]
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise  # forward mode may still know the operation
    gradient = torch.func.grad(function)

    def forward(v: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(gradient, (point,), (v,))[1]
        return product

    try:
        with warnings.catch_warnings():  # of operations that vmap has no batching rule for; slow, and right
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return _in_chunks(torch.func.vmap(forward), directions, chunk, progress)
    except (NotImplementedError, RuntimeError) as error:
        forward_error = error
    try:
        return reverse_over_reverse(function, point, directions, chunk, progress)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"The loss has no second derivative that PyTorch can compute. Forward mode: "
            f"{_first_line(forward_error)} Reverse mode: {_first_line(error)}"
        ) from error


class Linearisation:
    """The gradient of a scalar function at a point with its graph, kept for products with the Hessian.

    The first product costs about three gradients, each further one about two: the graph is built once.

    Attributes:
        value: The function's value.
        gradient: Its gradient.

    The point is not copied; it must stay as it is while products are taken.

    Example:
        >>> lines = Linearisation(lambda v: (v**3).sum() / 6, torch.tensor([1.0, 2.0]))
        >>> lines.product(torch.tensor([1.0, 1.0]))
        tensor([1., 2.])

    Raises:
        RuntimeError: If an operation's backward pass cannot be differentiated.
    """

    def __init__(self, function: Scalar, point: Float[Tensor, " n"]) -> None:
        # With one leaf for each parameter no backward pass has to put a flat vector together.
        split = function.layout.unflatten(point) if isinstance(function, LossFunction) else {"": point}
        with torch.enable_grad():
            parts = {name: part.detach().requires_grad_() for name, part in split.items()}
            self._leaves = tuple(parts.values())
            value = function.of_parts(parts) if isinstance(function, LossFunction) else function(parts[""])
            if value.requires_grad:
                gradients = torch.autograd.grad(
                    value, self._leaves, create_graph=True, materialize_grads=True
                )
            else:
                gradients = tuple(map(torch.zeros_like, self._leaves))
        self.value, self._gradients = value.detach(), gradients
        _refuse_delayed_errors(gradients)

    @property
    def gradient(self) -> Float[Tensor, " n"]:
        """The gradient at the point."""
        return torch.cat([part.detach().reshape(-1) for part in self._gradients])

    def product(self, v: Float[Tensor, " n"], *, last: bool = False) -> Float[Tensor, " n"]:
        """Return the Hessian times a vector; the `last` one frees the graph, which is quicker."""
        return self._differentiate(v, batched=False, keep=not last)

    def products(self, V: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Return the Hessian times each row."""
        return self._differentiate(V, batched=True, keep=True)

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


def _in_chunks(
    product: Callable[[Tensor], Tensor], directions: Tensor, chunk: int, progress: Progress | None
) -> Tensor:
    total = len(directions)
    if chunk >= total:
        return product(directions)
    out = torch.empty_like(directions)
    for start in range(0, total, chunk):
        out[start : start + chunk] = product(directions[start : start + chunk])
        if progress is not None:
            progress(min(start + chunk, total), total)
    return out


def reverse_over_reverse(
    function: Scalar, point: Tensor, directions: Tensor, chunk: int, progress: Progress | None = None
) -> Tensor:
    """Hessian-vector products by differentiating the backward pass, as autograd does.

    Raises:
        RuntimeError: If an operation's backward pass cannot be differentiated.
    """
    lines = Linearisation(function, point)
    try:
        return _in_chunks(lines.products, directions, chunk, progress)
    except RuntimeError:  # an operation without a batching rule: one column at a time
        return torch.stack([lines.product(v) for v in directions])


def _refuse_delayed_errors(gradients: Sequence[Tensor]) -> None:
    """Look for operations marked ``once_differentiable``: autograd takes them for constants."""
    nodes, seen = [gradient.grad_fn for gradient in gradients], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("Error"):
            raise RuntimeError("an operation's backward is marked @once_differentiable.")
        nodes.extend(parent for parent, _ in node.next_functions)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def dense_hessian(
    function: Scalar, point: Float[Tensor, " n"], *, chunk: int, progress: Progress | None = None
) -> Float[Tensor, "n n"]:
    """All rows of the Hessian, chunk by chunk; symmetric up to rounding."""
    n = len(point)
    if chunk >= n:
        H = hvp_columns(function, point, torch.eye(n, dtype=point.dtype, device=point.device), chunk=chunk)
    else:
        H, basis = point.new_empty(n, n), point.new_zeros(chunk, n)
        for start in range(0, n, chunk):
            stop = min(start + chunk, n)
            ones = basis[: stop - start, start:stop].diagonal()
            ones.fill_(1)
            H[start:stop] = hvp_columns(function, point, basis[: stop - start], chunk=chunk)
            ones.zero_()
            if progress is not None:
                progress(stop, n)
    return H
