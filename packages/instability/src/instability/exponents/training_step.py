"""The whole step of an optimiser as a map of weights and of all that it keeps for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from instability.copies import rebuilt, trained_parameters, twin
from instability.exponents.tangent import Map, State, has_tangent
from instability.perturbed_sgd import PerturbedOptimizer
from instability.reach import check_reached
from instability.streams import RandomStreams, check_loss

__all__ = ["SQUARES", "training_map", "varies"]

SQUARES = frozenset(
    {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "row_var", "col_var", "variance"}
)
"""What torch's optimisers call sums of squares: never negative, and a root is taken of them."""
COUNTERS = frozenset({"step", "mu_product", "eta", "mu"})
"""What they count, a function of the step number alone."""


def varies(key: str, value: Any, parameter: Tensor) -> bool:
    """Whether what an optimiser keeps for a parameter varies with the weights, so that it has a tangent."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    return key not in COUNTERS and (value.ndim > 0 or value.shape == parameter.shape)


def training_map(
    model: nn.Module,
    optimizer: Optimizer,
    loss_of: Callable[[nn.Module, int], Tensor],
    *,
    before_step: Callable[[Sequence[Tensor]], object] | None = None,
) -> tuple[Map, dict[str, Tensor]]:
    """Return the whole step of an optimiser as a map for ``lyapunov_exponents``, and its state.

    The state holds the trained weights and all tensors that the optimiser keeps for them. Step 0 is made
    first, since most optimisers make their buffers then, so the map's own first step has number 1. Three
    steps are compared with the optimiser's. Model and optimiser are copied, never changed.

    Args:
        model: in the mode it trains in; batch norm's averages do not feed back and are left out.
        optimizer: any torch optimiser whose step needs no closure, at the settings it has now.
        loss_of: maps model and step number to the scalar loss. For accumulated gradients return the sum.
        before_step: called with the parameters when their gradients are known, e.g. to clip them in place;
            ``clip_grad_norm_`` has an exact tangent with ``foreach=False`` only.

    Raises:
        TypeError: the optimiser is LBFGS, which evaluates the loss several times in a step; or there are
            hooks, which a copy would lose, or functions that hold a layer, which it would share.
        ValueError: nothing is trained, parameters of no model are trained, the loss depends on none
            of them in its first three steps, or the optimiser keeps something between its steps that is no
            tensor of a parameter.

    >>> import math
    >>> from instability.exponents.spectrum import lyapunov_exponents
    >>> model = nn.Linear(1, 1, bias=False).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step, state = training_map(model, optimizer, lambda m, _: 2.5 * m.weight.square().sum())
    >>> round(math.exp(lyapunov_exponents(step, state, num_steps=3).exponents[0]), 12)  # 1 - 0.1 * 5
    0.5
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("LBFGS evaluates the loss several times in a step; use SensitivityProbe for it.")
    if isinstance(optimizer, PerturbedOptimizer):  # rounding has no tangent
        optimizer = optimizer.optimizer
    streams = RandomStreams.now()
    mapped = _TrainingMap(*twin(model, optimizer), loss_of, before_step)
    after = RandomStreams.now()
    mapped.check_step(*twin(model, optimizer), streams)
    after.restore()
    return mapped, mapped.state


