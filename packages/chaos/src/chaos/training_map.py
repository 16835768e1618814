"""Training as a map, its tangent matrix as an operator, and both kinds of Lyapunov exponents of it.

T steps of an optimiser map parameters and state ``s_0`` to ``s_T``; ``Y = d theta_T / d theta_0``. Products
``Y V`` carry columns along the run: the tangent of each update rule by forward-mode differentiation, that of
its gradient by Hessian-vector products. The Hessian is symmetric, so ``Y' U`` are the same products backwards
along the stored run. Two questions, two functions:

- :func:`finite_time_exponents`: by how much do T steps stretch the most stretched directions?
  ``log sigma_i(Y) / T`` and the directions, by Lanczos on ``Y'Y``. Exact at any T and n.
- :func:`asymptotic_exponents`: at what rate do distances grow if training goes on? Benettin's method on k
  vectors, with error bars over windows. Not the former: random vectors take time to turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from chaos.exponents import AsymptoticExponents, FiniteTimeExponents
from chaos.o2grad import LossSurface
from chaos.o2grad.batches import copied, pairs
from chaos.o2grad.budget import DEFAULT_BUDGET, check_budget
from chaos.o2grad.generic import random_normal
from chaos.o2grad.parameters import Parameters, all_finite
from chaos.update_rules import UpdateRule, rule_of
from gdyn_common.errors import require_count
from gdyn_common.seeding import generator as named_generator
from gdyn_common.spectral import ConvergenceError, lanczos

Batches = Iterable[Any]
Optimiser = torch.optim.Optimizer | UpdateRule
Point = tuple[Tensor, Tensor, Tensor]  # parameters, gradient, state
Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainingMap:
    """A training run from a point along given batches, and products by its tangent matrix.

    The model and the optimiser are not changed: the run is made on copies. As in PyTorch, a parameter that a
    batch does not reach stays as it is, weight decay and momentum included. The padding of an embedding is a
    constant: its columns of Y are those of the identity (with weight decay, of what that does to it).

    Args:
        surface: The loss.
        optimizer: ``torch.optim.SGD``, ``Adam``, ``AdamW``, ``RMSprop`` or ``Adagrad`` with its present
            state, or any :class:`~chaos.update_rules.UpdateRule`.
        batches: One for each step, ``(x, y)``; an iterator is read once and kept.
        params: Starting point; ``None`` takes that of the model.
        schedule: Factor on the learning rate at step t, counted from 0.
        memory_budget: Bytes that the stored run may take, (2 + slots) n numbers for each step.

    Attributes:
        end: Parameters after the last step (n,).
        num_steps: T.

    Raises:
        ValueError: If there is no batch, the run exceeds the memory budget, hooks or values cut off from
            the graph change what is trained, the optimiser trains more than the surface holds, or a rule does
            not change as its derivative says.
        FloatingPointError: If training diverges; the step is named.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> surface = LossSurface(model, torch.nn.MSELoss())
        >>> batch = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        >>> run = TrainingMap(surface, torch.optim.SGD(model.parameters(), lr=0.25), [batch] * 3)
        >>> run.product(torch.ones(1, dtype=torch.float64)).tolist()  # (1 - 0.25 * 2)^3
        [0.125]
    """

    def __init__(
        self,
        surface: LossSurface,
        optimizer: Optimiser,
        batches: Batches,
        *,
        params: Parameters = None,
        schedule: Callable[[int], float] | None = None,
        memory_budget: int = DEFAULT_BUDGET,
    ) -> None:
        # Copies, since a loader may fill the same memory again.
        self.surface, self.batches = surface, [copied(next(pairs(batch))) for batch in batches]
        self.rule, theta, state = _begin(surface, optimizer, params, schedule)
        if not self.batches:
            raise ValueError("batches is empty; pass one batch (x, y) for each step.")
        instead = "Use fewer steps, asymptotic_exponents, or pass a larger memory_budget."
        check_budget((2 + len(state)) * self.num_steps, surface.n, surface.dtype, memory_budget, instead)
        self._run = [
            (point, step)
            for _, point, step in _training(surface, optimizer, self.rule, theta, state, self.batches)
        ]
        point, step = self._run[-1]
        self.end = step(*point)[0]

    @property
    def n(self) -> int:
        """Number of parameters."""
        return self.surface.n

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.batches)

    @torch.no_grad()
    def product(self, V: Float[Tensor, "n *k"]) -> Float[Tensor, "n *k"]:
        """``Y V``; a column costs about T Hessian-vector products."""
        columns = self._columns(V)
        tangent = columns.T, columns.new_zeros(columns.shape[1], self.rule.slots, self.n)
        for t, (point, step) in enumerate(self._run):
            tangent = _push(step, point, (tangent[0], self._hvp(t, tangent[0]), tangent[1]))
        return tangent[0].T.reshape(V.shape)

    @torch.no_grad()
    def transposed_product(self, U: Float[Tensor, "n *k"]) -> Float[Tensor, "n *k"]:
        """``Y' U``, backwards along the stored run."""
        columns = self._columns(U)
        by_theta, by_state = columns.T, columns.new_zeros(columns.shape[1], self.rule.slots, self.n)
        for t, (point, step) in reversed(list(enumerate(self._run))):
            by_theta, by_gradient, by_state = _pull(step, point, (by_theta, by_state))
            by_theta = by_theta + self._hvp(t, by_gradient)
        return by_theta.T.reshape(U.shape)

    def dense(self) -> Float[Tensor, "n n"]:
        """Y itself.

        Raises:
            ValueError: If it exceeds the surface's memory budget.
        """
        check_budget(self.n, self.n, self.surface.dtype, self.surface.memory_budget, "Use product.")
        return self.product(torch.eye(self.n, dtype=self.surface.dtype, device=self.end.device))

    def linear_operator(self) -> LinearOperator:
        """Y for SciPy."""

        def of(product: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
            return lambda v: product(torch.from_numpy(np.ascontiguousarray(v)).to(self.end)).cpu().numpy()

        forward, backward = of(self.product), of(self.transposed_product)
        return LinearOperator(
            (self.n, self.n), forward, backward, forward, self.end.new_zeros(0).cpu().numpy().dtype, backward
        )

    def _columns(self, V: Tensor) -> Tensor:
        self.surface.check_columns(V)
        return V.to(self.end).reshape(self.n, -1)

    def _hvp(self, t: int, rows: Tensor) -> Tensor:
        x, y = self.batches[t]
        return self.surface.hvp(self._run[t][0][0], x, y, rows.T.contiguous()).T


def finite_time_exponents(
    run: TrainingMap, num_exponents: int, *, tol: float = 1e-10, seed: int = 0, max_products: int = 1000
) -> FiniteTimeExponents:
    """Largest finite-time exponents of a run, equal ones too, and their directions, by Lanczos on ``Y'Y``.

    Args:
        run: The training run.
        num_exponents: k.
        tol: Relative accuracy of the eigenvalues of ``Y'Y``.
        seed: Of the starting vector.
        max_products: Products by ``Y'Y`` after which to give up.

    Raises:
        ValueError: For a k out of range, or where Lanczos does not converge.
        FloatingPointError: If the growth overflows.

    Source: Sec. 2 of Herrmann et al. 2022 defines the exponents.

    Example:
        >>> model = torch.nn.Linear(3, 1, bias=False).double()
        >>> surface = LossSurface(model, torch.nn.MSELoss())
        >>> batch = torch.eye(3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
        >>> run = TrainingMap(surface, torch.optim.SGD(model.parameters(), lr=6.0), [batch] * 4)
        >>> finite_time_exponents(run, 1).values.exp().round(decimals=9).tolist()  # |1 - 6 * 2/3|
        [3.0]
    """
    n = run.n
    require_count("num_exponents", num_exponents, most=n)
    if num_exponents + 1 >= n:
        V = torch.linalg.eigh(run.transposed_product(run.dense())).eigenvectors.flip(1)[:, :num_exponents]
    else:
        operator = run.linear_operator()
        try:
            pairs = lanczos(
                lambda v: _finite(operator.rmatvec(operator.matvec(v))),
                n,
                num_exponents,
                generator=named_generator(seed, "finite-time exponents"),
                tol=max(tol, torch.finfo(run.end.dtype).eps),
                max_iterations=max_products,
                basis_size=max(2 * num_exponents + 1, 20),
                start=random_normal(seed, n).numpy(),
            )
        except ConvergenceError as error:
            raise ValueError(
                f"The {num_exponents} leading exponents did not converge to {tol:g} in {max_products} "
                "products; ask for fewer, or raise tol or max_products."
            ) from error
        V = torch.from_numpy(pairs.vectors).to(run.end)
    image = run.product(V)
    sigma = image.norm(dim=0)
    back = run.transposed_product(image)
    residuals = (back - V * sigma.square()).norm(dim=0) / sigma.max().square()
    order = sigma.argsort(descending=True)
    sigma, V, image = sigma[order], V[:, order], image[:, order]
    ends = image / torch.where(sigma > 0, sigma, 1.0)
    return FiniteTimeExponents(sigma.log() / run.num_steps, V, ends, residuals[order], run.num_steps)


@torch.no_grad()
def asymptotic_exponents(
    surface: LossSurface,
    optimizer: Optimiser,
    batches: Batches,
    num_exponents: int,
    *,
    warm_up: int = 0,
    num_windows: int = 10,
    params: Parameters = None,
    schedule: Callable[[int], float] | None = None,
    seed: int = 0,
) -> AsymptoticExponents:
    """Rates at which k tangent vectors of parameters and optimiser state grow (Benettin et al. 1980).

    Holds ``(1 + slots) n k`` numbers: 3 n k for Adam. The vectors are orthonormalised after every step.

    Args:
        surface: The loss.
        optimizer: As of :class:`TrainingMap`.
        batches: One for each step; read once and not kept.
        num_exponents: k.
        warm_up: Steps before counting starts.
        num_windows: Windows of equal length for the error bars; a remainder of steps is counted first into
            the warm-up.
        params: Starting point; ``None`` takes that of the model.
        schedule: Factor on the learning rate at step t, counted from 0.
        seed: Of the random orthonormal starting vectors.

    Raises:
        ValueError: For a k out of range, or fewer steps than windows.
        FloatingPointError: If training diverges; the step is named.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> surface = LossSurface(model, torch.nn.MSELoss())
        >>> batch = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> found = asymptotic_exponents(surface, sgd, [batch] * 20, 2)
        >>> found.values.exp().round(decimals=9).tolist(), float(found.standard_errors.max()) < 1e-12
        ([0.5, 0.5], True)
    """
    rule, theta, state = _begin(surface, optimizer, params, schedule)
    size = (1 + rule.slots) * surface.n
    require_count("num_exponents", num_exponents, most=surface.n)
    require_count("warm_up", warm_up, 0)
    require_count("num_windows", num_windows)
    check_budget(size, num_exponents, surface.dtype, surface.memory_budget, "Use fewer exponents.")
    V = torch.linalg.qr(random_normal(seed, surface.n, num_exponents)).Q.T.to(theta)
    tangent = V, V.new_zeros(num_exponents, rule.slots, surface.n)
    growth: list[Tensor] = []
    for (x, y), point, step in _training(surface, optimizer, rule, theta, state, batches):
        moved = surface.hvp(point[0], x, y, tangent[0].T.contiguous()).T
        tangent = _push(step, point, (tangent[0], moved, tangent[1]))
        joint = torch.cat([tangent[0][:, None], tangent[1]], 1).flatten(1)
        if not bool(torch.isfinite(joint).all()):
            raise FloatingPointError(
                f"The tangent of step {len(growth)} is not finite: the loss has no curvature there."
            )
        Q, R = torch.linalg.qr(joint.T)
        growth.append(R.diagonal().abs().log())
        parts = Q.T.contiguous().unflatten(1, (1 + rule.slots, surface.n))
        tangent = parts[:, 0], parts[:, 1:]
    counted = len(growth) - warm_up
    if counted < num_windows:
        raise ValueError(
            f"{len(growth)} steps, {warm_up} of them warm-up, do not fill {num_windows} windows; pass more."
        )
    length = counted // num_windows
    rates = (
        torch.stack(growth[len(growth) - length * num_windows :]).unflatten(0, (num_windows, length)).mean(1)
    )
    rates = rates[:, rates.mean(0).argsort(descending=True)]
    errors = rates.std(0) / math.sqrt(num_windows) if num_windows > 1 else rates[0] * math.nan
    used = length * num_windows
    return AsymptoticExponents(rates.mean(0), errors, rates, used, len(growth) - used)


def _begin(
    surface: LossSurface,
    optimizer: Optimiser,
    params: Parameters,
    schedule: Callable[[int], float] | None,
) -> tuple[UpdateRule, Tensor, Tensor]:
    """The rule, and parameters and state before the first step."""
    theta = surface.point(params)
    if isinstance(
        schedule, torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau
    ):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; pass a function of the step (from 0) that returns the "
            "factor on the learning rate, as LambdaLR takes."
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        named = dict(surface.model.named_parameters())
        held = {id(p) for p in _held(optimizer)}
        for name, p in named.items():
            if p.requires_grad and id(p) in held and name not in surface.layout.names:
                raise ValueError(
                    f"The optimiser also trains {name}, which layers= leaves out of the surface: its steps "
                    "move the loss. Give it the parameters of those layers only."
                )
        rule, state = rule_of(optimizer, [named[name] for name in surface.layout.names], schedule)
        return rule, theta, state.to(theta)
    if schedule is not None:
        raise ValueError(
            "schedule goes with an optimiser of PyTorch; a rule has lr=, a function of the step."
        )
    if not all(hasattr(optimizer, name) for name in ("slots", "start", "step")):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; pass an optimiser of PyTorch, or a rule with slots, "
            "start and step, see chaos.update_rules."
        )
    return optimizer, theta, optimizer.start(theta)


