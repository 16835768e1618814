"""Gradients of single examples, and what can be had without forming them.

All functions take `(model, loss, x, y)`: any module, a loss (per example or reducing, see `variance.losses`),
inputs and targets with examples along the first axis. Parameters appear in `model.parameters()` order, each
flattened row-major; frozen ones (`requires_grad=False`) are left out. The model's `.grad` fields, buffers and
parameters stay untouched.

Linear layers are never materialised except by `gradients`; convolutions are, in chunks, by one grouped
convolution; any other parameter is handled by `vmap(grad)`. `explain` prints the choices. Every model is
checked against plain autograd on its first batch of a shape, see `variance.per_example.capturing`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from variance.errors import ConfigError
from variance.losses import LossFunction
from variance.per_example import quantities
from variance.per_example.capturing import Capture, capture
from variance.per_example.cost import Task
from variance.per_example.layers import WeightLayer

__all__ = [
    "Capture",
    "capture",
    "explain",
    "gradients",
    "gram",
    "inner_products",
    "second_moments",
    "squared_norms",
    "trace_of_covariance",
]


def gradients(model: nn.Module, loss: LossFunction, x: Any, y: Any) -> Float[Tensor, "batch parameters"]:
    """Materialise the gradient of every example.

    Raises:
        UnsupportedLayer: Batch norm in training mode couples the examples.
        NonFiniteGradient: A loss or gradient is NaN or infinite.
        ConfigError: No parameter is trainable, or inputs and targets differ in number.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
        >>> gradients(model, lambda outputs, targets: (outputs - targets).sum(), x, y)
        tensor([[1., 0.],
                [0., 2.]])
    """
    found = capture(model, loss, x, y)
    if not found.shapes:
        raise ConfigError("the model has no trainable parameter; set requires_grad on some.")
    return quantities.flat_gradients(found)


def squared_norms(model: nn.Module, loss: LossFunction, x: Any, y: Any) -> Float[Tensor, "batch"]:
    """Return ||g_n||^2 of every example.

    For a linear layer it is ||a||^2 ||b||^2 (Goodfellow 2015), over several positions the sum of
    (a a^T) * (b b^T) (Li et al. 2022, "ghost norm").
    """
    return quantities.squared_norms(capture(model, loss, x, y))


def gram(model: nn.Module, loss: LossFunction, x: Any, y: Any) -> Float[Tensor, "batch batch"]:
    """Return <g_n, g_m> for all pairs of examples."""
    return quantities.gram(capture(model, loss, x, y))


def second_moments(model: nn.Module, loss: LossFunction, x: Any, y: Any) -> Float[Tensor, "parameters"]:
    """Return the mean over examples of g squared, for every coordinate."""
    found = capture(model, loss, x, y)
    weights = torch.full_like(found.losses, 1 / len(found), dtype=torch.float64)
    return quantities.weighted_second_moments(found, weights)


def trace_of_covariance(model: nn.Module, loss: LossFunction, x: Any, y: Any) -> float:
    """Return the total variance (1/n) sum ||g - mean||^2 of one example's gradient over the given examples.

    Divided by B it is the variance of a mini-batch gradient drawn with replacement; no gradient is formed for
    linear layers.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
        >>> trace_of_covariance(model, lambda outputs, targets: (outputs - targets).sum(), x, y)
        1.25
    """
    return float(quantities.trace_of_covariance(capture(model, loss, x, y)))


def inner_products(
    model: nn.Module, loss: LossFunction, x: Any, y: Any, directions: Float[Tensor, "k parameters"]
) -> Float[Tensor, "batch k"]:
    """Return <g_n, d_k> for flat directions d_k."""
    return quantities.inner_products(capture(model, loss, x, y), directions)


def explain(model: nn.Module, loss: LossFunction, x: Any, y: Any) -> str:
    """Describe, layer by layer, how each quantity is computed and what the cost model expects.

    Returns:
        A text table: layer, sizes (n examples, t positions, o outputs, i inputs) and formulation per
        quantity.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> x, y = torch.randn(8, 4), torch.zeros(8).long()
        >>> print(explain(model, torch.nn.functional.cross_entropy, x, y))
        layer            sizes              squared_norms  gram           second_moments inner_products
        0                n8 t1 o3 i4        outer          outer          outer          outer
    """
    tasks: tuple[Task, ...] = ("squared_norms", "gram", "second_moments", "inner_products")
    found = capture(model, loss, x, y)
    lines = [f"{'layer':<16} {'sizes':<18} " + " ".join(f"{task:<14}" for task in tasks)]
    for name, layer in found.layers.items():
        if isinstance(layer, WeightLayer):
            shape = quantities.shape_of(layer)
            sizes = f"n{shape.n} t{shape.t} o{shape.o} i{shape.i}"
            chosen = " ".join(f"{quantities.choice_for(layer, task).formulation:<14}" for task in tasks)
            lines.append(f"{name or '(model)':<16} {sizes:<18} {chosen}")
        else:
            lines.append(f"{name or '(model)':<16} {type(layer.module).__name__:<18} materialised (small)")
    lines += [
        f"{name:<16} {'x'.join(map(str, value.shape[1:])):<18} vmap(grad)"
        for name, value in found.rest.items()
    ]
    return "\n".join(line.rstrip() for line in lines)
