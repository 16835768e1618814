"""Curvature of any torch model's loss: Hessian-vector products and the largest eigenvalue.

Compare the sharpness with ``instability.stability.max_stable_sharpness``: above it, descent on a quadratic
diverges, and training lives at the edge of stability or beyond.

Source: Sec. 5.3 of Sun et al. 2022; Pearlmutter 1994 for the products.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gdyn_common.seeding import generator
from gdyn_common.spectral import lanczos, power_iteration
from instability.streams import unchanged

__all__ = ["hessian_vector_product", "sharpness"]


def hessian_vector_product(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor]
) -> Callable[[Float[np.ndarray, "n"]], Float[np.ndarray, "n"]]:
    """Return ``v -> H v`` of the loss at the model's weights, in ``model.parameters()`` order.

    The gradient's graph is built once and kept. Model, buffers and random streams are left as they were.

    Raises:
        ValueError: nothing requires a gradient, a parameter is complex, or the loss changes parameters.
        NotImplementedError: an operation of the model has no second derivative; the message names it.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> scales = torch.tensor([1.0, 3.0])
    >>> product = hessian_vector_product(model, lambda m: (m.weight * scales).square().sum())
    >>> product(np.array([1.0, 1.0])).tolist()
    [2.0, 18.0]
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in parameters]
    if not parameters:
        raise ValueError("the model has no parameter that requires a gradient.")
    if any(p.is_complex() for p in parameters):
        raise ValueError("a parameter is complex; keep its real and imaginary parts as two real parameters.")
    versions = [p._version for p in parameters]
    with unchanged(model):
        gradients = torch.autograd.grad(loss_of(model), parameters, create_graph=True, materialize_grads=True)
    if versions != [p._version for p in parameters]:
        raise ValueError(
            "the loss changes parameters in place, as an embedding with max_norm does, so it has no Hessian "
            "there; switch that off (max_norm=None)."
        )

    def product(vector: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        pieces = torch.from_numpy(np.asarray(vector, dtype=np.float64)).split(sizes)
        directions = [v.reshape(p.shape).to(p) for v, p in zip(pieces, parameters, strict=True)]
        # A gradient that does not depend on the weights (a linear loss) has no graph: its product is zero.
        pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
        if not pairs:
            return np.zeros(sum(sizes))
        try:
            rows = torch.autograd.grad(
                [g for g, _ in pairs],
                parameters,
                [d for _, d in pairs],
                retain_graph=True,
                materialize_grads=True,
            )
        except RuntimeError as error:
            raise _name_operation(error) from error
        return torch.cat([row.reshape(-1) for row in rows]).to(torch.float64).cpu().numpy()

    return product


def sharpness(
    model: nn.Module,
    loss_of: Callable[[nn.Module], Tensor],
    *,
    weight_decay: float = 0.0,
    method: str = "lanczos",
    tol: float = 1e-4,
    seed: int = 0,
) -> float:
    """Return the largest eigenvalue of the Hessian of ``loss + weight_decay / 2 |w|^2``.

    Args:
        model: any torch module.
        loss_of: maps the model to the scalar loss, on a fixed batch; put the model into the mode you mean.
        weight_decay: added to every eigenvalue, as the optimisers' weight decay does.
        method: ``"lanczos"`` for the largest eigenvalue, ``"power"`` for the one of largest magnitude.
        tol: relative tolerance; float32 models resolve about 1e-5.
        seed: of the start vector.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> scales = torch.tensor([1.0, 3.0])
    >>> round(sharpness(model, lambda m: (m.weight * scales).square().sum(), weight_decay=1.0), 3)
    19.0
    """
    product = hessian_vector_product(model, loss_of)
    dim = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rng = generator(seed, "sharpness")
    if method == "lanczos":
        value = float(lanczos(product, dim, 1, generator=rng, tol=tol).values[0])
    elif method == "power":
        value = power_iteration(product, dim, generator=rng, tol=tol).value
    else:
        raise ValueError(f"Unknown method {method!r}. Allowed: 'lanczos', 'power'.")
    return value + weight_decay


def _name_operation(error: RuntimeError) -> Exception:
    match = re.search(
        r"derivative for ([\w:]+) is not implemented|([\w:]+) does not support .*backward", str(error)
    )
    if match is None:
        return error
    name = match.group(1) or match.group(2)
    return NotImplementedError(
        f"{name} has no second derivative in torch; replace it in the model (for attention use the math "
        "kernel: torch.nn.attention.sdpa_kernel(SDPBackend.MATH))."
    )
