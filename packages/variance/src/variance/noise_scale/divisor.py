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

MOST_POSITIONS = 64
"""Positions that u is fitted to; the cost is their number cubed."""
MOST_LOGITS = 2**16
"""Of these positions, which are taken in float64."""
ROUNDS = 8
"""Guesses of the targets, each better than the one before."""
ENOUGH = 8
"""Numbers in the gradient for each class that leave one reading; fewer may have several."""


def shares(outputs: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return what each example counts for in a loss that adds up cross-entropies; nothing for another loss.

    Args:
        outputs: Logits, examples first, classes along the second or the last axis.
        gradient: Of the loss.

    Returns:
        One reading, or the several that a few positions allow.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]], requires_grad=True)
        >>> loss = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 3.0]))
        >>> loss(logits, torch.tensor([0, 2])).backward()
        >>> shares(logits.detach(), logits.grad)[0]
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    found: list[Tensor] = []
    if outputs.ndim < 2 or outputs.is_complex():
        return found
    fine = torch.promote_types(outputs.dtype, torch.float32)
    kind = torch.float64 if outputs.numel() <= MOST_LOGITS else fine
    g = gradient.to(fine)
    for axis in {1, outputs.ndim - 1}:
        if outputs.dtype == fine and float(g.sum(axis).norm()) > 0.01 * float(g.norm()):
            continue  # p - e_k adds up to zero along the classes
        counted = torch.linalg.vector_norm(g, torch.inf, axis) > 0
        rows = counted.nonzero()
        if len(rows) == 0:
            continue
        num_classes = outputs.shape[axis]
        most = min(len(rows), MOST_POSITIONS, max(16, MOST_LOGITS // num_classes))
        few = rows[torch.linspace(0, len(rows) - 1, most, device=rows.device).long()].unbind(1)
        some_p, some_g = (values.movedim(axis, -1)[few].double() for values in (outputs, g))
        some_p = some_p.softmax(1)
        fits = (_by_class, _none) if num_classes == 2 else (_none, _one, _by_class)  # two fit anything
        for fit, tolerance in [*((fit, 1e-4) for fit in fits if outputs.dtype == fine), (_none, 0.01)]:
            of_all = _of_all(fit, some_p, some_g, tolerance)
            if of_all is None:
                continue
            v = _confirmed(of_all, outputs.to(kind), g.to(kind), axis, counted, tolerance)
            if v is not None:
                found.append(v.double().reshape(len(outputs), -1).sum(1))
            if found and most * (num_classes - 1) > ENOUGH * num_classes:
                return found
        if found:
            return found
    return found


OfAll = tuple[Float[Tensor, ""], Float[Tensor, "k"]]
"""The sum U of all u, and u by class: their part of the gradient is U p - u."""
Fit = Callable[[Float[Tensor, "r k"], Float[Tensor, "r k"], Int[Tensor, "r"]], tuple[Tensor, Tensor, Tensor]]
"""From probabilities, gradient and targets to U, u and v."""


def _of_all(fit: Fit, p: Tensor, g: Tensor, tolerance: float) -> OfAll | None:
    """Return U and u, if the gradient is what v and they make."""
    for target in (g.argmin(1), p.argmax(1)):
        for _ in range(ROUNDS):
            total, u, v = fit(p, g, target)
            rest = g - total * p + u
            if float((rest - v.unsqueeze(1) * _less_target(p, target)).norm()) <= tolerance * float(g.norm()):
                return total, u
            before, target = target, rest.argmin(1)  # the only negative entry of v (p - e_y)
            if torch.equal(target, before):
                break
    return None


def _confirmed(
    of_all: OfAll, outputs: Tensor, g: Tensor, axis: int, counted: Tensor, tolerance: float
) -> Tensor | None:
    """Return v of all positions, if U and u of some are those of all."""
    total, u = (x.to(outputs) for x in of_all)
    p = outputs.softmax(axis)
    rest = (p * -total).add_(g).add_(u.reshape(-1, *[1] * (outputs.ndim - 1 - axis)))
    lowest, target = rest.min(axis, keepdim=True)
    is_rounding = lowest.abs() < 1e-5 * torch.linalg.vector_norm(g, torch.inf)  # p - e_y is close to zero
    target = torch.where(is_rounding, p.argmax(axis, keepdim=True), target)
    of_target = p.gather(axis, target)
    squares = torch.linalg.vector_norm(p, dim=axis, keepdim=True).square() + 1 - 2 * of_target
    of_rest = rest.gather(axis, target)
    along = torch.einsum("...k,...k->...", p.movedim(axis, -1), rest.movedim(axis, -1)).unsqueeze(axis)
    near = -lowest / (1 - of_target).clamp_min(1e-30)
    v = torch.where(of_target < 0.99, (along - of_rest) / squares.clamp_min(1e-30), near)
    rest.addcmul_(p, v, value=-1).scatter_add_(axis, target, v)
    left = torch.linalg.vector_norm(rest, dim=axis).masked_fill(~counted, 0.0)
    if not float(left.norm()) <= tolerance * float(g.norm()):
        return None
    v, target, of_target = (x.squeeze(axis)[counted] for x in (v, target, of_target))
    v = _without_rounding(v, target, of_target, len(u))
    return torch.zeros_like(counted, dtype=v.dtype).masked_scatter(counted, v)


def _without_rounding(v: Tensor, target: Tensor, of_target: Tensor, num_classes: int) -> Tensor:
    """Take v from positions of the same target, else of any, where p - e_y is close to zero."""
    known = of_target < 0.99
    sums, counts = (
        v.new_zeros(num_classes).index_add_(0, target, x) for x in (torch.where(known, v, 0.0), known.to(v))
    )
    by_class = torch.where(counts > 0, sums / counts.clamp_min(1), sums.sum() / counts.sum().clamp_min(1))
    return torch.where(known, v, by_class[target]) if bool(known.any()) else v


def _less_target(p: Tensor, target: Tensor) -> Tensor:
    return p.scatter_add(1, target.unsqueeze(1), -torch.ones_like(p[:, :1]))


def _none(p: Tensor, g: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a = _less_target(p, target)
    v = (a * g).sum(1) / a.square().sum(1).clamp_min(1e-30)
    return p.new_zeros(()), p.new_zeros(p.shape[1]), v


def _one(p: Tensor, g: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit v by position and one u for all classes."""
    a, b = _less_target(p, target), p.shape[1] * p - 1
    aa, ab, ag = ((a * x).sum(1) for x in (a, b, g))
    aa = aa.clamp_min(1e-30)
    u = ((b * g).sum(1) - ab * ag / aa).sum() / ((b * b).sum(1) - ab.square() / aa).sum().clamp_min(1e-30)
    return u * p.shape[1], u.expand(p.shape[1]), (ag - u * ab) / aa


def _by_class(p: Tensor, g: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit v and u by class, from the columns of classes that are targets.

    There the gradient is (U + v_y) p_k - u_k, less v_y at k = y, with U the sum of all u. Columns are
    centred, which takes u_k away.
    """
    classes, place = target.unique(return_inverse=True)
    whole_p, whole_g, whole_a = p, g, _less_target(p, target)
    p, g, a = (values[:, classes] for values in (p, g, whole_a))
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
    total, v = solved[-1], solved[:-1][place]
    return total, (total * whole_p + v.unsqueeze(1) * whole_a - whole_g).mean(0), v
