"""The loss of a module as a function of its parameters, with exact derivatives up to second order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from chaos.o2grad.budget import DEFAULT_BUDGET, check_budget
from chaos.o2grad.compression import input_frame
from chaos.o2grad.frames import DenseFrame, IdentityFrame, InputFrame
from chaos.o2grad.generic import Progress, chunk_size, dense_hessian, hvp_columns
from chaos.o2grad.hessian import Hessian
from chaos.o2grad.jacobian import Jacobian
from chaos.o2grad.layers import UnsupportedError
from chaos.o2grad.losses import Loss, output_hessian
from chaos.o2grad.parameters import (
    ParameterLayout,
    Parameters,
    check_deterministic,
    constants,
    flat_parameters,
    loss_function,
    untouched,
)
from chaos.o2grad.sweep import Sweep
from chaos.o2grad.tree import build_tree
from chaos.o2grad.triangle import LowerTriangle
from gdyn_common.seeding import generator as named_generator
from gdyn_common.spectral import (
    Estimate,
    SpectralDensity,
    hutchinson_trace,
    lanczos,
    stochastic_lanczos_density,
)

BACKENDS = ("auto", "generic", "compression", "sweep")
Batch = tuple[Tensor, Tensor]


class LossSurface:
    """``L(theta; x, y) = loss(model_theta(x), y)`` and its derivatives.

    The module is never changed: not its parameters, gradients, buffers, mode, type or the random state.

    Args:
        model: Any module with parameters that require a gradient.
        loss: ``loss(output, target)`` returning a scalar: a loss module or a callable.
        dtype: Type of the computation; ``None`` takes that of the first parameter.
        backend: ``"auto"`` takes the fastest exact one that applies; ``"generic"``, ``"compression"`` or
            ``"sweep"`` insist. :attr:`Hessian.backend` reports which one ran.
        layers: Restrict to these parameters or submodules; all others are constants.
        memory_budget: Bytes that one dense result and the intermediates of a chunk may take.

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
        self.dtype = dtype if dtype is not None else next(model.parameters()).dtype
        self.memory_budget = memory_budget

    @property
    def n(self) -> int:
        """Number of differentiated parameters."""
        return self.layout.n

    # first order --------------------------------------------------------------------------------

    def value_and_gradient(
        self, params: Parameters, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Float[Tensor, " n"]]:
        """Loss and flat gradient.

        Args:
            params: Point of evaluation: ``None`` (the current one), a flat tensor or a dict by name.
            x: Inputs (batch, ...).
            y: Targets (batch, ...).

        Raises:
            ValueError: For an empty or non-finite batch, targets out of range, or active dropout.
        """
        with self._evaluation(x, y) as (x, y):
            leaf = self._point(params).requires_grad_()
            with torch.enable_grad():
                value = self._function(x, y)(leaf)
                (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    def jacobian(self, params: Parameters, x: Tensor, *, chunk: int | None = None) -> Tensor:
        """Derivative of the output, (batch, outputs, n)."""
        check_budget(len(x), self.n, self.dtype, self.memory_budget)
        with self._evaluation(x, None) as (x, _), torch.no_grad():
            point = self._point(params)
            fixed = constants(self.model, self.layout, self.dtype)

            def output(flat: Tensor) -> Tensor:
                tensors = {**fixed, **self.layout.unflatten(flat)}
                out: Tensor = torch.func.functional_call(self.model, tensors, (x,))
                return out.flatten(1)

            jacobian: Tensor = torch.func.jacrev(output, chunk_size=chunk)(point)
            return jacobian

    # second order -------------------------------------------------------------------------------

    def hessian(
        self, params: Parameters, x: Tensor, y: Tensor, *, progress: Progress | None = None
    ) -> Hessian:
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
        point = self._point(params)
        if self.backend != "generic":
            try:
                with self._prepared(x, y) as (cast_x, cast_y), torch.no_grad():
                    frame = self._frame(cast_x)
                    check_budget(frame.rank, frame.rank, self.dtype, self.memory_budget)
                    return self._wrap(self._sweep(point, cast_x, cast_y, frame), frame, "sweep")
            except UnsupportedError as reason:
                if self.backend == "sweep":
                    raise ValueError(f"backend='sweep' does not apply: {reason}.") from reason
        with self._evaluation(x, y) as (x, y), torch.no_grad():
            frame = self._frame(x)
            check_budget(frame.rank, frame.rank, self.dtype, self.memory_budget)
            function = self._function(x, y)
            rank = frame.rank

            def reduced(core: Tensor) -> Tensor:
                return function(point + frame.expand(core[:, None])[:, 0])

            core = dense_hessian(
                reduced, point.new_zeros(rank), chunk=self._chunk(rank, x, point), progress=progress
            )
            return self._wrap(core, frame, "generic")

    def hessian_rows(self, params: Parameters, x: Tensor, y: Tensor, rows: slice) -> Float[Tensor, "rows n"]:
        """Some rows of the Hessian by Hessian-vector products, without the rest."""
        index = range(*rows.indices(self.n))
        check_budget(len(index), self.n, self.dtype, self.memory_budget)
        basis = torch.zeros(self.n, len(index), dtype=self.dtype, device=x.device)
        basis[torch.tensor(index), torch.arange(len(index))] = 1
        return self.hvp(params, x, y, basis).T

    def hessian_per_sample(self, params: Parameters, x: Tensor, y: Tensor) -> Iterator[Hessian]:
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
        if len(x) == 0:
            self._check_batch(x, y)
        return (self.hessian(params, x[i : i + 1], y[i : i + 1]) for i in range(len(x)))

    def block_diagonal(self, params: Parameters, x: Tensor, y: Tensor) -> dict[str, Hessian]:
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
        self, params: Parameters, x: Tensor, y: Tensor, V: Float[Tensor, "n *k"], chunk: int | None = None
    ) -> Float[Tensor, "n *k"]:
        """``H V`` for a vector or columns, at the cost of a few gradients each; memory n k.

        Raises:
            ValueError: If V has another number of rows than there are parameters.
        """
        if V.shape[0] != self.n:
            raise ValueError(
                f"V has {V.shape[0]} rows; this model has {self.n} parameters (columns are directions)."
            )
        with self._evaluation(x, y) as (x, y), torch.no_grad():
            point = self._point(params)
            columns = V[:, None] if V.ndim == 1 else V
            size = self._chunk(columns.shape[1], x, point) if chunk is None else chunk
            directions = columns.T.to(self.dtype).contiguous()
            out = hvp_columns(self._function(x, y), point, directions, chunk=size).T
        return out[:, 0] if V.ndim == 1 else out

    def gauss_newton(self, params: Parameters, x: Tensor, y: Tensor) -> Hessian:
        """The generalised Gauss-Newton matrix ``J' A J``, of rank at most batch x outputs.

        A is the Hessian of the loss in output space. Equal to the Hessian where the model is linear in
        its parameters.
        """
        jacobian = self.jacobian(params, x)
        with self._evaluation(x, y) as (x, y), torch.no_grad():
            tensors = {**constants(self.model, self.layout, self.dtype)}
            tensors.update(self.layout.unflatten(self._point(params)))
            output = torch.func.functional_call(self.model, tensors, (x,))
            curvature = output_hessian(self.loss, output, y)
        batch, outputs, n = jacobian.shape
        frame: IdentityFrame | DenseFrame = IdentityFrame(n)
        if batch * outputs < n:
            basis, coordinates = torch.linalg.qr(jacobian.flatten(0, 1).T)
            frame, jacobian = DenseFrame(basis), coordinates.T.unflatten(0, (batch, outputs))
        triangle = LowerTriangle(frame.rank, jacobian)
        triangle.add_sandwich(Jacobian(jacobian.mT), curvature)
        return self._wrap(triangle.symmetric(), frame, "gauss-newton")

    def full_hvp(
        self, params: Parameters, data: Iterable[Batch] | Batch, V: Float[Tensor, "n *k"]
    ) -> Float[Tensor, "n *k"]:
        """``H V`` of the mean loss over a loader of batches (or one batch), weighted by batch size."""
        batches: Iterable[Batch] = [data] if isinstance(data, tuple) else data
        total, out = 0, torch.zeros_like(V, dtype=self.dtype)
        weights = getattr(self.loss, "reduction", "mean") == "sum"
        for x, y in batches:
            out += self.hvp(params, x, y, V) * (1 if weights else len(x))
            total += len(x)
        if total == 0:
            raise ValueError("data is empty: it must yield at least one batch (x, y).")
        return out if weights else out / total

    def top_eigenpairs(
        self,
        params: Parameters,
        data: Iterable[Batch] | Batch,
        k: int,
        which: str = "LA",
        tol: float = 1e-8,
        seed: int = 0,
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"]]:
        """Leading eigenpairs of the Hessian over a loader, by Lanczos on Hessian-vector products.

        Args:
            params: Point of evaluation, see :meth:`value_and_gradient`.
            data: A batch ``(x, y)`` or a re-iterable loader of them.
            k: Number of pairs.
            which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest in magnitude.
            tol: Relative accuracy of the eigenvalues.
            seed: Seed of the starting vector.

        Returns:
            Eigenvalues, the wanted ones first, and eigenvectors as columns.
        """
        if which not in ("LA", "SA", "LM"):
            raise ValueError(f"Unknown which {which!r}; choose one of LA, SA, LM.")
        if not 1 <= k <= self.n:
            raise ValueError(f"k is {k}; it must lie between 1 and n = {self.n}.")
        generator = named_generator(seed, "lanczos")
        matvec = self._product(params, data)
        pairs = lanczos(matvec, self.n, k, which=which, tol=tol, generator=generator)  # type: ignore[arg-type]
        values, vectors = torch.as_tensor(pairs.values), torch.as_tensor(pairs.vectors)
        order = {"LA": values.argsort(descending=True), "SA": values.argsort()}.get(
            which, values.abs().argsort(descending=True)
        )
        return values[order], vectors[:, order]

    def trace(
        self, params: Parameters, data: Iterable[Batch] | Batch, *, num_samples: int = 100, seed: int = 0
    ) -> Estimate:
        """Unbiased estimate of the trace of the Hessian over a loader, by Hutchinson's method.

        For networks of any size; :meth:`Hessian.trace` is exact where the Hessian itself can be computed.

        Args:
            params: Point of evaluation, see :meth:`value_and_gradient`.
            data: A batch ``(x, y)`` or a re-iterable loader of them.
            num_samples: Hessian-vector products over the data, at least 2.
            seed: Seed of the random signs.

        Returns:
            ``value`` and its ``standard_error``.
        """
        generator = named_generator(seed, "trace")
        return hutchinson_trace(
            self._product(params, data), self.n, num_samples=num_samples, generator=generator
        )

    def spectral_density(
        self,
        params: Parameters,
        data: Iterable[Batch] | Batch,
        *,
        num_probes: int = 10,
        num_steps: int = 80,
        seed: int = 0,
    ) -> SpectralDensity:
        """Density of the Hessian's eigenvalues over a loader, by stochastic Lanczos quadrature.

        For networks of any size: ``num_probes * num_steps`` Hessian-vector products over the data, and the
        memory of ``num_steps`` vectors of parameters.

        Args:
            params: Point of evaluation, see :meth:`value_and_gradient`.
            data: A batch ``(x, y)`` or a re-iterable loader of them.
            num_probes: Independent random vectors, at least 2.
            num_steps: Lanczos steps for each.
            seed: Seed of the random vectors.

        Returns:
            ``grid`` and smoothed ``density``; ``integrate(f)`` estimates tr f(H) / n with its standard error.

        Example:
            >>> model = nn.Linear(2, 1, bias=False).double()
            >>> batch = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
            >>> surface = LossSurface(model, nn.MSELoss(reduction="sum"))  # its Hessian is 2 I
            >>> density = surface.spectral_density(None, batch)
            >>> round(density.integrate(np.square).value, 12)
            4.0
        """
        return stochastic_lanczos_density(
            self._product(params, data),
            self.n,
            num_probes=num_probes,
            num_steps=num_steps,
            generator=named_generator(seed, "spectral density"),
        )

    # inside -------------------------------------------------------------------------------------

    def _product(
        self, params: Parameters, data: Iterable[Batch] | Batch
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Products with the Hessian over the data, for :mod:`gdyn_common.spectral`."""

        def product(v: np.ndarray) -> np.ndarray:
            column: np.ndarray = (
                self.full_hvp(params, data, torch.as_tensor(v, dtype=self.dtype)).cpu().numpy()
            )
            return column

        return product

    def _point(self, params: Parameters) -> Tensor:
        return flat_parameters(self.model, self.layout, params, self.dtype)

    def _function(self, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        by_name = loss_function(self.model, self.layout, self.loss, x, y, self.dtype)
        return lambda flat: by_name(self.layout.unflatten(flat))

    def _frame(self, x: Tensor) -> IdentityFrame | InputFrame:
        if self.backend in ("auto", "compression"):
            frame = input_frame(self.model, self.layout, x)
            if frame is not None:
                return frame
            if self.backend == "compression":
                raise ValueError(
                    "backend='compression' does not apply: the first parametric layer is not a linear layer "
                    "that sees fewer inputs than it has columns."
                )
        return IdentityFrame(self.n)

    def _sweep(self, point: Tensor, x: Tensor, y: Tensor, frame: IdentityFrame | InputFrame) -> Tensor:
        values = {**constants(self.model, self.layout, self.dtype), **self.layout.unflatten(point)}
        inputs = frame if isinstance(frame, InputFrame) else None
        sweep = Sweep(build_tree(self.model, self.layout, values), x, y, self.loss, inputs)
        return _in_layout_order(sweep.hessian(self.memory_budget), sweep.columns, self.layout)

    def _wrap(self, core: Tensor, frame: IdentityFrame | InputFrame | DenseFrame, backend: str) -> Hessian:
        name = f"compression+{backend}" if isinstance(frame, InputFrame) else backend
        return Hessian(core, frame, self.layout, name, self.memory_budget)

    def _chunk(self, columns: int, x: Tensor, point: Tensor) -> int:
        activations = 0

        def count(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal activations
            activations += output.numel() if isinstance(output, Tensor) else 0

        hooks = [module.register_forward_hook(count) for module in self.model.modules()]
        try:
            tensors = {**constants(self.model, self.layout, self.dtype), **self.layout.unflatten(point)}
            torch.func.functional_call(self.model, tensors, (x,))
        finally:
            for hook in hooks:
                hook.remove()
        return min(columns, chunk_size(self.n, activations, point.element_size(), self.memory_budget))

    @contextmanager
    def _evaluation(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        check_deterministic(self.model)
        with self._prepared(x, y) as batch, untouched(self.model):
            yield batch

    @contextmanager
    def _prepared(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch, checked and cast. Enough for the layer sweep, which never calls the module."""
        self._check_batch(x, y)
        cast_x = x.to(self.dtype) if x.is_floating_point() else x
        cast_y = y.to(self.dtype) if y is not None and y.is_floating_point() else y
        try:
            yield cast_x, cast_y  # type: ignore[misc]
        except IndexError as error:
            raise ValueError(f"Targets are out of range for the model's outputs: {error}") from error

    def _check_batch(self, x: Tensor, y: Tensor | None) -> None:
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"The batch is empty: x has shape {tuple(x.shape)}; pass at least one sample.")
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise ValueError("x holds non-finite values (NaN or infinity).")
        if y is not None and _is_cross_entropy(self.loss) and (y.ndim == 0 or len(y) != len(x)):
            raise ValueError(f"x has {len(x)} samples and y has shape {tuple(y.shape)}; they must agree.")


def _is_cross_entropy(loss: Loss) -> bool:
    return isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or loss in (
        functional.cross_entropy,
        functional.nll_loss,
    )


def _in_layout_order(M: Tensor, columns: list[tuple[str, int]], layout: ParameterLayout) -> Tensor:
    """Put the groups of coordinates that a sweep produced into layout order (the frame's group first)."""
    wanted = ["", *layout.names]
    order = sorted(range(len(columns)), key=lambda i: wanted.index(columns[i][0]))
    if order == list(range(len(columns))):
        return M
    starts = np.cumsum([0, *(size for _, size in columns)])
    index = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order])
    return M[index][:, index]
