"""The noise scale, read off the micro-batches of a training loop."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from variance.errors import ConfigError
from variance.noise_scale.norms import NORMS, interval_of_inverse, norm_noise
from variance.noise_scale.result import NoiseScale
from variance.statistics import Design


class NoiseMeter:
    """Reads the noise scale off the micro-batches of a training loop of your own.

    Hooks on the parameters see every gradient as it arrives; only its squared norm is kept. Call `step`
    after the last backward pass of a step and before gradients are clipped, unscaled or cleared. Under
    `DistributedDataParallel` the ranks are micro-batches, too; the norms of all ranks are averaged by one
    all-reduce of a vector with one entry per parameter. Steps whose micro-batches are not all of the given
    size, as at the end of an epoch, and steps with gradients that are not finite are left out, with a
    warning.

    Args:
        model: The model that is trained.
        micro_batch_size: Examples per backward pass (and rank).
        population: Size of the training set, where it is visited in epochs without replacement: corrects
            for examples of one step being different ones. 0 for independent examples or an endless stream.
        divided: Whether losses are divided by the number of micro-batches of a step. The noise scale is the
            same in any case, variance and squared norm are not.
        norms_every: Steps between two measurements of the `l1` and `nuclear` norms; none where 0. Each takes
            the memory of the largest parameter, and the singular values of two matrices per parameter.

    Raises:
        ConfigError: No trainable parameter, or a size below 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(3, 1)
        >>> meter = NoiseMeter(model, micro_batch_size=4, norms_every=5)
        >>> for _ in range(50):
        ...     model.zero_grad()
        ...     for _ in range(8):
        ...         x = torch.randn(4, 3)
        ...         (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        ...     meter.step()
        >>> found = meter.result()
        >>> found.low < found.noise_scale < found.high
        True
        >>> found.norms["l1"].num_steps
        10
    """

    def __init__(
        self,
        model: nn.Module,
        micro_batch_size: int,
        *,
        population: int = 0,
        divided: bool = False,
        norms_every: int = 0,
    ) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ConfigError("the model has no trainable parameter; set requires_grad on some.")
        if micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size is {micro_batch_size}; it must be at least 1.")
        if norms_every < 0:
            raise ConfigError(f"norms_every is {norms_every}; it must be at least 0.")
        self.micro_batch_size, self.norms_every, self.num_skipped = micro_batch_size, norms_every, 0
        self._divided = divided
        self._design = Design("epochs", population) if population else Design()
        self._handles: list[Any] = [model.register_forward_pre_hook(self._see_inputs, with_kwargs=True)]
        for name, p in self._parameters.items():
            self._handles.append(p.register_hook(self._hook(name, p)))
            self._handles.append(p.register_post_accumulate_grad_hook(self._mark(name)))
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._norms: list[Tensor] = []
        self._count, self._knows_sizes = 0, False
        self._forget()

    def _forget(self) -> None:
        self._arrived: dict[str, list[Tensor]] = {}
        self._left_over: list[Tensor] = []
        self._differences: dict[str, list[Tensor]] = {}
        self._marks: dict[str, tuple[int, int]] = {}
        self._shapes: list[tuple[int, ...]] = []

    def _hook(self, name: str, p: Tensor) -> Callable[[Tensor], None]:
        def see(gradient: Tensor) -> None:
            seen = self._arrived.setdefault(name, [])
            before = None if p.grad is None else p.grad.detach()
            if before is not None and not seen:
                self._left_over.append(_squared_norm(before))
            if before is not None and len(seen) == 1 and self._norms_are_due:
                difference = _dense(gradient.detach()) - _dense(before)
                self._differences[name] = [norm(difference) for norm in NORMS.values()]
            seen.append(_squared_norm(gradient))

        return see

    def _mark(self, name: str) -> Callable[[Tensor], None]:
        def mark(p: Tensor) -> None:
            if p.grad is not None:
                self._marks[name] = _state_of(p.grad)

        return mark

    def _see_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            leaves = pytree.tree_leaves((args, kwargs))
            self._shapes += [tuple(leaf.shape[:2]) for leaf in leaves if isinstance(leaf, Tensor)][:1]

    @property
    def _norms_are_due(self) -> bool:
        return self.norms_every > 0 and self._count % self.norms_every == 0

    def step(self, *, loss_scale: float = 1.0) -> None:
        """Take in the micro-batches since the last call.

        Args:
            loss_scale: What losses are multiplied by: `scaler.get_scale()` with a `GradScaler`.

        Raises:
            ConfigError: A single micro-batch on a single rank, gradients were cleared, clipped or unscaled
                before, or not cleared after the last step.
        """
        counts = {len(norms) for norms in self._arrived.values()}
        micro, ranks = max(counts, default=0), _world_size()
        if micro * ranks < 2:
            raise ConfigError(
                f"{micro} backward pass on {ranks} rank: at least two micro-batches a step are needed. "
                "Split the batch, or use measure_model beside the loop."
            )
        self._require_untouched()
        device = next(iter(self._parameters.values())).device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        unit = (micro if self._divided else 1) / loss_scale  # of one micro-batch's gradient
        small, of_mean = [], []
        for name, p in self._parameters.items():
            norms = self._arrived.get(name, [])
            small.append(torch.stack(norms).sum() * (unit**2 / micro) if norms else zero)
            of_mean.append(zero if p.grad is None else _squared_norm(p.grad) * (unit / micro) ** 2)
        pair = (torch.stack(small), torch.stack(of_mean).cpu())
        if ranks > 1:
            torch.distributed.all_reduce(pair[0])
        own, shared = self._design.factors(micro * ranks, self.micro_batch_size)
        difference = (pair[0] / ranks).cpu() - pair[1]
        trace = difference / (own - shared)
        norms_of_step = self._norms_of_step(micro, unit, ranks) if self._norms_are_due else None
        is_finite = bool(torch.isfinite(trace).all())
        if self._is_even(micro) and is_finite:
            self._steps.append((trace, pair[1] - shared * trace))
            if norms_of_step is not None:
                self._norms.append(
                    torch.cat([norms_of_step, norms_of_step.new_full((1, *norms_of_step.shape[1:]), shared)])
                )
        else:
            self.num_skipped += 1
            if self.num_skipped == 1:
                said = (
                    "are not all of micro_batch_size" if is_finite else "have gradients that are not finite"
                )
                warnings.warn(f"NoiseMeter leaves out steps whose micro-batches {said}.", stacklevel=2)
        self._count += 1
        self._forget()

    def _require_untouched(self) -> None:
        for name, mark in self._marks.items():
            gradient = self._parameters[name].grad
            if gradient is None:
                raise ConfigError("gradients were cleared before step(); call it before zero_grad.")
            if _state_of(gradient) != mark and not _is_distributed():  # an all-reduce changes them, too
                raise ConfigError(
                    f"the gradient of '{name}' was changed after its last backward pass; call step() "
                    "before gradients are clipped or unscaled (with step(loss_scale=scaler.get_scale()))."
                )
        if self._left_over and float(torch.stack(self._left_over).sum()) > 0:
            raise ConfigError(
                "gradients of the last step were not cleared; call zero_grad before the next backward pass."
            )

    def _is_even(self, micro: int) -> bool:
        """Whether all micro-batches have the given size, as far as the model's inputs tell."""
        if len(self._shapes) != micro:
            return True
        fits = [self.micro_batch_size in shape for shape in self._shapes]
        if not self._knows_sizes and not any(fits):
            if self._count == 0:
                warnings.warn(
                    f"the model's inputs begin with axes of {self._shapes[0]}, none of which is "
                    f"micro_batch_size={self.micro_batch_size}, the examples of one backward pass.",
                    stacklevel=3,
                )
            return True
        self._knows_sizes = True
        return all(fits)

    def _norms_of_step(self, micro: int, unit: float, ranks: int) -> Tensor:
        """Return n and the norm of the step's mean, by norm and parameter: (2, norms, parameters)."""
        partly = [name for name, norms in self._arrived.items() if len(norms) < micro]
        if micro < 2 or partly:
            raise ConfigError(
                "l1 and nuclear norms compare the first two micro-batches of a rank, "
                + (
                    f"but '{partly[0]}' is not used in all."
                    if partly
                    else "and there is one; pass norms_every=0."
                )
            )
        n = self._design.population
        one = unit * math.sqrt(self.micro_batch_size / 2 * ((n - 1) / n if n else 1))
        zeros = [torch.zeros((), dtype=torch.float64)] * len(NORMS)
        noise, of_mean = [], []
        for name, p in self._parameters.items():
            noise.append(torch.stack([one * value for value in self._differences.get(name, zeros)]))
            whole = None if p.grad is None else _dense(p.grad.detach())
            values = zeros if whole is None else [unit / micro * norm(whole) for norm in NORMS.values()]
            of_mean.append(torch.stack(values))
        found = torch.stack([torch.stack(noise, 1), torch.stack(of_mean, 1)])
        if ranks > 1:
            torch.distributed.all_reduce(found)
        return (found / ranks).cpu()

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
        low, high = interval_of_inverse(inverse, (norm.sum() - norm) / (trace.sum() - trace))
        means = zip(self._parameters, traces.mean(0).tolist(), norms.mean(0).tolist(), strict=True)
        return NoiseScale(
            noise_scale=1 / inverse if inverse > 0 else math.nan,
            low=low,
            high=high,
            trace_cov=float(trace.mean()),
            grad_norm_sq=float(norm.mean()),
            by_parameter={name: t / m if m > 0 else math.nan for name, t, m in means},
            num_steps=len(steps),
            num_skipped=self.num_skipped,
            norms=norm_noise(self._norms[-last:] if last else self._norms, self._parameters),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the steps taken in so far, for a checkpoint: arrays of steps by parameters."""
        width = len(self._parameters)
        traces, norms = zip(*self._steps, strict=True) if self._steps else ((), ())
        shapes = {"traces": (width,), "norms": (width,), "other_norms": (3, len(NORMS), width)}
        parts = (traces, norms, self._norms)
        return {
            name: torch.stack(list(part)) if part else torch.zeros(0, *shape, dtype=torch.float64)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the steps of a checkpoint.

        Raises:
            ConfigError: The steps are those of a model with another number of parameters.
        """
        own = {name: value.shape[1:] for name, value in self.state_dict().items()}
        if missing := own.keys() - state.keys():
            raise ConfigError(f"the state has no {sorted(missing)[0]!r}; pass what state_dict returned.")
        for name, shape in own.items():
            if state[name].shape[1:] != shape:
                raise ConfigError(
                    f"the state has steps of shape {tuple(state[name].shape)}, but the model has "
                    f"{len(self._parameters)} trainable parameters; load the state of the same model."
                )
        self._steps = list(zip(state["traces"].unbind(), state["norms"].unbind(), strict=True))
        self._norms = list(state["other_norms"].unbind())

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "NoiseMeter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _state_of(gradient: Tensor) -> tuple[int, int]:
    return gradient.data_ptr() if not gradient.is_sparse else 0, gradient._version


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _squared_norm(gradient: Tensor) -> Tensor:
    values = gradient.detach().coalesce().values() if gradient.is_sparse else gradient.detach()
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm.square()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _world_size() -> int:
    return torch.distributed.get_world_size() if _is_distributed() else 1
