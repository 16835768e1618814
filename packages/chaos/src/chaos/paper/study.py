"""The units of work that the figures are made of, each stored as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from chaos.models import mlp, seeded
from chaos.paper.calibration import announce, decomposition_seconds
from chaos.paper.config import Fig3Config, StudyConfig
from chaos.paper.data import Data, configured
from chaos.paper.training import Control, Plan, advance_together, flat_parameters, model_seed, track, train
from chaos.perturbation import STRATEGIES, perturbation_vector
from gdyn_common.seeding import named_seed
from gdyn_common.storage import Arrays
from gdyn_reproduce.runs import Estimate, Run

_STEPS, _TANGENT_STEPS = 20, 3
_ANNOUNCED_ABOVE = 200


class Study:
    """A figure's data, network and run folder.

    Args:
        config: Of the figure.
        run: Open run folder.
    """

    def __init__(self, config: StudyConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.dtype = getattr(torch, config.dtype)
        self.data = configured(config)
        run.note(data=self.data.source)

    def model(self, seed: int) -> nn.Module:
        """The network at the initialisation of a seed."""
        config = self.config
        build = lambda: mlp(self.data.num_inputs, config.inter_dim, 10, config.activation)  # noqa: E731
        return seeded(build, model_seed(seed), self.dtype).to(config.device)

    def plan(self, seed: int, **changes: object) -> Plan:
        """The configured plan of a seed."""
        values: dict[str, object] = {
            "seed": seed,
            "num_steps": self.config.num_steps,
            "batch_size": self.config.batch_size,
            "learning_rate": self.config.learning_rate,
            "evaluate_every": self.config.evaluate_every,
        }
        return Plan(**(values | changes))  # type: ignore[arg-type]

    def trained(self, seed: int, prune_set: str | None = None, prune_start: int = 0) -> Arrays:
        """One training run: curves of accuracy and loss."""
        name = f"{prune_set or 'sgd'}/start={prune_start}/seed={seed}"
        plan = self.plan(seed, prune_set=prune_set, prune_start=prune_start)
        return self.run.piece(
            name, lambda: train(self.model(seed), self.data, plan, self.run.checkpoint(name))
        )

    def tracked(self, seed: int, at: list[int], control: Control = "") -> Arrays:
        """Exponents of a run of SGD, or of a control, at the given steps."""
        name = f"tangent{control and ' ' + control}/seed={seed}"
        plan = self.plan(seed, num_steps=max(at))
        return self.run.piece(
            name, lambda: track(self.model(seed), self.data, plan, at, self.run.checkpoint(name), control)[1]
        )

    def perturbed(self, seed: int) -> Arrays:
        """Distances of the five perturbed copies: ``t``, ``distances`` (5, T), ``exponents``."""
        config = self.config
        assert isinstance(config, Fig3Config)
        tangent = self.run.piece(f"directions/seed={seed}", lambda: self._directions(seed, config))
        return self.run.piece(f"distances/seed={seed}", lambda: self._distances(seed, config, tangent))

    def _directions(self, seed: int, config: Fig3Config) -> Arrays:
        plan = self.plan(seed, num_steps=config.tangent_steps)
        name = f"tangent/seed={seed}"
        tracker, _ = track(self.model(seed), self.data, plan, [], self.run.checkpoint(name))
        exponents, vectors = tracker.vectors()
        generator = torch.Generator().manual_seed(named_seed(seed, "perturbation"))
        perturbations = [
            perturbation_vector(len(vectors), config.distance, name, (exponents, vectors), generator)
            for name in STRATEGIES
        ]
        return {
            "exponents": exponents.numpy(force=True),
            "perturbations": torch.stack(perturbations).numpy(force=True),
        }

    def _distances(self, seed: int, config: Fig3Config, tangent: Arrays) -> Arrays:
        model = self.model(seed)
        origin = flat_parameters(model)
        moved = origin + torch.from_numpy(tangent["perturbations"]).to(origin)
        starts = torch.cat([origin[None], moved])
        times, distances = [0], [(starts[1:] - starts[0]).norm(dim=1).numpy(force=True)]
        for step, theta in advance_together(model, starts, self.data, self.plan(seed)):
            if step % config.measure_every == 0:
                times.append(step)
                distances.append((theta[1:] - theta[0]).norm(dim=1).numpy(force=True))
        return {"t": np.array(times), "distances": np.array(distances).T, "exponents": tangent["exponents"]}

    def announce(self, estimate: Callable[[Any], Estimate]) -> None:
        """Print the expected cost before the first step, unless the run takes seconds anyway."""
        if self.config.num_steps > _ANNOUNCED_ABOVE:
            announce(estimate(self.config))

    @staticmethod
    def estimate(
        config: StudyConfig,
        *,
        pruned_steps: int = 0,
        plain_steps: int = 0,
        tangent_steps: int = 0,
        decompositions: int = 0,
    ) -> Estimate:
        """Time and memory of training steps on this machine, from a few of each kind."""
        dtype = getattr(torch, config.dtype)
        data = configured(config)
        plan = Plan(0, 1, config.batch_size, config.learning_rate)
        model = seeded(lambda: mlp(data.num_inputs, config.inter_dim, 10), 0, dtype).to(config.device)
        n = sum(p.numel() for p in model.parameters())
        seconds = 0.0
        for prune_set, steps in ((None, plain_steps), ("chaotic", pruned_steps)):
            if steps:
                short, long = (
                    replace(plan, prune_set=prune_set, num_steps=count) for count in (1, 1 + _STEPS)
                )
                _seconds(model, data, short)  # the first call loads what the others use
                each = (_seconds(model, data, long) - _seconds(model, data, short)) / _STEPS
                seconds += steps * max(each, 0.0)
        if tangent_steps:
            track(model, data, plan, [])
            started = time.perf_counter()
            track(model, data, replace(plan, num_steps=_TANGENT_STEPS), [])
            seconds += tangent_steps * (time.perf_counter() - started) / _TANGENT_STEPS
        if decompositions:
            seconds += decompositions * decomposition_seconds(n, dtype)
        images = data.x_train.numel() + data.x_test.numel()
        tangent = 3 * n * n if tangent_steps else 0
        return Estimate(seconds, float(dtype.itemsize * (4 * n * 400 + images + tangent)))

    @staticmethod
    def estimate_perturbed(config: Fig3Config) -> Estimate:
        """Time and memory of the perturbed copies: one tangent matrix per seed, then six trainings."""
        seeds, copies = len(config.seeds), 1 + len(STRATEGIES)
        return Study.estimate(
            config,
            plain_steps=copies * seeds * config.num_steps,
            tangent_steps=seeds * config.tangent_steps,
            decompositions=2 * seeds,  # singular vectors take about twice as long as values
        )


def _seconds(model: nn.Module, data: Data, plan: Plan) -> float:
    started = time.perf_counter()
    train(model, data, plan)
    return time.perf_counter() - started
