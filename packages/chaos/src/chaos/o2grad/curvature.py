"""Gradient and curvature of the loss with respect to what a layer is given, pulled back from the output.

With ``C`` the second derivative of the loss by a layer's output, that by its input is ``L' C L`` for a layer
linear in it, ``sigma' C sigma' + diag(delta sigma'')`` for an activation, and for ``x + g(x)`` the sum of
``(I + g')' C (I + g')`` and what g adds. For chains of linear layers and activations this is the recursion of
the pre-activation Hessian of Botev, Ritter and Barber (arXiv 1706.03662).

Shapes: (batch, features, features), or (batch, features, batch, features) where the samples interact.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from chaos.o2grad.affine import Affine
from chaos.o2grad.layers import Activation, Layer
from chaos.o2grad.tree import Node, Skip, leaves


def pull_back(nodes: list[Node], C: Tensor, rows: slice) -> list[Tensor]:
    """Curvatures with respect to the input of each layer of a chain, and of its output.

    Args:
        nodes: The layers, evaluated.
        C: Curvature with respect to their output.
        rows: Samples.
    """
    curvatures = [C]
    for node in reversed(nodes):
        if isinstance(node, Skip):
            across = pull_one_side(node.body, C, rows)
            C = C + pull_back(node.body, C, rows)[0] + across + _transposed(across)
        else:
            C = pull_one_side([node], _transposed(pull_one_side([node], C, rows)), rows)
            if isinstance(node, Activation) and node.is_curved:
                _diagonal(C).add_(node.bend(rows))
        curvatures.append(C)
    return curvatures[::-1]


def pull_one_side(nodes: list[Node], X: Tensor, rows: slice) -> Tensor:
    """Multiply the first features by the transposed derivative of a chain of layers."""
    for node in reversed(nodes):
        if isinstance(node, Layer):
            X = node.pull(X.flatten(2), rows).unflatten(2, X.shape[2:])
        else:
            X = X + pull_one_side(node.body, X, rows)
    return X


def pull_gradient(nodes: list[Node], gradient: Float[Tensor, "batch outputs"]) -> None:
    """Gradient with respect to the output of each layer from the first one with parameters on."""
    first = next(i for i, node in enumerate(nodes) if _has_parameters(node))
    for node in reversed(nodes[first:]):
        gradient = _keep_gradient(node, gradient, is_last=node is nodes[first])


def _keep_gradient(node: Node, gradient: Tensor, is_last: bool = False) -> Tensor:
    if isinstance(node, Skip):
        straight = gradient
        for inner in reversed(node.body):
            gradient = _keep_gradient(inner, gradient)
        return straight + gradient
    node.delta = gradient.reshape(node.z.shape)
    return gradient if is_last else node.pull(gradient[:, :, None], slice(None))[:, :, 0]


def _has_parameters(node: Node) -> bool:
    return any(isinstance(layer, Affine) and bool(layer.trained()) for layer in leaves([node]))


def _transposed(X: Tensor) -> Tensor:
    return X.mT if X.ndim == 3 else X.permute(2, 3, 0, 1)


def _diagonal(C: Tensor) -> Tensor:
    """Each sample's own diagonal, (batch, features), as a view."""
    return C.diagonal(dim1=1, dim2=2) if C.ndim == 3 else C.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1)
