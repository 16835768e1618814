"""Curvature of any torch model's loss: Hessian-vector products and the largest eigenvalue.

Compare the sharpness with ``instability.stability.max_stable_sharpness``: above it, descent on a quadratic
diverges, and training lives at the edge of stability or beyond.

Source: Sec. 5.3 of Sun et al. 2022; Pearlmutter 1994 for the products.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.attention import SDPBackend, sdpa_kernel

from gdyn_common.seeding import generator
from gdyn_common.spectral import lanczos, power_iteration
from instability.copies import equal_bits
from instability.metrics import real_array
from instability.reach import check_reached
from instability.streams import check_loss, check_model, unchanged

__all__ = ["hessian_vector_product", "sharpness"]


def hessian_vector_product(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor]
) -> Callable[[Float[np.ndarray, "n"]], Float[np.ndarray, "n"]]:
    """Return ``v -> H v`` of the loss at the model's weights, in ``model.parameters()`` order.

    The gradient's graph is built once and kept. Model, buffers and random streams are left as they were.

    Raises:
        TypeError: the loss is no scalar tensor with a gradient.
        ValueError: nothing requires a gradient, a parameter is complex, the loss changes parameters or
            depends on none, or an operation of the model has no second derivative or a wrong one, which the
            message names.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> scales = torch.tensor([1.0, 3.0])
    >>> product = hessian_vector_product(model, lambda m: (m.weight * scales).square().sum())
    >>> product(np.array([1.0, 1.0])).tolist()
    [2.0, 18.0]
    """
    parameters = [p for p in check_model(model).parameters() if p.requires_grad]
    sizes = [p.numel() for p in parameters]
    if not parameters:
        raise ValueError("the model has no parameter that requires a gradient.")
    if any(p.is_complex() for p in parameters):
        raise ValueError("a parameter is complex; keep its real and imaginary parts as two real parameters.")
    if any(p.is_inference() for p in parameters):
        raise ValueError("the model was made in inference_mode and has no gradients; make it outside.")
    versions = [p._version for p in parameters]
    start = [p.detach().clone() for p in parameters]
    with _with_gradients(), unchanged(model):
        loss = check_loss(loss_of(model))
        has_custom = _check_graph(loss)
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        check_reached(found)
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    if any(g.layout != torch.strided for g in gradients):
        raise ValueError("a gradient is sparse and has no second derivative; pass sparse=False.")
    if versions != [p._version for p in parameters]:
        raise ValueError(
            "the loss changes parameters in place, as an embedding with max_norm does, so it has no Hessian "
            "there; switch that off (max_norm=None)."
        )

    def product(vector: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        pieces = torch.as_tensor(real_array(vector, "vector")).split(sizes)
        directions = [v.reshape(p.shape).to(p) for v, p in zip(pieces, parameters, strict=True)]
        # What is written to `p.data` torch does not see, though the graph has kept it.
        if not all(equal_bits(p.detach(), s) for p, s in zip(parameters, start, strict=True)):
            raise ValueError("the weights changed since the product was made; make it anew.")
        # A gradient that does not depend on the weights (a linear loss) has no graph: its product is zero.
        pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
        if not pairs:
            return np.zeros(sum(sizes))
        try:
            with _with_gradients(), unchanged(model):  # checkpointed layers run once more
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

    largest = abs(float(loss.detach())) + max(float(g.detach().abs().amax()) for g in gradients if g.numel())
    eps = max(torch.finfo(p.dtype).eps for p in parameters)
    _check_symmetry(product, sum(sizes), largest * eps)
    if has_custom:
        # Also a double model may compute in single precision.
        _check_against_differences(product, model, loss_of, parameters, max(eps, 1e-7) ** (1 / 3))
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
        tol: relative tolerance; where the most negative eigenvalue is far larger, float32 models resolve
            about 1e-5 of that one.
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
        finest = min(tol, max(torch.finfo(p.dtype).eps for p in model.parameters()) ** 0.75)
        found, aim, room = lanczos(product, dim, 1, generator=rng, tol=tol), tol, max(32, 2**25 // dim)
        # Its tolerance is relative to the largest magnitude, which a negative eigenvalue may have.
        while aim > finest and found.residuals[0] > 1.5 * tol * abs(found.values[0]):
            aim = max(finest, aim / 100)
            found = lanczos(product, dim, 1, generator=rng, tol=aim, basis_size=room)
        value = float(found.values[0])
    elif method == "power":
        value = power_iteration(product, dim, generator=rng, tol=tol).value
    else:
        raise ValueError(f"Unknown method {method!r}. Allowed: 'lanczos', 'power'.")
    return value + weight_decay


@contextlib.contextmanager
def _with_gradients() -> Iterator[None]:
    # Of the kernels of attention only this one has second derivatives.
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def _check_graph(loss: Tensor) -> bool:
    """Refuse what hides weights from a gradient of the gradient; tell if a derivative is a user's own."""
    waiting, seen, has_custom = [loss.grad_fn], set(), False
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "checkpoint with use_reentrant=True hides its layers' weights; pass use_reentrant=False."
            )
        seen.add(node)
        has_custom = has_custom or isinstance(node, BackwardCFunction)
        waiting += [following for following, _ in node.next_functions]
    return has_custom


