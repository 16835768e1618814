"""What a cross-entropy gives each example to count for, read off the gradient of its logits.

Of softmax probabilities p and target y the gradient of one position is v (p - e_y) + sum_k u_k (p - e_k): v
is what the target counts for, and u, the same at all positions, the share of every class under label
smoothing. Class weights make both differ by class. As the loss is not seen, u = 0 is tried first, then one u
by class, then one for all classes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_CLASSES = 256
"""Targets of a batch that are told apart; the cost is their number cubed."""
MOST_IN_DOUBLE = 2**22
"""Logits that are taken in float64."""
ROUNDS = 8
"""Guesses of the targets, each better than the one before."""


def shares(outputs: Tensor, gradient: Tensor) -> Tensor | None:
    """Return what each example counts for in a loss that adds up cross-entropies; None for another loss.

    Args:
        outputs: Logits, examples first, classes along the second or the last axis.
        gradient: Of the loss.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]], requires_grad=True)
        >>> loss = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 3.0]))
        >>> loss(logits, torch.tensor([0, 2])).backward()
        >>> shares(logits.detach(), logits.grad)
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    if outputs.ndim < 2 or outputs.is_complex():
        return None
    fine = torch.promote_types(outputs.dtype, torch.float32)
    kind = torch.float64 if outputs.numel() <= MOST_IN_DOUBLE else fine
    fits = (
        (_by_class, _none) if 2 in outputs.shape[1:] else (_none, _by_class, _one)
    )  # two classes fit anything
    for fit, tolerance in [*((fit, 1e-4) for fit in fits if outputs.dtype == fine), (_none, 0.01)]:
        for axis in {1, outputs.ndim - 1}:
            p, g = outputs.to(kind).softmax(axis), gradient.to(kind)
            p, g = (values.movedim(axis, -1).flatten(0, -2) for values in (p, g))
            counted = g.abs().amax(1) > 0
            if not bool(counted.any()):
                continue
            v = _positions(fit, p[counted], g[counted], tolerance)
            if v is not None:
                return torch.zeros_like(p[:, 0]).masked_scatter(counted, v).reshape(len(outputs), -1).sum(1)
    return None


Fit = Callable[[Float[Tensor, "r k"], Float[Tensor, "r k"], Int[Tensor, "r"]], tuple[Tensor, Tensor]]
"""From probabilities, gradient and targets to the part of the gradient that u makes, and v."""


def _positions(fit: Fit, p: Tensor, g: Tensor, tolerance: float) -> Float[Tensor, "r"] | None:
    """Return v by position, if the gradient is what v and u make."""
    for target in (g.argmin(1), p.argmax(1)):
        for _ in range(ROUNDS):
            of_u, v = fit(p, g, target)
            rest = g - of_u
            left = rest - v.unsqueeze(1) * _less_target(p, target)
            if float(left.norm()) <= tolerance * float(g.norm()):
                return _without_rounding(v, target, p)
            before, target = target, rest.argmin(1)  # the only negative entry of v (p - e_y)
            if torch.equal(target, before):
                break
    return None


def _without_rounding(v: Tensor, target: Tensor, p: Tensor) -> Tensor:
    """Take v from positions of the same target, else of any, where p - e_y is close to zero."""
    known = p.gather(1, target.unsqueeze(1)).squeeze(1) < 0.99
    sums, counts = (
        p.new_zeros(p.shape[1]).index_add_(0, target, x) for x in (torch.where(known, v, 0.0), known.to(v))
    )
    of_target = torch.where(counts > 0, sums / counts.clamp_min(1), sums.sum() / counts.sum().clamp_min(1))
    return torch.where(known, v, of_target[target]) if bool(known.any()) else v


def _less_target(p: Tensor, target: Tensor) -> Tensor:
    return p.scatter_add(1, target.unsqueeze(1), -torch.ones_like(p[:, :1]))


def _none(p: Tensor, g: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    a = _less_target(p, target)
    return torch.zeros_like(g), (a * g).sum(1) / a.square().sum(1).clamp_min(1e-30)


def _one(p: Tensor, g: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Fit v by position and one u for all classes."""
    a, b = _less_target(p, target), p.shape[1] * p - 1
    aa, ab, ag = ((a * x).sum(1) for x in (a, b, g))
    aa = aa.clamp_min(1e-30)
    u = ((b * g).sum(1) - ab * ag / aa).sum() / ((b * b).sum(1) - ab.square() / aa).sum().clamp_min(1e-30)
    return u * b, (ag - u * ab) / aa


def _by_class(p: Tensor, g: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Fit v and u by class, from the columns of classes that are targets.

    There the gradient is (U + v_y) p_k - u_k, less v_y at k = y, with U the sum of all u. Columns are
    centred, which takes u_k away.
    """
    classes, place = target.unique(return_inverse=True)
    if len(classes) > MOST_CLASSES:
        return torch.zeros_like(g), torch.zeros_like(g[:, 0])
    whole_p, whole_g, whole_a = p, g, _less_target(p, target)
    p, g, a = (values[:, classes].double() for values in (p, g, whole_a))
    of_class = torch.nn.functional.one_hot(place, len(classes)).to(p)
    n, sums = len(p), of_class.T @ a

    def products(x: Tensor) -> Tensor:
        """Return the inner products of v's columns and U's with another."""
        of_v = of_class.T @ (a * x).sum(1) - sums @ x.sum(0) / n
        return torch.cat([of_v, ((p * x).sum() - p.sum(0) @ x.sum(0) / n).reshape(1)])

    among = torch.diag(of_class.T @ a.square().sum(1)) - sums @ sums.T / n
    with_p = products(p).unsqueeze(1)
    matrix = torch.cat([torch.cat([among, with_p[:-1]], 1), with_p.T])
    solved = torch.linalg.pinv(matrix, rtol=1e-12, hermitian=True) @ products(g)
    of_u, v = solved[-1].to(whole_p) * whole_p, solved[:-1][place].to(whole_p)
    return of_u + (whole_g - of_u - v.unsqueeze(1) * whole_a).mean(0), v
