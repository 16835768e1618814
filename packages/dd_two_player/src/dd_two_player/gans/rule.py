"""The static structure of a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dd_two_player.drift import Coefficients, drift_coefficients
from dd_two_player.regularization import active_terms
from dd_two_player.regularizers import ESTIMATORS
from dd_two_player.runge_kutta import TABLEAUX

__all__ = ["UpdateRule"]

NO_TERMS = active_terms(Coefficients())


@dataclass(frozen=True)
class UpdateRule:
    """The static structure of a step.

    Attributes:
        scheme: ``simultaneous``, ``alternating`` or ``runge_kutta``.
        num_updates: Updates ``(disc, gen)`` of an alternating step.
        first: Who moves first in an alternating step.
        rk_order: 1, 2 or 4.
        convention: Convention of the drift coefficients.
        estimator: Name of the regularisers' estimator.
        mask: Which regularisation terms are computed.
        after_mask: Which terms are added after the Runge-Kutta stages.
        shared_batch: Whether both players see the same batch in simultaneous and Runge-Kutta steps.
        fresh_stages: Whether every Runge-Kutta stage draws its own batches.
        shared_rate: Whether intermediate points of both players use the discriminator's rate, as the
            published code does.
    """

    scheme: Literal["simultaneous", "alternating", "runge_kutta"] = "simultaneous"
    num_updates: tuple[int, int] = (1, 1)
    first: Literal["disc", "gen"] = "disc"
    rk_order: int = 4
    convention: str = "paper"
    estimator: str = "biased_estimate_general_grad_fn"
    mask: Coefficients = NO_TERMS
    after_mask: Coefficients = NO_TERMS
    shared_batch: bool = False
    fresh_stages: bool = True
    shared_rate: bool = False

    def __post_init__(self) -> None:
        """Refuse structures that contradict themselves."""
        if self.scheme not in ("simultaneous", "alternating", "runge_kutta"):
            raise ValueError(f"scheme is {self.scheme!r}; allowed: simultaneous, alternating, runge_kutta.")
        if self.rk_order not in TABLEAUX:
            raise ValueError(f"rk_order is {self.rk_order}; allowed: 1, 2, 4.")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {self.estimator!r}; allowed: {', '.join(ESTIMATORS)}.")
        turns = "simultaneous" if self.scheme == "runge_kutta" else self.scheme
        drift_coefficients((1.0, 1.0), self.num_updates, turns, self.first, self.convention)
        if any(map(any, self.after_mask)) and self.scheme != "runge_kutta":
            raise ValueError("rk_after_explicit_coeffs needs the scheme runge_kutta.")

    @property
    def batches_per_step(self) -> int:
        """Return how many batches a step consumes."""
        if self.scheme == "alternating":
            count = sum(self.num_updates)
        else:
            count = (self.stages if self.fresh_stages else 1) * (1 if self.shared_batch else 2)
        return count * (2 if ESTIMATORS[self.estimator].batches == "two" else 1)

    @property
    def stages(self) -> int:
        """Return how many gradients of each player a simultaneous or Runge-Kutta step costs."""
        return len(TABLEAUX[self.rk_order].nodes) if self.scheme == "runge_kutta" else 1
