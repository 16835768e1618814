"""Shadow copies that ride along in your own training loop and leave your model alone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gdyn_common.errors import require_count
from instability.copies import Copies, LossOf, OptimizerFn, StepFn, equal_bits
from instability.determinism import numerical_settings
from instability.metrics import first_step_above, growth_rate, relative_l2
from instability.reach import check_number, held, left_alone, watch_tensors
from instability.rounding import Rooms
from instability.sensitivity.distance import layer_divergence
from instability.sensitivity.report import CopyOutcome, SensitivityReport
from instability.streams import unchanged

__all__ = ["SensitivityProbe"]

VISIBLE = 1e-3
"""Divergence that counts as no longer rounding level; in half precision, four units in the last place."""


class SensitivityProbe:
    """Shadow copies of a model that train beside it in your own loop.

    The probe copies the model once, then trains its own copies on the losses you show it. Your model, your
    optimiser and every random stream are as if the probe were not there. As a context it measures the last
    step of the block, too, whatever ``every`` says.

    Args:
        model: the model at the start.
        optimizer: the optimiser that trains it, whose state every copy takes over and whose settings (such as
            a scheduled rate) they follow; or a function that makes one like it for a list of parameters.
        perturbations: the integers ``k``; keep a second 1 and a power of two as null controls.
        every: measure the divergence every so many steps.
        outputs: maps a model to its outputs on a probe batch, for the distance of the copies as functions;
            called in evaluation mode without gradients. The report also tells by it which parameters moved
            in directions that cannot matter, such as a bias before batch norm.

    Raises:
        ValueError: ``every`` or the perturbations are out of range, or nothing is trained.
        TypeError: the model cannot be copied, or has hooks, which a copy would lose.

    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with SensitivityProbe(model, optimizer, (1, 1, 2, 3), every=5) as probe:
    ...     for x in torch.eye(3).repeat(6, 1):
    ...         loss_of = lambda m: (m(x) - 1).square().sum()
    ...         probe.step(loss_of)
    ...         optimizer.zero_grad()
    ...         loss_of(model).backward()
    ...         optimizer.step()
    >>> report = probe.report()
    >>> report.controls_hold, report.steps.tolist()
    (True, [5, 10, 15, 18])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFn | Optimizer,
        perturbations: Sequence[int] = (1, 1, 2, 3, 5),
        *,
        every: int = 1,
        outputs: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        require_count("every", every)
        if isinstance(perturbations, int):
            raise ValueError(f"perturbations={perturbations} is one number; pass a list: (1, 1, 2, 3).")
        self.copies = Copies(model, optimizer, perturbations)
        self.every = every
        self.num_steps = 0
        self._model = model
        self._optimizer = optimizer if isinstance(optimizer, Optimizer) else None
        self._left_at = -1
        self._outputs_of = outputs
        self._steps: list[int] = []
        self._by_layer: list[list[dict[str, float]]] = []
        self._total: list[list[float]] = []
        self._outputs: list[list[float]] = []
        self._injected = [False] * len(self.copies.models)
        self._nonfinite_at = [-1] * len(self.copies.models)
        self._broken_control_at = -1
        self._rooms = Rooms()
        self._scales: dict[GradScaler, dict[str, Any]] = {}

    def __enter__(self) -> SensitivityProbe:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.num_steps % self.every:
            self._measure()

    def step(self, loss_of: LossOf) -> None:
        """Train every shadow copy on one loss; call it once per step of your loop, before your own update."""
        with unchanged():
            self._advance(self.copies.step, loss_of)

    def advance(self, step: StepFn) -> None:
        """Make one whole step of your own with every shadow copy, before you make it with your model.

        Args:
            step: takes a model and its optimiser and does all that your loop does in a step: accumulation,
                clipping, ``optimizer.step()``. It returns the loss, or ``None``. Every copy meets your
                gradient scaler as your own step is about to.

        Raises:
            RuntimeError: the step changed your own model, scheduler, a tensor or another network, or uses a
                gradient scaler that your own step does not, or an earlier one ended in an exception.
        """
        with unchanged():
            self._advance(self.copies.advance, step)

    def _advance(self, make: Callable[[Any], list[float]], function: LossOf | StepFn) -> None:
        if self._optimizer is not None:
            self.copies.follow(self._optimizer)
            theirs = dict(self._model.named_parameters())
            if self._left_at < 0 and not all(
                name in theirs and equal_bits(p.detach(), theirs[name].detach())
                for name, p in self.copies.models[0].named_parameters()
            ):
                self._left_at = self.num_steps
        with self._only_copies_change(function) as alike:
            losses = make(alike)
        self.num_steps += 1
        for index, loss in enumerate(losses):
            if not np.isfinite(loss):
                self._look_for_nonfinite(index)
            if not self._injected[index]:
                self._injected[index] = index > 0 and not self.copies.same_bits(index)
        if self.num_steps % self.every == 0:
            self._measure()

    @contextlib.contextmanager
    def _only_copies_change(self, function: LossOf | StepFn) -> Iterator[LossOf | StepFn]:
        """Give the function as every copy is to meet it, and refuse a change of the model itself.

        What belongs to other modules of the user is put back before each copy and afterwards.
        """
        own = {inner for model in (self._model, *self.copies.models) for inner in model.modules()}
        reached = list(held(function))
        others = [x for x in reached if isinstance(x, nn.Module) and x not in own]
        schedulers = [(x, x.state_dict()) for x in reached if isinstance(x, LRScheduler)]
        before = self._versions()
        tensors_changed = watch_tensors(reached, {*own, *(inner for x in others for inner in x.modules())})
        weights = [
            (x, n, p, _sum_of_bits(p)) for x in others for n, p in x.named_parameters() if not is_lazy(p)
        ]
        with (
            left_alone(others) as again,
            self._scalers_left_alone([x for x in reached if isinstance(x, GradScaler)]) as scale_again,
        ):
            last: list[nn.Module] = []

            def alike(model: nn.Module, *rest: Any) -> Any:
                if last != [model]:  # LBFGS evaluates a loss several times in a step
                    again()
                    scale_again()
                last[:] = [model]
                return function(model, *rest)

            yield alike
        if changed := [name for name, version in self._versions().items() if before.get(name) != version]:
            raise RuntimeError(
                f"the step changed your own model ({changed[0]} or its gradient): use the model and the "
                "optimiser that it is given, not yours."
            )
        for other, name, p, bits in weights:
            if _sum_of_bits(p) != bits:
                raise RuntimeError(
                    f"the step changed your own {type(other).__name__} ({name}), which moves on with every "
                    "copy: change it after the step, outside of what the probe is given."
                )
        if tensors_changed():
            raise RuntimeError(
                "the step changed a tensor of your own, which moves on with every copy: keep one for each "
                "model in a dictionary by model, or change it after the step."
            )
        for scheduler, count in schedulers:
            if scheduler.state_dict() != count:
                raise RuntimeError(
                    f"the step changed your own {type(scheduler).__name__}, which moves on with every copy: "
                    "call it after the step."
                )

    @contextlib.contextmanager
    def _scalers_left_alone(self, scalers: list[GradScaler]) -> Iterator[Callable[[], None]]:
        """Put back the user's scalers, which only the user's own step moves on, and give a way to do so."""
        counts = {x: x.state_dict() for x in scalers}
        if any(count == self._scales.get(x) for x, count in counts.items()):
            raise RuntimeError(
                "a gradient scaler has not moved since the copies did: let your own step use it, too, or "
                "keep one for each model in a dictionary by model."
            )
        own = [(x, {name: _copied(value) for name, value in vars(x).items()}) for x in scalers]

        def again() -> None:
            for x, attributes in own:
                vars(x).update({name: _copied(value) for name, value in attributes.items()})

        try:
            yield again
            self._scales = {x: count for x, count in counts.items() if x.state_dict() != count}
        finally:
            again()

    def _versions(self) -> dict[str, tuple[object, ...]]:
        """How often torch has changed each parameter and buffer of the user's model, and its gradient."""
        named = (*self._model.named_parameters(), *self._model.named_buffers())
        return {n: (t._version, id(t.grad), t.grad is not None and t.grad._version) for n, t in named}

    def _look_for_nonfinite(self, index: int) -> None:
        if self._nonfinite_at[index] < 0 and not self.copies.is_finite(index):
            self._nonfinite_at[index] = self.num_steps

    def _measure(self) -> None:
        self._steps.append(self.num_steps)
        baseline = self.copies.trained(0)
        own = layer_divergence(baseline, baseline, self._rooms)
        layers = [own]  # also that of a copy of the same bits
        for index, injected in list(enumerate(self._injected))[1:]:
            other = self.copies.trained(index)
            layers.append(layer_divergence(baseline, other, self._rooms) if injected else own)
        self._by_layer.append([{name: total / size for name, (total, size) in one.items()} for one in layers])
        sizes = sum(size for _, size in layers[0].values())
        self._total.append([sum(total for total, _ in one.values()) / sizes for one in layers])
        for index, total in enumerate(self._total[-1]):
            if np.isnan(total):
                self._look_for_nonfinite(index)
        if self._broken_control_at < 0 and any(self._injected[i] for i in self.copies.controls):
            self._broken_control_at = self.num_steps
        if self._outputs_of is not None:
            outputs = [self._evaluate(self._outputs_of, model) for model in self.copies.models]
            self._outputs.append([relative_l2(output, outputs[0]) for output in outputs])

    def _evaluate(self, function: Callable[[nn.Module], Tensor], model: nn.Module) -> np.ndarray:
        with unchanged(model), torch.no_grad():
            output = function(model.eval())
        if not isinstance(output, Tensor):
            raise TypeError(f"outputs returned a {type(output).__name__}; let it return one tensor.")
        wide = output.to(torch.cdouble if output.is_complex() else torch.double)
        return np.asarray(wide.detach().cpu().numpy())

    def _effects(self, outputs_of: Callable[[nn.Module], Tensor]) -> dict[str, float]:
        """How far the outputs move if one parameter alone is the farthest copy's.

        Batch norm takes the averages of the probe batch, unless it is a single example: with those that it
        keeps a shift before it would count.
        """
        farthest = self.copies.trained(int(np.argmax(np.nan_to_num(self._total[-1]))))

        def outputs(name: str | None = None) -> np.ndarray:
            def swapped(model: nn.Module) -> Tensor:
                if name is not None:
                    model.get_parameter(name).data = farthest[name].detach().clone()
                for module in model.modules():
                    module.train(hasattr(module, "running_mean"))
                try:
                    return outputs_of(model)
                except ValueError:
                    return outputs_of(model.eval())

            return self._evaluate(swapped, self.copies.models[0])

        moved = [name for name in farthest if max(one.get(name, 0.0) for one in self._by_layer[-1]) > 0]
        whole = outputs()
        return {name: relative_l2(outputs(name), whole) for name in moved}

    def _score(self, evaluate: Callable[[nn.Module], float] | None, model: nn.Module) -> float:
        if evaluate is None:
            return float("nan")
        with unchanged(model):
            return check_number(evaluate(model), "evaluate")

    def report(self, evaluate: Callable[[nn.Module], float] | None = None) -> SensitivityReport:
        """Return what was measured so far.

        Args:
            evaluate: optional score of a model, e.g. its test accuracy.

        Raises:
            ValueError: nothing was measured yet.
        """
        if not self._steps:
            raise ValueError(
                f"nothing measured yet: {self.num_steps} steps made, one measurement every {self.every}."
            )
        models = self.copies.models
        dtype = max((p.dtype for p in self.copies.trained(0).values()), key=lambda d: torch.finfo(d).eps)
        eps = torch.finfo(dtype).eps
        visible = max(VISIBLE, 4 * eps)
        steps, curves = np.array(self._steps), np.array(self._total).T
        regular = steps % self.every == 0
        last = max(1, len(steps) // 10)
        outcomes = []
        for index, (k, curve) in enumerate(zip(self.copies.perturbations, curves, strict=True)):
            self._look_for_nonfinite(index)
            crossing = first_step_above(curve, visible) if index else -1
            outcomes.append(
                CopyOutcome(
                    k=k,
                    is_control=index in self.copies.controls,
                    injected=self._injected[index],
                    nonfinite_at=self._nonfinite_at[index],
                    visible_at=int(steps[crossing]) if crossing >= 0 else -1,
                    growth_rate=growth_rate(curve[regular], 10 * eps, max(1e-2, 100 * eps)) / self.every,
                    final=float(curve[-last:].mean()),
                    score=self._score(evaluate, models[index]),
                )
            )
        names = list(self._by_layer[-1][0])
        return SensitivityReport(
            copies=tuple(outcomes),
            steps=steps,
            divergence=curves,
            by_layer={
                n: np.array([[one.get(n, 0.0) for one in record] for record in self._by_layer]).T
                for n in names
            },
            outputs=np.array(self._outputs).T if self._outputs else None,
            effects=self._effects(self._outputs_of) if self._outputs_of else {},
            broken_control_at=self._broken_control_at,
            left_at=self._left_at,
            visible=visible,
            settings=numerical_settings(dtype),
        )


def _sum_of_bits(p: Tensor) -> int:
    """Tell whether a tensor has changed, also by ``p.data``, whose changes torch does not count."""
    values = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(values.view(integers[values.element_size()]).sum())


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)