class _Gradients(nn.Module):
    """The gradients of a loss, with their tangents, while the weights are in place.

    Checkpointed layers run again then. The tangents are Hessian-vector products by a second backward pass:
    many a backward pass, such as that of SiLU, has no forward derivative.
    """

    def __init__(self, model: nn.Module, loss_of: Callable[[nn.Module, int], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss_of = loss_of
        self.reached: list[Tensor] = []  # one gradient, if any step had one

    def forward(
        self, number: int, weights: list[Tensor], tangents: list[Tensor | None]
    ) -> list[Tensor | None]:
        loss = check_loss(self._loss_of(self.model, number))
        moves = any(v is not None for v in tangents)
        found = torch.autograd.grad(loss, weights, allow_unused=True, create_graph=moves)
        self.reached += [g.detach() for g in found if g is not None][: not self.reached]
        pairs = [
            (g, v)
            for g, v in zip(found, tangents, strict=True)
            if g is not None and v is not None and g.requires_grad
        ]
        if not pairs:
            return list(found)
        try:
            images = torch.autograd.grad(
                [g for g, _ in pairs], weights, [v for _, v in pairs], materialize_grads=True
            )
        except RuntimeError as error:
            raise RuntimeError(f"no automatic differentiation of the gradient: {error}") from error
        return [
            None if g is None else forward_ad.make_dual(g.detach(), image)
            for g, image in zip(found, images, strict=True)
        ]


class _TrainingMap:
    """The step of an optimiser as a function of weights and buffers."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_of: Callable[[nn.Module, int], Tensor],
        before_step: Callable[[Sequence[Tensor]], object] | None,
    ) -> None:
        self._gradients, self._loss_of = _Gradients(model, loss_of), loss_of
        self._optimizer = optimizer
        self._before_step = before_step
        named = trained_parameters(model, optimizer)
        if not named:
            raise ValueError("the optimiser trains no parameter of the model that requires a gradient.")
        self._names = {id(p): name for name, p in named.items()}
        for group in optimizer.param_groups:  # torch's fused and foreach forms have no forward derivative
            group.update({name: False for name in ("foreach", "fused") if name in group})
        state = {name: p.detach().clone() for name, p in named.items()}
        kept = {self._names[id(p)]: v for p, v in optimizer.state.items() if id(p) in self._names}
        # What does not vary with the state, such as counters: known for each step number.
        self._counters: dict[int, dict[str, dict[str, Any]]] = {0: {}}
        self._owners: dict[str, tuple[str, str]] = {}
        self._keep(state, kept, 0)
        self.state = {name: value.detach() for name, value in self(state, -1).items()}
        generator = torch.Generator().manual_seed(0)
        along = {
            name: torch.randn(v.shape, generator=generator).to(v) * (1 if name in named else v.abs())
            for name, v in self.state.items()
        }
        self.has_tangent = has_tangent(self, self.state, along, 0)

    def __call__(self, state: State, number: int) -> dict[str, Tensor]:
        number += 1  # step 0 was made at the start
        weights = {name: state[name].clone().requires_grad_() for name in self._names.values()}
        buffers = {name: buffer.clone() for name, buffer in self._gradients.named_buffers()}
        points, tangents = zip(*map(forward_ad.unpack_dual, weights.values()), strict=True)
        leaves = [point.detach().requires_grad_() for point in points]
        inputs = {f"model.{name}": leaf for name, leaf in zip(weights, leaves, strict=True)}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # which can be differentiated twice
            gradients = functional_call(self._gradients, inputs | buffers, (number, leaves, tangents))
        kept: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for (name, w), gradient in zip(weights.items(), gradients, strict=True):
            w.grad = gradient
            kept[w].update(
                {key: _copied(value) for key, value in self._counters[number].get(name, {}).items()}
            )
        for name, value in ((n, state[n]) for n in state if n not in weights):
            owner, key = self._owners[name]
            tiny = torch.finfo(value.dtype).tiny
            kept[weights[owner]][key] = value.clamp_min(tiny) if key in SQUARES else value.clone()
        groups = [
            group | {"params": [weights[self._names[id(p)]] for p in group["params"] if id(p) in self._names]}
            for group in self._optimizer.param_groups
        ]
        own = vars(self._optimizer) | {"state": kept, "param_groups": groups}
        optimizer = rebuilt(self._optimizer, own)
        if self._before_step is not None:
            self._before_step([w for w in weights.values() if w.grad is not None])
        optimizer.step()
        after = dict(weights)
        self._keep(after, {name: kept[w] for name, w in weights.items()}, number + 1)
        if number and (new := sorted(after.keys() - state.keys())):
            raise ValueError(
                f"step {number} makes what the optimiser keeps ({new[0]}), which step 0 had not: let step 0 "
                "reach every weight that is trained, or use lyapunov_estimate."
            )
        return after

    def _keep(self, state: dict[str, Tensor], kept: Mapping[str, dict[str, Any]], number: int) -> None:
        """Sort what the optimiser keeps into the state, and into what depends on the step number alone."""
        known = self._counters.get(number)
        counters: dict[str, dict[str, Any]] = {}
        for name, values in kept.items():
            for key, value in values.items():
                if varies(key, value, state[name]):
                    state[f"{name}/{key}"] = value
                    self._owners[f"{name}/{key}"] = name, key
                else:
                    counters.setdefault(name, {})[key] = _copied(value)
                    if known and not bool(torch.as_tensor(known[name].get(key) == value).all()):
                        raise ValueError(
                            f"the optimiser's {key} depends on the weights and is no tensor of a parameter; "
                            "its tangent is not known. Use lyapunov_estimate."
                        )
        self._counters = {n: c for n, c in self._counters.items() if n in (1, number - 1)} | {
            number: counters
        }

    def check_step(self, model: nn.Module, optimizer: Optimizer, streams: RandomStreams) -> None:
        """Compare with the optimiser's own steps: it or the model may keep more than the state shows.

        Three steps, since a power iteration (spectral norm) has converged before the first one.
        """
        mapped = self({name: value.detach() for name, value in self(self.state, 0).items()}, 1)
        check_reached(self._gradients.reached, " in any of its first three steps")
        streams.restore()
        for number in range(3):
            optimizer.zero_grad()
            with torch.enable_grad():
                self._loss_of(model, number).backward()
            if self._before_step is not None:
                self._before_step([p for p in model.parameters() if p.grad is not None])
            optimizer.step()
        own = dict(model.named_parameters())
        for name in self._names.values():
            a, b = mapped[name].detach(), own[name].detach()
            level = torch.finfo(b.dtype).eps ** 0.5
            if not torch.allclose(a, b, rtol=level, atol=level * float(b.abs().max()), equal_nan=True):
                raise ValueError(
                    f"the step of {type(optimizer).__name__} does not follow from weights and state ({name} "
                    "differs): it, its groups or the model keep something else. Use lyapunov_estimate."
                )


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
