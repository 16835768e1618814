"""Measure any number of estimators at one point of training, leaving training bit-identical."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from variance import statistics
from variance.errors import ConfigError
from variance.estimators import SGB, GradientEstimator
from variance.estimators.sg import population_moments
from variance.objective import Objective, Point
from variance.stream import DataStream

Mode = Literal["unbiased", "reference", "exact"]
PlainMoments = Callable[[Objective], tuple[Tensor, Tensor]]


class Measurement:
    """Statistics of estimators at a detached copy of the current point.

    Batches come from forks of the stream, named by step and estimator; dropout from generators of their own;
    buffers are copies. Nothing that training reads is changed, and a measurement at step t does not depend on
    earlier ones.

    Args:
        estimators: What to measure.
        stream: Training stream; only forked.
        num_draws: Draws m per set: m in `unbiased` mode, 2 m in `reference` mode.
        mode: See `variance.statistics`.
        dead: Treatment of coordinates that are always zero.

    Raises:
        ConfigError: No estimator, two of the same name, an unknown mode or fewer than three draws.
    """

    def __init__(
        self,
        estimators: Sequence[GradientEstimator],
        stream: DataStream,
        *,
        num_draws: int = 10,
        mode: Mode = "unbiased",
        dead: statistics.Dead = "skip",
    ) -> None:
        names = [estimator.name for estimator in estimators]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"estimators {names} must be at least one, with distinct names.")
        if mode not in ("unbiased", "reference", "exact"):
            raise ConfigError(f"mode is '{mode}'; allowed are unbiased, reference, exact.")
        if mode != "exact":
            statistics.noise_floor(num_draws)
        self.estimators, self.stream, self.num_draws, self.mode, self.dead = (
            estimators,
            stream,
            num_draws,
            mode,
            dead,
        )

    def __call__(self, step: int, point: Point) -> dict[str, float]:
        """Return metrics by name, `<estimator>[B=<batch size>]/<statistic>`.

        Raises:
            NotReady: An estimator lacks the snapshot it needs.
        """
        metrics: dict[str, float] = {}
        with preserved_randomness():
            frozen = point.copy()
            sg_mean = self._plain_mean(step, frozen) if self.mode == "reference" else None
            plain = cache(lambda objective: population_moments(objective, frozen, self.stream.population))
            for estimator in self.estimators:
                started = time.perf_counter()
                if self.mode == "exact":
                    found = self._exact(frozen, estimator, plain)
                else:
                    found = self._sampled(step, frozen, estimator, sg_mean)
                label = f"{estimator.name}[B={self.stream.batch_size * estimator.batch_factor}]"
                found["seconds"] = time.perf_counter() - started
                metrics |= {f"{label}/{name}": value for name, value in found.items()}
                metrics |= estimator.info()
        return metrics

    def draws(
        self, step: int, point: Point, estimator: GradientEstimator, which: str = "a"
    ) -> Float[Tensor, "m p"]:
        """Return `num_draws` directions of one estimator."""
        return torch.stack(list(self._each(step, point, estimator, which)))

    def _each(
        self, step: int, point: Point, estimator: GradientEstimator, which: str
    ) -> Iterator[Float[Tensor, "p"]]:
        """Yield `num_draws` directions of one estimator, one at a time."""
        stream = self.stream.fork("measure", step, estimator.name, which, make_sampler=estimator.sampler)
        generator = torch.Generator().manual_seed(_seed(step, estimator.name, which, self.stream.seed))
        count = self.stream.batch_size * estimator.batch_factor
        for _ in range(self.num_draws):
            yield estimator.direction(point, stream.next(count), generator).values

    def _exact(self, point: Point, estimator: GradientEstimator, plain: PlainMoments) -> dict[str, float]:
        population, size = self.stream.population, self.stream.batch_size
        if not isinstance(estimator, SGB):
            return _numbers(estimator.exact(point, population, size))
        mean, variance = plain(estimator.objective)  # one pass over the data for all batch sizes
        return _numbers(
            statistics.from_moments(mean, variance, len(population), size * estimator.batch_factor)
        )

    def _sampled(
        self, step: int, point: Point, estimator: GradientEstimator, sg_mean: Tensor | None
    ) -> dict[str, float]:
        if self.mode == "reference":
            mean = statistics.mean_of(self._each(step, point, estimator, "a"))
            others = self._each(step, point, estimator, "b")
            return _numbers(statistics.reference_about(mean, others, sg_mean))
        draws = self.draws(step, point, estimator)
        pooled = statistics.unbiased(draws, self.stream.batch_size * estimator.batch_factor, dead=self.dead)
        return _numbers(pooled) | {f"{name}_se": value for name, value in pooled.standard_errors.items()}

    def _plain_mean(self, step: int, point: Point) -> Tensor:
        return statistics.mean_of(self._each(step, point, SGB(self.estimators[0].objective), "bias"))


def _numbers(found: object) -> dict[str, float]:
    names = {"bias": "bias_vs_sg"}
    return {names.get(k, k): float(v) for k, v in vars(found).items() if isinstance(v, float | int)}


def _seed(*names: object) -> int:
    from gdyn_common.seeding import named_seed

    return named_seed(0, *(name if isinstance(name, str | int) else str(name) for name in names))


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Put the global states of torch, NumPy and Python back after the block."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state to protect
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


def measure_model(
    model: nn.Module,
    loss: object,
    inputs: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    num_draws: int = 30,
    seed: int = 0,
) -> Mapping[str, float]:
    """Measure mini-batch gradient variance and noise scale of any model, in the middle of any training loop.

    Args:
        model: The model, in the mode it is trained in; nothing of it changes.
        loss: `loss(outputs, targets)`.
        inputs: Examples to draw from.
        targets: Their targets.
        batch_size: Examples per draw.
        num_draws: Draws.
        seed: Seed of the draws.

    Returns:
        The names of `variance.statistics.UnbiasedStatistics`, with `_se` standard errors.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> x, y = torch.randn(50, 4), torch.randint(3, (50,))
        >>> found = measure_model(model, nn.functional.cross_entropy, x, y, batch_size=8)
        >>> found["avg_var"] > 0 and found["noise_scale_se"] > 0
        True
    """
    from variance.data import TensorPopulation

    stream = DataStream(TensorPopulation(inputs, targets), batch_size, seed=seed)
    measurement = Measurement([SGB(Objective(model, loss))], stream, num_draws=num_draws)  # type: ignore[arg-type]
    found = measurement(0, Point.of(model))
    return {name.partition("/")[2]: value for name, value in found.items()}