def _check_symmetry(product: Callable[[np.ndarray], np.ndarray], dim: int, noise: float) -> None:
    directions = generator(0, "symmetry").standard_normal((3, dim))
    forms = directions @ np.array([product(v) for v in directions]).T
    if np.linalg.norm(forms - forms.T) > 0.05 * np.linalg.norm(forms) + noise * dim**0.5:
        raise ValueError(
            "the Hessian comes out unsymmetric: some operation has a wrong second derivative in torch, as "
            "weight_norm has in some versions; replace it in the model."
        )


def _check_against_differences(
    product: Callable[[np.ndarray], np.ndarray],
    model: nn.Module,
    loss_of: Callable[[nn.Module], Tensor],
    parameters: Sequence[Tensor],
    relative: float,
) -> None:
    """Compare one product with gradients beside the weights: a symmetric one may be wrong, too."""
    sizes = [p.numel() for p in parameters]
    vector = generator(0, "differences").standard_normal(sum(sizes))
    pieces = torch.as_tensor(vector).split(sizes)
    weights = float(torch.stack([p.detach().double().square().sum() for p in parameters]).sum().sqrt())

    def gradient(length: float) -> np.ndarray:
        with _with_gradients(), unchanged(model):
            for p, v in zip(parameters, pieces, strict=True):
                p.data = (p.data + length * v.reshape(p.shape).to(p.device)).to(p.dtype)
            found = torch.autograd.grad(check_loss(loss_of(model)), parameters, materialize_grads=True)
        return torch.cat([g.detach().reshape(-1).double().cpu() for g in found]).numpy()

    lengths = [relative / part * (weights or 1.0) / float(np.linalg.norm(vector)) for part in (1, 8)]
    far, near = [(gradient(h) - gradient(-h)) / (2 * h) for h in lengths]
    gap = np.linalg.norm(far - near)  # of the curve at the longer, of rounding at the shorter
    if np.linalg.norm(product(vector) - near) > 4 * gap + 0.01 * np.linalg.norm(near):
        raise ValueError(
            "the Hessian differs from differences of the gradient: an autograd.Function of the model has a "
            "wrong second derivative; write its backward with torch operations on its saved tensors."
        )


def _name_operation(error: RuntimeError) -> Exception:
    if "aot_autograd" in str(error):
        return ValueError("a compiled model has no second derivative; pass the module you compiled.")
    if "modified by an inplace operation" in str(error):
        return ValueError("the weights changed since the product was made; make it anew.")
    match = re.search(
        r"derivative for '?([\w:]+)'? is not implemented|([\w:]+) does not support .*backward", str(error)
    )
    if match is None:
        return error
    name = match.group(1) or match.group(2)
    return ValueError(f"{name} has no second derivative in torch; replace it in the model.")
