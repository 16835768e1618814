"""The training loop: frequent operation, infrequent operation, batch, direction, step, measurement."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gdyn_common.seeding import named_seed
from variance.errors import ConfigError, NonFiniteGradient, NotReady
from variance.estimators import GradientEstimator
from variance.objective import Point
from variance.paper.optimizer import Optimizer
from variance.randomness import preserved_randomness
from variance.stream import DataStream

MeasureCallback = Callable[[int, dict[str, float]], None]
Measure = Callable[[int, Point], dict[str, float]]
"""`measure(step, point)`; usually a `variance.measurement.Measurement`."""


@dataclass(frozen=True)
class Timing:
    """When things happen, in steps.

    Attributes:
        frequent_every: Steps between two `on_frequent` calls.
        infrequent_every: Steps between two `on_infrequent` calls.
        first_infrequent: Step of the first snapshot.
        measure_every: Steps between two measurements; none where 0.
        first_measure: Step of the first measurement.
        snapshot_timing: Take snapshots before the update of their step, or after it as the original does.
    """

    frequent_every: int = 10
    infrequent_every: int = 1000
    first_infrequent: int = 0
    measure_every: int = 0
    first_measure: int = 0
    snapshot_timing: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if min(self.frequent_every, self.infrequent_every) < 1 or self.measure_every < 0:
            raise ConfigError(
                "frequent_every and infrequent_every must be at least 1, measure_every at least 0."
            )
        if self.snapshot_timing not in ("before", "after"):
            raise ConfigError(f"snapshot_timing is '{self.snapshot_timing}'; allowed are before, after.")

    def frequent_is_due(self, step: int) -> bool:
        """Whether `on_frequent` runs at this step."""
        return step % self.frequent_every == 0

    def infrequent_is_due(self, step: int) -> bool:
        """Whether `on_infrequent` runs at this step: first snapshot, then multiples of the interval."""
        if step == self.first_infrequent:
            return True
        return step > self.first_infrequent and step % self.infrequent_every == 0

    def measure_is_due(self, step: int) -> bool:
        """Whether a measurement runs at this step."""
        return self.measure_every > 0 and step >= self.first_measure and step % self.measure_every == 0


class Trainer:
    """Trains with one estimator while others are kept up to date and measured.

    Training reads its own stream and generators only; measured estimators use forks, so adding or removing
    them changes no weight by a single bit.

    Args:
        optimizer: Applies directions to the live point.
        stream: Training batches.
        driver: The estimator whose direction is applied.
        measured: Estimators that are updated and measured beside it (the driver may be among them).
        measurement: What is measured; None to train only.
        timing: When.
        schedule: Learning rate by step; the optimiser's own where None.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        stream: DataStream,
        driver: GradientEstimator,
        *,
        measured: Sequence[GradientEstimator] = (),
        measurement: Measure | None = None,
        timing: Timing | None = None,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.optimizer, self.stream, self.driver = optimizer, stream, driver
        self.beside = [estimator for estimator in measured if estimator is not driver]
        self.measurement, self.timing, self.schedule = measurement, timing or Timing(), schedule
        self.step_count = 0
        self.last_loss = float("nan")
        self._loss_sum, self._loss_count = 0.0, 0
        self._dropout = torch.Generator().manual_seed(named_seed(stream.seed, "dropout"))

    def step(self) -> dict[str, float]:
        """Run one step and return what was measured before it (empty when nothing was due).

        `loss` is the mean over the batches since the last measurement.

        Raises:
            NonFiniteGradient: Loss or gradient became NaN or infinite.
            NotReady: An estimator is driven or measured before its first snapshot.
        """
        step = self.step_count
        before = self.timing.snapshot_timing == "before"
        self._operations(step, frequent=True, infrequent=before)
        try:
            metrics = self._measure(step)
            batch = self.stream.next(self.stream.batch_size * self.driver.batch_factor)
            direction = self.driver.direction(self.optimizer.point, batch, self._dropout)
        except NonFiniteGradient as error:
            raise NonFiniteGradient(
                f"training stopped at step {step}; the last finite loss was {self.last_loss:.6g}: {error}"
            ) from None
        except NotReady as error:
            due = self.timing.first_infrequent
            raise NotReady(f"step {step}: {error} The first snapshot is due at step {due}.") from None
        self.last_loss = direction.loss
        self._loss_sum, self._loss_count = self._loss_sum + direction.loss, self._loss_count + 1
        self.optimizer.apply(direction.values, self.schedule(step) if self.schedule else None)
        if not before:
            self._operations(step, frequent=False, infrequent=True)
        self.step_count += 1
        return metrics

    def run(self, num_steps: int, log: MeasureCallback | None = None) -> None:
        """Step until `num_steps` steps have been taken in all, handing measurements to `log`."""
        while self.step_count < num_steps:
            step = self.step_count
            metrics = self.step()
            if metrics and log is not None:
                log(step, metrics)

    def _measure(self, step: int) -> dict[str, float]:
        if self.measurement is None or not self.timing.measure_is_due(step):
            return {}
        loss = self._loss_sum / self._loss_count if self._loss_count else float("nan")
        self._loss_sum, self._loss_count = 0.0, 0
        return {"loss": loss} | self.measurement(step, self.optimizer.point)

    def _operations(self, step: int, *, frequent: bool, infrequent: bool) -> None:
        frequent = frequent and self.timing.frequent_is_due(step)
        infrequent = infrequent and self.timing.infrequent_is_due(step)
        if not frequent and not infrequent:
            return
        for estimator in sorted((self.driver, *self.beside), key=lambda one: one.is_derived):
            if not infrequent and not _has_frequent(estimator):
                continue
            with preserved_randomness():
                self._update(estimator, step, frequent=frequent, infrequent=infrequent)
        if infrequent:
            self._renew_sampler()

    def _update(self, estimator: GradientEstimator, step: int, *, frequent: bool, infrequent: bool) -> None:
        generator = torch.Generator().manual_seed(
            named_seed(self.stream.seed, "update", step, estimator.name)
        )
        point = self.optimizer.point.copy()
        if frequent and _has_frequent(estimator):
            batch = self.stream.fork("frequent", step, estimator.name).next()
            estimator.on_frequent(step, point, batch, generator)
        if infrequent:
            estimator.on_infrequent(step, point, self.stream.population, generator)

    def _renew_sampler(self) -> None:
        """Let the training stream follow a driver whose clusters have changed."""
        if type(self.driver).sampler is GradientEstimator.sampler:
            return
        name = ("train", "after", self.step_count)
        renewed = self.stream.fork(*name, make_sampler=self.driver.sampler)
        self.stream.sampler = renewed.sampler
        self.stream.restart_workers()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bit-identical continuation needs."""
        return {
            "step": self.step_count,
            "loss": self.last_loss,
            "loss_sum": (self._loss_sum, self._loss_count),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state_dict(),
            "dropout": self._dropout.get_state(),
            "driver": self.driver.state_dict(),
            "beside": {estimator.name: estimator.state_dict() for estimator in self.beside},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: The state belongs to another model or set of estimators.
        """
        names = [estimator.name for estimator in self.beside]
        if sorted(state["beside"]) != sorted(names):
            raise ValueError(
                f"checkpoint holds estimators {sorted(state['beside'])}, this run has {sorted(names)}."
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.driver.load_state_dict(state["driver"])
        for estimator in self.beside:
            estimator.load_state_dict(state["beside"][estimator.name])
        self.step_count, self.last_loss = int(state["step"]), float(state["loss"])
        self._loss_sum, self._loss_count = state["loss_sum"]
        self._renew_sampler()  # the kind of sampler; its state follows
        self.stream.load_state_dict(state["stream"])
        self._dropout.set_state(state["dropout"])


def _has_frequent(estimator: GradientEstimator) -> bool:
    return type(estimator).on_frequent is not GradientEstimator.on_frequent
