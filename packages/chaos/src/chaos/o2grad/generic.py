"""Backend 1: exact Hessians of any module by differentiating its backward pass.

Columns are computed in chunks, as many at once as a memory budget allows. Where the backward pass of an
operation cannot be differentiated, forward-over-reverse differentiation is tried instead. It is second
choice, because it does not see what a forward pass hides from autograd (`torch.no_grad`, hooks on tensors,
`padding_idx` of an embedding); it is refused where its first derivative is not the gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from chaos.o2grad.budget import DEFAULT_BUDGET, new_matrix
from chaos.o2grad.parameters import LossFunction

Scalar = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]

#: Bytes per column and activation entry that a chunk holds: value, tangent, adjoint and its tangent, twice
#: for temporaries.
_COPIES = 8
#: Columns per chunk beyond which larger chunks only leave the caches: 512 beats 2048 by a fifth on the MLP.
_LARGEST_CHUNK = 512


class OnceDifferentiableError(RuntimeError):
    """An operation's backward pass cannot be differentiated, although autograd would go through it."""


class Linearisation:
    """The gradient of a scalar function at a point with its graph, kept for products with the Hessian.

    The first product costs about three gradients, each further one about two: the graph is built once.

    Args:
        function: Of a flat vector.
        point: Where. It is not copied; it must stay as it is while products are taken. ``None``, for a single
            product of a :class:`LossFunction` that runs only layers of PyTorch, takes the model's own
            parameters where they stand.
        budget: Bytes that the intermediates of several products at once may take.

    Attributes:
        value: The function's value.
        runs_only_torch: Whether a product runs no code but that of PyTorch's layers.
        sizes: Numbers of entries of the leaves.
        eps: Relative rounding of the least precise type that it computes in.

    Example:
        >>> lines = Linearisation(lambda v: (v**3).sum() / 6, torch.tensor([1.0, 2.0]))
        >>> lines.product(torch.tensor([1.0, 1.0]))
        tensor([1., 2.])
        >>> lines.products(torch.eye(2))
        tensor([[1., 0.],
                [0., 2.]])

    Raises:
        ValueError: If the function reads parameters past the point or writes into them, or holds an operation
            whose second derivative PyTorch has wrong.
    """

    def __init__(
        self, function: Scalar, point: Float[Tensor, " n"] | None, budget: int = DEFAULT_BUDGET
    ) -> None:
        self._function = function
        self._no_reverse: Exception | None = None
        self._leaves, self._at = leaves_of(function, point)
        self.sizes = [leaf.numel() for leaf in self._leaves]
        with torch.enable_grad(), self._at():
            value = value_at(function, point, self._leaves)
            self.gradients = gradients_of(value, self._leaves)
        self.value = value.detach()
        self.runs_only_torch = isinstance(function, LossFunction) and function.parts.runs_only_torch
        self._root, self._budget = value, budget
        if self.runs_only_torch:  # which computes in one type, and has none of what the graph is checked for
            self.eps = torch.finfo(self._leaves[0].dtype).eps
            return
        self.eps = rounding_of(results_below(value))
        if self.eps > 1e-4:
            raise ValueError(
                "The model computes in half precision inside (autocast, bfloat16 or float16), which has too "
                "few digits for second derivatives; let it compute in float32."
            )
        try:
            check_graph((value, *self.gradients), function)
        except OnceDifferentiableError as error:
            self._no_reverse = error
        if isinstance(function, LossFunction) and function.look is not None:
            function.look(self)

    @cached_property
    def chunk(self) -> int:
        """How many products are taken at once."""
        entries = sum(math.prod(result.shape) for result in results_below(self._root))
        column = _COPIES * self._leaves[0].element_size() * max(entries, 1)
        return max(1, min(_LARGEST_CHUNK, self._budget // column))  # type: ignore[no-any-return]

    @cached_property
    def graph(self) -> int:
        """A number for the operations that the value is made of, in their order."""
        leaves = {id(leaf): i for i, leaf in enumerate(self._leaves)}
        nodes = nodes_below([self._root])
        return hash(tuple(leaves.get(id(_leaf(node)), type(node)) for node in nodes))

    @property
    def is_reached(self) -> list[bool]:
        """Which of the leaves the value depends on, as autograd sees it."""
        found = {id(_leaf(node)) for node in nodes_below([self._root])}
        return [id(leaf) in found for leaf in self._leaves]

    @property
    def has_padding(self) -> bool:
        """Whether an embedding has padding, whose gradient PyTorch sets to 0."""
        rows = (getattr(node, "_saved_padding_idx", -1) for node in nodes_below([self._root]))
        return any(row in range(2**63) for row in rows)  # none is -1, read as unsigned

    @property
    def functions(self) -> list[str]:
        """Names of the operations that have a backward pass of their own."""
        own = [node for node in nodes_below([self._root]) if isinstance(node, BackwardCFunction)]
        return list(dict.fromkeys(type(node).__name__.removesuffix("Backward") for node in own))

    @property
    def gradient(self) -> Float[Tensor, " n"]:
        """The gradient at the point."""
        return torch.cat([part.detach().reshape(-1) for part in self.gradients])

    def product(self, v: Float[Tensor, " n"], *, last: bool = False) -> Float[Tensor, " n"]:
        """Return the Hessian times a vector; the `last` one frees the graph, which is quicker.

        Raises:
            ValueError: As :meth:`products`.
        """
        if self._no_reverse is None:
            try:
                return torch.cat(self._differentiate(v, keep=not last))
            except RuntimeError as error:
                self._fall_back(error)
        return self._forward(v[None])[0]

    def products(self, V: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Return the Hessian times each row.

        Raises:
            ValueError: If an operation of the function has no second derivative; it is named.
        """
        if len(V) == 1:
            return self.product(V[0])[None]
        out = torch.empty_like(V)
        for rows, target in zip(V.split(self.chunk), out.split(self.chunk), strict=True):
            self._fill(target, rows)
        return out

    def rows(self, start: int, stop: int, out: Float[Tensor, "rows n"]) -> None:
        """Write some rows of the Hessian, of one chunk and one leaf."""
        ones = out.new_zeros(stop - start, sum(self.sizes))
        ones[:, start:stop].fill_diagonal_(1)
        self._fill(out, ones)

    def _fill(self, out: Tensor, V: Tensor) -> None:
        """Write the product of each row."""
        if len(V) > 1 and self._no_reverse is None:
            try:
                with warnings.catch_warnings():  # of operations that vmap has no rule for; slow, and right
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    parts = self._differentiate(V, keep=True)
            except RuntimeError as error:  # perhaps of an operation without a batching rule
                if isinstance(error, torch.OutOfMemoryError):
                    raise
            else:
                for target, part in zip(out.split(self.sizes, dim=-1), parts, strict=True):
                    target.copy_(part)
                return
        if self._no_reverse is None:
            for target, v in zip(out, V, strict=True):
                target.copy_(self.product(v.contiguous()))  # grouped products take no other
        else:
            out.copy_(self._forward(V))

    def _fall_back(self, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        self._no_reverse = error

    def _differentiate(self, V: Float[Tensor, "*k n"], *, keep: bool) -> list[Tensor]:
        """Return the parts of the product of each row, one for each leaf (*k, size)."""
        rows, is_batched = V.shape[:-1], V.ndim > 1
        curved, directions = [], []
        for gradient, piece in zip(self.gradients, V.split_with_sizes(self.sizes, -1), strict=True):
            if gradient.requires_grad and (not is_batched or bool(piece.any())):
                curved.append(gradient)
                directions.append(
                    piece.reshape((*rows, *gradient.shape)) if is_batched else piece.view_as(gradient)
                )
        if not curved:
            return list(torch.zeros_like(V).split_with_sizes(self.sizes, -1))
        with nullcontext() if self.runs_only_torch else self._at():  # a checkpoint runs the model again
            products = torch.autograd.grad(
                curved,
                self._leaves,
                directions,
                retain_graph=keep,
                is_grads_batched=is_batched,
                materialize_grads=True,
            )
        if not is_batched:
            return [part.reshape(-1) for part in products]
        return [  # of an unreachable parameter there is one row of zeros for all
            part.detach().expand((*rows, *leaf.shape)).reshape((*rows, -1))
            for part, leaf in zip(products, self._leaves, strict=True)
        ]

    @cached_property
    def point(self) -> Float[Tensor, " n"]:
        """Where it is taken."""
        return torch.cat([leaf.detach().reshape(-1) for leaf in self._leaves])

    def _forward(self, V: Tensor) -> Tensor:
        gradient = torch.func.grad(self._function)

        def product(v: Tensor) -> Tensor:
            found: Tensor = torch.func.jvp(gradient, (self.point,), (v,))[1]
            return found

        try:
            self._check_forward()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                found: Tensor = torch.func.vmap(product)(V)
                return found
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"The loss has no second derivative that PyTorch can compute. Reverse mode: "
                f"{_first_line(self._no_reverse)} Forward mode: {_first_line(error)}"
            ) from error

    def _check_forward(self) -> None:
        v = random_normal(len(self.point), len(self.point)).to(self.point)
        slope, terms = torch.func.jvp(self._function, (self.point,), (v,))[1], self.gradient * v
        if not bool((slope - terms.sum()).abs() <= 1e3 * torch.finfo(v.dtype).eps * terms.abs().sum()):
            raise RuntimeError(
                "it does not reproduce the gradient, since it passes over hooks, no_grad and padding_idx."
            )


def leaves_of(
    function: Scalar, point: Float[Tensor, " n"] | None, *, hooks: bool = False
) -> tuple[tuple[Tensor, ...], Callable[[], AbstractContextManager[None]]]:
    """Return leaves in the place of a point, and the context in which the function is evaluated on them.

    With one leaf for each parameter no backward pass has to put a flat vector together.
    """
    if not isinstance(function, LossFunction):
        return (point.detach().requires_grad_(),), nullcontext  # type: ignore[union-attr]
    if point is None:
        own = function.parts.parameters
        parts = {name: own[name].detach().requires_grad_() for name in function.layout.names}
    else:
        parts = {name: part.requires_grad_() for name, part in function.layout.unflatten(point).items()}
    if not function.parts.runs_only_torch:
        for name, part in parts.items():
            part._evaluated_by = function  # type: ignore[attr-defined]
            for hook in (function.parts.parameters[name]._backward_hooks or {}).values() if hooks else ():
                part.register_hook(hook)
    return tuple(parts.values()), lambda: function.at(parts)


def value_at(function: Scalar, point: Float[Tensor, " n"] | None, leaves: tuple[Tensor, ...]) -> Tensor:
    """Return the function's value on leaves, in their context.

    Raises:
        ValueError: If it writes into them, or depends on no parameter of the model at all.
    """
    version = 0 if point is None else point._version
    value = function.value() if isinstance(function, LossFunction) else function(*leaves)
    if point is not None and point._version != version:
        raise ValueError(
            "A forward pass rewrites the model's own parameters, so the loss is no function of them. Let it "
            "compute new tensors instead of writing in place."
        )
    if isinstance(function, LossFunction) and function.is_whole and not value.requires_grad:
        raise ValueError(
            "Autograd finds no parameter that the loss depends on: it is detached, or computed under no_grad."
        )
    return value


def gradients_of(value: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the gradients of a value with their graph, zeros where it does not depend on a leaf."""
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    return torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)


def pull(
    output: Tensor, leaves: tuple[Tensor, ...], rows: Float[Tensor, "k outputs"]
) -> Float[Tensor, "k n"]:
    """Return rows times the Jacobian of an output; its graph is kept."""
    if not output.requires_grad:
        return rows.new_zeros(len(rows), sum(leaf.numel() for leaf in leaves))

    def of(directions: Tensor, *, batched: bool) -> Tensor:
        parts = torch.autograd.grad(
            output, leaves, directions, retain_graph=True, is_grads_batched=batched, materialize_grads=True
        )
        shape = directions.shape[: directions.ndim - output.ndim]
        # of an unreachable parameter there is one row of zeros for all
        pairs = zip(parts, leaves, strict=True)
        return torch.cat([p.expand(*shape, *leaf.shape).reshape(*shape, -1) for p, leaf in pairs], -1)

    directions = rows.view(-1, *output.shape)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return of(directions, batched=True)
    except RuntimeError as error:  # perhaps of an operation without a batching rule
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return torch.stack([of(direction, batched=False) for direction in directions])


def nodes_below(roots: Iterable[Tensor]) -> list[Any]:
    """Return every operation of a graph once."""
    left: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = dict.fromkeys(left)
    while left:
        for parent, _ in left.pop().next_functions:
            if parent is not None and parent not in seen:
                seen[parent] = None
                left.append(parent)
    return list(seen)


def _leaf(node: Any) -> Tensor | None:
    """What a gradient is accumulated for, if that is what an operation stands for."""
    return node.variable if type(node).__name__ == "AccumulateGrad" else None


def results_below(value: Tensor) -> list[Any]:
    """Return shape and type of every result that a value was computed from."""
    return [result for node in nodes_below([value]) for result in node._input_metadata]


def rounding_of(results: list[Any]) -> float:
    """Return the relative rounding of the least precise type among results."""
    types = {result.dtype for result in results}
    return max((torch.finfo(kind).eps for kind in types if kind.is_floating_point), default=0.0)


def check_graph(roots: Iterable[Tensor], function: Scalar, *, second_order: bool = True) -> None:
    """Look through the graph for what would make derivatives silently wrong.

    Raises:
        OnceDifferentiableError: For operations that are, by decorator: autograd takes them for constants.
        ValueError: For an operation whose second derivative is wrong, or a parameter of the model, or of an
            earlier evaluation, that is reached by a reference, so that it does not follow the point.
    """
    live = function.live if isinstance(function, LossFunction) else {}
    for node in nodes_below(roots):
        kind = type(node).__name__
        if kind == "AccumulateGrad" and id(node.variable) in live:
            raise ValueError(
                f"The loss reaches parameter {live[id(node.variable)]!r} by a reference of its own (a "
                "captured tensor, or a value kept from an earlier call), so it does not follow the point "
                "of evaluation. Read it from the model each time: model.get_parameter(name)."
            )
        if kind == "AccumulateGrad" and getattr(node.variable, "_evaluated_by", function) is not function:
            raise ValueError(
                "The model or the loss keeps a value of an earlier evaluation outside of its modules (a "
                "cache), so it does not follow the point of evaluation. Let it compute the value each time."
            )
        if kind == "CheckpointFunctionBackward":
            raise ValueError(
                "A reentrant checkpoint hides the parameters within from derivatives other than backward(); "
                "call torch.utils.checkpoint.checkpoint with use_reentrant=False."
            )
        if kind == "EmbeddingBackward0" and node._saved_scale_grad_by_freq:
            raise ValueError(
                "An embedding has scale_grad_by_freq, so what its backward pass returns is no gradient of "
                "the loss. Set it to False."
            )
        if not second_order:
            continue
        if kind.endswith("Error"):
            raise OnceDifferentiableError("an operation's backward is marked @once_differentiable.")
        if kind.startswith("WeightNormInterface"):
            raise ValueError(
                "PyTorch's fused weight norm has a wrong second derivative. Use "
                "torch.nn.utils.parametrizations.weight_norm instead of torch.nn.utils.weight_norm."
            )


def random_normal(seed: int, *shape: int) -> Tensor:
    """Fixed normal numbers, made on the CPU whatever the default device is, so that they are the same."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def dense_hessian(
    function: Scalar,
    point: Float[Tensor, " n"],
    budget: int = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> Float[Tensor, "n n"]:
    """All rows of the Hessian, chunk by chunk; symmetric up to rounding.

    Raises:
        ValueError: As :meth:`Linearisation.products`.
    """
    n, lines = len(point), Linearisation(function, point, budget)
    H, stop = new_matrix(n, n, point), 0
    for size in lines.sizes:  # directions of one leaf at a time: autograd passes over what they do not reach
        first, stop = stop, stop + size
        for start in range(first, stop, lines.chunk):
            end = min(start + lines.chunk, stop)
            lines.rows(start, end, H[start:end])
            if progress is not None:
                progress(end, n)
    return H
