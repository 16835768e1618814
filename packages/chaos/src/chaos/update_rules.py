"""Optimisers as pure functions, so that the tangent of a whole training step can be taken.

A rule maps parameters, gradient and state to new parameters and state. The state is one tensor (slots, n):
velocities, moments, averages. Any object with ``slots``, ``start`` and ``step`` is a rule; those of
``torch.optim.SGD``, ``Adam``, ``AdamW``, ``RMSprop`` and ``Adagrad`` are read from the optimiser by
:func:`rule_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

#: A value for all parameters, one for each of them, or a function of the step, counted from 0.
Rate = float | Tensor | Callable[[int], float]


class UpdateRule(Protocol):
    """What is asked of an optimiser."""

    @property
    def slots(self) -> int:
        """Rows of the state."""
        ...

    def start(self, theta: Float[Tensor, " n"]) -> Float[Tensor, "slots n"]:
        """Return the state before the first step."""
        ...

    def step(
        self,
        theta: Float[Tensor, " n"],
        gradient: Float[Tensor, " n"],
        state: Float[Tensor, "slots n"],
        t: int,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "slots n"]]:
        """Return parameters and state after step t, counted from 0, by differentiable operations."""
        ...


@dataclass(frozen=True)
class SGDRule:
    """``torch.optim.SGD``.

    Example:
        >>> rule = SGDRule(0.1, momentum=0.9)
        >>> theta, state = torch.ones(1), torch.zeros(1, 1)
        >>> for t in range(2):  # velocities 1 and 1.9
        ...     theta, state = rule.step(theta, torch.ones(1), state, t)
        >>> round(theta.item(), 6)
        0.71
    """

    lr: Rate
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float | Tensor = 0.0
    nesterov: bool = False
    maximize: bool = False
    steps_before: int | Tensor = 0

    @property
    def slots(self) -> int:
        """A velocity, if there is momentum."""
        return int(self.momentum != 0)

    def start(self, theta: Tensor) -> Tensor:
        """No velocity."""
        return theta.new_zeros(self.slots, len(theta))

    def step(self, theta: Tensor, gradient: Tensor, state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """As documented by PyTorch: the first velocity is not dampened."""
        d = (-gradient if self.maximize else gradient) + _like(self.weight_decay, theta) * theta
        if self.momentum:
            first = torch.as_tensor(t + self.steps_before == 0, device=d.device)
            velocity = torch.where(first, d, self.momentum * state[0] + (1 - self.dampening) * d)
            d, state = d + self.momentum * velocity if self.nesterov else velocity, velocity[None]
        return theta - _at(self.lr, t, theta) * d, state


@dataclass(frozen=True)
class AdamRule:
    """``torch.optim.Adam``, or ``AdamW`` with ``decoupled``; by the largest second moment with ``amsgrad``.

    Example:
        >>> rule, theta = AdamRule(0.1), torch.ones(1)
        >>> theta, state = rule.step(theta, torch.ones(1), rule.start(theta), 0)
        >>> round(theta.item(), 6)  # the first step has length lr
        0.9
    """

    lr: Rate
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float | Tensor = 0.0
    decoupled: bool = False
    maximize: bool = False
    steps_before: int | Tensor = 0
    amsgrad: bool = False

    @property
    def slots(self) -> int:
        """First and second moment, and the largest second moment."""
        return 2 + self.amsgrad

    def start(self, theta: Tensor) -> Tensor:
        """No moments."""
        return theta.new_zeros(self.slots, len(theta))

    def step(self, theta: Tensor, gradient: Tensor, state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """As documented by PyTorch."""
        lr, (beta, beta2), count = _at(self.lr, t, theta), self.betas, t + self.steps_before + 1
        g = -gradient if self.maximize else gradient
        if self.decoupled:
            theta = theta * (1 - lr * _like(self.weight_decay, theta))
        else:
            g = g + _like(self.weight_decay, theta) * theta
        m = beta * state[0] + (1 - beta) * g
        v = beta2 * state[1] + (1 - beta2) * g.square()
        moments = [m, v]
        if self.amsgrad:
            v = torch.where(v >= state[2], v, state[2])
            moments.append(v)
        share, share2 = (_like(1 - b**count, theta) for b in self.betas)  # of the averages that is filled
        return theta - lr / share * m / (_root(v) / share2**0.5 + self.eps), torch.stack(moments)


@dataclass(frozen=True)
class RMSpropRule:
    """``torch.optim.RMSprop``, ``centered`` or not, with momentum or without.

    The rows of the state are the mean square, the velocity where there is momentum, and the mean where
    ``centered``.

    Example:
        >>> rule, theta = RMSpropRule(0.1, alpha=0.75, eps=0.0), torch.ones(1)
        >>> theta, state = rule.step(theta, torch.ones(1), rule.start(theta), 0)
        >>> round(theta.item(), 6), state.item()  # the mean square is a quarter
        (0.8, 0.25)
    """

    lr: Rate
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float | Tensor = 0.0
    momentum: float = 0.0
    centered: bool = False
    maximize: bool = False

    @property
    def slots(self) -> int:
        """The mean square, the velocity and the mean."""
        return 1 + (self.momentum > 0) + self.centered

    def start(self, theta: Tensor) -> Tensor:
        """No means and no velocity."""
        return theta.new_zeros(self.slots, len(theta))

    def step(self, theta: Tensor, gradient: Tensor, state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """As documented by PyTorch: there is no correction of the first steps."""
        g = (-gradient if self.maximize else gradient) + _like(self.weight_decay, theta) * theta
        square = spread = self.alpha * state[0] + (1 - self.alpha) * g.square()
        mean = []
        if self.centered:
            mean = [self.alpha * state[-1] + (1 - self.alpha) * g]
            spread = square - mean[0].square()
        d, velocity = g / (_root(spread) + self.eps), []
        if self.momentum > 0:
            velocity = [d := self.momentum * state[1] + d]
        return theta - _at(self.lr, t, theta) * d, torch.stack([square, *velocity, *mean])


@dataclass(frozen=True)
class AdagradRule:
    """``torch.optim.Adagrad``.

    Example:
        >>> rule, theta = AdagradRule(0.1), torch.ones(1)
        >>> for t, g in enumerate((3.0, 4.0)):  # divided by 3 and by 5
        ...     theta, state = rule.step(theta, torch.tensor([g]), state if t else rule.start(theta), t)
        >>> round(theta.item(), 6), state.item()
        (0.82, 25.0)
    """

    lr: Rate
    lr_decay: float = 0.0
    eps: float = 1e-10
    weight_decay: float | Tensor = 0.0
    initial_accumulator_value: float = 0.0
    maximize: bool = False
    steps_before: int | Tensor = 0

    @property
    def slots(self) -> int:
        """The sum of squares."""
        return 1

    def start(self, theta: Tensor) -> Tensor:
        """The sum before the first gradient."""
        return torch.full_like(theta, self.initial_accumulator_value)[None]

    def step(self, theta: Tensor, gradient: Tensor, state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """As documented by PyTorch."""
        g = (-gradient if self.maximize else gradient) + _like(self.weight_decay, theta) * theta
        total = state[0] + g.square()
        rate = _at(self.lr, t, theta) / _like(1 + (t + self.steps_before) * self.lr_decay, theta)
        return theta - rate * g / (_root(total) + self.eps), total[None]


@dataclass(frozen=True)
class AveragedRule:
    """Another rule, with an exponential average of its parameters as the last row of the state.

    The average does not act on training, so its exponents are those of training and ``log decay``.
    """

    rule: UpdateRule
    decay: float

    @property
    def slots(self) -> int:
        """Those of the rule, and the average."""
        return self.rule.slots + 1

    def start(self, theta: Tensor) -> Tensor:
        """The average starts at the parameters."""
        return torch.cat([self.rule.start(theta), theta[None]])

    def step(self, theta: Tensor, gradient: Tensor, state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Step, then average."""
        theta, inner = self.rule.step(theta, gradient, state[:-1], t)
        return theta, torch.cat([inner, (self.decay * state[-1] + (1 - self.decay) * theta)[None]])