def _training(
    surface: LossSurface,
    optimizer: Optimiser,
    rule: UpdateRule,
    theta: Tensor,
    state: Tensor,
    batches: Batches,
) -> Iterator[tuple[tuple[Any, Any], Point, Step]]:
    """Train; yield the batch of each step, the point before it, and the step as a function of the point."""
    passes_over, first, others = isinstance(optimizer, torch.optim.Optimizer), None, dict[str, Tensor]()
    if isinstance(optimizer, torch.optim.Optimizer):
        others = _others(surface, optimizer)
    for t, batch in enumerate(batches):
        x, y = next(pairs(batch))
        if not all_finite(theta):
            raise FloatingPointError(f"Training diverged: the parameters are not finite before step {t}.")
        gradient, reached = _gradient(surface, theta, x, y)
        if others:
            _check_others(surface, others, theta, x, y)
        if not all_finite(gradient):
            raise FloatingPointError(f"Training diverged: the gradient is not finite at step {t}.")
        if first is None:
            first = reached
            surface.check_second_derivative(theta, x, y)
        if passes_over and rule.slots and not torch.equal(reached, first):
            raise ValueError(
                f"Step {t} reaches other parameters than step 0. PyTorch passes over what has no gradient "
                "and counts its steps apart, which has no rule here; pass one with slots, start and step."
            )
        step = partial(_step, rule, t, reached if passes_over and not bool(reached.all()) else None)
        if not passes_over and t < 2:  # in the first step most states are zero
            _check_rule(step, (theta, gradient, state))
        yield (x, y), (theta, gradient, state), step
        theta, state = step(theta, gradient, state)


