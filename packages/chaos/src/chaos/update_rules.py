"""Optimisers as pure functions, so that the tangent of a whole training step can be taken.

A rule maps parameters, gradient and state to new parameters and state. The state is one tensor (slots, n):
velocities, moments, averages. Any object with ``slots``, ``start`` and ``step`` is a rule; those of
``torch.optim.SGD``, ``Adam`` and ``AdamW`` are read from the optimiser by :func:`rule_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
        d = (-gradient if self.maximize else gradient) + self.weight_decay * theta
        if self.momentum:
            first = torch.as_tensor(t + self.steps_before == 0, device=d.device)
            velocity = torch.where(first, d, self.momentum * state[0] + (1 - self.dampening) * d)
            d, state = d + self.momentum * velocity if self.nesterov else velocity, velocity[None]
        return theta - _at(self.lr, t) * d, state


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
        """Where a second moment is 0 all gradients were 0, and so is the derivative of its root."""
        lr, (beta, beta2), count = _at(self.lr, t), self.betas, t + self.steps_before + 1
        g = -gradient if self.maximize else gradient
        if self.decoupled:
            theta = theta * (1 - lr * self.weight_decay)
        else:
            g = g + self.weight_decay * theta
        m = beta * state[0] + (1 - beta) * g
        v = beta2 * state[1] + (1 - beta2) * g.square()
        moments = [m, v]
        if self.amsgrad:
            v = torch.where(v >= state[2], v, state[2])
            moments.append(v)
        share, share2 = (_like(1 - b**count, theta) for b in self.betas)  # of the averages that is filled
        root = torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0) / share2**0.5
        return theta - lr / share * m / (root + self.eps), torch.stack(moments)


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
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW``, of any number of groups.
        parameters: The parameters in the order of the flat vector.
        schedule: Factor on every learning rate at step t, counted from 0, as of ``LambdaLR``.

    Returns:
        The rule, and its state (slots, n).

    Raises:
        TypeError: For another optimiser: write its rule, three lines, and pass that.
        ValueError: If the optimiser lacks a parameter, its groups differ in more than rate and decay, or
            hooks act on its steps.
    """
    kind, groups = type(optimizer), optimizer.param_groups
    if kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        raise TypeError(
            f"{kind.__name__} has no rule here (SGD, Adam and AdamW have); pass an object with slots, start "
            "and step, see chaos.update_rules."
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

    def each(values: list[Any], dtype: torch.dtype | None = None) -> Any:
        """One number for all entries, or one for each."""
        if len(set(values)) == 1:
            return values[0]
        return torch.cat(
            [
                torch.full((p.numel(),), v, dtype=dtype or p.dtype, device=p.device)
                for p, v in zip(parameters, values, strict=True)
            ]
        )

    def option(key: str) -> Any:
        values = [owner[id(p)][key] for p in parameters]
        return each([float(v.detach() if isinstance(v, Tensor) else v) for v in values])

    rate = option("lr")
    options: dict[str, Any] = {
        "lr": rate if schedule is None else lambda t: schedule(t) * rate,
        "weight_decay": option("weight_decay"),
        "maximize": common("maximize"),
    }
    rule: UpdateRule
    if kind is torch.optim.SGD:
        names: tuple[str, ...] = ("momentum_buffer",)
        rule = SGDRule(
            momentum=common("momentum"), dampening=common("dampening"), nesterov=common("nesterov"), **options
        )
    else:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        decoupled = kind is torch.optim.AdamW or bool(common("decoupled_weight_decay"))
        beta, beta2 = common("betas")
        options |= {"eps": common("eps"), "amsgrad": common("amsgrad"), "decoupled": decoupled}
        rule = AdamRule(betas=(float(beta), float(beta2)), **options)
    known = [optimizer.state.get(p, {}) for p in parameters]
    counts = [int(s.get("step", 1)) if s.get(names[0]) is not None else 0 for s in known]
    state = rule.start(torch.cat([p.detach().reshape(-1) for p in parameters]))
    for row, name in zip(state, names, strict=False):  # without momentum there is none
        for place, s, count in zip(row.split([p.numel() for p in parameters]), known, counts, strict=True):
            if count:
                place.copy_(s[name].detach().reshape(-1))
    return replace(rule, steps_before=each(counts, torch.float64)), state


def _like(number: Any, tensor: Tensor) -> Any:
    return number.to(tensor) if isinstance(number, Tensor) else number


def _at(rate: Rate, t: int) -> Any:
    return rate(t) if callable(rate) else rate