def rule_of(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    schedule: Callable[[int], float] | None = None,
) -> tuple[UpdateRule, Tensor]:
    """Read the rule of an optimiser and its present state; the optimiser is left alone.

    Args:
        optimizer: ``torch.optim.SGD``, ``Adam``, ``AdamW``, ``RMSprop`` or ``Adagrad``, of any number of
            groups.
        parameters: The parameters in the order of the flat vector.
        schedule: Factor on every learning rate at step t, counted from 0, as of ``LambdaLR``. Where a
            scheduler is attached, its factor at 0 gives the present rate, or is 1.

    Returns:
        The rule, and its state (slots, n).

    Raises:
        TypeError: For another optimiser: write its rule, three lines, and pass that.
        ValueError: If the optimiser lacks a parameter, its groups differ in more than rate and decay, hooks
            act on its steps, or a scheduler moves its rate and ``schedule`` does not say how.
    """
    kind, groups = type(optimizer), optimizer.param_groups
    if kind not in _STATES:
        raise TypeError(
            f"{kind.__name__} has no rule here ({', '.join(known.__name__ for known in _STATES)} have); pass "
            "an object with slots, start and step, see chaos.update_rules."
        )
    hooks = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    if any(hooks) or any(getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        raise ValueError(
            "Hooks act on the optimiser's steps or on gradients after backward(), which no rule sees. Remove "
            "them, and pass a rule whose step does what they do."
        )
    owner = {id(p): group for group in groups for p in group["params"]}
    missing = [i for i, p in enumerate(parameters) if id(p) not in owner]
    if missing:
        raise ValueError(
            f"The optimiser lacks {len(missing)} of the {len(parameters)} parameters of the surface; give it "
            "all of them, or restrict the surface to its layers=."
        )

    def common(key: str) -> Any:
        values = [group[key] for group in groups]
        if any(value != values[0] for value in values):
            raise ValueError(f"The groups differ in {key}; only lr and weight_decay may differ.")
        return values[0]

    def each(values: list[Any]) -> Any:
        """One number for all entries, or one for each, in double precision like those of a single group."""
        if len(set(values)) == 1:
            return values[0]
        return torch.cat(
            [
                torch.full((p.numel(),), v, dtype=torch.float64, device=p.device)
                for p, v in zip(parameters, values, strict=True)
            ]
        )

    def option(key: str) -> Any:
        values = [owner[id(p)][key] for p in parameters]
        return each([float(v.detach() if isinstance(v, Tensor) else v) for v in values])

    bases = {id(group): _base_rate(group, schedule) for group in groups}
    rate = each([bases[id(owner[id(p)])] for p in parameters])
    options: dict[str, Any] = {
        "lr": rate if schedule is None else lambda t: schedule(t) * rate,
        "weight_decay": option("weight_decay"),
        "maximize": common("maximize"),
    }
    known = [optimizer.state.get(p, {}) for p in parameters]
    first = _STATES[kind][0]
    counts = [int(s.get("step", 1)) if s.get(first) is not None else 0 for s in known]
    if kind is not torch.optim.RMSprop:  # whose steps do not depend on their number
        options["steps_before"] = each(counts)
    names, rule = _STATES[kind], _rule(kind, common, options)
    if isinstance(rule, RMSpropRule):
        names = names[:1] + names[1:2] * (rule.momentum > 0) + names[2:] * rule.centered
    state = rule.start(torch.cat([p.detach().reshape(-1) for p in parameters]))
    for row, name in zip(state, names, strict=False):  # without momentum there is none
        for place, s in zip(row.split([p.numel() for p in parameters]), known, strict=True):
            if s.get(name) is not None:
                place.copy_(s[name].detach().reshape(-1))
    return rule, state


def _base_rate(group: dict[str, Any], schedule: Callable[[int], float] | None) -> float:
    """The learning rate that a schedule multiplies: that of a group before a scheduler first moved it."""
    now, initial = (float(group[key]) for key in ("lr", "initial_lr" if "initial_lr" in group else "lr"))
    if "max_momentum" in group:
        raise ValueError(
            "A scheduler moves the momentum of the optimiser with its learning rate. Pass a rule whose step "
            "does both, see chaos.update_rules."
        )
    if "initial_lr" not in group or (schedule is not None and schedule(0) == 1):
        return now
    if schedule is None:
        raise ValueError(
            f"A scheduler moves the learning rate of the optimiser (from {initial:g}, now {now:g}), and its "
            "steps are not seen. Pass its function as schedule=, or schedule=lambda t: 1.0 to hold the rate."
        )
    if not math.isclose(initial * schedule(0), now, rel_tol=1e-9):
        raise ValueError(
            f"A scheduler moved the learning rate of the optimiser from {initial:g} to {now:g}, and "
            f"schedule(0) is {schedule(0):g}: let it be {now / initial:g} at the present step, step 0, or 1 "
            "as a factor on the present rate."
        )
    return initial


#: What the optimisers of PyTorch keep for each parameter, in the order of the rows of a state.
_STATES: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.Adam: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    torch.optim.RMSprop: ("square_avg", "momentum_buffer", "grad_avg"),
    torch.optim.Adagrad: ("sum",),
}


