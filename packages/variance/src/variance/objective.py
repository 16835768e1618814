"""The function that is minimised, as a pure function of parameters, buffers, batch and random source."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from variance import losses as loss_functions
from variance.errors import ConfigError, CoupledExamples
from variance.losses import LossFunction
from variance.per_example.capturing import capture
from variance.per_example.recording import (
    COUPLING,
    EXCLUSIVE,
    Capture,
    call_model,
    device_of,
    differentiate,
    require_real,
)


@dataclass(frozen=True, repr=False)
class Batch:
    """Examples with their population indices and loss weights.

    Attributes:
        inputs: Inputs, examples first: a tensor, a tuple of arguments or a mapping of keywords.
        targets: Targets, examples first.
        indices: Position of each example in the population.
        weights: Loss weights; the batch loss is mean(weight * loss).
    """

    inputs: Any
    targets: Any
    indices: Int[Tensor, "n"]
    weights: Float[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Batch({len(self)} examples)"


@dataclass(frozen=True, repr=False)
class Point:
    """Parameters and buffers at one moment of training.

    Attributes:
        parameters: Trainable parameters by name, in `model.parameters()` order.
        buffers: Buffers and frozen parameters by name.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]

    def __repr__(self) -> str:
        size = sum(value.numel() for value in self.parameters.values())
        return f"Point({len(self.parameters)} parameters of {size} numbers, {len(self.buffers)} buffers)"

    @classmethod
    def of(cls, model: nn.Module) -> "Point":
        """Return the live tensors of a model: the point moves when the model is trained."""
        with EXCLUSIVE:
            parameters: dict[str, Tensor] = {
                name: p for name, p in model.named_parameters() if p.requires_grad
            }
            frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
            return cls(parameters, {**frozen, **dict(model.named_buffers())})

    def copy(self) -> "Point":
        """Return a detached copy that training does not move."""
        return Point(
            {name: value.detach().clone() for name, value in self.parameters.items()},
            {name: value.detach().clone() for name, value in self.buffers.items()},
        )

    def flat(self) -> Float[Tensor, "p"]:
        """Return all trainable parameters as one detached vector."""
        return torch.cat([value.detach().flatten() for value in self.parameters.values()])

    def unflatten(self, flat: Float[Tensor, "p"]) -> dict[str, Tensor]:
        """Cut a vector into pieces of the parameters' shapes.

        Raises:
            ValueError: The vector has another length.
        """
        sizes = [value.numel() for value in self.parameters.values()]
        if flat.shape != (sum(sizes),):
            raise ValueError(f"a vector of shape {tuple(flat.shape)} does not fit {sum(sizes)} parameters.")
        pieces = flat.split(sizes)
        return {
            name: piece.reshape(value.shape)
            for (name, value), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def moved(self, step: Float[Tensor, "p"]) -> "Point":
        """Return a new point at parameters + step, sharing the buffers."""
        return Point(self.unflatten(self.flat() + step), self.buffers)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return plain dictionaries of tensors."""
        return {"parameters": dict(self.parameters), "buffers": dict(self.buffers)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Mapping[str, Tensor]]) -> "Point":
        """Rebuild what `state_dict` returned."""
        return cls(dict(state["parameters"]), dict(state["buffers"]))


def mean_point(points: Sequence[Point]) -> Point:
    """Return the point whose parameters are the mean over `points`; buffers are those of the last one.

    Example:
        >>> mean_point([Point({"w": torch.tensor([1.0])}, {}), Point({"w": torch.tensor([3.0])}, {})]).flat()
        tensor([2.])
    """
    total = torch.stack([point.flat() for point in points]).mean(0)
    return Point(points[-1].unflatten(total), points[-1].buffers)


class Objective:
    """Per-example losses of a model at any point.

    Keeps its own copy of the model's structure; values always come from the point. Nothing is ever
    accumulated, no `.grad` is written and no global random state is consumed.

    Args:
        model: The network.
        loss: `loss(outputs, targets)`, per example or reducing.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> objective = Objective(model, nn.functional.cross_entropy)
        >>> batch = Batch(torch.zeros(3, 2), torch.zeros(3).long(), torch.arange(3), torch.ones(3))
        >>> objective.losses(Point.of(model), batch).shape
        torch.Size([3])
    """

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        require_real(model)
        self.loss = loss
        try:
            with EXCLUSIVE:
                shared = {id(value): value for value in (*model.parameters(), *model.buffers())}
                self._model = copy.deepcopy(model, shared)  # values come from the point
        except (RuntimeError, TypeError) as error:
            raise ConfigError(
                f"the model cannot be copied ({str(error).partition('(')[0].strip()}). Keep locks, files and "
                "the like outside; for weight_norm and spectral_norm use torch.nn.utils.parametrizations."
            ) from None
        self._renormed = [
            f"{name}.weight" if name else "weight"
            for name, module in model.named_modules()
            if getattr(module, "max_norm", None) is not None
        ]
        self._modes = {module: module.training for module in self._model.modules()}

    def losses(
        self,
        point: Point,
        batch: Batch,
        generator: torch.Generator | None = None,
        *,
        training: bool | None = None,
        freeze_norms: bool = False,
    ) -> Float[Tensor, "n"]:
        """Evaluate the loss of every example.

        Args:
            point: Where to evaluate. In training mode batch norm updates the point's buffers in place.
            batch: Examples.
            generator: Source of dropout and other noise in the model; the global state where None.
            training: Dropout on, batch statistics on; every module in the mode it was given in where None.
            freeze_norms: Use running statistics of batch norm even in training mode.

        Returns:
            Unweighted losses, differentiable where the point's parameters are.
        """
        outputs = self._outputs(point, batch, generator, training=training, freeze_norms=freeze_norms)
        return loss_functions.example_losses(self.loss, outputs, batch.targets)

    def _outputs(
        self,
        point: Point,
        batch: Batch,
        generator: torch.Generator | None,
        *,
        training: bool | None,
        freeze_norms: bool,
    ) -> Any:
        state = {**point.parameters, **point.buffers}
        if self._renormed:  # max_norm writes into its table
            state |= {name: state[name].clone() for name in self._renormed}
        with EXCLUSIVE, self._mode(training, freeze_norms), _seeded(generator, device_of(batch.inputs)):
            return call_model(self._model, state, batch.inputs)

    def gradient(
        self,
        point: Point,
        batch: Batch,
        generator: torch.Generator | None = None,
        *,
        training: bool | None = None,
        freeze_norms: bool = False,
        additive: bool = False,
    ) -> tuple[Float[Tensor, "p"], float]:
        """Return what `gradients` does, in one vector."""
        parts, value = self.gradients(
            point, batch, generator, training=training, freeze_norms=freeze_norms, additive=additive
        )
        return torch.cat([part.flatten() for part in parts.values()]), value

    def gradients(
        self,
        point: Point,
        batch: Batch,
        generator: torch.Generator | None = None,
        *,
        training: bool | None = None,
        freeze_norms: bool = False,
        additive: bool = False,
    ) -> tuple[dict[str, Tensor], float]:
        """Return the gradient, by parameter, and value of mean(weight * loss).

        A loss that is no mean over examples (class weights, masked positions) is taken as it is, unweighted;
        where gradients must be `additive` (those of parts of the data average to that of all), it is refused.

        Raises:
            NonFiniteGradient: A loss or the gradient is NaN or infinite; the examples are named.
            CoupledExamples: The batch is weighted or gradients must be additive, and the loss is no mean.
            ConfigError: The loss reads the model's own parameters, and the point is another.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in point.parameters.items()}
        with EXCLUSIVE, torch.enable_grad():
            at = Point(leaves, point.buffers)
            outputs = self._outputs(at, batch, generator, training=training, freeze_norms=freeze_norms)
            found, reduction = loss_functions.reduced(self.loss, outputs, batch.targets)
            if reduction == "other":  # the batch has a gradient, its examples have none
                if additive or bool((batch.weights != 1).any()):
                    raise CoupledExamples(
                        "weighted batches and SVRG need one loss per example, and this loss is neither the "
                        "mean nor the sum of such; pass it with reduction='none' or 'sum'."
                    )
                total, found = found, found.reshape(1)
            else:
                total = (found * batch.weights.to(found)).mean()
        value = float(total.detach())
        if value - value != 0.0:  # NaN or infinite: find out whose
            named = batch.indices if len(found) == len(batch) else None
            loss_functions.require_finite(found.detach(), "the loss", named)
        with EXCLUSIVE:
            own = dict(self._model.named_parameters())
            gradients, direct = differentiate(total, leaves, self._model, point.buffers)
        for name, gradient in direct.items():
            if not torch.equal(own[name], leaves[name]):
                raise ConfigError(
                    f"the loss (a weight penalty?) or a list in the model reads parameter '{name}' itself: "
                    "it cannot be evaluated at other parameters; leave a penalty out of the loss."
                )
            gradients[name] = gradients[name] + gradient
        return gradients, value

    def capture(
        self,
        point: Point,
        batch: Batch,
        generator: torch.Generator | None = None,
        *,
        weights_only: bool = False,
        training: bool | None = False,
        loss: LossFunction | None = None,
    ) -> Capture:
        """Record per-example quantities of a batch; batch norm always uses its running statistics."""
        with EXCLUSIVE, self._mode(training, freeze_norms=True), _seeded(generator, device_of(batch.inputs)):
            return capture(
                self._model,
                loss or self.loss,
                batch.inputs,
                batch.targets,
                parameters={**point.parameters, **point.buffers},
                buffers=point.buffers,
                weights_only=weights_only,
                indices=batch.indices,
            )

    @contextmanager
    def _mode(self, training: bool | None, freeze_norms: bool) -> Iterator[None]:
        for module, given in self._modes.items():
            wanted = given if training is None else training
            if isinstance(module, COUPLING):
                wanted = wanted and not freeze_norms
            module.training = wanted
        yield


def _seeded(generator: torch.Generator | None, device: torch.device) -> AbstractContextManager[None]:
    return nullcontext() if generator is None else _own_randomness(generator, device)


@contextmanager
def _own_randomness(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Run with global random state derived from `generator`, and put the old state back."""
    seed = int(torch.randint(2**62, (), generator=generator))
    if device.type != "cpu":
        with torch.random.fork_rng(devices=[device]):
            torch.manual_seed(seed)
            yield
        return
    # torch.manual_seed also queues a call, with a formatted traceback, for every idle accelerator.
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
