"""The loss of a module as a function of its parameters, with exact derivatives up to second order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chaos.o2grad.batches import Batch, Inputs, copied, num_samples, select
from chaos.o2grad.budget import DEFAULT_BUDGET, check_budget
from chaos.o2grad.evaluation import LossEvaluation
from chaos.o2grad.exact import BACKENDS, ExactHessian
from chaos.o2grad.frames import DenseFrame, IdentityFrame
from chaos.o2grad.generic import Linearisation, Progress
from chaos.o2grad.hessian import Hessian
from chaos.o2grad.jacobian import Jacobian
from chaos.o2grad.losses import Loss, output_hessian
from chaos.o2grad.operators import CurvatureOperator, Kind
from chaos.o2grad.parameters import ParameterLayout, Parameters, check_finite
from chaos.o2grad.triangle import LowerTriangle
from gdyn_common.spectral import Estimate, SpectralDensity


class LossSurface(LossEvaluation):
    """``L(theta; x, y) = loss(model_theta(x), y)`` and its derivatives.

    The module is never changed: not its parameters, gradients, buffers, attributes, mode, type or the random
    state. A loss that uses the random state is refused. Every Hessian is checked against one Hessian-vector
    product with a random vector, computed from the module itself; where the fast result disagrees, a
    warning is given and the generic backend takes over. Before the first product a surface compares one with
    differences of the gradient, unless nothing but layers of PyTorch runs, and refuses what autograd has
    wrong. Hooks of the backward pass on modules and parameters are no part of the loss. The rows of an
    embedding that ``padding_idx`` names are constants, as in training: their rows and columns are 0. Threads
    take turns; none may train the model meanwhile.

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
        super().__init__(model, loss, dtype, layers, memory_budget)
        self.backend = backend

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
        self.check_second_derivative(params, x, y)
        with self.evaluation(x, y) as function, torch.no_grad():
            point = self.point(params, function.parts)
            return ExactHessian(self, self.backend, point, function).compute(progress)

    def hessian_rows(self, params: Parameters, x: Inputs, y: Any, rows: slice) -> Float[Tensor, "rows n"]:
        """Some rows of the Hessian by Hessian-vector products, without the rest."""
        index = range(*rows.indices(self.n))
        check_budget(len(index), self.n, self.dtype, self.memory_budget)
        basis = torch.zeros(self.n, len(index), dtype=self.dtype, device=self.device)
        basis[list(index), list(range(len(index)))] = 1
        return self.hvp(params, x, y, basis).T

    def hessian_per_sample(self, params: Parameters, x: Inputs, y: Any) -> Iterator[Hessian]:
        """The Hessian of each sample's own loss, one at a time (a batch of one).

        With a mean over samples that counts them alike their mean is the batch Hessian, with a sum their sum.
        With class weights or ignored targets the batch counts each by what it divides by, and a batch of
        one divides that out again. The samples' gradients are compared with the batch's first, which takes
        the memory of one gradient for each sample.

        Raises:
            ValueError: If the samples do not make up the batch: batch norm in training mode couples them,
                the first axis of x does not count samples, or the loss is neither a mean nor a sum over them.
        """
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                raise ValueError(
                    f"Batch norm {name!r} is in training mode: the loss of one sample depends on the whole "
                    "batch, so it has no Hessian of its own. Call .eval() on it, or use hessian()."
                )
        self.operator(params, (x, y), "fisher")  # compares the samples with the batch
        batch = num_samples(x)
        parts = (slice(i, i + 1) for i in range(batch))
        return (self.hessian(params, select(x, part, batch), select(y, part, batch)) for part in parts)

    def block_diagonal(self, params: Parameters, x: Inputs, y: Any) -> dict[str, Hessian]:
        """The diagonal block of each parameter, without computing the others.

        At another point than the model's own the blocks are cut out of rows made by products.
        """
        if params is None:
            return {name: self.restricted([name]).hessian(None, x, y) for name in self.layout.names}
        blocks, point = {}, self.point(params)
        for name, rows in self.layout.slices.items():
            core = self.hessian_rows(point, x, y, rows)[:, rows]
            layout = ParameterLayout.of(self.model, [name])
            blocks[name] = Hessian(core, IdentityFrame(layout.n), layout, "generic", self.memory_budget)
        return blocks

    def restricted(self, layers: Sequence[str]) -> LossSurface:
        """The same loss as a function of some layers, the others held fixed as the model has them."""
        return LossSurface(
            self.model,
            self.loss,
            dtype=self.dtype,
            backend=self.backend,
            layers=layers,
            memory_budget=self.memory_budget,
        )

    def hvp(self, params: Parameters, x: Inputs, y: Any, V: Float[Tensor, "n *k"]) -> Float[Tensor, "n *k"]:
        """``H V`` for a vector or columns; a vector costs about three gradients. Memory n k.

        For many products at one point, :meth:`operator` keeps the graph and costs about two gradients each.

        Raises:
            ValueError: If V has another number of rows than there are parameters.
        """
        self.check_columns(V)
        self.check_second_derivative(params, x, y)
        with self.evaluation(x, y) as function, torch.no_grad():
            in_place = params is None and V.ndim == 1 and function.can_stay
            point = None if in_place else self.point(params, function.parts)
            lines = Linearisation(function, point, self.memory_budget)
            check_finite(lines.value)
            V = V.to(lines.gradients[0])
            return lines.product(V, last=True) if V.ndim == 1 else lines.products(V.T).T

    def gauss_newton(self, params: Parameters, x: Inputs, y: Any) -> Hessian:
        """The generalised Gauss-Newton matrix ``J' A J``, of rank at most batch x outputs.

        A is the Hessian of the loss in output space. Equal to the Hessian where the model is linear in
        its parameters.
        """
        with self.evaluation(x, y) as function, torch.no_grad():
            point = self.point(params, function.parts)
            jacobian = self.jacobian(point, function.x)
            with function.at(self.layout.unflatten(point)):
                output = self.output(function.x)
                targets = () if function.y is None else (copied(function.y),)
                check_finite(self.loss(output, *targets))
            self.check_loss(output, function.x, function.y)
            curvature = output_hessian(self.loss, output, copied(function.y))
        batch, outputs, n = jacobian.shape
        frame: IdentityFrame | DenseFrame = IdentityFrame(n)
        if batch * outputs < n:
            basis, coordinates = torch.linalg.qr(jacobian.flatten(0, 1).T)
            frame, jacobian = DenseFrame(basis), coordinates.T.unflatten(0, (batch, outputs))
        triangle = LowerTriangle(frame.rank, jacobian)
        triangle.add_sandwich(Jacobian(jacobian.mT), curvature)
        return Hessian(triangle.symmetric(), frame, self.layout, "gauss-newton", self.memory_budget)

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
