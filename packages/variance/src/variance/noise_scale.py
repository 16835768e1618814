"""Noise scale from gradients that a training loop computes anyway: no extra pass, no copy of a gradient.

A step that accumulates k micro-batches of b examples (on one device, or on several data-parallel ranks)
knows k small gradients and their mean. With |g_small|^2 = |mu|^2 + v own and |g_mean|^2 = |mu|^2 + v
of_mean in expectation, the variance v of one example and |mu|^2 follow without bias, for the model and for
each of its parameters.

Source: McCandlish et al. 2018, Appendix A.1 (two batch sizes); here the small one is that of the
micro-batches.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gdyn_common.display import Shown
from variance.errors import ConfigError
from variance.statistics import Design, inverse_interval


@dataclass(frozen=True, repr=False)
class NoiseScale(Shown):
    """Noise scale of a model over some steps.

    Attributes:
        noise_scale: Variance of one example's gradient over the squared norm of its mean, in examples (NaN
            where the latter is not positive).
        low: Lower end of the 95 % interval.
        high: Upper end; infinite where a gradient of zero cannot be excluded.
        trace_cov: Variance of one example's gradient.
        grad_norm_sq: Squared norm of the mean gradient, unbiased.
        by_parameter: Noise scale by parameter name.
        num_steps: Steps behind it.
    """

    noise_scale: float
    low: float
    high: float
    trace_cov: float
    grad_norm_sq: float
    by_parameter: Mapping[str, float]
    num_steps: int

    def summary(self) -> str:
        """Return one sentence."""
        interval = f"{self.low:.3g} to {self.high:.3g}"
        return f"noise scale {self.noise_scale:.3g} examples (95 %: {interval}), from {self.num_steps} steps"

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name, those of parameters as `noise_scale/<name>`."""
        own = {k: float(v) for k, v in vars(self).items() if isinstance(v, float | int)}
        return own | {f"noise_scale/{name}": value for name, value in self.by_parameter.items()}


class NoiseMeter:
    """Reads the noise scale off the micro-batches of a training loop of your own.

    Hooks on the parameters see every gradient as it arrives; only its squared norm is kept. Call `step`
    after the last backward pass of a step and before gradients are clipped or cleared. Under
    `DistributedDataParallel` the ranks are micro-batches, too; the norms of all ranks are averaged by one
    all-reduce of a vector with one entry per parameter.

    Args:
        model: The model that is trained.
        micro_batch_size: Examples per backward pass (and rank).
        population: Size of the training set, where it is visited in epochs without replacement: corrects
            for examples of one step being different ones. 0 for independent examples or an endless stream.
        divided: Whether losses are divided by the number of micro-batches of a step. The noise scale is the
            same in any case, variance and squared norm are not.

    Raises:
        ConfigError: No trainable parameter, or a size below 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(3, 1)
        >>> meter = NoiseMeter(model, micro_batch_size=4)
        >>> for _ in range(50):
        ...     model.zero_grad()
        ...     for _ in range(8):
        ...         x = torch.randn(4, 3)
        ...         (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        ...     meter.step()
        >>> found = meter.result()
        >>> found.low < found.noise_scale < found.high
        True
    """

    def __init__(
        self, model: nn.Module, micro_batch_size: int, *, population: int = 0, divided: bool = False
    ) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ConfigError("the model has no trainable parameter; set requires_grad on some.")
        if micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size is {micro_batch_size}; it must be at least 1.")
        self.micro_batch_size = micro_batch_size
        self._divided = divided
        self._design = Design("epochs", population) if population else Design()
        self._handles = [p.register_hook(self._hook(name)) for name, p in self._parameters.items()]
        self._arrived: dict[str, list[Tensor]] = {}
        self._steps: list[tuple[Tensor, Tensor]] = []

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def see(gradient: Tensor) -> None:
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            self._arrived.setdefault(name, []).append(_squared_norm(values))

        return see

    def step(self) -> None:
        """Take in the micro-batches since the last call.

        Raises:
            ConfigError: A single micro-batch on a single rank, or gradients were cleared.
        """
        counts = {len(norms) for norms in self._arrived.values()}
        micro, ranks = max(counts, default=0), _world_size()
        if micro * ranks < 2:
            raise ConfigError(
                f"{micro} backward pass on {ranks} rank: at least two micro-batches a step are needed. "
                "Split the batch, or use measure_model beside the loop."
            )
        device = next(iter(self._parameters.values())).device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        small, of_mean, unit = [], [], micro**2 if self._divided else 1
        for name, p in self._parameters.items():
            norms = self._arrived.get(name, [])
            small.append(torch.stack(norms).sum() * (unit / micro) if norms else zero)
            if norms and p.grad is None:
                raise ConfigError("gradients were cleared before step(); call it before zero_grad.")
            of_mean.append(zero if p.grad is None else _squared_norm(p.grad.detach()) * (unit / micro**2))
        self._arrived = {}
        pair = (torch.stack(small), torch.stack(of_mean).cpu())
        if ranks > 1:
            torch.distributed.all_reduce(pair[0])
        own, shared = self._design.factors(micro * ranks, self.micro_batch_size)
        difference = (pair[0] / ranks).cpu() - pair[1]
        trace = difference / (own - shared)
        self._steps.append((trace, pair[1] - shared * trace))

    def result(self, last: int | None = None) -> NoiseScale:
        """Return the noise scale over the last steps, all by default.

        Raises:
            ConfigError: Fewer than three steps.
        """
        steps = self._steps[-last:] if last else self._steps
        if len(steps) < 3:
            raise ConfigError(f"{len(steps)} steps were taken in; an interval needs at least 3.")
        traces, norms = (torch.stack(column) for column in zip(*steps, strict=True))
        trace, norm = traces.sum(1), norms.sum(1)
        inverse = float(norm.mean() / trace.mean())
        left = (norm.sum() - norm) / (trace.sum() - trace)  # the ratio without one step
        n = len(steps)
        error = math.sqrt((n - 1) * float(left.var(correction=0)))
        low, high = inverse_interval(inverse, error, n)
        means = zip(self._parameters, traces.mean(0).tolist(), norms.mean(0).tolist(), strict=True)
        return NoiseScale(
            noise_scale=1 / inverse if inverse > 0 else math.nan,
            low=low,
            high=high,
            trace_cov=float(trace.mean()),
            grad_norm_sq=float(norm.mean()),
            by_parameter={name: t / m if m > 0 else math.nan for name, t, m in means},
            num_steps=n,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the steps taken in so far, for a checkpoint: two arrays of steps by parameters."""
        empty = torch.zeros(0, len(self._parameters), dtype=torch.float64)
        traces, norms = (
            (torch.stack(column) for column in zip(*self._steps, strict=True))
            if self._steps
            else (empty, empty)
        )
        return {"traces": traces, "norms": norms}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the steps of a checkpoint.

        Raises:
            ConfigError: The steps are those of a model with another number of parameters.
        """
        traces, norms = state["traces"], state["norms"]
        if traces.shape != norms.shape or traces.ndim != 2 or traces.shape[1] != len(self._parameters):
            raise ConfigError(
                f"the state has steps of shape {tuple(traces.shape)}, but the model has "
                f"{len(self._parameters)} trainable parameters; load the state of the same model."
            )
        self._steps = list(zip(traces.unbind(), norms.unbind(), strict=True))

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "NoiseMeter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _squared_norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values.detach(), dtype=torch.float64)
    return norm.square()


def _world_size() -> int:
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1
