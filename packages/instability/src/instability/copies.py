"""Copies of one training run that differ only in how their updates are rounded.

All start from one model, see the same losses and the same random numbers, and are advanced by the same
kernels on tensors of the same shape, one after the other.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from instability.metrics import average_relative_l1
from instability.perturbed_sgd import PerturbedSGD, perturb_optimizer
from instability.reach import check_copyable
from instability.rounding import check_perturbation, is_power_of_two
from instability.streams import RandomStreams, check_loss, check_model, graph_tensors

__all__ = ["Copies", "LossOf", "OptimizerFn", "StepFn", "equal_bits", "rebuilt", "trained_parameters", "twin"]

LossOf = Callable[[nn.Module], Tensor]
OptimizerFn = Callable[[Iterable[nn.Parameter]], Optimizer]
StepFn = Callable[[nn.Module, Optimizer], Tensor | float | None]
Metric = Callable[[np.ndarray, np.ndarray], float]


class Copies:
    """Models and optimisers, one pair for each perturbation, all from the same start.

    A ``PerturbedSGD`` gets its perturbation set; any other optimiser is wrapped by ``perturb_optimizer`` at
    the gradient.

    Args:
        model: the common start; deep-copied, never changed.
        optimizer: makes an optimiser for a list of parameters; or the optimiser that trains the model, whose
            groups and state every copy then takes over.
        perturbations: the integers ``k``; the first must be 1, the baseline that others are compared with.

    Raises:
        ValueError: no perturbations, the first is not 1, the model has nothing to train, or the optimiser
            trains parameters of another.
        TypeError: the model or its optimiser cannot be copied, or has hooks, which a copy would lose, or
            functions that hold a layer, which it would share.

    >>> copies = Copies(nn.Linear(2, 1), lambda p: PerturbedSGD(p, lr=0.1), perturbations=(1, 2, 3))
    >>> losses = copies.step(lambda model: model(torch.ones(1, 2)).square().sum())
    >>> copies.divergence()[:2]  # the baseline from itself, and a null control
    [0.0, 0.0]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFn | Optimizer,
        perturbations: Sequence[int] = (1, 2, 3),
    ) -> None:
        if not len(perturbations):
            raise ValueError("perturbations is empty; pass at least the baseline 1.")
        if perturbations[0] != 1:
            raise ValueError(f"perturbations={tuple(perturbations)} must start with the baseline k = 1.")
        self.perturbations = tuple(check_perturbation(k) for k in perturbations)
        pairs = [twin(model, optimizer) for _ in perturbations]
        self.models = [twin for twin, _ in pairs]
        self.optimizers = [
            _perturbed(inner, k) for (_, inner), k in zip(pairs, self.perturbations, strict=True)
        ]
        self._in_step = False
        if not self.trained(0):
            raise ValueError("the optimiser has no parameter that requires a gradient: nothing is trained.")

    @property
    def controls(self) -> list[int]:
        """Indices of the copies that must stay equal to the baseline: further ``k = 1, 2, 4, ...``."""
        return [i for i, k in enumerate(self.perturbations) if i and is_power_of_two(k)]

    @property
    def perturbed(self) -> list[int]:
        """Indices of the copies that rounding drives away."""
        return [i for i, k in enumerate(self.perturbations) if not is_power_of_two(k)]

    def step(self, loss_of: LossOf) -> list[float]:
        """Make one update of every copy and return their losses.

        Args:
            loss_of: maps a model to its scalar loss on the current batch. Random layers draw the same numbers
                in every copy.
        """

        def update(model: nn.Module, optimizer: Optimizer) -> Tensor:
            def evaluate() -> Tensor:
                loss = check_loss(loss_of(model))
                loss.backward()
                return loss

            return closed_step(optimizer, evaluate)

        return self.advance(update)

    def advance(self, step: StepFn) -> list[float]:
        """Make one step of your own with every copy and return their losses.

        Args:
            step: takes a model and its optimiser, makes the whole step (accumulation, clipping and all) and
                returns the loss, or ``None``. Every copy draws the same random numbers, and the streams are
                left as one of them leaves them. It changes nothing else: what it keeps elsewhere (a gradient
                scaler, a generator, an iterator) would move on with every copy, so keep one for each model.

        Raises:
            RuntimeError: an earlier step ended in an exception, in which some copies made it and some not.
        """
        if self._in_step:
            raise RuntimeError(
                "an earlier step ended in an exception, made by some copies only; make new ones."
            )
        self._in_step = True
        streams = RandomStreams.now()
        losses = []
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            streams.restore()
            loss = step(model, optimizer)
            losses.append(float("nan") if loss is None else _number(loss))
        self._in_step = False
        return losses

    def follow(self, optimizer: Optimizer) -> None:
        """Take over what was set anew in an optimiser's groups, such as a scheduled learning rate.

        What its own steps write there, the baseline's have written too.

        Raises:
            ValueError: parameters or groups were added since the copies were made.
        """
        baseline, sizes = [
            [len(group["params"]) for group in one.param_groups] for one in (self.optimizers[0], optimizer)
        ]
        if baseline != sizes:
            raise ValueError(
                f"the groups of the optimiser hold {sizes} parameters, those of the copies {baseline}: make "
                "new copies when you add some."
            )
        for number, theirs in enumerate(optimizer.param_groups):
            ours = self.optimizers[0].param_groups[number]
            fixed = ("params", "perturbation")
            changed = {
                n: v for n, v in theirs.items() if n not in fixed and (n not in ours or _differ(v, ours[n]))
            }
            for copied in self.optimizers:
                copied.param_groups[number].update(copy.deepcopy(changed))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of every group of every copy."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def trained(self, index: int) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimiser of a copy trains, by name."""
        return trained_parameters(self.models[index], self.optimizers[index])

    def weights(self, index: int, layer: str | None = None) -> Float[np.ndarray, "n"]:
        """Return the trained parameters of one copy as a vector, or one parameter by its name.

        Raises:
            ValueError: there is no parameter of that name; close names are listed.
        """
        named = self.trained(index)
        if layer is not None:
            every = dict(self.models[index].named_parameters())
            named = {layer: every[check_layer(layer, every)]}
        return _to_numpy(torch.cat([p.detach().reshape(-1) for p in named.values()]))

    def divergence(self, layer: str | None = None, metric: Metric = average_relative_l1) -> list[float]:
        """Return the distance of every copy from the first."""
        baseline = self.weights(0, layer)
        return [metric(self.weights(i, layer), baseline) for i in range(len(self.models))]

    def same_bits(self, index: int) -> bool:
        """Whether parameters and buffers of a copy equal the baseline's bit for bit, NaN included."""
        pairs = zip(
            (*self.models[0].parameters(), *self.models[0].buffers()),
            (*self.models[index].parameters(), *self.models[index].buffers()),
            strict=True,
        )
        return all(equal_bits(a.detach(), b.detach()) for a, b in pairs)

    def is_finite(self, index: int) -> bool:
        """Whether every trained parameter of a copy is finite."""
        return all(bool(p.detach().isfinite().all()) for p in self.trained(index).values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the full state (weights, buffers, optimiser tensors) as named arrays, for a checkpoint.

        Raises:
            TypeError: an optimiser keeps something else, as LBFGS does.
        """
        return {name: _to_numpy(tensor).copy() for name, tensor in self._tensors().items()}

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Restore what ``arrays`` returned, bit for bit."""
        for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            with torch.no_grad():
                for name, tensor in _named(model).items():
                    tensor.copy_(torch.from_numpy(arrays[f"{i}/model/{name}"]))
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for j, parameter in enumerate(parameters):
                prefix = f"{i}/optimizer/{j}/"
                stored = {key: value for key, value in arrays.items() if key.startswith(prefix)}
                for key, value in stored.items():
                    dtype = parameter.dtype if value.ndim else None
                    tensor = torch.from_numpy(value.copy()).to(device=parameter.device, dtype=dtype)
                    optimizer.state[parameter][key.removeprefix(prefix)] = tensor

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            tensors |= {f"{i}/model/{name}": tensor for name, tensor in _named(model).items()}
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for j, parameter in enumerate(parameters):
                for name, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        tensors[f"{i}/optimizer/{j}/{name}"] = value
                    elif value is not None:
                        raise TypeError(f"the optimiser keeps {name}, a {type(value).__name__}: no array.")
        return tensors


def closed_step(optimizer: Optimizer, evaluate: Callable[[], Tensor]) -> Tensor:
    """Make a whole step and return its loss; LBFGS calls ``evaluate``, loss and gradients, as it likes."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        return evaluate()

    with torch.enable_grad():
        if isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.LBFGS):
            return optimizer.step(closure)  # type: ignore[arg-type, return-value]  # torch says float
        loss = closure()
    optimizer.step()
    return loss


def check_layer(layer: str, names: Iterable[str]) -> str:
    """Return ``layer`` if it is among ``names``, else raise ValueError that lists close ones."""
    known = list(names)
    if layer not in known:
        close = difflib.get_close_matches(layer, known, n=3, cutoff=0.3) or known[:3]
        raise ValueError(f"Unknown layer {layer!r} among {len(known)}. Close names: {', '.join(close)}.")
    return layer


def _to_numpy(tensor: Tensor) -> np.ndarray:
    # NumPy has no bfloat16; float32 holds its values exactly.
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def trained_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that an optimiser trains, by name."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in held and p.numel()}


def twin(model: nn.Module, optimizer: OptimizerFn | Optimizer) -> tuple[nn.Module, Optimizer]:
    """Return a copy of the model with an optimiser of its own, made anew or copied with its state.

    Raises:
        TypeError: they cannot be copied, or have hooks, which torch leaves behind, or functions that hold a
            layer, which the copy would share.
        ValueError: the optimiser trains parameters of another model.
    """
    if not (isinstance(optimizer, Optimizer) or callable(optimizer)):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; pass one torch optimiser (several can be groups of "
            "one), or a function that makes one."
        )
    check_copyable(check_model(model))
    for name, p in model.named_parameters():
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise TypeError(f"parameter {name} has a hook, which a copy would lose; do its work in the step.")
    if isinstance(optimizer, Optimizer):
        both = (optimizer, getattr(optimizer, "optimizer", optimizer))
        if not all(hasattr(o, "_optimizer_step_pre_hooks") for o in both):
            raise TypeError(
                f"optimizer is a {type(optimizer).__name__}, which only wraps another; pass the torch "
                "optimiser inside it."
            )
        if any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in both):
            raise TypeError("the optimiser has a hook, which a copy would lose; do its work in the step.")
    try:
        memo: dict[int, Any] = {id(t): t.detach().clone() for t in graph_tensors(model)}
        copied = copy.deepcopy(model, memo)
        inner: Any = _copied(optimizer, memo) if isinstance(optimizer, Optimizer) else None
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"the model or its optimiser cannot be copied ({str(error).splitlines()[0]}); if it has an old "
            "weight norm, use torch.nn.utils.parametrizations.weight_norm."
        ) from error
    for p, q in zip(model.parameters(), copied.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    if not isinstance(optimizer, Optimizer):
        inner = optimizer(copied.parameters())
        if not isinstance(inner, Optimizer):
            raise TypeError(f"the function made a {type(inner).__name__}; let it return a torch optimiser.")
    if isinstance(inner, torch.optim.LBFGS):
        inner._numel_cache = None
    theirs = {id(p) for p in copied.parameters()}
    trained = (p for group in inner.param_groups for p in group["params"] if p.requires_grad and p.numel())
    if not all(id(p) in theirs for p in trained):
        raise ValueError("the optimiser trains parameters that are not the model's; make them part of it.")
    return copied, inner


def rebuilt(optimizer: Optimizer, own: Mapping[str, Any]) -> Optimizer:
    """Return an optimiser of the same class with these attributes; torch's own copy forgets most of them."""
    made = object.__new__(type(optimizer))
    vars(made).update(own)
    return made


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            memo[id(value)] = _copied(value, memo)
    # A scheduler hangs a bound step on it.
    own = {name: value for name, value in vars(optimizer).items() if name != "step"}
    return rebuilt(optimizer, copy.deepcopy(own, memo))


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if torch.equal(a, b):  # also true for 0.0 and -0.0, which no later step tells apart but by division
        return True
    if not a.is_floating_point():
        return False
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def _number(loss: Any) -> float:
    if not (isinstance(loss, float | int | np.number) or (isinstance(loss, Tensor) and loss.numel() == 1)):
        raise TypeError(f"the step returned a {type(loss).__name__}; let it return one number or None.")
    return float(torch.as_tensor(loss).detach())


def _differ(a: Any, b: Any) -> bool:
    return bool(np.any(a != b)) if isinstance(a, np.ndarray) else bool(torch.as_tensor(a != b).any())


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _perturbed(optimizer: Optimizer, k: int) -> Optimizer:
    if isinstance(optimizer, PerturbedSGD):
        for group in optimizer.param_groups:
            group["perturbation"] = k
        return optimizer
    return perturb_optimizer(optimizer, k, at="gradient")
