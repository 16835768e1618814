"""Per-example losses: every statistic here starts from a vector of losses, never from their mean."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from jaxtyping import Float, Int
from torch import Tensor

from variance.errors import NonFiniteGradient

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""`loss(outputs, targets)`, returning one loss per example or a scalar for the batch."""


def per_example(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Float[Tensor, "batch"]:
    """Evaluate `loss` separately for every example.

    A loss that already returns one value per example is used as it is. One that reduces to a scalar (such as
    `torch.nn.functional.cross_entropy` with its defaults) is evaluated on batches of one by `torch.vmap`, so
    the result does not depend on whether it averages or sums.

    Args:
        loss: `loss(outputs, targets)`.
        outputs: Model outputs, examples along the first axis.
        targets: Targets, examples along the first axis.

    Returns:
        One loss per example.

    Raises:
        ValueError: The loss has neither no axis nor exactly one value per example.

    Example:
        >>> outputs, targets = torch.zeros(3, 4), torch.tensor([0, 1, 2])
        >>> per_example(F.cross_entropy, outputs, targets)  # log 4 each
        tensor([1.3863, 1.3863, 1.3863])
    """
    values = loss(outputs, targets)
    if values.ndim == 0:

        def single(output: Tensor, target: Tensor) -> Tensor:
            return loss(output.unsqueeze(0), target.unsqueeze(0))

        values = torch.vmap(single)(outputs, targets)
    if values.shape != (len(targets),):
        raise ValueError(
            f"the loss returned shape {tuple(values.shape)} for {len(targets)} examples; return a scalar or "
            "one "
            "loss per example (for example sum over all other axes)."
        )
    return values


def cross_entropy(
    outputs: Float[Tensor, "batch classes"], targets: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """Return the softmax cross-entropy of logits, per example (nats)."""
    return F.cross_entropy(outputs, targets, reduction="none")


def smoothed_cross_entropy(
    outputs: Float[Tensor, "batch classes"], targets: Int[Tensor, "batch"], *, smoothing: float = 0.1
) -> Float[Tensor, "batch"]:
    """Return the cross-entropy against labels mixed with the uniform distribution, per example.

    Args:
        outputs: Logits.
        targets: Class ids.
        smoothing: Weight of the uniform distribution, in [0, 1).
    """
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing)


def half_squared_error(outputs: Tensor, targets: Tensor) -> Float[Tensor, "batch"]:
    """Return half the squared Euclidean distance of output and target, per example.

    Example:
        >>> half_squared_error(torch.tensor([[3.0]]), torch.tensor([1.0]))
        tensor([2.])
    """
    return 0.5 * (outputs.flatten(1) - targets.reshape(len(targets), -1)).square().sum(1)


def negative_elbo(
    outputs: tuple[Tensor, Tensor, Tensor], targets: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch"]:
    """Return the negative evidence lower bound of a Bernoulli variational autoencoder, per example (nats).

    Args:
        outputs: `(logits, mean, log_variance)` of reconstruction and Gaussian posterior.
        targets: The images, in [0, 1].

    Source: Kingma and Welling 2014, Eq. (7) and Appendix B.
    """
    logits, mean, log_variance = outputs
    reconstruction = F.binary_cross_entropy_with_logits(
        logits.flatten(1), targets.flatten(1), reduction="none"
    ).sum(1)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
    return reconstruction + divergence


def require_finite(values: Tensor, what: str, indices: Tensor | None = None, step: int | None = None) -> None:
    """Refuse NaN and infinite values, naming the examples they belong to.

    Args:
        values: Tensor whose first axis runs over examples.
        what: Name of the quantity for the message.
        indices: Population indices of the examples; positions in the batch where absent.
        step: Training step for the message.

    Raises:
        NonFiniteGradient: Some value is not finite.
    """
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    bad = (~finite.reshape(len(values), -1).all(1)).nonzero().flatten().cpu()
    named = bad if indices is None else indices.cpu()[bad]
    shown = ", ".join(str(int(i)) for i in named[:8]) + (", ..." if len(named) > 8 else "")
    place = "" if step is None else f" at step {step}"
    raise NonFiniteGradient(
        f"{what} of {len(named)} of {len(values)} examples is NaN or infinite{place} (examples {shown}). "
        "Lower the learning rate, or inspect and remove these examples."
    )
