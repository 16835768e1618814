"""The loss of a module as a function of its parameters: value, gradient, Jacobian of the output.

What every derivative needs stands here: the point, the batch in the type of the computation, and the
promise that nothing of the module is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from chaos.o2grad.batches import Inputs, call, cast, copied, num_samples, tensors
from chaos.o2grad.budget import DEFAULT_BUDGET, check_budget
from chaos.o2grad.generic import Linearisation, check_graph, leaves_of, pull, random_normal, value_at
from chaos.o2grad.losses import Loss
from chaos.o2grad.observation import (
    Watch,
    check_is_function,
    random_layer,
    swapped,
    untouched,
)
from chaos.o2grad.parameters import (
    LossFunction,
    ParameterLayout,
    Parameters,
    all_finite,
    flat_parameters,
)
from chaos.o2grad.parts import Parts


class DisagreementError(ValueError):
    """Two evaluations of one function differ."""

    def __init__(self, *, is_random: bool = False) -> None:
        super().__init__(
            "Two evaluations of the second derivative disagree, or it is not symmetric. So the loss is no "
            "function of the parameters (it is random, or keeps state between calls), or an operation's "
            "derivative is wrong."
        )
        self.is_random = is_random


@dataclass
class _Look:
    """What a look at second derivatives saw.

    Attributes:
        graph: Which operations the loss is made of.
        functions: Those with a backward pass of their own.
        differs: Whether the gradient changes in another way than it should.
        is_wrong: Whether it surely does.
        hidden: A parameter that moves the loss but gets no gradient.
    """

    graph: int
    functions: list[str]
    differs: bool = False
    is_wrong: bool = False
    hidden: str = ""


class LossEvaluation:
    """``L(theta; x, y) = loss(model_theta(x), y)``, its gradient, and the Jacobian of the model.

    Args:
        model: Any module with parameters that require a gradient.
        loss: As of :class:`~chaos.o2grad.LossSurface`, like the arguments below.
        dtype: Type of the computation.
        layers: The parameters that are differentiated.
        memory_budget: Bytes.

    Raises:
        ValueError: For an unknown type, or a module without trainable parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        dtype: torch.dtype | None = None,
        layers: Sequence[str] | None = None,
        memory_budget: int = DEFAULT_BUDGET,
    ) -> None:
        self.model, self.loss, self.memory_budget = model, loss, memory_budget
        self.layout = ParameterLayout.of(model, layers)
        self.dtype = _type_of_computation(model, dtype)
        self._checked: list[tuple[object, ...]] = []
        self._graphs: set[int] = set()  # in which second derivatives are right

    @property
    def n(self) -> int:
        """Number of differentiated parameters."""
        return self.layout.n

    @property
    def parts(self) -> Parts:
        """What model and loss consist of now."""
        return Parts(self.model, self.loss)

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and so every result."""
        return next(self.model.parameters()).device

    def value_and_gradient(self, params: Parameters, x: Inputs, y: Any) -> tuple[Tensor, Float[Tensor, " n"]]:
        """Loss and flat gradient.

        Args:
            params: Point of evaluation: ``None`` (the current one), a flat tensor or a dict by name.
            x: Inputs (batch, ...).
            y: Targets (batch, ...).

        Raises:
            ValueError: For an empty or non-finite batch, targets out of range, or a random loss.
        """
        value, gradient, _ = self.value_gradient_reached(params, x, y)
        return value, gradient

    def value_gradient_reached(
        self, params: Parameters, x: Inputs, y: Any, *, hooks: bool = False
    ) -> tuple[Tensor, Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """The same, and which entries the loss depends on at all: the others get no gradient, not even zero.

        Args:
            params: As of :meth:`value_and_gradient`.
            x: As there.
            y: As there.
            hooks: Whether hooks on parameters and modules act on the gradient.
        """
        with self.evaluation(x, y, hooks=hooks) as function:
            point = self.point(params, function.parts)
            leaves, at = leaves_of(function, point, hooks=hooks)
            with torch.enable_grad(), at():
                value = value_at(function, point, leaves)
                check_graph([value], function, second_order=False)
                found: Sequence[Tensor | None] = [None] * len(leaves)
                if value.requires_grad:
                    found = torch.autograd.grad(value, leaves, allow_unused=True)
        gradient = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
        sizes = torch.tensor([leaf.numel() for leaf in leaves], device=point.device)
        reached = torch.tensor([g is not None for g in found], device=point.device).repeat_interleave(sizes)
        return value.detach(), torch.cat([part.reshape(-1) for part in gradient]), reached

    def jacobian(self, params: Parameters, x: Inputs) -> Tensor:
        """Derivative of the output, (batch, outputs, n)."""
        check_budget(num_samples(x), self.n, self.dtype, self.memory_budget)
        with self.evaluation(x, None) as function:
            leaves, at = leaves_of(function, self.point(params, function.parts))
            with at(), torch.enable_grad():
                output = self.output(function.x)
                rows = torch.eye(output.numel(), dtype=output.dtype, device=output.device)
                jacobian = pull(output, leaves, rows)
        return jacobian.view(len(output) if output.ndim else 1, -1, self.n)

    def check_second_derivative(self, params: Parameters, x: Inputs, y: Any) -> None:
        """Compare a product with differences of the gradient, once, unless nothing but PyTorch's layers runs.

        A module or forward hook that is new since then makes it look again, and so does, in a product, a
        graph of other operations: a part may be cut off by a flag, or for some batches only. What is cut off
        for some batches only by the same operations, as by ``torch.where``, is seen on none but the first.

        What is cut off from the graph, and what an operation's backward pass takes for a constant, moves with
        the parameters, but has no second derivative. In double precision where the first look says no.

        Raises:
            ValueError: If the gradient changes in another way than its derivative says, or a parameter moves
                the loss but gets no gradient.
        """
        parts = self.parts
        now = [(module, *module._forward_hooks, *module._forward_pre_hooks) for module in parts.modules]
        if parts.runs_only_torch or (self._checked and self._checked == now):
            return
        self._graphs.clear()
        self._look(params, x, y)
        self._checked = now

    def _look(self, params: Parameters, x: Inputs, y: Any) -> None:
        found: list[_Look] = []
        for dtype in dict.fromkeys((self.dtype, torch.float64)):
            part = LossEvaluation(self.model, self.loss, dtype, self.layout.names, self.memory_budget)
            try:
                found.append(part._compare_with_differences(params, x, y))
            except (RuntimeError, TypeError):
                if dtype == self.dtype:
                    raise
                break  # the model makes tensors of another type, so only that type can be used
            if not found[-1].differs:
                break
        last = found[-1]
        if last.hidden:
            raise ValueError(
                f"Parameter {last.hidden!r} moves the loss but gets no gradient (it is read through detach "
                "or no_grad), so its curvature is unknown. Call requires_grad_(False) on it, or restrict "
                "layers=."
            )
        if last.is_wrong and (layer := _moving_norm(self.parts)):
            raise ValueError(
                f"The spectral norm of {layer} follows the weights in training mode without a gradient, so "
                "second derivatives are wrong. Call .eval() on the model."
            )
        if last.is_wrong:
            functions = f" (here {', '.join(last.functions)})" if last.functions else ""
            raise ValueError(
                "The gradient changes in another way than its derivative says, so its second derivatives are "
                "wrong: the model or the loss uses values that are cut off from the graph (detach, no_grad), "
                "hooks on tensors, or an autograd.Function whose backward pass cannot be differentiated"
                f"{functions}. Write it with operations of PyTorch, or give what stays fixed with the batch."
            )
        self._graphs.add(found[0].graph)

    def check_loss(self, output: Tensor, x: Inputs, y: Any) -> None:
        """Check the second derivative of the loss alone, by the model's output."""
        if not Parts(loss=self.loss).runs_only_torch:
            LossEvaluation(_Output(output), self.loss, self.dtype).check_second_derivative(None, x, y)

    def _compare_with_differences(self, params: Parameters, x: Inputs, y: Any) -> _Look:
        """Compare a product with differences, and move what gets no gradient.

        Differences over two lengths must agree: at a kink they do not, and tell nothing. The padding of an
        embedding, whose gradient is set to 0, stays.
        """
        with self.evaluation(x, y) as function, torch.no_grad():
            function.look = None
            point = self.point(params, function.parts)
            lines = Linearisation(function, point)
            value, gradient, h = lines.value, lines.gradient, lines.eps**0.5
            look = _Look(lines.graph, lines.functions)
            v = random_normal(0, self.n).to(point)
            if lines.has_padding:
                v = torch.where(gradient == 0, 0.0, v)
            if v.any():
                v *= max(1.0, float(point.norm())) / v.norm()
            is_reached = lines.is_reached
            expected = lines.product(v, last=True)

            def sizes(vector: Tensor) -> Tensor:
                return torch.stack([part.norm() for part in vector.split(self.layout.sizes)])

            def change(h: float) -> Tensor:
                return (self.value_and_gradient(point + h * v, x, y)[1] - gradient) / h

            for name, is_seen in zip(self.layout.names, is_reached, strict=True):
                if is_seen:
                    continue
                w = torch.zeros_like(v)
                w[self.layout.slices[name]] = v[self.layout.slices[name]]
                moved = self.value_and_gradient(point + lines.eps ** (1 / 3) * w, x, y)
                noise = 100 * lines.eps
                if not abs(moved[0] - value) <= noise * abs(value) or not (
                    (moved[1] - gradient).norm() <= noise * gradient.norm()
                ):
                    look.differs, look.hidden = True, name
                    return look
            near = change(h)
            allowed = (
                min(0.01, lines.eps**0.25) * torch.maximum(sizes(near), sizes(expected))
                + 10 * h * gradient.norm()
            )
            gap = sizes(near - expected) - allowed
            look.differs = bool((gap > 0).any())
            look.is_wrong = look.differs and bool((gap > 10 * sizes(near - change(10 * h))).any())
            return look

    def point(self, params: Parameters, parts: Parts | None = None) -> Float[Tensor, " n"]:
        """Return the point of evaluation as a flat vector of its own; `parts` saves a look at the model."""
        if parts is not None:
            return flat_parameters(parts, self.layout, params, self.dtype)
        with torch.inference_mode(mode=False):
            return flat_parameters(Parts(self.model), self.layout, params, self.dtype)

    def function(
        self,
        x: Inputs,
        y: Any,
        seen: Callable[[Any], None] = lambda output: None,
        *,
        parts: Parts | None = None,
    ) -> LossFunction:
        """Return the loss of a batch as a function of the parameters; `seen` is told the outputs."""
        return LossFunction(self.model, parts or self.parts, self.layout, self.loss, x, y, self.dtype, seen)

    def check_columns(self, V: Tensor) -> None:
        """Refuse directions that are not those of this model's parameters.

        Raises:
            TypeError: If V is no tensor of real numbers.
            ValueError: If it has another number of rows than there are parameters.
        """
        if not isinstance(V, Tensor) or V.is_complex():
            kind = str(V.dtype) if isinstance(V, Tensor) else type(V).__name__
            raise TypeError(f"V is a {kind}; pass a tensor of real numbers, (n,) or (n, k).")
        if V.ndim not in (1, 2) or V.shape[0] != self.n:
            raise ValueError(
                f"V has {V.shape[0] if V.ndim else 0} rows; this model has {self.n} parameters "
                "(columns are directions)."
            )

    def output(self, x: Inputs) -> Tensor:
        """Return the model's output.

        Raises:
            TypeError: If it is not one tensor.
        """
        output = call(self.model, copied(x))
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The model returns {type(output).__name__}; a Jacobian and the Gauss-Newton matrix need a "
                "model that returns one tensor (batch, ...)."
            )
        return output

    @contextmanager
    def computing(self, parts: Parts | None = None, *, hooks: bool = False) -> Iterator[Watch]:
        """Leave no trace in model and loss; the loss has its tensors in the type of the computation."""
        parts = parts or self.parts
        with untouched(parts) as watch:
            for module in () if hooks else parts.changing:
                if module._backward_hooks or module._backward_pre_hooks:
                    vars(module).update(_backward_hooks={}, _backward_pre_hooks={})
            # Still functions of their own, so that it shows what the loss depends on.
            new = {id(t): (t.to(self.dtype) if t.is_floating_point() else t).clone() for t in parts.of_loss}
            with swapped(parts, new) if new else nullcontext():
                yield watch

    @contextmanager
    def evaluation(self, x: Inputs, y: Any, *, hooks: bool = False) -> Iterator[LossFunction]:
        """Check and cast a batch, and leave no trace of what is done with its loss.

        Hooks of the backward pass on modules and parameters are no part of the loss, and are left out.
        """
        parts = self.parts
        check_is_function(parts.names)
        _check_batch(x)
        function = self.function(*cast((x, y), self.dtype), parts=parts)  # a batch is copied before each run

        def look(lines: Linearisation) -> None:
            if lines.graph not in self._graphs:
                self._look(lines.point, x, y)

        function.look = look
        try:
            with self.computing(parts, hooks=hooks) as watch:
                yield function
        except IndexError as error:
            if "Target" not in str(error):
                raise
            raise ValueError(f"Targets are out of range for the model's outputs: {error}") from error
        except DisagreementError as error:
            if not (error.is_random or watch.random_moved):
                raise
            watch.random_moved = True
        if watch.random_moved:
            layer = random_layer(self.model, lambda: function(self.point(None)))
            where = f"layer {layer!r}" if layer else "the loss"
            raise ValueError(
                f"The loss is random ({where} uses the random state), so it has no fixed curvature. "
                "Call .eval() on the model, or remove the randomness."
            )


def _moving_norm(parts: Parts) -> str:
    """The name of a layer whose spectral norm takes a step of the power method in each call."""
    for module, name in parts.names.items():
        own = [module, *module._forward_pre_hooks.values()]
        if module.training and any(isinstance(part, (_SpectralNorm, SpectralNorm)) for part in own):
            return repr(name)
    return ""


class _Output(nn.Module):
    """A model that is its output."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output.detach().clone())

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Return it."""
        return self.output


def _check_batch(x: Inputs) -> None:
    num_samples(x)
    for tensor in [x] if isinstance(x, Tensor) else tensors(x):
        if tensor.is_floating_point() and not all_finite(tensor):
            if not isinstance(x, Tensor) and not torch.isnan(tensor).any():
                continue  # infinities in a mask among several inputs are meant
            raise ValueError("x holds non-finite values (NaN or infinity).")


def _type_of_computation(model: nn.Module, dtype: torch.dtype | None) -> torch.dtype:
    asked = dtype
    if dtype is None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        if dtype in (torch.bfloat16, torch.float16):
            dtype = torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype is {asked}; second derivatives are computed in torch.float32 or torch.float64."
        )
    return dtype
