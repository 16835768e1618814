"""Stochastic variance-reduced gradient: plain, partial, clipped and scaled by alpha.

direction = g_b(theta) - alpha m * (g_b(snapshot) - mean gradient at the snapshot), with m a per-coordinate
0/1 mask.

Source: Johnson and Zhang 2013; the clipped variant of Faghri et al. 2020; alpha-SVRG of Yin et al. 2024.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from variance.data import Population
from variance.errors import NotReady, require_count, require_number, require_word
from variance.estimators.base import Direction, GradientEstimator
from variance.estimators.sg import EXACT_CHUNK, passes
from variance.objective import Batch, Objective, Point
from variance.per_example import quantities
from variance.randomness import Seed, number_of
from variance.statistics import ExactStatistics, from_moments

ClipTest = Literal["mean", "norm_var", "snr"]


class SVRG(GradientEstimator):
    """Mini-batch gradient with the control variate of a snapshot.

    Dropout is off and batch norm frozen in the snapshot *and* in both gradients of the batch, so that the
    control variate has mean zero; data are not augmented in the snapshot.

    Args:
        objective: The function whose gradient is estimated.
        snapshot_fraction: Share of the population in the snapshot mean (partial SVRG); a random subset below
            1.
        alpha: Coefficient of the control variate right after a snapshot.
        alpha_decay_steps: Steps after which alpha has decayed linearly to 0; no decay where None.
        clip: Apply the control variate only to coordinates where this test passes: |running mean| > c,
            normalised variance > c, or log signal-to-noise > c (running moments with decay 0.9 of mini-batch
            gradients).
        clip_threshold: c.
        seed: Seed of the partial snapshot's subset.
    """

    name = "SVRG"
    STATE = ("snapshot", "snapshot_mean", "snapshot_step", "_step", "_moments")
    KINDS = (("snapshot", Point),)
    DECAY = 0.9

    def __init__(
        self,
        objective: Objective,
        *,
        snapshot_fraction: float = 1.0,
        alpha: float = 1.0,
        alpha_decay_steps: int | None = None,
        clip: ClipTest | None = None,
        clip_threshold: float = 0.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(objective)
        require_number("snapshot_fraction", snapshot_fraction, most=1, above=0)
        require_number("alpha", alpha)
        if alpha_decay_steps is not None:
            require_count("alpha_decay_steps", alpha_decay_steps)
        require_word("clip", clip, (*get_args(ClipTest), None))
        require_number("clip_threshold", clip_threshold)
        self.snapshot_fraction, self.alpha, self.alpha_decay_steps = (
            snapshot_fraction,
            alpha,
            alpha_decay_steps,
        )
        self.clip, self.clip_threshold, self.seed = clip, clip_threshold, number_of(seed)
        self.snapshot: Point | None = None
        self.snapshot_mean: Tensor | None = None
        self.snapshot_step = self._step = 0
        self._moments: dict[str, Tensor] = {}

    @override
    def on_infrequent(
        self, step: int, point: Point, population: Population, generator: torch.Generator | None = None
    ) -> None:
        indices = torch.arange(len(population))
        if self.snapshot_fraction < 1:
            order = np.random.default_rng((self.seed, step)).permutation(len(population))
            indices = torch.from_numpy(
                np.sort(order[: max(1, round(self.snapshot_fraction * len(population)))])
            )
        total = torch.zeros(len(point.flat()), dtype=torch.float64)
        for rows in indices.split(EXACT_CHUNK):
            batch = population.fetch(rows)
            gradient, _ = self.objective.gradient(point, batch, training=False, additive=True)
            total += len(rows) * gradient.double().cpu()
        self.snapshot = point.copy()
        self.snapshot_mean = (total / len(indices)).to(point.flat())
        self.snapshot_step = self._step = step

    @override
    def on_frequent(
        self, step: int, point: Point, batch: Batch, generator: torch.Generator | None = None
    ) -> None:
        self._step = step
        if self.clip is None:
            return
        g, _ = self.objective.gradient(point, batch, generator, training=False)
        old = self._moments or {name: torch.zeros_like(g) for name in ("mean", "second", "centred")}
        mean = self.DECAY * old["mean"] + (1 - self.DECAY) * g
        self._moments = {
            "mean": mean,
            "second": self.DECAY * old["second"] + (1 - self.DECAY) * g.square(),
            "centred": self.DECAY * old["centred"] + (1 - self.DECAY) * (g - mean).square(),
        }

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        if self.snapshot is None or self.snapshot_mean is None:
            raise NotReady("SVRG has no snapshot yet; it is taken by on_infrequent.")
        new, loss = self.objective.gradient(point, batch, training=False)
        old, _ = self.objective.gradient(self.snapshot, batch, training=False, additive=True)
        # both gradients are fresh, so no temporary of the size of the model is needed
        control = old.sub_(self.snapshot_mean)
        if self.clip is not None:
            control *= self._mask(control)
        if (coefficient := self.coefficient()) != 1:
            control *= coefficient
        return Direction(new.sub_(control), loss)

    def coefficient(self) -> float:
        """Return alpha at the current step."""
        if self.alpha_decay_steps is None:
            return self.alpha
        return self.alpha * max(0.0, 1 - (self._step - self.snapshot_step) / self.alpha_decay_steps)

    def _mask(self, like: Tensor) -> Tensor:
        if self.clip is None or not self._moments:
            return torch.ones_like(like)
        mean, second, centred = (self._moments[name] for name in ("mean", "second", "centred"))
        if self.clip == "mean":
            score = mean.abs()
        elif self.clip == "norm_var":
            score = centred / second.clamp_min(1e-30)
        else:
            score = (second + 1e-30).log() - (centred + 1e-30).log()
        return (score > self.clip_threshold).to(like)

    @override
    def exact(self, point: Point, population: Population, batch_size: int) -> ExactStatistics:
        if self.snapshot is None or self.snapshot_mean is None:
            raise NotReady("SVRG has no snapshot yet; it is taken by on_infrequent.")
        scale = self.coefficient() * self._mask(self.snapshot_mean)
        first = second = torch.zeros((), dtype=torch.float64)
        for indices in passes(len(population)):
            batch = population.fetch(indices)
            new, old = self.objective.capture(point, batch), self.objective.capture(self.snapshot, batch)
            sums, squares = quantities.difference_moments(new, old, scale)
            first, second = first + sums, second + squares
        centre = first / len(population)
        variance = (second / len(population) - centre.square()).clamp_min(0)
        mean = centre + scale * self.snapshot_mean
        return from_moments(mean, variance, len(population), batch_size, replacement=False)