def _rule(
    kind: type[torch.optim.Optimizer], common: Callable[[str], Any], options: dict[str, Any]
) -> UpdateRule:
    """The rule of a kind of optimiser, with what its groups have in common."""

    def own(*keys: str) -> dict[str, Any]:
        return options | {key: common(key) for key in keys}

    if kind is torch.optim.SGD:
        return SGDRule(**own("momentum", "dampening", "nesterov"))
    if kind is torch.optim.RMSprop:
        return RMSpropRule(**own("alpha", "eps", "momentum", "centered"))
    if kind is torch.optim.Adagrad:
        return AdagradRule(**own("lr_decay", "eps", "initial_accumulator_value"))
    decoupled = kind is torch.optim.AdamW or bool(common("decoupled_weight_decay"))
    beta, beta2 = common("betas")
    return AdamRule(betas=(float(beta), float(beta2)), decoupled=decoupled, **own("eps", "amsgrad"))


def _root(v: Tensor) -> Tensor:
    """The root of a mean of squares: where it is 0 all gradients were 0, and so is its derivative."""
    return torch.where(v == 0, 0.0, torch.where(v == 0, 1.0, v).sqrt())


def _like(number: Any, tensor: Tensor) -> Any:
    return number.to(tensor) if isinstance(number, Tensor) else number


def _at(rate: Rate, t: int, theta: Tensor) -> Any:
    return _like(rate(t) if callable(rate) else rate, theta)
