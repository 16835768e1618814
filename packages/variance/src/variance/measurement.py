"""Measure any number of estimators at one point of training, leaving training bit-identical."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from variance import statistics
from variance.data import DatasetPopulation, Population, TensorPopulation
from variance.errors import ConfigError, require_count, require_word
from variance.estimators import SGB, GradientEstimator
from variance.estimators.sg import population_moments
from variance.losses import LossFunction
from variance.objective import Objective, Point
from variance.per_example.recording import refuse_coupled_examples
from variance.randomness import RandomState, Seed, generator_of, number_of, preserved_randomness
from variance.sampling.index_samplers import UniformSampler
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
        require_word("mode", mode, get_args(Mode))
        require_word("dead", dead, get_args(statistics.Dead))
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
        with torch.inference_mode(False), preserved_randomness():
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
        generator = torch.Generator().manual_seed(_seed(step, estimator.name, which, self.stream.seed))
        count = self.stream.batch_size * estimator.batch_factor
        name = ("measure", step, estimator.name, which)
        stream = self.stream.fork(*name, make_sampler=estimator.sampler)
        for draw in range(self.num_draws):
            if self.mode == "unbiased" and draw:  # a new sampler for every draw makes draws independent
                stream = self.stream.fork(*name, draw, make_sampler=estimator.sampler)
            yield estimator.direction(point, stream.next(count), generator).values

    def _exact(self, point: Point, estimator: GradientEstimator, plain: PlainMoments) -> dict[str, float]:
        population, size = self.stream.population, self.stream.batch_size
        if not isinstance(estimator, SGB):
            return _numbers(estimator.exact(point, population, size))
        mean, variance = plain(estimator.objective)  # one pass over the data for all batch sizes
        return _numbers(
            statistics.from_moments(
                mean, variance, len(population), size * estimator.batch_factor, replacement=False
            )
        )

    def _sampled(
        self, step: int, point: Point, estimator: GradientEstimator, sg_mean: Tensor | None
    ) -> dict[str, float]:
        if self.mode == "reference":
            mean = statistics.mean_of(self._each(step, point, estimator, "a"))
            others = self._each(step, point, estimator, "b")
            return _numbers(statistics.reference_about(mean, others, sg_mean))
        running = statistics.RunningDraws()
        for draw in self._each(step, point, estimator, "a"):
            running.add(draw)
        count, size = self.stream.batch_size * estimator.batch_factor, len(self.stream.population)
        is_uniform = type(estimator).sampler is GradientEstimator.sampler  # all examples make one batch
        fits = count < size or (is_uniform and count == size > 1)
        design = statistics.Design("batches", size) if fits else None
        pooled = running.result(count, design=design, dead=self.dead)
        return _numbers(pooled) | {f"{name}_se": value for name, value in pooled.standard_errors.items()}

    def _plain_mean(self, step: int, point: Point) -> Tensor:
        return statistics.mean_of(self._each(step, point, SGB(self.estimators[0].objective), "bias"))


def _numbers(found: object) -> dict[str, float]:
    names = {"bias": "bias_vs_sg"}
    return {names.get(k, k): float(v) for k, v in vars(found).items() if isinstance(v, float | int)}


def _seed(*names: object) -> int:
    from gdyn_common.seeding import named_seed

    return named_seed(0, *(name if isinstance(name, str | int) else str(name) for name in names))


@dataclass(frozen=True, repr=False)
class GradientNoise(Mapping[str, float]):
    """What `measure_model` found: numbers by name, as a mapping.

    Attributes:
        values_by_name: The names of `variance.statistics.UnbiasedStatistics`, with `_se` standard errors.
        batch_size: B of the draws.
        num_draws: Draws; 0 where all examples were used.
    """

    values_by_name: Mapping[str, float]
    batch_size: int
    num_draws: int

    def __getitem__(self, name: str) -> float:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def to_dict(self) -> dict[str, float]:
        """Return a plain dictionary."""
        return dict(self.values_by_name)

    def summary(self) -> str:
        """Return one sentence.

        Example:
            >>> names = ("noise_scale", "noise_scale_low", "noise_scale_high")
            >>> GradientNoise(dict(zip(names, (287.0, 210.0, 450.0))), 32, 30).summary()
            'noise scale 287 examples (95 %: 210 to 450), from 30 batches of 32'
        """
        source = f"{self.num_draws} batches of {self.batch_size}" if self.num_draws else "all examples"
        low, high = self["noise_scale_low"], self["noise_scale_high"]
        return statistics.told(self["noise_scale"], low, high, source)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"


def measure_model(
    model: nn.Module,
    loss: LossFunction,
    inputs: Any,
    targets: Any = None,
    *,
    batch_size: int | None = None,
    num_draws: int = 30,
    use: Literal["draws", "all"] = "draws",
    seed: Seed = 0,
) -> GradientNoise:
    """Measure mini-batch gradient variance and noise scale of any model, in the middle of any training loop.

    Examples are drawn independently, with replacement, so all estimates are unbiased and refer to the
    population that is given. `loss` may be any loss of the batch, with class weights or masked positions,
    too: what is measured is the gradient of exactly this loss, before any hook of a parameter. Only a sum
    over examples counts as their mean; its noise scale is the same. At its peak it
    takes 2.3 times the memory of float32 parameters, and half a megabyte for each draw, beside a backward
    pass of the model; with `all`, which sums in double precision, 4 times, and what per-example paths need.

    Args:
        model: The model, in the mode it is trained in; nothing of it changes.
        loss: `loss(outputs, targets)`; for a model that returns its loss `lambda outputs, _: outputs.loss`.
        inputs: Examples to draw from: a tensor, a tuple of arguments, a mapping of keywords, a data set,
            or a loader, whose data set is taken.
        targets: Their targets; None where a data set or the inputs hold them.
        batch_size: Examples per draw; the loader's where None or 0.
        num_draws: Draws.
        use: `draws`, or `all`: per-example gradients of all examples, without sampling error.
        seed: Seed of the draws.

    Returns:
        The names of `variance.statistics.UnbiasedStatistics` (`ExactStatistics` for `all`), `_se` standard
        errors, and `noise_scale_low` and `noise_scale_high`, a 95 % interval.

    Raises:
        ConfigError: Fewer than three draws, no batch size, examples of an unknown kind, a loader whose
            sampler prefers some, or `all` with dropout in training mode.
        CoupledExamples: `all` with a loss or a model that mixes examples.
        UnsupportedLayer: `all` with batch norm in training mode.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(4, 3)
        >>> x, y = torch.randn(50, 4), torch.randint(3, (50,))
        >>> found = measure_model(model, nn.functional.cross_entropy, x, y, batch_size=8)
        >>> exact = measure_model(model, nn.functional.cross_entropy, x, y, batch_size=8, use="all")
        >>> found["noise_scale_low"] < exact["noise_scale"] < found["noise_scale_high"]
        True
    """
    if batch_size is not None:
        require_count("batch_size", batch_size, 0)
    draws = generator_of(seed)
    require_word("use", use, ("draws", "all"))
    population, own_size = _population_of(inputs, targets)
    size = int(batch_size or own_size)
    if size < 1:
        raise ConfigError("batch_size is missing; give the examples per draw.")
    objective, live = Objective(model, loss), Point.of(model)
    if not live.parameters:
        raise ConfigError("the model has no trainable parameter; set requires_grad on some.")
    with torch.inference_mode(False), preserved_randomness():
        buffers = {name: value.clone() for name, value in live.buffers.items()}
        point = Point({name: value.detach() for name, value in live.parameters.items()}, buffers)
        if use == "all":
            refuse_coupled_examples(model)
            _require_no_randomness(objective, point, population)
            mean, variance = population_moments(objective, point, population, training=None)
            found = _numbers(statistics.from_moments(mean, variance, len(population), size))
            ends = {f"noise_scale_{end}": found["noise_scale"] for end in ("low", "high")}
            return GradientNoise(found | ends, size, 0)
        statistics.noise_floor(num_draws)
        sampler = UniformSampler(len(population), draws, replacement=True)
        generator = torch.Generator().manual_seed(_seed("measure_model", number_of(seed)))
        running = statistics.RunningDraws()
        for _ in range(num_draws):
            batch = population.fetch(sampler.draw(size).indices)
            running.add(*objective.gradients(point, batch, generator, training=None)[0].values())
    pooled = running.result(size)
    errors = {f"{name}_se": value for name, value in pooled.standard_errors.items()}
    return GradientNoise(_numbers(pooled) | errors, size, num_draws)


def _population_of(inputs: Any, targets: Any) -> tuple[Population, int]:
    """Return examples that can be fetched by index, and the batch size of a loader (else 0)."""
    is_batch = isinstance(inputs, Tensor | Mapping | tuple | list)
    if isinstance(inputs, list) and targets is None:  # arguments of the model, or one example after the other
        is_batch = not (inputs and isinstance(inputs[0], Mapping | tuple | list))
    if targets is not None and not is_batch:
        raise ConfigError(
            f"targets were given beside a {type(inputs).__name__}; a data set or loader holds its own (leave "
            "them out), and batches are made of tensors (torch.from_numpy)."
        )
    if isinstance(inputs, DataLoader):
        return DatasetPopulation(_examples_of(inputs), collate=inputs.collate_fn), inputs.batch_size or 0
    if hasattr(inputs, "fetch"):
        return inputs, 0
    return (TensorPopulation(inputs, targets) if is_batch else DatasetPopulation(inputs)), 0


def _examples_of(loader: "DataLoader[Any]") -> Any:
    """Return the data set whose examples a loader draws equally often.

    Raises:
        ConfigError: Its sampler prefers some examples, or says nothing about it.
    """
    own = loader.batch_sampler if loader.batch_size is None else loader.sampler
    sampler = own.sampler if type(own) is BatchSampler else own or loader.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(sampler.indices))
    equally = (SequentialSampler, RandomSampler, DistributedSampler)
    if type(sampler) in equally or isinstance(loader.dataset, IterableDataset):  # the latter is refused later
        return loader.dataset
    raise ConfigError(
        f"the loader's {type(sampler).__name__} may draw some examples more often than others, but what is "
        "measured draws all equally often. Pass the data set and batch_size, and weigh the loss instead."
    )


def _require_no_randomness(objective: Objective, point: Point, population: Population) -> None:
    """Refuse dropout in training mode: single examples have no exact gradient.

    Raises:
        ConfigError: A forward pass draws random numbers.
    """
    before = RandomState.now()
    with torch.enable_grad():  # a model may differentiate in its forward pass
        objective.losses(
            point, population.fetch(torch.arange(min(2, len(population)))), training=None, freeze_norms=True
        )
    if not before.same_as(RandomState.now()):
        raise ConfigError(
            "use='all' is exact, but the model draws random numbers (dropout?); call model.eval(), or pass "
            "use='draws'."
        )
