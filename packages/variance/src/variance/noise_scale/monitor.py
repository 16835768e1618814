"""Gradient statistics in a training loop of your own, every n steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gdyn_common.display import Axes, Figure, Shown
from variance.errors import ConfigError, require_count
from variance.losses import LossFunction
from variance.measurement import GradientNoise, measure_model
from variance.noise_scale.result import plot_noise_scales
from variance.randomness import Seed, number_of


class GradientMonitor(Shown):
    """Measures variance and noise scale of a model's mini-batch gradients beside its training.

    Nothing that training reads is changed: parameters, buffers, `.grad`, optimiser state and global random
    states stay as they are, bit for bit. Call it once per step, or let `attached` do that.

    Args:
        model: The model that is trained.
        loss: `loss(outputs, targets)`.
        inputs: Examples to draw from, in any form that `measure_model` takes.
        targets: Their targets.
        batch_size: Examples per draw; the loader's where None or 0.
        every: Steps between two measurements; the first one is at step 0.
        num_draws: Draws per measurement.
        seed: Seed of the draws; every measurement has draws of its own.

    Raises:
        ConfigError: `every` below 1, fewer than three draws, or a negative number.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> x, y = torch.randn(50, 4), torch.randint(3, (50,))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = GradientMonitor(model, nn.functional.cross_entropy, x, y, batch_size=8, every=10)
        >>> with monitor.attached(optimizer):
        ...     for _ in range(25):
        ...         optimizer.zero_grad()
        ...         nn.functional.cross_entropy(model(x), y).backward()
        ...         optimizer.step()
        >>> monitor.steps
        [0, 10, 20]
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int | None = None,
        every: int = 100,
        num_draws: int = 30,
        seed: Seed = 0,
    ) -> None:
        require_count("every", every)
        if batch_size is not None:
            require_count("batch_size", batch_size, 0)
        require_count("num_draws", num_draws, 3)
        self.model, self.loss, self.inputs, self.targets = model, loss, inputs, targets
        self.batch_size, self.every, self.num_draws = batch_size, every, num_draws
        self.seed = number_of(seed)
        self.steps: list[int] = []
        self.history: list[GradientNoise] = []
        self._count = 0

    def __call__(self) -> GradientNoise | None:
        """Count a step, and return what was measured if one was due.

        Returns:
            The names of `variance.statistics.UnbiasedStatistics`, with `_se` standard errors.
        """
        step, self._count = self._count, self._count + 1
        if step % self.every:
            return None
        found = measure_model(
            self.model,
            self.loss,
            self.inputs,
            self.targets,
            batch_size=self.batch_size,
            num_draws=self.num_draws,
            seed=self.seed + step,
        )
        self.steps.append(step)
        self.history.append(found)
        return found

    @contextmanager
    def attached(self, optimizer: torch.optim.Optimizer) -> Iterator["GradientMonitor"]:
        """Call the monitor before every step of a torch optimiser inside the block.

        Raises:
            ConfigError: For an object that only hands its steps on to an optimiser.
        """
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise ConfigError(
                f"optimizer is a {type(optimizer).__name__}, which only wraps another; pass the torch "
                "optimiser inside it."
            )

        def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self()

        handle = optimizer.register_step_pre_hook(before_step)
        try:
            yield self
        finally:
            handle.remove()

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the noise scale over the training, and return the figure.

        Args:
            axes: Axes of matplotlib to draw into; None makes a new figure.
        """
        scales = [(f["noise_scale"], f["noise_scale_low"], f["noise_scale_high"]) for f in self.history]
        return plot_noise_scales(axes, "step", self.steps, scales)

    def summary(self) -> str:
        """Return one sentence about the last measurement."""
        last = f"at step {self.steps[-1]}: {self.history[-1].summary()}" if self.history else "nothing yet"
        return f"{len(self.steps)} measurements; {last}"
