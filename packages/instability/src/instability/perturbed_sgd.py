"""Stochastic gradient descent with a rounding perturbation, and the same perturbation for any optimiser.

Source: Sec. 4.1 of Sun et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from instability.rounding import Rooms, RoundingPerturbation, ScaleDivide, check_perturbation, underflows

__all__ = ["PerturbedOptimizer", "PerturbedSGD", "perturb_optimizer"]

Closure = Callable[[], float]
Where = Literal["update", "gradient"]

BUNDLE = 2**17
"""Entries of small tensors to update together: a call costs more than their arithmetic."""
SLICE = 2**19
"""Entries of a large tensor to update at once, so that what is read again is still in a cache."""


class PerturbedSGD(Optimizer):
    r"""SGD whose update is ``p <- p - (lr k) (d / k)``, equal to SGD for every ``k`` in exact arithmetic.

    ``d`` is the direction of ``torch.optim.SGD``: ``g + weight_decay p``, then momentum, dampening and
    Nesterov. With ``perturbation=1`` the result equals ``torch.optim.SGD(..., foreach=False)`` bit for bit in
    float32 and float64.

    Args:
        params: parameters or parameter groups; each group may have its own ``perturbation``.
        lr: learning rate.
        momentum: momentum factor.
        dampening: dampening of the momentum.
        weight_decay: coefficient of ``p`` in the gradient.
        nesterov: use Nesterov momentum.
        perturbation: the integer ``k >= 1``. Powers of two change nothing and serve as null controls.

    Raises:
        ValueError: a hyper-parameter is out of range.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = PerturbedSGD([weight], lr=0.1, perturbation=3)
    >>> (weight**2).sum().backward()
    >>> optimizer.step()
    >>> round(weight.item(), 6)
    0.8
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        perturbation: int = 1,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "perturbation": perturbation,
        }
        super().__init__(params, defaults)
        self._rooms = Rooms()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rooms = Rooms()
        for group in self.param_groups:  # a checkpoint of torch's SGD knows no perturbation
            group.setdefault("perturbation", self.defaults["perturbation"])
            _check_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its hyper-parameters."""
        _check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Make one update; returns the closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for parameters, gradients in _bundles(trained, [p.grad for p in trained]):
                self._update(parameters, gradients, group)
        return loss

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        if any(g.is_sparse for g in gradients):
            raise TypeError(
                "PerturbedSGD does not support sparse gradients; use dense ones (e.g. sparse=False)."
            )
        kept = [self.state[p].get("momentum_buffer") for p in parameters] if group["momentum"] != 0 else []
        whole = [*parameters, *gradients, *kept]
        if len(parameters) == 1 and (kept or group["perturbation"] > 1) and _is_long(whole):
            for parameter, gradient, *buffers in _slices(whole):
                self._subtract([parameter], [gradient], buffers, group)
        else:
            self._subtract(parameters, gradients, kept, group)

    def _subtract(
        self, parameters: list[Tensor], directions: Any, buffers: list[Any], group: dict[str, Any]
    ) -> None:
        k, rate = group["perturbation"], group["lr"]
        if group["weight_decay"] != 0:
            directions = torch._foreach_add(directions, parameters, alpha=group["weight_decay"])
        if group["momentum"] != 0:
            directions = self._with_momentum(parameters, directions, buffers, group)
        if k > 1:
            if is_alone := len(directions) == 1:
                flat = directions[0]
            else:
                flat, directions = self._rooms.flat(directions, "direction")
            small = underflows(flat, k, self._rooms)
            if small is not None:
                plain = _split(torch.where(small, flat, 0), parameters)
                torch._foreach_add_(parameters, plain, alpha=-float(rate))
            quotient = torch.div(flat, k, out=self._rooms.like(flat, "size") if is_alone else flat)
            if small is not None:
                quotient.masked_fill_(small, 0)
            directions, rate = [quotient] if is_alone else directions, rate * k
        torch._foreach_add_(parameters, directions, alpha=-float(rate))

    def _with_momentum(
        self, parameters: list[Tensor], directions: Any, buffers: list[Any], group: dict[str, Any]
    ) -> Any:
        begun = [(b, d) for b, d in zip(buffers, directions, strict=True) if b is not None]
        for i, (parameter, direction) in enumerate(zip(parameters, directions, strict=True)):
            if buffers[i] is None:
                buffers[i] = self.state[parameter]["momentum_buffer"] = direction.clone()
        if begun:
            old, new = zip(*begun, strict=True)
            # A plain number would be rounded to half precision before it is multiplied.
            torch._foreach_mul_(old, torch.tensor(float(group["momentum"]), dtype=torch.float64))
            torch._foreach_add_(old, new, alpha=1 - group["dampening"])
        if not group["nesterov"]:
            return buffers
        return torch._foreach_add(directions, buffers, alpha=group["momentum"])


def _bundles(*columns: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yield the rows in lists of one type, none of more than ``BUNDLE`` entries but single ones.

    What is not contiguous stands alone, since the strides decide how torch rounds; so does what is empty.
    """
    rows: list[tuple[Tensor, ...]] = []
    total, last = 0, None
    for row in zip(*columns, strict=True):
        first = row[0]
        size = first.numel()
        is_dense = size > 0 and all(t.is_contiguous() for t in row)
        kind = (first.device, first.dtype, is_dense)
        total += size
        if rows and (total > BUNDLE or kind != last or not is_dense):
            yield tuple(map(list, zip(*rows, strict=True)))
            rows, total = [], size
        rows.append(row)
        last = kind
    if rows:
        yield tuple(map(list, zip(*rows, strict=True)))


