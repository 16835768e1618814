"""How the loss of a data set follows from the losses of its batches.

A loss that divides by something divides each batch by its own: the weights of its classes, its tokens that
are not ignored, its elements. The mean over batches is the loss of the full batch only with those numbers
as weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from chaos.o2grad.parameters import check_finite
from chaos.o2grad.parts import is_plain

Rule = Literal["sum", "divisor", "unknown", "mean"]

_BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)
_BY_ELEMENT = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.PoissonNLLLoss,
    nn.KLDivLoss,
)
_BY_SAMPLE = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.nll_loss: nn.NLLLoss,
    functional.mse_loss: nn.MSELoss,
    functional.l1_loss: nn.L1Loss,
    functional.smooth_l1_loss: nn.SmoothL1Loss,
    functional.huber_loss: nn.HuberLoss,
    functional.binary_cross_entropy: nn.BCELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}


@dataclass(frozen=True)
class Observed:
    """The loss of one batch.

    Attributes:
        value: The loss.
        gradient: Its gradient.
        weight: What it was divided by, as far as that is known.
    """

    value: float
    gradient: Float[Tensor, " n"]
    weight: float


class Averaging:
    """The weights with which the curvatures of batches add up to that of the data.

    Losses of PyTorch's own say what they divide by. Of any other loss it is found out, by comparing two
    batches with their union, whether it is a sum or a mean over samples.

    Attributes:
        is_known: Whether the loss is one of PyTorch's own.
        rule: ``"sum"``; ``"divisor"``, known for each batch; ``"mean"`` over samples; or ``"unknown"`` yet.
    """

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self._loss: Any = loss
        if any(loss is function for function in _FUNCTIONS):
            self._loss = _FUNCTIONS[loss]()  # called with its defaults
        own = type(self._loss) in (*_BY_CLASS, *_BY_ELEMENT, *_BY_SAMPLE)
        self.is_known = own and is_plain(self._loss)
        self.rule: Rule = "unknown"
        if self.is_known:
            self.rule = "sum" if self._loss.reduction == "sum" else "divisor"

    def weight(self, output: Any, y: Any, samples: int) -> float:
        """Return the weight of one batch.

        Args:
            output: The model's output.
            y: Targets.
            samples: Number of samples.

        Example:
            >>> loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]), ignore_index=-1)
            >>> Averaging(loss).weight(torch.zeros(3, 2), torch.tensor([0, 1, -1]), 3)
            6.0
        """
        if self.rule == "sum":
            return 1.0
        if self.rule != "divisor" or not isinstance(output, Tensor):
            return float(samples)
        if type(self._loss) in _BY_CLASS:
            return self._weight_of_classes(output, y)
        if type(self._loss) in _BY_SAMPLE or self._loss.reduction == "batchmean":
            return float(len(output))
        return float(torch.broadcast_shapes(output.shape, y.shape).numel())

    def _weight_of_classes(self, output: Tensor, y: Tensor) -> float:
        if y.is_floating_point():  # probabilities: a mean over samples and positions
            return float(output.numel() // output.shape[1 if output.ndim > 1 else 0])
        counted = y[y != self._loss.ignore_index]
        weight = self._loss.weight
        return float(len(counted) if weight is None else weight[counted].sum())

    def compare(self, first: Observed, second: Observed, joint: Observed, eps: float) -> None:
        """Check the rule on two batches and their union, and find it where it is not known.

        Gradients are compared as well as losses: while a network still says the same of all samples, every
        weighting of its batches gives the same loss.

        Args:
            first: Loss of a batch.
            second: Loss of another batch.
            joint: Loss of both as one batch.
            eps: Relative accuracy of the losses.

        Raises:
            ValueError: If the loss of the union does not follow from those of the batches, or is not finite.
        """
        counted = [observed for observed in (first, second) if observed.weight]
        if not counted:  # of ignored targets only, which say nothing
            return
        for observed in counted:
            check_finite(observed.value)
        total = sum(observed.weight for observed in counted)
        mean: Rule = "divisor" if self.rule == "divisor" else "mean"
        fits: list[Rule] = [
            rule
            for rule, divisor in (("sum", 0.0), (mean, total))
            if _adds_up([o.weight / divisor if divisor else 1.0 for o in counted], counted, joint, eps)
        ]
        if self.rule in fits:
            return
        if self.rule == "unknown" and fits:
            self.rule = fits[-1]  # both fit only where the losses vanish
            return
        if self.rule in ("unknown", "mean"):
            raise ValueError(
                "The loss of two batches together is neither the mean over samples nor the sum of their "
                "losses, so the curvature of the whole does not follow from that of its parts. Pass all data "
                "as one batch, or a loss that sums."
            )
        raise ValueError(
            "The loss of two batches together does not follow from their own: the model couples the samples "
            "of a batch, as batch norm in training mode does. Call .eval() on it, or pass one batch."
        )


def _adds_up(shares: list[float], batches: list[Observed], joint: Observed, eps: float) -> bool:
    """Whether the loss and the gradient of the union are these shares of those of the batches."""
    value, gradient = 0.0, torch.zeros_like(joint.gradient)
    for share, batch in zip(shares, batches, strict=True):
        value += share * batch.value
        gradient += share * batch.gradient
    scale = max(abs(observed.value) for observed in (joint, *batches))
    length = max(float(observed.gradient.norm()) for observed in (joint, *batches))
    gap = float((joint.gradient - gradient).norm())
    return abs(joint.value - value) <= 1e3 * eps * scale and gap <= 1e4 * eps * length
