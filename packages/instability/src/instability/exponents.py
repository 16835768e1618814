"""Lyapunov exponents of a map or of a whole training step, by its exact tangent.

The tangent of the step is carried beside the state by forward-mode differentiation: no separation has to be
chosen, nothing saturates. Several directions are kept apart by a QR decomposition after each step.

Source: Benettin et al. 1980 for the exponents; Sec. 5.3 of Sun et al. 2022 for what they say about rounding.
"""

from __future__ import annotations

import copy
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.optim import Optimizer

from instability.streams import RandomStreams

__all__ = ["LyapunovExponents", "lyapunov_exponents", "training_map"]

State = Mapping[str, Tensor]
Map = Callable[[dict[str, Tensor], int], State]
STEPS_PER_WINDOW, MAX_WINDOWS = 5, 20
SEPARATOR = "/"
NO_TANGENT = re.compile(r"forward[- ]?(mode )?AD|forward gradient|automatic differentiation")
SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum"})
"""What torch's optimisers call sums of squares: never negative, and a root is taken of them."""


@dataclass(frozen=True)
class LyapunovExponents:
    """The leading exponents of a run, in log units per step.

    Attributes:
        exponents: mean growth of each direction per step, largest first; positive: rounding is amplified.
        error: standard error of each, from the means over windows of the run; NaN with fewer than two.
        growth: log growth of each direction in each step after the transient.
        exact: whether every tangent was exact; else some are central differences.
        state: the state after the last step.
    """

    exponents: Float[np.ndarray, "k"]
    error: Float[np.ndarray, "k"]
    growth: Float[np.ndarray, "step k"] = field(repr=False)
    exact: bool
    state: dict[str, Tensor] = field(repr=False)

    @property
    def amplifies(self) -> bool | None:
        """Whether the largest exponent is positive; ``None`` if two standard errors do not tell."""
        largest, error = float(self.exponents[0]), float(self.error[0])
        return largest > 0 if abs(largest) > 2 * error else None

    def summary(self) -> str:
        """Return the result as a few lines of text."""
        verdict = {
            True: "rounding errors grow",
            False: "rounding errors are forgotten",
            None: "undecided: take more steps",
        }[self.amplifies]
        tangent = "exact tangent" if self.exact else "tangent by central differences"
        lines = [f"{len(self.growth)} steps, {tangent}: {verdict}"]
        for number, (value, error) in enumerate(zip(self.exponents, self.error, strict=True), 1):
            lines.append(f"exponent {number}: {value:+.4g} +- {error:.2g} per step")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the exponents with their errors as plain data."""
        return {
            "exponents": self.exponents.tolist(),
            "error": self.error.tolist(),
            "steps": len(self.growth),
            "exact": self.exact,
        }

    def plot(self, axis: Any) -> None:
        """Draw, on an axis of matplotlib, each exponent as it settles with the number of steps averaged."""
        steps = np.arange(1, len(self.growth) + 1)
        for number, curve in enumerate((np.cumsum(self.growth, axis=0) / steps[:, None]).T, 1):
            axis.plot(steps, curve, label=f"exponent {number}")
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.set(xlabel="steps averaged", ylabel="growth per step")
        axis.legend()


def lyapunov_exponents(
    step: Map,
    state: State | Tensor,
    *,
    num_steps: int,
    k: int = 1,
    transient: int = 0,
    seed: int = 0,
) -> LyapunovExponents:
    """Return the ``k`` largest Lyapunov exponents of a map, with error bars.

    Args:
        step: maps state and step number to the next state, by torch operations. Random numbers that it draws
            are the same for every direction. Without a forward derivative central differences take over.
        state: named floating tensors at the start; a single tensor is named ``"x"``. Take float64.
        num_steps: steps to average over.
        k: how many exponents; each costs one evaluation of the step.
        transient: steps made before, so that directions and orbit settle.
        seed: of the first directions.

    Raises:
        ValueError: an argument is out of range.
        FloatingPointError: state or tangent is no longer finite; the step is named.

    >>> logistic = lambda s, _: {"x": 4 * s["x"] * (1 - s["x"])}  # exponent log 2
    >>> start = torch.tensor([0.3], dtype=torch.float64)
    >>> found = lyapunov_exponents(logistic, start, num_steps=2000)
    >>> bool(abs(found.exponents[0] - math.log(2)) < 1e-2)
    True
    """
    now = {"x": state} if isinstance(state, Tensor) else dict(state)
    now = {name: value.detach().clone() for name, value in now.items()}
    dim = sum(value.numel() for value in now.values())
    if not 1 <= k <= dim or num_steps < 1 or transient < 0:
        raise ValueError(
            f"k={k}, num_steps={num_steps}, transient={transient}: pass k from 1 to {dim}, the size of the "
            "state, at least one step, and a transient that is not negative."
        )
    if not all(value.is_floating_point() for value in now.values()):
        raise ValueError("the state holds tensors that are not floating; keep only those that vary.")
    generator = torch.Generator().manual_seed(seed)
    like = next(iter(now.values()))
    start = torch.randn(dim, k, generator=generator, dtype=torch.float64).to(like.device)
    directions = torch.linalg.qr(start)[0]
    growth, exact = [], True
    for number in range(transient + num_steps):
        streams = RandomStreams.now()
        columns = []
        for column in directions.T:
            streams.restore()
            after, tangent, by_jvp = _push(step, now, column, number)
            columns.append(tangent)
            exact = exact and by_jvp
        now = after
        image = torch.stack(columns, dim=1)
        if not (image.isfinite().all() and all(value.isfinite().all() for value in now.values())):
            raise FloatingPointError(
                f"step {number + 1}: state or tangent is not finite; the exponent is not defined beyond."
            )
        directions, upper = torch.linalg.qr(image)
        if number >= transient:
            growth.append(upper.diagonal().abs().log().cpu().numpy())
    curves = np.array(growth)
    exponents = curves.mean(axis=0)
    return LyapunovExponents(exponents, _standard_error(curves), curves, exact, now)


def training_map(
    model: nn.Module,
    optimizer: Optimizer,
    loss_of: Callable[[nn.Module, int], Tensor],
    *,
    before_step: Callable[[Sequence[Tensor]], object] | None = None,
) -> tuple[Map, dict[str, Tensor]]:
    """Return the whole step of an optimiser as a map for ``lyapunov_exponents``, and its state.

    The state holds the trained weights and all that the optimiser keeps of their shape. One step is made
    first, since most optimisers make their buffers then. Model and optimiser are copied, never changed.

    Args:
        model: in the mode it trains in; batch norm's averages do not feed back and are left out.
        optimizer: any torch optimiser whose step needs no closure, at the settings it has now.
        loss_of: maps model and step number to the scalar loss. For accumulated gradients return the sum.
        before_step: called with the parameters when their gradients are known, e.g. to clip them in place;
            ``clip_grad_norm_`` has an exact tangent with ``foreach=False`` only.

    Raises:
        TypeError: the optimiser is LBFGS, which evaluates the loss several times in a step.
        ValueError: nothing is trained.

    >>> model = nn.Linear(1, 1, bias=False).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step, state = training_map(model, optimizer, lambda m, _: 2.5 * m.weight.square().sum())
    >>> round(math.exp(lyapunov_exponents(step, state, num_steps=3).exponents[0]), 12)  # 1 - 0.1 * 5
    0.5
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("LBFGS evaluates the loss several times in a step; use lyapunov_estimate for it.")
    mapped = _TrainingMap(*copy.deepcopy((model, optimizer)), loss_of, before_step)
    return mapped, mapped.state


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, loss_of: Callable[[nn.Module, int], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss_of = loss_of

    def forward(self, number: int) -> Tensor:
        return self._loss_of(self.model, number)


class _TrainingMap:
    """The step of an optimiser as a function of weights and buffers."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_of: Callable[[nn.Module, int], Tensor],
        before_step: Callable[[Sequence[Tensor]], object] | None,
    ) -> None:
        self._loss = _Loss(model, loss_of)
        self._optimizer = optimizer
        self._before_step = before_step
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in trained}
        if not named:
            raise ValueError("the optimiser trains no parameter of the model that requires a gradient.")
        self._names = {id(p): name for name, p in named.items()}
        for group in optimizer.param_groups:  # torch's fused and foreach forms have no forward derivative
            group.update({name: False for name in ("foreach", "fused") if name in group})
        state = {name: p.detach().clone() for name, p in named.items()}
        kept = {self._names[id(p)]: v for p, v in optimizer.state.items() if id(p) in self._names}
        # What does not vary with the state, such as counters: known for each step number.
        self._counters: dict[int, dict[str, dict[str, Any]]] = {0: {}}
        self._keep(state, kept, 0)
        self.state = {name: value.detach() for name, value in self(state, 0).items()}
        self._counters = {0: self._counters[1]}
        self.has_tangent = True
        self.has_tangent = self._check_tangent()

    def __call__(self, state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        weights = {name: state[name].clone().requires_grad_() for name in self._names.values()}
        buffers = {name: buffer.clone() for name, buffer in self._loss.named_buffers()}
        inputs = {f"model.{name}": w for name, w in weights.items()}
        with torch.enable_grad():
            loss = functional_call(self._loss, inputs | buffers, (number,))
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        kept: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for (name, w), gradient in zip(weights.items(), gradients, strict=True):
            w.grad = gradient
            kept[w].update(
                {key: _copied(value) for key, value in self._counters[number].get(name, {}).items()}
            )
        for name, value in state.items():
            owner, _, key = name.partition(SEPARATOR)
            if key:
                tiny = torch.finfo(value.dtype).tiny
                kept[weights[owner]][key] = value.clamp_min(tiny) if key in SQUARES else value.clone()
        optimizer = copy.copy(self._optimizer)
        optimizer.state = kept
        optimizer.param_groups = [
            group | {"params": [weights[self._names[id(p)]] for p in group["params"] if id(p) in self._names]}
            for group in self._optimizer.param_groups
        ]
        if self._before_step is not None:
            self._before_step([w for w in weights.values() if w.grad is not None])
        optimizer.step()
        after = dict(weights)
        self._keep(after, {name: kept[w] for name, w in weights.items()}, number + 1)
        return after

    def _keep(self, state: dict[str, Tensor], kept: Mapping[str, dict[str, Any]], number: int) -> None:
        """Sort what the optimiser keeps into the state, and into what depends on the step number alone."""
        self._counters = {n: c for n, c in self._counters.items() if n in (0, number - 1)}
        self._counters[number] = {}
        for name, values in kept.items():
            for key, value in values.items():
                if isinstance(value, Tensor) and value.shape == state[name].shape and key != "step":
                    state[f"{name}{SEPARATOR}{key}"] = value
                else:
                    self._counters[number].setdefault(name, {})[key] = _copied(value)

    def _check_tangent(self) -> bool:
        """Whether the tangent agrees with a difference: a step that writes to ``p.data`` loses it."""
        weights = set(self._names.values())
        tangents = {n: torch.full_like(v, float(n in weights)) for n, v in self.state.items()}
        streams, images = RandomStreams.now(), []
        for push in (_by_jvp, _by_differences):
            streams.restore()
            try:
                images.append(push(self, self.state, tangents, 0)[1])
            except (NotImplementedError, RuntimeError) as error:
                if not NO_TANGENT.search(str(error)):
                    raise
                return False
        streams.restore()
        exact, difference = images
        return bool((exact - difference).norm() <= 0.05 * difference.norm())


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _push(
    step: Map, state: dict[str, Tensor], column: Tensor, number: int
) -> tuple[dict[str, Tensor], Tensor, bool]:
    """Return the next state, the image of a direction under the tangent, and whether it is exact."""
    pieces = zip(state.items(), column.split([value.numel() for value in state.values()]), strict=True)
    tangents = {name: piece.reshape(value.shape).to(value.dtype) for (name, value), piece in pieces}
    try:
        return *_by_jvp(step, state, tangents, number), True
    except (NotImplementedError, RuntimeError) as error:
        if not NO_TANGENT.search(str(error)):
            raise
    return *_by_differences(step, state, tangents, number), False


def _by_jvp(step: Map, state: State, tangents: State, number: int) -> tuple[dict[str, Tensor], Tensor]:
    if not getattr(step, "has_tangent", True):
        raise NotImplementedError("forward AD does not follow this step.")
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value, tangents[name]) for name, value in state.items()}
        after = step(duals, number)
        pairs = {name: forward_ad.unpack_dual(after[name]) for name in state}
        return {name: primal.detach().clone() for name, (primal, _) in pairs.items()}, _flat(
            {
                name: torch.zeros_like(primal) if tangent is None else tangent
                for name, (primal, tangent) in pairs.items()
            }
        )


def _by_differences(
    step: Map, state: State, tangents: State, number: int
) -> tuple[dict[str, Tensor], Tensor]:
    streams = RandomStreams.now()
    size, length = float(_flat(state).norm()), float(_flat(tangents).norm())
    eps = torch.finfo(next(iter(state.values())).dtype).eps
    h = eps ** (1 / 3) * (size or 1.0) / length
    ends = []
    for sign in (1, -1):
        streams.restore()
        ends.append(_flat(_detached(step({n: v + sign * h * tangents[n] for n, v in state.items()}, number))))
    streams.restore()
    return _detached(step(dict(state), number)), (ends[0] - ends[1]) / (2 * h)


def _detached(state: State) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.items()}


def _flat(state: State) -> Tensor:
    return torch.cat([value.detach().reshape(-1).to(torch.float64) for value in state.values()])


def _standard_error(growth: np.ndarray) -> np.ndarray:
    """From the means over windows, which unlike single steps are nearly independent."""
    windows = min(MAX_WINDOWS, len(growth) // STEPS_PER_WINDOW)
    if windows < 2:
        return np.full(growth.shape[1], np.nan)
    means = np.array([part.mean(axis=0) for part in np.array_split(growth, windows)])
    return np.asarray(means.std(axis=0, ddof=1) / math.sqrt(windows))
