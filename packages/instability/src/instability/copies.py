"""Copies of one training run that differ only in how their updates are rounded.

All start from one model, see the same losses and the same random numbers, and are advanced by the same
kernels on tensors of the same shape, one after the other.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from instability.metrics import average_relative_l1
from instability.perturbed_sgd import PerturbedSGD, perturb_optimizer
from instability.rounding import check_perturbation, is_power_of_two

__all__ = ["Copies", "LossOf", "OptimizerFn"]

LossOf = Callable[[nn.Module], Tensor]
OptimizerFn = Callable[[Iterable[nn.Parameter]], Optimizer]
Metric = Callable[[np.ndarray, np.ndarray], float]


class Copies:
    """Models and optimisers, one pair for each perturbation, all from the same start.

    A ``PerturbedSGD`` gets its perturbation set; any other optimiser is wrapped by ``perturb_optimizer`` at
    the gradient.

    Args:
        model: the common start; deep-copied, never changed.
        optimizer_fn: makes an optimiser for a list of parameters.
        perturbations: the integers ``k``; the first must be 1, the baseline that others are compared with.

    Raises:
        ValueError: no perturbations, or the first is not 1.

    >>> copies = Copies(nn.Linear(2, 1), lambda p: PerturbedSGD(p, lr=0.1), perturbations=(1, 2, 3))
    >>> losses = copies.step(lambda model: model(torch.ones(1, 2)).square().sum())
    >>> copies.divergence()[:2]  # the baseline from itself, and a null control
    [0.0, 0.0]
    """

    def __init__(
        self, model: nn.Module, optimizer_fn: OptimizerFn, perturbations: Sequence[int] = (1, 2, 3)
    ) -> None:
        if not perturbations:
            raise ValueError("perturbations is empty; pass at least the baseline 1.")
        if perturbations[0] != 1:
            raise ValueError(f"perturbations={tuple(perturbations)} must start with the baseline k = 1.")
        self.perturbations = tuple(check_perturbation(k) for k in perturbations)
        self.models = [copy.deepcopy(model) for _ in perturbations]
        self.optimizers = [
            _perturbed(optimizer_fn(twin.parameters()), k)
            for twin, k in zip(self.models, self.perturbations, strict=True)
        ]

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
        state = torch.get_rng_state()
        losses = []
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            torch.set_rng_state(state)
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of every group of every copy."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def weights(self, index: int, layer: str | None = None) -> Float[np.ndarray, "n"]:
        """Return the parameters of one copy as a vector: all of them, or one by its name.

        Raises:
            ValueError: there is no parameter of that name; close names are listed.
        """
        named = dict(self.models[index].named_parameters())
        if layer is not None:
            named = {layer: named[check_layer(layer, named)]}
        return _to_numpy(torch.cat([p.detach().reshape(-1) for p in named.values()]))

    def divergence(self, layer: str | None = None, metric: Metric = average_relative_l1) -> list[float]:
        """Return the distance of every copy from the first."""
        baseline = self.weights(0, layer)
        return [metric(self.weights(i, layer), baseline) for i in range(len(self.models))]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the full state (weights, buffers, optimiser tensors) as named arrays, for a checkpoint."""
        return {name: _to_numpy(tensor).copy() for name, tensor in self._tensors().items()}

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Restore what ``arrays`` returned, bit for bit."""
        for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
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
            tensors |= {f"{i}/model/{name}": tensor for name, tensor in model.state_dict().items()}
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for j, parameter in enumerate(parameters):
                for name, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        tensors[f"{i}/optimizer/{j}/{name}"] = value
        return tensors


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


def _perturbed(optimizer: Optimizer, k: int) -> Optimizer:
    if isinstance(optimizer, PerturbedSGD):
        for group in optimizer.param_groups:
            group["perturbation"] = k
        return optimizer
    return perturb_optimizer(optimizer, k, at="gradient")
