"""Losses, and what a mean of them hides: statistics here start from one loss per example.

A loss is any `loss(outputs, targets)`. It may return one value per example, or reduce a batch to a scalar.
How it reduces is found out, not assumed: the derivative of the scalar by the outputs is compared with
those of the losses of single examples. A mean and a sum are told apart; where neither fits (class weights or
ignored positions in a mean, a contrastive loss), the batch has a gradient but its examples have none of
their own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from variance.errors import ConfigError, CoupledExamples, NonFiniteGradient, require_number

LossFunction = Callable[[Any, Any], Tensor]
"""`loss(outputs, targets)`, returning one loss per example or a scalar for the batch."""
Reduction = Literal["none", "mean", "sum", "other"]
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest relative difference that counts as rounding."""


def num_examples(batch: Any) -> int:
    """Return the length of the first axis that all tensors of a batch share.

    Raises:
        ValueError: No tensor, or tensors of different lengths.
    """
    lengths = {len(leaf) if leaf.ndim else -1 for leaf in _tensors(batch)}
    if not lengths:
        raise ValueError(f"a batch of type {type(batch).__name__} holds no tensor; use torch.from_numpy.")
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            f"the tensors of a batch have the lengths {sorted(lengths)} along their first axis; they must be "
            "examples first and equally many."
        )
    return lengths.pop()


def require_equally_many(x: Any, y: Any) -> int:
    """Return the number of examples of a batch.

    Raises:
        ConfigError: Inputs and targets differ in number, or there are none.
    """
    count = num_examples(x)
    targets = num_examples(y) if _tensors(y) else count
    if count != targets or count == 0:
        raise ConfigError(f"{count} inputs and {targets} targets: need equally many, at least one.")
    return count


def take(batch: Any, rows: Any) -> Any:
    """Return some examples of a batch: a tensor, or nested dictionaries, lists and tuples of tensors."""
    return pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, plain(batch))


def plain(batch: Any) -> Any:
    """Return a batch with mappings that torch does not look into, as a tokenizer returns, as dictionaries.

    Example:
        >>> from collections import UserDict
        >>> plain((UserDict(input_ids=[1, 2]), None))
        ({'input_ids': [1, 2]}, None)
    """
    return pytree.tree_map(lambda leaf: plain(dict(leaf)) if isinstance(leaf, Mapping) else leaf, batch)


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(plain(batch)) if isinstance(leaf, Tensor)]


def example_losses(loss: LossFunction, outputs: Any, targets: Any) -> Float[Tensor, "batch"]:
    """Evaluate `loss` separately for every example.

    A loss that already returns one value per example is used as it is. One that reduces to a scalar (such as
    `torch.nn.functional.cross_entropy` with its defaults) is evaluated on batches of one; the result does not
    depend on whether it averages or sums.

    Args:
        loss: `loss(outputs, targets)`.
        outputs: Model outputs, examples along the first axis; a tensor, or nested containers of them.
        targets: Targets, likewise.

    Returns:
        One loss per example.

    Raises:
        ValueError: The loss has neither no axis nor exactly one value per example.
        CoupledExamples: The loss of the batch is neither mean nor sum of the losses of its examples.

    Example:
        >>> outputs, targets = torch.zeros(3, 4), torch.tensor([0, 1, 2])
        >>> example_losses(F.cross_entropy, outputs, targets)  # log 4 each
        tensor([1.3863, 1.3863, 1.3863])
        >>> weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> example_losses(weighted, outputs, targets)
        Traceback (most recent call last):
        ...
        variance.errors.CoupledExamples: the loss of the batch is neither the mean nor the sum of the losses \
of its examples (class weights, ignored or masked positions in a mean?), so examples have no losses of their \
own; pass it with reduction='none' or 'sum', which says what one example counts.
    """
    values, reduction = reduced(loss, outputs, targets)
    if reduction == "other" and any(leaf.ndim == 0 for leaf in _tensors(outputs)):
        raise CoupledExamples(
            "the model returns a loss of the whole batch, from which examples have none of their own; pass a "
            "loss of its other outputs (logits) with reduction='none' or 'sum', or use measure_model, which "
            "takes it with use='draws'."
        )
    if reduction == "other":
        raise CoupledExamples(
            "the loss of the batch is neither the mean nor the sum of the losses of its examples (class "
            "weights, ignored or masked positions in a mean?), so examples have no losses of their own; pass "
            "it with reduction='none' or 'sum', which says what one example counts."
        )
    return values


