"""Apply a direction with any `torch.optim` optimiser."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from variance.objective import Point


class Optimizer:
    """Writes a direction into `.grad` and lets a torch optimiser step.

    Args:
        point: Live parameters (`Point.of(model)`).
        optimizer: Constructed on the same parameters.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> point = Point.of(model)
        >>> before = point.flat()
        >>> Optimizer(point, torch.optim.SGD(model.parameters(), lr=0.5)).apply(torch.ones(1))
        >>> float(before - point.flat())
        0.5
    """

    def __init__(self, point: Point, optimizer: torch.optim.Optimizer) -> None:
        self.point, self.optimizer = point, optimizer

    def apply(self, direction: Float[Tensor, "p"], learning_rate: float | None = None) -> None:
        """Take one step against the direction.

        Args:
            direction: What plays the role of the gradient.
            learning_rate: Replaces the optimiser's own where given.
        """
        for name, part in self.point.unflatten(direction).items():
            self.point.parameters[name].grad = part
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, buffers and optimiser state."""
        return {"point": self.point.copy().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore parameters, buffers and optimiser state in place.

        Raises:
            ValueError: A stored tensor has another shape than the model's.
        """
        stored = Point.from_state_dict(state["point"])
        for kind in ("parameters", "buffers"):
            own, other = getattr(self.point, kind), getattr(stored, kind)
            for name, value in own.items():
                if name not in other or other[name].shape != value.shape:
                    found = tuple(other[name].shape) if name in other else "missing"
                    raise ValueError(
                        f"checkpoint has {name}: {found}, the model has {tuple(value.shape)}; it belongs to "
                        "another model."
                    )
                with torch.no_grad():
                    value.copy_(other[name])
        self.optimizer.load_state_dict(state["optimizer"])
