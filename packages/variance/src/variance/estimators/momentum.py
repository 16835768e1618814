"""Momentum methods as estimators: `direction` shows the next step, `on_frequent` takes it into the state."""

import torch
from torch import Tensor
from typing_extensions import override

from variance.errors import require_number
from variance.estimators.base import Direction, GradientEstimator
from variance.objective import Batch, Objective, Point


class HeavyBall(GradientEstimator):
    """v <- gamma v + (1 - gamma) g. Source: Polyak 1964, with damping.

    Args:
        objective: The function whose gradient is estimated.
        momentum: gamma.
    """

    name = "heavy-ball"
    STATE = ("velocity",)

    def __init__(self, objective: Objective, *, momentum: float = 0.9) -> None:
        super().__init__(objective)
        require_number("momentum", momentum, 0, below=1)
        self.momentum = momentum
        self.velocity: Tensor | None = None

    def _gradient(
        self, point: Point, batch: Batch, generator: torch.Generator | None
    ) -> tuple[Tensor, float]:
        return self.objective.gradient(point, batch, generator)

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        g, loss = self._gradient(point, batch, generator)
        previous = torch.zeros_like(g) if self.velocity is None else self.velocity
        return Direction(self.momentum * previous + (1 - self.momentum) * g, loss)

    @override
    def on_frequent(
        self, step: int, point: Point, batch: Batch, generator: torch.Generator | None = None
    ) -> None:
        self.velocity = self.direction(point, batch, generator).values


class Nesterov(HeavyBall):
    """Heavy-ball with the gradient at theta - eta gamma v.

    Source: Nesterov 1983; Sutskever et al. 2013, Eq. (3).

    Args:
        objective: The function whose gradient is estimated.
        learning_rate: eta.
        momentum: gamma.
    """

    name = "Nesterov"

    def __init__(self, objective: Objective, *, learning_rate: float, momentum: float = 0.9) -> None:
        super().__init__(objective, momentum=momentum)
        require_number("learning_rate", learning_rate, 0)
        self.learning_rate = learning_rate

    @override
    def _gradient(
        self, point: Point, batch: Batch, generator: torch.Generator | None
    ) -> tuple[Tensor, float]:
        if self.velocity is not None:
            point = point.moved(-self.learning_rate * self.momentum * self.velocity)
        return self.objective.gradient(point, batch, generator)


class Adam(GradientEstimator):
    """Bias-corrected m / (sqrt(v) + eps), each moment with its own decay.

    Source: Kingma and Ba 2015, Algorithm 1.

    Args:
        objective: The function whose gradient is estimated.
        betas: Decay of the first and of the second moment.
        epsilon: Added to the root.
    """

    name = "Adam"
    STATE = ("_first", "_second", "_count")

    def __init__(
        self, objective: Objective, *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
    ) -> None:
        super().__init__(objective)
        first, second = betas
        for beta in (first, second):
            require_number("a beta", beta, 0, below=1)
        require_number("epsilon", epsilon, 0)
        self.betas, self.epsilon = betas, epsilon
        self._first: Tensor | None = None
        self._second: Tensor | None = None
        self._count = 0

    def _moments(
        self, point: Point, batch: Batch, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, float]:
        g, loss = self.objective.gradient(point, batch, generator)
        (beta1, beta2), zero = self.betas, torch.zeros_like(g)
        first = beta1 * (zero if self._first is None else self._first) + (1 - beta1) * g
        second = beta2 * (zero if self._second is None else self._second) + (1 - beta2) * g.square()
        return first, second, loss

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        first, second, loss = self._moments(point, batch, generator)
        count = self._count + 1
        first, second = first / (1 - self.betas[0] ** count), second / (1 - self.betas[1] ** count)
        return Direction(first / (second.sqrt() + self.epsilon), loss)

    @override
    def on_frequent(
        self, step: int, point: Point, batch: Batch, generator: torch.Generator | None = None
    ) -> None:
        self._first, self._second, _ = self._moments(point, batch, generator)
        self._count += 1


class IGT(GradientEstimator):
    """Implicit gradient transport: the running mean of gradients, each taken at an extrapolated point.

    With gamma_t = t / (t + 1): gradient at theta_t + t (theta_t - theta_{t-1}), v <- gamma_t v + (1 -
    gamma_t) g. For a quadratic loss v is the mean gradient *at theta_t* over all batches seen. Source: Arnold
    et al. 2019, Eq. (4).
    """

    name = "IGT"
    STATE = ("velocity", "_previous", "_count")

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self.velocity: Tensor | None = None
        self._previous: Tensor | None = None
        self._count = 0

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        here = point.flat()
        if self.velocity is None or self._previous is None:
            return Direction(*self.objective.gradient(point, batch, generator))
        ahead = point.moved(self._count * (here - self._previous))
        g, loss = self.objective.gradient(ahead, batch, generator)
        decay = self._count / (self._count + 1)
        return Direction(decay * self.velocity + (1 - decay) * g, loss)

    @override
    def on_frequent(
        self, step: int, point: Point, batch: Batch, generator: torch.Generator | None = None
    ) -> None:
        self.velocity = self.direction(point, batch, generator).values
        self._previous = point.flat().clone()
        self._count += 1