def _is_long(tensors: list[Any]) -> bool:
    """Whether it pays to go through large tensors slice by slice, which must not change a bit.

    Of half precision and complex numbers torch rounds the last few entries in another way.
    """
    return tensors[0].numel() > SLICE and all(
        t is not None and t.is_cpu and t.dtype in (torch.float32, torch.float64) and t.is_contiguous()
        for t in tensors
    )


def _slices(tensors: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    length = SLICE * torch.get_num_threads()  # each has a cache of its own
    return zip(*(t.view(-1).split(length) for t in tensors), strict=True)


def _split(flat: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    if len(parameters) == 1:
        return [flat]
    parts = zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)
    return [part.view(p.shape) for part, p in parts]


class PerturbedOptimizer(Optimizer):
    """Any optimiser with a rounding perturbation; see ``perturb_optimizer``.

    Shares parameter groups and state with the wrapped optimiser, so schedulers and checkpoints work
    unchanged.

    Args:
        optimizer: the optimiser to wrap.
        perturbation: how to round again.
        at: what to round again, the gradients before the step or the applied update after it.
    """

    optimizer: Optimizer
    perturbation: RoundingPerturbation
    at: Where

    def __init__(
        self, optimizer: Optimizer, perturbation: RoundingPerturbation, at: Where = "update"
    ) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.__setstate__({"optimizer": optimizer, "perturbation": perturbation, "at": at})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Make the wrapped optimiser's step with another rounding; returns the closure's loss, if any."""
        if self.at == "gradient":
            if closure is not None:
                return self._inner_step(partial(self._evaluate_and_perturb, closure))
            self._perturb_gradients()
            return self._inner_step(None)
        every = (p for group in self.param_groups for p in group["params"])
        bundles = self._bundled([p for p in every if p.is_floating_point() or p.is_complex()])
        before = [self._kept(bundle, f"before {number}") for number, bundle in enumerate(bundles)]
        loss = self._inner_step(closure)
        for bundle, old in zip(bundles, before, strict=True):
            if len(bundle) > 1:
                now, changes = self._rooms.flat(bundle, "now")
                self._change(now, old, out=now)
                torch._foreach_add_(bundle, changes)
                continue
            for p, o in self._pieces([*bundle, old]):
                p.add_(self._change(p, o, out=self._rooms.like(p, "perturbed")))
        return loss

    def _kept(self, bundle: list[Tensor], name: str) -> Tensor:
        if len(bundle) > 1:
            return self._rooms.flat(bundle, name)[0]
        return self._rooms.like(bundle[0], name).copy_(bundle[0])

    def _bundled(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """Only ``k`` rounds each entry by itself; others may draw or scale by the tensor."""
        if not isinstance(self.perturbation, ScaleDivide):
            return [[t] for t in tensors]
        return [bundle for (bundle,) in _bundles(tensors)]

    def _pieces(self, tensors: list[Tensor]) -> Iterable[tuple[Tensor, ...]]:
        is_cut = isinstance(self.perturbation, ScaleDivide) and _is_long(tensors)
        return _slices(tensors) if is_cut else [tuple(tensors)]

    def _change(self, now: Tensor, old: Tensor, out: Tensor) -> Tensor:
        """Write to ``out`` what the perturbation adds to an update, and the update itself to ``old``."""
        update = torch.sub(now, old, out=old)
        # It is zero where the perturbation left the update alone: k = 1, 2, 4, ... stay exact.
        change = self._round_again(update, out).sub_(update)
        if not torch.isfinite(change.sum()):  # an update beyond the largest number has no last digit
            change.masked_fill_(~change.isfinite(), 0)
        return change

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimiser's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimiser's state."""
        self.optimizer.load_state_dict(state_dict)
        self.__setstate__(self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "perturbation": self.perturbation, "at": self.at}

    def __setstate__(self, state: dict[str, Any]) -> None:
        inner = state["optimizer"]
        shared = {"defaults": inner.defaults, "state": inner.state, "param_groups": inner.param_groups}
        super().__setstate__(state | shared)
        self._rooms = Rooms()

    def __repr__(self) -> str:
        return f"PerturbedOptimizer({self.optimizer!r}, {self.perturbation!r}, at={self.at!r})"

    def _inner_step(self, closure: Closure | None) -> float | None:
        loss: float | None = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        return loss

    def _perturb_gradients(self) -> None:
        every = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        # Of a sparse gradient the stored values: adding up repeated rows would round by itself.
        for bundle in self._bundled([g._values() if g.is_sparse else g for g in every]):
            if len(bundle) > 1:
                flat, parts = self._rooms.flat(bundle, "direction")
                self._round_again(flat, flat)
                torch._foreach_copy_(bundle, parts)
            else:
                for (gradient,) in self._pieces(bundle):
                    self._round_again(gradient, gradient)

    def _round_again(self, direction: Tensor, out: Tensor) -> Tensor:
        """Write a perturbed direction to ``out``, which may be the direction itself."""
        if not isinstance(self.perturbation, ScaleDivide):
            # It may work in place, and the direction itself is needed to see what it changed.
            moved, rate = self.perturbation(direction if out is direction else out.copy_(direction), 1.0)
            moved = moved * rate
            if bool((direction.isfinite() & ~moved.isfinite()).any()):
                raise FloatingPointError(
                    f"{self.perturbation!r} made a finite number infinite or NaN; take one of a larger "
                    "range, such as bfloat16's."
                )
            return out.copy_(moved)
        k = self.perturbation.k
        small = underflows(direction, k, self._rooms)
        if small is None:
            return torch.div(direction, k, out=out).mul_(k)
        return out.copy_(torch.where(small, direction, direction / k * k))

    def _evaluate_and_perturb(self, closure: Closure) -> float:
        with torch.enable_grad():
            loss = closure()
        self._perturb_gradients()
        return loss


def perturb_optimizer(
    optimizer: Optimizer, perturbation: int | RoundingPerturbation = 3, *, at: Where = "update"
) -> Optimizer:
    """Return an optimiser that makes the steps of ``optimizer`` with another rounding.

    With ``at="update"`` the *applied update* is perturbed: the step is made, ``u = p_new - p_old`` is
    recomputed, and ``k (u / k) - u`` is added to ``p``. That rounds once more than ``PerturbedSGD`` does, and
    since ``p_new`` is already a floating-point number, only entries with ``|u|``
    of the size of ``|p_new|`` can change: entries near zero, or large steps. With ``at="gradient"`` the
    gradient ``g`` is replaced by ``k (g / k)`` before the step, which reaches any entry and is the closer
    relative of the paper's perturbation. Entries that survive division and multiplication unchanged are left
    exactly alone, hence ``k = 1, 2, 4, ...`` change nothing.

    Args:
        optimizer: any torch optimiser; it must not be stepped on its own afterwards.
        perturbation: an integer ``k >= 1`` or a ``RoundingPerturbation``.
        at: ``"update"`` or ``"gradient"``.

    Returns:
        ``optimizer`` itself for ``k = 1``, else a ``PerturbedOptimizer`` around it.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = perturb_optimizer(torch.optim.Adam([weight], lr=0.1), perturbation=3)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> round(weight.item(), 6)
    0.9
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer.")
    if at not in ("update", "gradient"):
        raise ValueError(f"at={at!r} is unknown. Allowed: 'update', 'gradient'.")
    if not callable(perturbation):
        k = check_perturbation(perturbation)
        return optimizer if k == 1 else PerturbedOptimizer(optimizer, ScaleDivide(k), at)
    return PerturbedOptimizer(optimizer, perturbation, at)


def _check_group(group: dict[str, Any]) -> None:
    if not math.isfinite(group["dampening"]):
        raise ValueError(f"dampening={group['dampening']} is not allowed: pass a finite number.")
    for name in ("lr", "momentum", "weight_decay"):
        if not (math.isfinite(group[name]) and group[name] >= 0):
            raise ValueError(f"{name}={group[name]} is not allowed: pass a finite number >= 0.")
    if group.get("maximize"):
        raise ValueError("maximize=True is not supported: minimise the negative loss.")
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError(
            f"nesterov=True needs momentum > 0 and dampening 0, got momentum={group['momentum']} and "
            f"dampening={group['dampening']}."
        )
    check_perturbation(group["perturbation"])