def _held(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _others(surface: LossSurface, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser trains besides the model, by name."""
    own = {id(p) for p in surface.model.parameters()}
    loss = surface.loss.named_parameters() if isinstance(surface.loss, torch.nn.Module) else ()
    names = {id(p): f"{name!r} of the loss" for name, p in loss}
    others = [p for p in _held(optimizer) if p.requires_grad and id(p) not in own]
    return {names.get(id(p), f"of shape {tuple(p.shape)} (number {i})"): p for i, p in enumerate(others)}


def _check_others(surface: LossSurface, others: dict[str, Tensor], theta: Tensor, x: Any, y: Any) -> None:
    """Refuse steps of parameters that the loss depends on and the flat vector does not hold."""
    with torch.enable_grad(), surface.evaluation(x, y) as function:
        value = function(theta)
        if not value.requires_grad:
            return
        found = torch.autograd.grad(value, list(others.values()), allow_unused=True)
    for name, slope in zip(others, found, strict=True):
        if slope is not None:
            raise ValueError(
                f"The optimiser also trains parameter {name}, which is none of the model's: its steps move "
                "the loss. Make it a parameter of the model, or leave it out of the optimiser."
            )


def _gradient(surface: LossSurface, theta: Tensor, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """The gradient, and which entries belong to parameters that the batch reaches."""
    _, gradient, reached = surface.value_gradient_reached(theta, x, y)
    parts = surface.parts
    hooks = [p._backward_hooks for p in parts.parameters.values()]
    if any(hooks) or any(m._backward_hooks or m._backward_pre_hooks for m in parts.modules):
        trained = surface.value_gradient_reached(theta, x, y, hooks=True)[1]
        if not torch.equal(trained, gradient):
            raise ValueError(
                "Hooks on parameters or modules change the gradient, so the tangent of a step does not "
                "follow from the loss. Remove them, and pass a rule whose step does what they do."
            )
    return gradient, reached


def _step(
    rule: UpdateRule, t: int, reached: Tensor | None, theta: Tensor, gradient: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    new_theta, new_state = rule.step(theta, gradient, state, t)
    if reached is None:
        return new_theta, new_state
    return torch.where(reached, new_theta, theta), torch.where(reached, new_state, state)


def _check_rule(step: Step, point: Point) -> None:
    """Compare a rule with itself, and with its derivative by each argument."""
    h = torch.finfo(point[0].dtype).eps ** (1 / 3)
    sizes = point[0].square().mean().sqrt(), point[1].abs(), point[2].abs()

    def difference(along: Sequence[Tensor], h: float) -> Tensor:
        ends = [_rows(step(*(p + side * d for p, d in zip(point, along, strict=True)))) for side in (h, -h)]
        return (ends[0] - ends[1]) / (2 * h)

    for argument, (name, size) in enumerate(zip(("theta", "gradient", "state"), sizes, strict=True)):
        along = [torch.zeros_like(p) for p in point]
        along[argument] = size * random_normal(argument, *point[argument].shape).to(point[0])
        (first, exact), second = map(_rows, torch.func.jvp(step, point, tuple(along))), _rows(step(*point))
        far, near = difference(along, h), difference(along, h / 8)
        noise = 4 * (far - near).norm(dim=1) + h * far.norm(dim=1) + 8 * h**2 * second.norm(dim=1)
        if not torch.equal(first, second) or bool(((exact - far).norm(dim=1) > noise).any()):
            raise ValueError(
                f"The rule does not change with {name} as its derivative says: it detaches something, works "
                "in place, rounds, or keeps something beside its state. Write its step with torch operations "
                "that make new tensors."
            )


def _rows(after: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([after[0][None], after[1]])


def _push(step: Step, point: Point, tangents: Point) -> tuple[Tensor, Tensor]:
    """Tangents of one step, for rows of tangents."""

    def one(*tangent: Tensor) -> Any:
        return torch.func.jvp(step, point, tangent)[1]

    pushed: tuple[Tensor, Tensor] = torch.func.vmap(one)(*tangents)
    return pushed


def _pull(step: Step, point: Point, cotangents: tuple[Tensor, Tensor]) -> Point:
    """The transposed of :func:`_push`."""
    pull = torch.func.vjp(step, *point)[1]
    pulled: Point = torch.func.vmap(pull)(cotangents)
    return pulled


def _finite(v: np.ndarray) -> np.ndarray:
    if not np.isfinite(v).all():
        raise FloatingPointError("Growth overflows; use fewer steps.")
    return v
