"""Curvature of a data set as a linear operator: products, leading eigenpairs, trace and density.

One interface for the Hessian, the generalised Gauss-Newton matrix and the empirical Fisher matrix. None of
them is ever formed. A product costs a few gradients over the data, and the memory of a few vectors of
parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from chaos.o2grad.averaging import Averaging, Observed
from chaos.o2grad.batches import Batch, Inputs, copied, is_batch, join, num_samples, pairs, select
from chaos.o2grad.budget import check_budget
from chaos.o2grad.generators import kept_generators
from chaos.o2grad.generic import Linearisation, leaves_of, pull, random_normal, results_below, rounding_of
from chaos.o2grad.observation import plain_autograd, untouched
from chaos.o2grad.parameters import check_finite
from chaos.o2grad.parts import Parts
from gdyn_common.errors import unknown
from gdyn_common.seeding import generator as named_generator
from gdyn_common.spectral import (
    Estimate,
    SpectralDensity,
    hutchinson_trace,
    lanczos,
    stochastic_lanczos_density,
)

if TYPE_CHECKING:
    from chaos.o2grad.parameters import LossFunction
    from chaos.o2grad.surface import LossSurface

Kind = Literal["hessian", "gauss_newton", "fisher"]
Product = Callable[[Float[Tensor, "k n"]], Float[Tensor, "k n"]]


@dataclass(frozen=True)
class _Part:
    """One batch: its product, its weight in the whole, its loss, its gradient (of a Hessian only).

    And whether a product runs code that could change the model.
    """

    multiply: Product
    weight: float
    value: float
    gradient: Tensor | None
    runs_model: bool


class CurvatureOperator:
    """A symmetric n x n matrix of curvature over data, known by its products.

    The loss of the data is that of all batches as one. PyTorch's own losses say what they divide by (class
    weights, tokens that are not ignored, elements). Of any other loss the first pass finds out whether it is
    a sum or a mean over samples, by comparing neighbouring batches with their union; it is refused if it is
    neither.

    Args:
        surface: The loss surface.
        point: Flat parameters.
        data: A batch, or a re-iterable loader of batches. Each pass starts from the same random state, its
            own generators' included, so that a loader which shuffles yields the same.
        kind: ``"hessian"``; ``"gauss_newton"``, ``J' A J`` with A the Hessian of the loss in output space; or
            ``"fisher"``, the sum over samples of the outer product of a sample's gradient with itself,
            divided as the loss is (for a mean over samples, their mean).

    Raises:
        ValueError: For an unknown kind, data that are empty or can be read only once, or a loss that does not
            follow from those of the batches.

    Example:
        >>> from chaos.o2grad import LossSurface
        >>> batch = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> operator = LossSurface(model, torch.nn.MSELoss(reduction="sum")).operator(None, batch)
        >>> operator.matvec(torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist()  # the Hessian is 2 I
        [2.0, 4.0]
    """

    def __init__(
        self, surface: LossSurface, point: Float[Tensor, " n"], data: Batch | Iterable[Batch], kind: Kind
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(unknown("kind of curvature", kind, get_args(Kind)))
        self.surface, self.point, self.kind = surface, point, kind
        if isinstance(data, Iterator):
            raise ValueError(
                f"data is a {type(data).__name__}, which can be read once; pass a list or loader."
            )
        self._data = data
        self._kept: _Part | None = None  # of a single batch, whose graph serves all products
        self._eps = torch.finfo(point.dtype).eps
        self._loss: float | None = None
        with untouched(Parts()), kept_generators(self._data):
            self._averaging = self._find_averaging()
            if is_batch(data):  # now, since batch and model may change before the first product
                (self._kept,) = self._parts()
                check_finite(self._kept.value)

    @property
    def n(self) -> int:
        """Number of parameters."""
        return len(self.point)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.n, self.n

    def matvec(self, V: Float[Tensor, "n *k"]) -> Float[Tensor, "n *k"]:
        """Multiply a vector or columns.

        Raises:
            ValueError: If V has another number of rows than there are parameters, or the data are not those
                of the first pass.
        """
        self.surface.check_columns(V)
        rows = (V[None] if V.ndim == 1 else V.T).to(self.point)
        out = self._sum(lambda part: part.multiply(rows))
        return out[0] if V.ndim == 1 else out.T

    def _sum(self, of: Callable[[_Part], Tensor]) -> Tensor:
        """Add up what the batches give, with their weights, in one pass over the data."""
        if self._kept:
            with self.surface.computing() if self._kept.runs_model else plain_autograd(), torch.no_grad():
                return of(self._kept)
        total, loss, out = 0.0, 0.0, self.point.new_zeros(())
        with untouched(Parts()), kept_generators(self._data):
            for part in self._parts():
                if part.weight:  # a batch of ignored targets has a loss of 0 / 0, and no part in the whole
                    out = of(part).mul_(part.weight).add_(out)
                    loss, total = loss + part.weight * part.value, total + part.weight
        if self._averaging.rule == "sum":
            total = 1.0
        self._check_same(loss / total if total else math.nan)
        return out.div_(total)

    def _check_same(self, loss: float) -> None:
        check_finite(loss)
        first = self._loss = loss if self._loss is None else self._loss
        if abs(loss - first) > 1e3 * self._eps * abs(first):
            raise ValueError(
                f"The loss of the data is {loss:.9g} now and was {first:.9g} in the first pass: the loader "
                "yields other data each time (it augments, or shuffles and drops), or the loss is random. "
                "Pass a list of batches."
            )

    def linear_operator(self) -> LinearOperator:
        """Return the operator in SciPy's form, on NumPy arrays."""
        dtype = np.float64 if self.point.dtype == torch.float64 else np.float32

        def multiply(V: np.ndarray) -> np.ndarray:
            product: np.ndarray = self.matvec(torch.from_numpy(np.array(V))).cpu().numpy()
            return product

        return LinearOperator(self.shape, multiply, multiply, multiply, dtype, multiply)

    def top_eigenpairs(
        self, k: int, which: str = "LA", tol: float = 1e-8, seed: int = 0
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"]]:
        """Leading eigenpairs by Lanczos.

        Args:
            k: Number of pairs.
            which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest in magnitude.
            tol: Relative accuracy of the eigenvalues.
            seed: Seed of the starting vector.

        Returns:
            Eigenvalues, the wanted ones first, and eigenvectors as columns.

        Raises:
            ValueError: For an unknown `which`, or k outside 1 to n.
        """
        if which not in ("LA", "SA", "LM"):
            raise ValueError(f"Unknown which {which!r}; choose one of LA, SA, LM.")
        if not 1 <= k <= self.n:
            raise ValueError(f"k is {k}; it must lie between 1 and n = {self.n}.")
        generator = named_generator(seed, "lanczos")
        start = self._start(generator)
        pairs = lanczos(self._on_arrays, self.n, k, which=which, tol=tol, generator=generator, start=start)  # type: ignore[arg-type]
        values, vectors = (torch.from_numpy(part).to(self.point) for part in (pairs.values, pairs.vectors))
        order = {"LA": values.argsort(descending=True), "SA": values.argsort()}.get(
            which, values.abs().argsort(descending=True)
        )
        return values[order], vectors[:, order]

    def trace(self, *, num_samples: int = 100, seed: int = 0) -> Estimate:
        """Unbiased estimate of the trace by Hutchinson's method.

        Args:
            num_samples: Products over the data, at least 2.
            seed: Seed of the random signs.

        Returns:
            ``value`` and its ``standard_error``.
        """
        generator = named_generator(seed, "trace")
        return hutchinson_trace(self._on_arrays, self.n, num_samples=num_samples, generator=generator)

    def spectral_density(
        self, *, num_probes: int = 10, num_steps: int = 80, seed: int = 0
    ) -> SpectralDensity:
        """Density of the eigenvalues by stochastic Lanczos quadrature.

        It takes ``num_probes * num_steps`` products, and the memory of ``num_steps`` vectors of parameters.

        Args:
            num_probes: Independent random vectors, at least 2.
            num_steps: Lanczos steps for each.
            seed: Seed of the random vectors.

        Returns:
            ``grid`` and smoothed ``density``; ``integrate(f)`` estimates tr f(H) / n with its standard error.

        Example:
            >>> from chaos.o2grad import LossSurface
            >>> batch = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
            >>> model = torch.nn.Linear(2, 1, bias=False).double()
            >>> surface = LossSurface(model, torch.nn.MSELoss(reduction="sum"))  # its Hessian is 2 I
            >>> round(surface.operator(None, batch).spectral_density().integrate(np.square).value, 12)
            4.0
        """
        return stochastic_lanczos_density(
            self._on_arrays,
            self.n,
            num_probes=num_probes,
            num_steps=num_steps,
            generator=named_generator(seed, "spectral density"),
        )

    def _on_arrays(self, v: np.ndarray) -> np.ndarray:
        product: np.ndarray = self.matvec(torch.from_numpy(v)).cpu().numpy()
        return product

    # batches ------------------------------------------------------------------------------------

    def _start(self, generator: np.random.Generator) -> np.ndarray:
        """Half random, so that no direction is missed, and half gradient, which leans to leading ones."""
        start = generator.standard_normal(self.n)
        if self.kind != "hessian":
            return start
        gradient = self._sum(lambda part: part.gradient.clone()).double().cpu().numpy()  # type: ignore[union-attr]
        norm = float(np.linalg.norm(gradient))
        return start / np.linalg.norm(start) + (gradient / norm if 0 < norm < math.inf else 0.0)

    def _parts(self) -> Iterator[_Part]:
        """Yield the batches."""
        for x, y in pairs(self._data):
            if self.kind == "hessian":
                self.surface.check_second_derivative(self.point, x, y)
            with self.surface.evaluation(x, y) as function, torch.no_grad():
                yield self._linearised(function)

    def _linearised(self, function: LossFunction) -> _Part:
        outputs: list[Any] = []
        x, y = function.x, function.y
        samples = num_samples(x)

        def seen(output: Any) -> None:
            if not outputs:
                outputs.append(self._averaging.weight(output, y, samples))

        function.seen, function.is_kept = seen, True
        if self.kind == "hessian":
            lines = Linearisation(function, self.point, self.surface.memory_budget)
            return _Part(
                lines.products, outputs[0], float(lines.value), lines.gradient, not lines.runs_only_torch
            )
        value = float(function(self.point))
        multiply = self._gauss_newton(x, y) if self.kind == "gauss_newton" else self._fisher(x, y)
        return _Part(multiply, outputs[0], value, None, self.kind == "gauss_newton")

    def _gauss_newton(self, x: Inputs, y: Any) -> Product:
        loss, targets = self.surface.loss, () if y is None else (copied(y),)
        function = self.surface.function(x, None)
        function.is_kept = True
        leaves, at = leaves_of(function, self.point)
        sizes = [leaf.numel() for leaf in leaves]

        def of_output(flat: Tensor) -> Tensor:
            value: Tensor = loss(flat.view_as(output), *targets)
            return value

        with at(), torch.enable_grad():
            output = self.surface.output(x)
            if not output.requires_grad:
                return torch.zeros_like
            dual = torch.zeros_like(output, requires_grad=True)
            back = torch.autograd.grad(output, leaves, dual, create_graph=True, materialize_grads=True)
        self.surface.check_loss(output, x, y)
        curvature = Linearisation(of_output, output.detach().reshape(-1))

        def push(v: Tensor) -> Tensor:  # J v is the derivative of J' u by u
            parts = [part.view_as(leaf) for part, leaf in zip(v.split(sizes), leaves, strict=True)]
            moved: Tensor = torch.autograd.grad(back, dual, parts, retain_graph=True)[0]
            return moved.reshape(-1)

        def multiply(rows: Tensor) -> Tensor:
            with at():
                return pull(output, leaves, torch.stack([curvature.product(push(v)) for v in rows]))

        if function.parts.runs_only_torch:
            return multiply
        u, v = random_normal(0, output.numel()).to(output), random_normal(1, self.n).to(output)
        try:
            with at():
                terms = pull(output, leaves, u[None])[0] * v
                gap = float((u @ push(v) - terms.sum()).abs() / terms.abs().sum())
        except RuntimeError:
            gap = math.inf
        if gap > 1e3 * max(self._eps, rounding_of(results_below(output))):
            raise ValueError(
                "The backward pass of an autograd.Function in the model cannot be differentiated, so there "
                "are no products with the Jacobian. Use surface.gauss_newton, which takes first derivatives."
            )
        return multiply

    def _fisher(self, x: Inputs, y: Any) -> Product:
        check_budget(num_samples(x), self.n, self.point.dtype, self.surface.memory_budget)
        gradients, weights = [], []
        batch = num_samples(x)
        for i in range(batch):
            sample = select(x, slice(i, i + 1), batch), select(y, slice(i, i + 1), batch)
            found: list[float] = []

            def seen(output: Any, y: Any = sample[1], found: list[float] = found) -> None:
                found.append(self._averaging.weight(output, y, 1))

            gradients.append(Linearisation(self.surface.function(*sample, seen), self.point).gradient)
            weights.append(found[0])
        counted = [i for i, weight in enumerate(weights) if weight]
        G, w = torch.stack(gradients)[counted], self.point.new_tensor(weights)[counted]
        shares = w if self._averaging.rule == "sum" else w / w.sum()
        whole = Linearisation(self.surface.function(x, y), self.point)
        gap, scale = (shares @ G - whole.gradient).abs().max(), (shares @ G.abs()).max()
        if gap > 1e3 * max(torch.finfo(G.dtype).eps, whole.eps) * scale:
            raise ValueError(
                "The gradients of single samples do not add up to that of the batch, so single samples have "
                "no curvature: the first axis of x does not count samples, or the model couples them."
            )

        def multiply(rows: Tensor) -> Tensor:
            return (rows @ G.T * shares) @ G

        return multiply

    def _find_averaging(self) -> Averaging:
        """Compare neighbouring batches with their union: all for an unknown loss, else the first two."""
        averaging = Averaging(self.surface.loss)
        last: Batch = None
        for batch in pairs(self._data):
            if last is not None and not self._compare(averaging, last, batch):
                return averaging
            last = copied(batch)  # a loader may fill the same memory again
        samples = num_samples(last[0])
        if averaging.rule == "unknown" and self.kind == "fisher" and samples > 1:
            # A sample's own gradient counts as the rule says.
            halves = [
                tuple(select(part, rows, samples) for part in last)
                for rows in (slice(samples // 2), slice(samples // 2, None))
            ]
            self._compare(averaging, *halves)
        elif averaging.rule == "unknown":
            averaging.rule = "mean"  # of a single batch
        return averaging

    def _compare(self, averaging: Averaging, first: Batch, second: Batch) -> bool:
        """Compare two batches with their union; return whether the next two must be compared as well."""
        try:
            size = num_samples(first[0])
            both = tuple(join(a, b, size) for a, b in zip(first, second, strict=True))
        except ValueError:
            if averaging.is_known:
                return False  # the loss says how it divides; there is nothing to compare
            raise ValueError(
                "Two batches cannot be put together, since their samples differ in shape, so it cannot be "
                "told whether this loss is a mean or a sum over samples. Pass one batch, or a loss of "
                "PyTorch's own."
            ) from None
        for point in (self._nearby(), self.point):
            one, other, joint = (self._observe(averaging, point, *batch) for batch in (first, second, both))
            if all(math.isfinite(observed.value) for observed in (one, other, joint) if observed.weight):
                break
        averaging.compare(one, other, joint, self._eps)
        return not averaging.is_known or not one.weight + other.weight

    def _nearby(self) -> Float[Tensor, " n"]:
        """A point where batches differ: at a perfect fit, for one, all their losses and gradients are 0."""
        size = float(self.point.norm()) / math.sqrt(self.n) or 1.0
        return self.point + 0.01 * size * random_normal(0, self.n).to(self.point)

    def _observe(self, averaging: Averaging, point: Float[Tensor, " n"], x: Inputs, y: Any) -> Observed:
        weights: list[float] = []
        samples = num_samples(x)
        with self.surface.evaluation(x, y) as function, torch.enable_grad():
            function.seen = lambda output: weights.append(averaging.weight(output, function.y, samples))
            leaf = point.detach().clone().requires_grad_()
            value = function(leaf)
            # a model of float64 may compute in float32 inside
            self._eps = max(self._eps, rounding_of(results_below(value)))
            gradient = torch.zeros_like(point)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
        return Observed(float(value.detach()), gradient, weights[0])