def reduced(loss: LossFunction, outputs: Any, targets: Any) -> tuple[Tensor, Reduction]:
    """Return the losses of the examples and how `loss` reduces them; the scalar itself for "other".

    Raises:
        ValueError: The loss has neither no axis nor exactly one value per example.
    """
    whole = loss(outputs, targets)
    if not isinstance(whole, Tensor):
        raise ValueError(f"the loss returned a {type(whole).__name__}; it must return a tensor.")
    if whole.ndim:
        count = num_examples(targets if _tensors(targets) else outputs)
        if whole.shape != (count,):
            raise ValueError(
                f"the loss returned shape {tuple(whole.shape)} for {count} examples; return a scalar or one "
                "loss per example (for example sum over all other axes)."
            )
        return whole, "none"
    try:
        count = num_examples(targets if _tensors(targets) else outputs)
    except ValueError:  # a model that returns its loss beside other things
        return whole, "other"
    if count == 1:
        return whole.unsqueeze(0), "mean"
    tracked = outputs if _is_tracked(outputs) else pytree.tree_map(_leaf, outputs)
    if tracked is not outputs and _is_tracked(tracked):
        with torch.enable_grad():  # derivatives tell the reductions apart
            values, found = reduced(loss, tracked, targets)
        return values.detach(), found
    try:
        values = _one_by_one(loss, outputs, targets, count)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return whole, "other"  # a loss that needs several examples
    return (values, found) if (found := _reduction(whole, values, outputs)) != "other" else (whole, "other")


def _is_tracked(outputs: Any) -> bool:
    return any(leaf.requires_grad for leaf in _tensors(outputs))


def _leaf(leaf: Any) -> Any:
    floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.detach().requires_grad_() if floating else leaf


def _one_by_one(loss: LossFunction, outputs: Any, targets: Any, count: int) -> Tensor:
    def single(output: Any, target: Any) -> Tensor:
        ones = pytree.tree_map(
            lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, (output, target)
        )
        return loss(*ones)

    def is_batched(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == count

    axes = pytree.tree_map(lambda leaf: 0 if is_batched(leaf) else None, (outputs, targets))
    try:
        return torch.vmap(single, in_dims=axes)(outputs, targets)
    except (RuntimeError, ValueError):  # no batching rule, or values that decide what is computed
        return torch.stack([loss(*take((outputs, targets), slice(i, i + 1))) for i in range(count)])


def _reduction(whole: Tensor, values: Tensor, outputs: Any) -> Reduction:
    """Tell by derivatives: equal values may be a coincidence, as at outputs of zero."""
    if not bool(torch.isfinite(values.detach()).all()):
        return "other" if bool(torch.isfinite(whole.detach())) else "mean"
    leaves = [leaf for leaf in _tensors(outputs) if leaf.requires_grad]
    apart = [leaf for leaf in leaves if leaf.ndim == 0 or len(leaf) != len(values)]
    if apart and whole.requires_grad:  # a part of the outputs that is not one of examples
        found = torch.autograd.grad(whole, apart, retain_graph=True, allow_unused=True)
        if any(gradient is not None for gradient in found):
            return "other"
    total = values.sum()
    pairs = [(whole, total)]
    if leaves and whole.requires_grad and total.requires_grad:
        of_whole, of_total = (
            torch.autograd.grad(scalar, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for scalar in (whole, total)
        )
        pairs += list(zip(of_whole, of_total, strict=True))
    elif whole.requires_grad != total.requires_grad:
        return "other"
    if all(close(one * len(values), other, whole.dtype) for one, other in pairs):
        return "mean"
    return "sum" if all(close(one, other, whole.dtype) for one, other in pairs) else "other"


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors agree up to the rounding of `dtype`; values that are not finite agree with all."""
    scale = float(other.detach().abs().max()) if other.numel() else 0.0
    difference = float((one.detach() - other.detach()).abs().max()) if other.numel() else 0.0
    return not (difference > TOLERANCE.get(dtype, 1e-4) * scale)


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

    Raises:
        ConfigError: A weight outside.
    """
    require_number("smoothing", smoothing, 0, below=1)
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
    total = values.detach().sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    if bool(torch.isfinite(total)):  # one pass, no temporary; a sum may overflow, so it only acquits
        return
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
