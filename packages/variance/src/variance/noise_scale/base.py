"""What every meter of the noise scale does: it watches gradients arrive, and keeps two numbers of each."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from gdyn_common.display import Axes, Figure
from variance.errors import ConfigError, require_count
from variance.noise_scale.norms import interval_of_inverse
from variance.noise_scale.result import NoiseScale, plot_noise_scales
from variance.per_example.recording import require_real
from variance.statistics import Design


class Meter(ABC):
    """Variance of one example's gradient and squared norm of the mean, of every parameter at every step.

    Args:
        model: The model that is trained.
        population: Size of the training set, where it is visited in epochs without replacement: corrects
            for examples of one step being different ones. 0 for independent examples or an endless stream.
        every: Steps between two measured ones; the others cost nothing.

    Raises:
        ConfigError: No trainable parameter or a complex one, or `every` below 1.
    """

    def __init__(self, model: nn.Module, population: int, every: int) -> None:
        require_count("every", every)
        require_count("population", population, 0)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model is a {type(model).__name__}; pass a torch.nn.Module.")
        self._every, self._count = every, 0
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ConfigError("the model has no trainable parameter; set requires_grad on some.")
        require_real(model)
        self._model, self._known = model, {id(p) for p in self._parameters.values()}
        self.num_skipped = 0
        self._design = Design("epochs", population) if population else Design()
        self._handles: list[Any] = []
        self._nodes: dict[str, Any] = {}
        for name, p in self._parameters.items():
            self._handles.append(p.register_hook(self._attach(name, p)))
            self._handles.append(p.register_post_accumulate_grad_hook(self._mark(name)))
            hooks = getattr(p, "_post_accumulate_grad_hooks", None) or {}
            for key in list(hooks)[:-1]:  # behind ours, so that what they do to the gradient is a change
                hooks[key] = hooks.pop(key)
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        self._arrived: set[str] = set()
        self._left_over: list[Tensor] = []
        self._spoiled = ""
        self._held: set[str] = set()  # gradients that are not zero, where there are ranks
        self._marks: dict[str | int, tuple[int, int]] = {}  # by name, and the last in each memory
        self._corners: dict[str, Tensor] = {}

    def _start_afresh(self) -> None:
        """Forget the passes of a step that was given up, but not the one that is in backward now."""
        self._forget_gradients()

    def _attach(self, name: str, p: Tensor) -> Callable[[Tensor], None]:
        def see(gradient: tuple[Tensor]) -> None:
            if not self._is_due or name not in self._parameters:  # not due, or left out since
                return
            if name in self._arrived and (self._is_changed(name, p.grad) or self._is_cleared(name, p.grad)):
                if any(_is_there(self._parameters[seen].grad) for seen in list(self._arrived)):
                    self._spoiled = self._spoiled or name
                else:  # all were cleared: the passes before were a step that was given up
                    self._start_afresh()
            elif name not in self._arrived and p.grad is not None:
                self._left_over.append(squared_norm(p.grad))
            self._arrived.add(name)
            self._take(name, p, gradient[0].detach())

        def attach(_: Tensor) -> None:
            # The node that adds to p.grad sees a gradient behind all hooks of p, and none of autograd.grad.
            # It is another one after model.to(...).
            node = torch.autograd.graph.get_gradient_edge(p).node
            if node is not self._nodes.get(name):
                self._nodes[name] = node
                self._handles.append(node.register_prehook(see))

        return attach

    def _mark(self, name: str) -> Callable[[Tensor], None]:
        def mark(p: Tensor) -> None:
            if p.grad is not None and name in self._arrived:
                self._marks[name] = self._marks[_memory_of(p.grad)] = _state_of(p.grad)
                if _is_distributed():
                    self._corners[name] = _corner(p, p.grad)
                if world_size() > 1 and (bool(self._corners[name].any()) or _is_there(p.grad)):
                    self._held.add(name)

        return mark

    @property
    def _had_noise(self) -> bool:
        """Whether an earlier step held what has a variance, so that one without it ends an epoch."""
        return bool(self._steps) or self.num_skipped > 0

    @property
    def _is_due(self) -> bool:
        return self._count % self._every == 0

    def step(self, *, loss_scale: float = 1.0) -> None:
        """Take in the backward passes since the last call.

        Args:
            loss_scale: What losses are multiplied by: `scaler.get_scale()` with a `GradScaler`.

        Raises:
            ConfigError: Other passes than the meter reads were made, or gradients were cleared (some between
                two passes, or all after the last one), clipped or unscaled before, or not cleared after the
                last step, or are not the mean over ranks; or a parameter is new or no longer frozen.
        """
        try:
            if not 0 < loss_scale < math.inf:
                raise ConfigError(f"loss_scale is {loss_scale}; it must be positive and finite.")
            if self._is_due:
                for name, p in self._model.named_parameters():
                    if p.requires_grad and id(p) not in self._known:
                        raise ConfigError(
                            f"parameter '{name}' was frozen when the meter was made, or is a new one; make a "
                            "new meter."
                        )
                self._measure(loss_scale)
        finally:
            self._count += 1
            self._forget_gradients()

    @abstractmethod
    def _measure(self, loss_scale: float) -> None:
        """Take in the gradients that have arrived."""

    @abstractmethod
    def _take(self, name: str, p: Tensor, gradient: Tensor) -> None:
        """Keep what is needed of a gradient that is about to be added to `p.grad`."""

    def _require_untouched(self) -> None:
        """Refuse gradients that are no longer, or not only, those of the step's backward passes.

        Raises:
            ConfigError: They were cleared, clipped or unscaled before, or not cleared after the last step.
        """
        if self._spoiled:
            raise ConfigError(
                f"the gradient of '{self._spoiled}' was changed or cleared between two backward passes of a "
                "step; let them add up, and call step() before each clipping and zero_grad. To give a step "
                "up, clear all gradients."
            )
        for name in self._arrived & self._parameters.keys():
            gradient = self._parameters[name].grad
            if gradient is None:
                raise ConfigError("gradients were cleared before step(); call it before zero_grad.")
            if self._is_changed(name, gradient):
                raise ConfigError(
                    f"the gradient of '{name}' was changed after its last backward pass; call step() "
                    "before gradients are clipped or unscaled (with step(loss_scale=scaler.get_scale()))."
                )
        if self._left_over and float(torch.stack(self._left_over).sum()) > 0:
            raise ConfigError(
                "gradients of the last step were not cleared; call zero_grad before the next backward pass."
            )

    def _is_cleared(self, name: str, gradient: Tensor | None) -> bool:
        """Whether zeros were written over a gradient, which on several ranks is all that tells."""
        if (
            name not in self._held
            or gradient is None
            or bool(_corner(self._parameters[name], gradient).any())
        ):
            return False
        return not _is_there(gradient)

    def _is_changed(self, name: str, gradient: Tensor | None) -> bool:
        """Whether a gradient is no longer as its last backward pass left it."""
        if gradient is None:
            return True
        if world_size() > 1:
            return False  # ranks add theirs
        if _is_distributed():  # DistributedDataParallel of one process writes back what is there
            left = self._corners.get(name)
            found = _corner(self._parameters[name], gradient)
            return left is None or float((found - left).double().norm()) > 0.02 * float(left.double().norm())
        place, version = _state_of(gradient)
        marked, last = (self._marks.get(key, (-1, -1)) for key in (name, _memory_of(gradient)))
        # Gradients that are views of one tensor have one version for all.
        return place != marked[0] or version not in (marked[1], last[1])

    def _take_in(
        self, small: Mapping[str, Tensor], unit: float, draws: int, size: int, skip: str = ""
    ) -> bool:
        """Add a step, and tell whether it counts.

        Args:
            small: Mean squared norm of the gradients of the step's draws, by parameter; zero where absent.
            unit: What `p.grad` is multiplied by to be their mean.
            draws: Number of draws, over all ranks.
            size: Examples of one draw.
            skip: Why the step is left out, if it is.
        """
        parameters = self._parameters.items()
        zero = torch.zeros((), dtype=torch.float64, device=next(iter(self._parameters.values())).device)
        of_draws = torch.stack([small.get(name, zero) for name in self._parameters])
        of_mean = torch.stack([zero if p.grad is None else squared_norm(p.grad) for _, p in parameters])
        if (ranks := world_size()) > 1:
            local = torch.cat([self._corners.get(name, _corner(p, None)).to(zero) for name, p in parameters])
            whole = torch.cat([_corner(p, p.grad).to(zero) for _, p in parameters])
            counts = zero.new_tensor([draws, draws**2, bool(skip)])
            together = torch.cat([of_draws, local, counts])
            torch.distributed.all_reduce(together)
            of_draws, local, counts = (together / ranks).split([len(of_draws), len(local), 3])
            if float((local - whole).norm()) > 0.02 * float(local.norm()):
                raise ConfigError(
                    "gradients are not the mean of those of all ranks; call step() after they are averaged, "
                    "before they are clipped or unscaled (with step(loss_scale=scaler.get_scale()))."
                )
            if float(counts[1]) > float(counts[0]) ** 2 or float(counts[2]):
                skip = skip or "are not those of equally many and even micro-batches on all ranks"
        own, shared = self._design.factors(draws, size)
        of_draws, of_mean = of_draws.cpu(), of_mean.cpu() * unit**2
        of_mean[of_draws == 0] = 0  # left from an earlier step: none arrived in this one
        trace = (of_draws - of_mean) / (own - shared)
        if not bool(torch.isfinite(trace).all()):
            skip = skip or "have gradients that are not finite"
        trace = trace.clamp_min(0)  # it is a sum of squares: below zero by rounding alone
        kinds = {p.dtype for p in self._parameters.values()}
        rounding = max(map(_rounding, kinds)) * float(of_mean.sum())
        if not skip and float(trace.sum()) * (own - shared) < rounding:
            warnings.warn(
                f"the noise of a step is below the rounding of gradients in {', '.join(map(str, kinds))}: "
                "its noise scale is right to that only; use float64 if it matters.",
                stacklevel=4,
            )
        if not skip:
            self._steps.append((trace, of_mean - shared * trace))
            return True
        self.num_skipped += 1
        if self.num_skipped == 1:
            warnings.warn(f"{type(self).__name__} leaves out steps whose examples {skip}.", stacklevel=4)
        return False

    def result(self, last: int | None = None) -> NoiseScale:
        """Return the noise scale over the last steps, all by default.

        Raises:
            ConfigError: Fewer than three steps.
        """
        if last is not None:
            require_count("last", last, 3)
        return self._over(self._steps[-last:] if last else self._steps)

    def _over(self, steps: Sequence[tuple[Tensor, Tensor]]) -> NoiseScale:
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
        )

    def plot(self, axes: Axes | None = None, *, window: int = 50) -> Figure:
        """Draw the noise scale over the training, and return the figure.

        Args:
            axes: Axes of matplotlib to draw into; None makes a new figure.
            window: Measured steps behind each point, which stands at the last of them; the last point may
                have fewer. Steps that were left out are not counted.

        Raises:
            ConfigError: Fewer than three steps, or a window below 3.
        """
        require_count("window", window, 3)
        count = len(self._steps)
        starts = range(0, max(count - 2, 1), window)
        found = [self._over(self._steps[start : start + window]) for start in starts]
        ends = [min(start + window, count) for start in starts]
        scales = [(part.noise_scale, part.low, part.high) for part in found]
        return plot_noise_scales(axes, "measured steps", ends, scales)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps taken in so far, for a checkpoint: arrays of steps by parameters, and counts."""
        columns = zip(*self._steps, strict=True) if self._steps else ((), ())
        none = torch.zeros(0, len(self._parameters), dtype=torch.float64)
        arrays = {
            name: torch.stack(list(column)) if column else none
            for name, column in zip(("traces", "norms"), columns, strict=True)
        }
        counts = {"count": self._count, "num_skipped": self.num_skipped}
        return arrays | counts | {"parameters": list(self._parameters)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the steps of a checkpoint.

        Raises:
            ConfigError: The steps are those of a model with other parameters.
        """
        if missing := self.state_dict().keys() - state.keys():
            raise ConfigError(f"the state has no {sorted(missing)[0]!r}; pass what state_dict returned.")
        if differ := set(state["parameters"]) ^ set(self._parameters):
            raise ConfigError(
                f"the state and the model differ in {len(differ)} trainable parameters "
                f"({sorted(differ)[0]}, ...); load the state of the same model."
            )
        self._count, self.num_skipped = state["count"], state["num_skipped"]
        columns = (self._in_order(state, name).unbind() for name in ("traces", "norms"))
        self._steps = list(zip(*columns, strict=True))

    def _in_order(self, state: Mapping[str, Any], name: str) -> Tensor:
        """Return an array of a state, whose last axis counts parameters, in the order of this model's."""
        stored = list(state["parameters"])
        found: Tensor = state[name][..., [stored.index(key) for key in self._parameters]]
        return found

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # it watches one model; a copied trainer's own is another

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Hook:
    """A hook of a module that stays out of compiled forward passes, which it would have compiled anew."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = torch.compiler.disable(act)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the hook returns, which may be other outputs."""
        return self._act(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # it knows its own model, and sees that a copy is another

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a model with a meter attached cannot be pickled; close the meter first, or save the state_dict "
            "of both."
        )


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient with all its entries."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def squared_norm(gradient: Tensor) -> Tensor:
    """Return the squared Euclidean norm, summed in float64.

    On a CPU, rows of a large matrix are summed in float32 first: that is seven times faster, and their errors
    of 1e-7 average out.

    Example:
        >>> abs(float(squared_norm(torch.full((2, 3), 1e-25))) / 6e-50 - 1) < 1e-6
        True
    """
    values = gradient.detach().coalesce().values() if gradient.is_sparse else gradient.detach()
    if values.numel() <= 4096:
        values = values.double().flatten()
        return torch.dot(values, values)
    if values.ndim > 1 and values.dtype != torch.float64 and values.device.type == "cpu":
        rows: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1, dtype=torch.float32)
        total = rows.double().square().sum()
        if math.isfinite(total) and float(total) > 1e-30 * values.numel():  # else squares left float32
            return total
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm.square()


def world_size() -> int:
    """Return the number of ranks that train together."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _memory_of(gradient: Tensor) -> int:
    return id(gradient) if gradient.is_sparse else gradient.untyped_storage().data_ptr()


def _is_there(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient._values() if gradient.is_sparse else gradient).any())


def _state_of(gradient: Tensor) -> tuple[int, int]:
    return gradient.data_ptr() if not gradient.is_sparse else 0, gradient._version


def _corner(p: Tensor, gradient: Tensor | None) -> Tensor:
    """Return a few entries of a gradient, zeros where there is none: a mean over ranks shows in any."""
    if gradient is None or gradient.is_sparse:
        return torch.zeros_like(p[(slice(2),) * p.ndim], memory_format=torch.contiguous_format).flatten()
    return gradient.detach()[(slice(2),) * p.ndim].flatten().clone()


def _rounding(dtype: torch.dtype) -> float:
    """Return the share of a squared norm that may be rounding: in half precision errors average out."""
    return max(torch.finfo(dtype).eps ** 2, 4 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
