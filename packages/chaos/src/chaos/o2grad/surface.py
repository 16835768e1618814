"""The loss of a module as a function of its parameters, with exact derivatives up to second order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from chaos.o2grad.batches import Batch, Inputs, call, cast, num_samples, select, tensors
from chaos.o2grad.budget import DEFAULT_BUDGET, check_budget
from chaos.o2grad.compression import input_frame
from chaos.o2grad.frames import DenseFrame, IdentityFrame, InputFrame
from chaos.o2grad.generic import (
    Linearisation,
    Progress,
    chunk_size,
    dense_hessian,
    hvp_columns,
    reverse_over_reverse,
)
from chaos.o2grad.hessian import Hessian
from chaos.o2grad.jacobian import Jacobian
from chaos.o2grad.layers import UnsupportedError
from chaos.o2grad.losses import Loss, output_hessian
from chaos.o2grad.observation import check_is_function, random_layer, untouched
from chaos.o2grad.operators import CurvatureOperator, Kind
from chaos.o2grad.parameters import (
    LossFunction,
    ParameterLayout,
    Parameters,
    all_finite,
    constants,
    flat_parameters,
)
from chaos.o2grad.sweep import Sweep
from chaos.o2grad.tree import build_tree
from chaos.o2grad.triangle import LowerTriangle
from gdyn_common.spectral import Estimate, SpectralDensity

BACKENDS = ("auto", "generic", "compression", "sweep")


class LossSurface:
    """``L(theta; x, y) = loss(model_theta(x), y)`` and its derivatives.

    The module is never changed: not its parameters, gradients, buffers, attributes, mode, type or the random
    state. A loss that uses the random state is refused. Every Hessian is checked against one Hessian-vector
    product with a random vector, computed from the module itself; where the fast result disagrees, a
    warning is given and the generic backend takes over.

    Args:
        model: Any module with parameters that require a gradient.
        loss: ``loss(output, target)`` returning a scalar: a loss module or a callable. Where the target is
            ``None``, ``loss(output)``; see :mod:`chaos.o2grad.batches` for the forms of batches.
        dtype: Type of the computation; ``None`` takes that of the first parameter, and float32 for half
            precision, whose eight bits cannot hold second derivatives.
        backend: ``"auto"`` takes the fastest exact one that applies; ``"generic"``, ``"compression"`` or
            ``"sweep"`` insist. :attr:`Hessian.backend` reports which one ran.
        layers: Restrict to these parameters or submodules; all others are constants.
        memory_budget: Bytes that one dense result and the intermediates of a chunk may take.

    Raises:
        ValueError: For an unknown backend or type, or a module without trainable parameters.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> surface = LossSurface(model, nn.CrossEntropyLoss(), dtype=torch.float64)
        >>> x, y = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])
        >>> H = surface.hessian(None, x, y)
        >>> H.n, H.backend, H.eigh().num_zero >= 6 + 3  # one distinct input, and the softmax shift
        (17, 'sweep', True)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        layers: Sequence[str] | None = None,
        memory_budget: int = DEFAULT_BUDGET,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"Unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
        self.model, self.loss, self.backend = model, loss, backend
        self.layout = ParameterLayout.of(model, layers)
        self.dtype = _type_of_computation(model, dtype)
        self.memory_budget = memory_budget

    @property
    def n(self) -> int:
        """Number of differentiated parameters."""
        return self.layout.n

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and so every result."""
        return next(self.model.parameters()).device

    # first order --------------------------------------------------------------------------------

    def value_and_gradient(self, params: Parameters, x: Inputs, y: Any) -> tuple[Tensor, Float[Tensor, " n"]]:
        """Loss and flat gradient.

        Args:
            params: Point of evaluation: ``None`` (the current one), a flat tensor or a dict by name.
            x: Inputs (batch, ...).
            y: Targets (batch, ...).

        Raises:
            ValueError: For an empty or non-finite batch, targets out of range, or a random loss.
        """
        with self.evaluation(x, y) as (x, y):
            leaf = self.point(params).requires_grad_()
            with torch.enable_grad():
                value = self.function(x, y)(leaf)
                (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
        return value.detach(), gradient

    def jacobian(self, params: Parameters, x: Inputs, *, chunk: int | None = None) -> Tensor:
        """Derivative of the output, (batch, outputs, n)."""
        check_budget(num_samples(x), self.n, self.dtype, self.memory_budget)
        with self.evaluation(x, None) as (x, _), torch.no_grad():
            return self._jacobian(self.point(params), x, chunk)

    def _jacobian(self, point: Tensor, x: Inputs, chunk: int | None = None) -> Tensor:
        jacobian: Tensor = torch.func.jacrev(lambda flat: self.output(flat, x).flatten(1), chunk_size=chunk)(
            point
        )
        return jacobian

    # second order -------------------------------------------------------------------------------

    def hessian(self, params: Parameters, x: Inputs, y: Any, *, progress: Progress | None = None) -> Hessian:
        """Exact Hessian of the batch loss.

        Args:
            params: Point of evaluation, see :meth:`value_and_gradient`.
            x: Inputs (batch, ...).
            y: Targets (batch, ...).
            progress: Called with (rows done, rows in all) by the generic backend.

        Raises:
            ValueError: As :meth:`value_and_gradient`; when the matrix exceeds the memory budget; when a
                backend that was insisted on does not apply (the reason is given); when an operation has
                no second derivative (it is named).
        """
        with self.evaluation(x, y) as (x, y), torch.no_grad():
            point = self.point(params)
            frame = self._frame(x)
            check_budget(frame.rank, frame.rank, self.dtype, self.memory_budget)
            if self.backend != "generic":
                try:
                    H = self._wrap(self._sweep(point, x, y, frame), frame, "sweep")
                except UnsupportedError as reason:
                    if self.backend == "sweep":
                        raise ValueError(f"backend='sweep' does not apply: {reason}.") from reason
                else:
                    if self._agrees(H, point, x, y):
                        return H
                    self._distrust(H)
                    frame = IdentityFrame(self.n)
            H = self._generic(point, x, y, frame, progress)
            if isinstance(frame, InputFrame) and not self._agrees(H, point, x, y):
                self._distrust(H)
                H = self._generic(point, x, y, IdentityFrame(self.n), progress)
            elif isinstance(frame, InputFrame):
                return H
            return H if self._agrees(H, point, x, y) else self._as_autograd(point, x, y)

    def _generic(
        self, point: Tensor, x: Inputs, y: Any, frame: IdentityFrame | InputFrame, progress: Progress | None
    ) -> Hessian:
        check_budget(frame.rank, frame.rank, self.dtype, self.memory_budget)
        function = self.function(x, y)

        def reduced(core: Tensor) -> Tensor:
            return function(point + frame.expand(core[:, None])[:, 0])

        zero = point.new_zeros(frame.rank)
        chunk = self.chunk(frame.rank, x, point)
        return self._wrap(dense_hessian(reduced, zero, chunk=chunk, progress=progress), frame, "generic")

    def _as_autograd(self, point: Tensor, x: Inputs, y: Any) -> Hessian:
        """The Hessian by differentiating the backward pass, where forward mode says something else."""
        chunk = self.chunk(self.n, x, point)
        eye = torch.eye(self.n, dtype=self.dtype, device=point.device)
        try:
            core = reverse_over_reverse(self.function(x, y), point, eye, chunk)
        except RuntimeError as error:
            raise _DisagreementError(f"{_RANDOM} ({str(error).splitlines()[0]})") from error
        H = self._wrap(core, IdentityFrame(self.n), "generic")
        gap = (core - core.T).abs().max()
        if not self._agrees(H, point, x, y) or gap > self._tolerance * core.abs().max():
            raise _DisagreementError(_RANDOM)
        return H

    @property
    def _tolerance(self) -> float:
        """Half of the digits: what is compared are sums of the same terms, rounded in different orders."""
        return 10 * float(torch.finfo(self.dtype).eps ** 0.5)

    def _agrees(self, H: Hessian, point: Tensor, x: Inputs, y: Any) -> bool:
        """Compare ``H v`` with a Hessian-vector product of the module itself, for one random v."""
        generator = torch.Generator().manual_seed(self.n)
        v = torch.randn(self.n, generator=generator, dtype=torch.float64).to(point)
        function = self.function(x, y)
        with untouched() as watch:
            try:
                expected = Linearisation(function, point).product(v)
            except (NotImplementedError, RuntimeError):  # no backward pass of the backward pass
                expected = hvp_columns(function, point, v[None], chunk=1)[0]
        if watch.random_moved:
            raise _DisagreementError(_RANDOM, is_random=True)
        found = H.matvec(v)
        both = torch.stack([expected, found])
        if not torch.isfinite(both).all():
            return bool((torch.isfinite(expected) == torch.isfinite(found)).all())
        scale = max(float(both.abs().max()), 1e3 * torch.finfo(self.dtype).tiny)
        return float((expected - found).abs().max()) <= self._tolerance * scale

    def _distrust(self, H: Hessian) -> None:
        if self.backend in ("sweep", "compression"):
            raise ValueError(
                f"backend={self.backend!r} does not apply: its result disagrees with a Hessian-vector "
                "product of the module, so it does something its layers do not say. Use backend='generic'."
            )
        warnings.warn(
            f"The backend {H.backend} disagrees with a Hessian-vector product of this module and was not "
            "used; the generic backend was, which is slower. Something in it is not what its class says.",
            stacklevel=3,
        )

    def hessian_rows(self, params: Parameters, x: Inputs, y: Any, rows: slice) -> Float[Tensor, "rows n"]:
        """Some rows of the Hessian by Hessian-vector products, without the rest."""
        index = range(*rows.indices(self.n))
        check_budget(len(index), self.n, self.dtype, self.memory_budget)
        basis = torch.zeros(self.n, len(index), dtype=self.dtype, device=self.device)
        basis[torch.tensor(index), torch.arange(len(index))] = 1
        return self.hvp(params, x, y, basis).T

    def hessian_per_sample(self, params: Parameters, x: Inputs, y: Any) -> Iterator[Hessian]:
        """The Hessian of each sample's own loss, one at a time (a batch of one).

        With a mean over samples their mean is the batch Hessian.

        Raises:
            ValueError: If batch norm in training mode couples the samples.
        """
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                raise ValueError(
                    f"Batch norm {name!r} is in training mode: the loss of one sample depends on the whole "
                    "batch, so it has no Hessian of its own. Call .eval() on it, or use hessian()."
                )
        batch = num_samples(x)
        parts = (slice(i, i + 1) for i in range(batch))
        return (self.hessian(params, select(x, part), select(y, part)) for part in parts)

    def block_diagonal(self, params: Parameters, x: Inputs, y: Any) -> dict[str, Hessian]:
        """The diagonal block of each parameter, without computing the others."""
        return {name: self.restricted([name]).hessian(params, x, y) for name in self.layout.names}

    def restricted(self, layers: Sequence[str]) -> LossSurface:
        """The same loss as a function of some layers, the others held fixed."""
        return LossSurface(
            self.model,
            self.loss,
            dtype=self.dtype,
            backend=self.backend,
            layers=layers,
            memory_budget=self.memory_budget,
        )

    def hvp(
        self, params: Parameters, x: Inputs, y: Any, V: Float[Tensor, "n *k"], chunk: int | None = None
    ) -> Float[Tensor, "n *k"]:
        """``H V`` for a vector or columns; a vector costs about three gradients. Memory n k.

        For many products at one point, :meth:`operator` keeps the graph and costs two gradients each.

        Raises:
            ValueError: If V has another number of rows than there are parameters.
        """
        self.check_columns(V)
        with self.evaluation(x, y) as (x, y), torch.no_grad():
            point = self.point(params)
            columns = V[:, None] if V.ndim == 1 else V
            size = chunk or (1 if columns.shape[1] == 1 else self.chunk(columns.shape[1], x, point))
            directions = columns.T.to(point).contiguous()
            out = hvp_columns(self.function(x, y), point, directions, chunk=size).T
        return out[:, 0] if V.ndim == 1 else out

    def gauss_newton(self, params: Parameters, x: Inputs, y: Any) -> Hessian:
        """The generalised Gauss-Newton matrix ``J' A J``, of rank at most batch x outputs.

        A is the Hessian of the loss in output space. Equal to the Hessian where the model is linear in
        its parameters.
        """
        check_budget(num_samples(x), self.n, self.dtype, self.memory_budget)
        with self.evaluation(x, y) as (x, y), torch.no_grad():
            point = self.point(params)
            jacobian = self._jacobian(point, x)
            curvature = output_hessian(self.loss, self.output(point, x), y)
        batch, outputs, n = jacobian.shape
        frame: IdentityFrame | DenseFrame = IdentityFrame(n)
        if batch * outputs < n:
            basis, coordinates = torch.linalg.qr(jacobian.flatten(0, 1).T)
            frame, jacobian = DenseFrame(basis), coordinates.T.unflatten(0, (batch, outputs))
        triangle = LowerTriangle(frame.rank, jacobian)
        triangle.add_sandwich(Jacobian(jacobian.mT), curvature)
        return self._wrap(triangle.symmetric(), frame, "gauss-newton")

    # over data sets, and for networks of any size -----------------------------------------------

    def operator(
        self, params: Parameters, data: Batch | Iterable[Batch], kind: Kind = "hessian"
    ) -> CurvatureOperator:
        """Curvature over a batch or a loader as an operator that multiplies, and nothing more.

        Args:
            params: Point of evaluation, see :meth:`value_and_gradient`.
            data: A batch or a re-iterable loader of them.
            kind: ``"hessian"``, ``"gauss_newton"`` or ``"fisher"`` (the empirical one).

        Raises:
            ValueError: If the loss of the whole data does not follow from those of its batches.
        """
        return CurvatureOperator(self, self.point(params), data, kind)

    def full_hvp(
        self, params: Parameters, data: Batch | Iterable[Batch], V: Float[Tensor, "n *k"]
    ) -> Float[Tensor, "n *k"]:
        """``H V`` of the loss over a loader of batches (or one batch), as if it were one batch.

        Raises:
            ValueError: As :meth:`operator`.
        """
        return self.operator(params, data).matvec(V)

    def top_eigenpairs(
        self,
        params: Parameters,
        data: Batch | Iterable[Batch],
        k: int,
        which: str = "LA",
        tol: float = 1e-8,
        seed: int = 0,
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"]]:
        """Leading eigenpairs of the Hessian over a loader; see :meth:`CurvatureOperator.top_eigenpairs`."""
        return self.operator(params, data).top_eigenpairs(k, which, tol, seed)

    def trace(
        self, params: Parameters, data: Batch | Iterable[Batch], *, num_samples: int = 100, seed: int = 0
    ) -> Estimate:
        """Estimate of the trace of the Hessian over a loader; see :meth:`CurvatureOperator.trace`."""
        return self.operator(params, data).trace(num_samples=num_samples, seed=seed)

    def spectral_density(
        self,
        params: Parameters,
        data: Batch | Iterable[Batch],
        *,
        num_probes: int = 10,
        num_steps: int = 80,
        seed: int = 0,
    ) -> SpectralDensity:
        """Density of the Hessian's eigenvalues; see :meth:`CurvatureOperator.spectral_density`."""
        operator = self.operator(params, data)
        return operator.spectral_density(num_probes=num_probes, num_steps=num_steps, seed=seed)

    # inside -------------------------------------------------------------------------------------

    def point(self, params: Parameters) -> Float[Tensor, " n"]:
        """Return the point of evaluation as a flat vector of its own."""
        return flat_parameters(self.model, self.layout, params, self.dtype)

    def function(self, x: Inputs, y: Any, seen: Callable[[Any], None] = lambda output: None) -> LossFunction:
        """Return the loss of a batch as a function of the parameters; `seen` is told the outputs."""
        return LossFunction(self.model, self.layout, self.loss, x, y, self.dtype, seen)

    def check_columns(self, V: Tensor) -> None:
        """Refuse directions that are not those of this model's parameters.

        Raises:
            ValueError: If V has another number of rows than there are parameters.
        """
        if V.ndim not in (1, 2) or V.shape[0] != self.n:
            raise ValueError(
                f"V has {V.shape[0] if V.ndim else 0} rows; this model has {self.n} parameters "
                "(columns are directions)."
            )

    def output(self, flat: Tensor, x: Inputs) -> Tensor:
        """Return the model's output at a point.

        Raises:
            TypeError: If it is not one tensor.
        """
        values = {**constants(self.model, self.layout, self.dtype), **self.layout.unflatten(flat)}
        output = call(lambda *a, **k: torch.func.functional_call(self.model, values, a, k), x)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The model returns {type(output).__name__}; a Jacobian and the Gauss-Newton matrix need a "
                "model that returns one tensor (batch, ...)."
            )
        return output

    def _frame(self, x: Inputs) -> IdentityFrame | InputFrame:
        if self.backend in ("auto", "compression"):
            frame = input_frame(self.model, self.layout, x) if isinstance(x, Tensor) else None
            if frame is not None:
                return frame
            if self.backend == "compression":
                raise ValueError(
                    "backend='compression' does not apply: the first parametric layer is not a linear layer "
                    "that sees fewer inputs than it has columns."
                )
        return IdentityFrame(self.n)

    def _sweep(self, point: Tensor, x: Inputs, y: Any, frame: IdentityFrame | InputFrame) -> Tensor:
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise UnsupportedError("inputs and targets are not single tensors")
        values = {**constants(self.model, self.layout, self.dtype), **self.layout.unflatten(point)}
        inputs = frame if isinstance(frame, InputFrame) else None
        sweep = Sweep(build_tree(self.model, self.layout, values), x, y, self.loss, inputs)
        return _in_layout_order(sweep.hessian(self.memory_budget), sweep.columns, self.layout)

    def _wrap(self, core: Tensor, frame: IdentityFrame | InputFrame | DenseFrame, backend: str) -> Hessian:
        name = f"compression+{backend}" if isinstance(frame, InputFrame) else backend
        return Hessian(core, frame, self.layout, name, self.memory_budget)

    def chunk(self, columns: int, x: Inputs, point: Tensor) -> int:
        """Return how many columns to compute at once, within the memory budget."""
        activations = 0

        def count(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal activations
            activations += sum(tensor.numel() for tensor in tensors(output))

        hooks = [module.register_forward_hook(count) for module in self.model.modules()]
        try:
            values = {**constants(self.model, self.layout, self.dtype), **self.layout.unflatten(point)}
            call(lambda *a, **k: torch.func.functional_call(self.model, values, a, k), x)
        finally:
            for hook in hooks:
                hook.remove()
        return min(columns, chunk_size(self.n, activations, point.element_size(), self.memory_budget))

    @contextmanager
    def evaluation(self, x: Inputs, y: Any) -> Iterator[tuple[Inputs, Any]]:
        """Check and cast a batch, and leave no trace of what is done with it."""
        check_is_function(self.model)
        self._check_batch(x, y)
        batch = cast(x, self.dtype), cast(y, self.dtype)
        try:
            with untouched(self.model, self.loss) as watch:
                yield batch
        except IndexError as error:
            raise ValueError(f"Targets are out of range for the model's outputs: {error}") from error
        except _DisagreementError as error:
            if not (error.is_random or watch.random_moved):
                raise
            watch.random_moved = True
        if watch.random_moved:
            evaluate = self.function(*batch)
            layer = random_layer(self.model, lambda: evaluate(self.point(None)))
            where = f"layer {layer!r}" if layer else "the loss"
            raise ValueError(
                f"The loss is random ({where} uses the random state), so it has no fixed curvature. "
                "Call .eval() on the model, or remove the randomness."
            )

    def _check_batch(self, x: Inputs, y: Any) -> None:
        batch = num_samples(x)
        for tensor in tensors(x):
            if tensor.is_floating_point() and not all_finite(tensor):
                if not isinstance(x, Tensor) and not torch.isnan(tensor).any():
                    continue  # infinities in a mask among several inputs are meant
                raise ValueError("x holds non-finite values (NaN or infinity).")
        by_class = isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss) or self.loss in (
            functional.cross_entropy,
            functional.nll_loss,
        )
        if by_class and isinstance(x, Tensor) and isinstance(y, Tensor) and (y.ndim == 0 or len(y) != batch):
            raise ValueError(f"x has {batch} samples and y has shape {tuple(y.shape)}; they must agree.")


_RANDOM = (
    "Two evaluations of the second derivative disagree, or it is not symmetric. So the loss is no function "
    "of the parameters (it is random, or keeps state between calls), or an operation's derivative is wrong."
)


class _DisagreementError(ValueError):
    """Two evaluations of one function differ."""

    def __init__(self, message: str, *, is_random: bool = False) -> None:
        super().__init__(message)
        self.is_random = is_random


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


def _in_layout_order(M: Tensor, columns: list[tuple[str, int]], layout: ParameterLayout) -> Tensor:
    """Put the groups of coordinates that a sweep produced into layout order (the frame's group first)."""
    wanted = ["", *layout.names]
    order = sorted(range(len(columns)), key=lambda i: wanted.index(columns[i][0]))
    if order == list(range(len(columns))):
        return M
    starts = np.cumsum([0, *(size for _, size in columns)])
    index = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order])
    return M[index][:, index]
