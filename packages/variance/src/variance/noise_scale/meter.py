"""The noise scale, read off the micro-batches of a training loop."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from variance.errors import ConfigError, require_count
from variance.noise_scale.base import Hook, Meter, dense, squared_norm, world_size
from variance.noise_scale.norms import NORMS, norm_noise
from variance.noise_scale.result import NoiseScale


class NoiseMeter(Meter):
    """Reads the noise scale off the micro-batches of a training loop of your own.

    Hooks on the parameters see every gradient as it arrives; only its squared norm is kept. Call `step` after
    the last backward pass of a step and before gradients are clipped, unscaled or cleared. A step is given up
    by clearing all gradients instead. Under `DistributedDataParallel` the ranks are micro-batches, too; the
    norms of all ranks are averaged by one all-reduce of a vector with one entry per parameter. Steps whose
    micro-batches are not all of the given size, or a single one after steps of several, as at the end of an
    epoch, and steps with gradients that are not finite are left out, with a warning, and counted in
    `num_skipped`. The loss of a micro-batch must be divided by what it holds itself: where all are divided by
    the unmasked positions of the whole step, that micro-batches hold more or fewer of them counts as noise.

    Args:
        model: The model that is trained.
        micro_batch_size: Examples per backward pass (and rank).
        population: Size of the training set, where it is visited in epochs without replacement: corrects
            for examples of one step being different ones. 0 for independent examples or an endless stream.
        divided: Whether losses are divided by the number of micro-batches of a step. The noise scale is the
            same in any case, variance and squared norm are not.
        norms_every: Measured steps between two measurements of the `l1` and `nuclear` norms; none where 0.
            Each takes the memory of the largest parameter, and the singular values of two matrices per
            parameter.
        every: Steps between two measured ones; the others cost nothing. A measured one reads every gradient
            once from memory, which tells beside micro-batches of a few examples (`make bench`).

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
        every: int = 1,
    ) -> None:
        require_count("micro_batch_size", micro_batch_size)
        require_count("norms_every", norms_every, 0)
        self.micro_batch_size, self.norms_every, self._divided = micro_batch_size, norms_every, divided
        self._norms: list[Tensor] = []
        self._axis: int | None = None
        super().__init__(model, population, every)
        self._handles.append(model.register_forward_pre_hook(Hook(self._see_inputs), with_kwargs=True))

    @override
    def _forget_gradients(self) -> None:
        super()._forget_gradients()
        self._squares: dict[str, list[Tensor]] = {}
        self._differences: dict[str, list[Tensor]] = {}
        self._shapes: list[tuple[int, ...]] = []  # of the inputs of each forward pass
        self._arrived_from: list[tuple[int, ...]] = []  # of the last forward pass before each micro-batch

    @override
    def _start_afresh(self) -> None:
        last = self._shapes[-1:]
        super()._start_afresh()
        self._shapes = last

    @override
    def _take(self, name: str, p: Tensor, gradient: Tensor) -> None:
        squares = self._squares.setdefault(name, [])
        if p.grad is not None and len(squares) == 1 and self._norms_are_due:
            difference = dense(gradient) - dense(p.grad.detach())
            self._differences[name] = [norm(difference) for norm in NORMS.values()]
        squares.append(squared_norm(gradient))
        if len(squares) > len(self._arrived_from):
            self._arrived_from += self._shapes[-1:]

    def _see_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_due and torch.is_grad_enabled() and module is self._model:
            leaves = pytree.tree_leaves((args, kwargs))
            self._shapes += [_example_axes(leaf) for leaf in leaves if isinstance(leaf, Tensor)][:1]

    @property
    def _norms_are_due(self) -> bool:
        return self.norms_every > 0 and self._count // self._every % self.norms_every == 0

    @override
    def _measure(self, loss_scale: float) -> None:
        micro, ranks = max((len(squares) for squares in self._squares.values()), default=0), world_size()
        if micro * ranks == 1 and self._had_noise:
            self._take_in({}, 1.0, 1, self.micro_batch_size, "are not in at least two micro-batches")
            return
        if micro * ranks < 2:
            raise ConfigError(
                f"{micro} backward pass on {ranks} rank: at least two micro-batches a step are needed. "
                "Split the batch, use ExampleMeter, or measure_model beside the loop."
            )
        if 0 < len(self._shapes) < micro:
            raise ConfigError(
                f"{micro} gradients of one parameter arrived from {len(self._shapes)} forward passes, but a "
                "micro-batch is one of each. Add the losses of a micro-batch before one backward pass, and "
                "pass use_reentrant=False to checkpoint."
            )
        self._require_untouched()
        unit = (micro if self._divided else 1) / loss_scale  # of one micro-batch's gradient
        small = {
            name: torch.stack(squares).sum() * (unit**2 / micro) for name, squares in self._squares.items()
        }
        norms = self._norms_of_step(micro, unit, ranks) if self._norms_are_due else None
        skip = "" if self._is_even(micro) else "are not all in micro-batches of micro_batch_size"
        sizes = micro * ranks, self.micro_batch_size
        if self._take_in(small, unit / micro, *sizes, skip) and norms is not None:
            shared = norms.new_full((1, *norms.shape[1:]), self._design.factors(*sizes)[1])
            self._norms.append(torch.cat([norms, shared]))

    def _is_even(self, micro: int) -> bool:
        """Whether all micro-batches have the given size, as far as the model's inputs tell."""
        shapes = self._shapes if len(self._shapes) == micro else self._arrived_from
        fits = [[shape[axis : axis + 1] == (self.micro_batch_size,) for shape in shapes] for axis in (0, 1)]
        if self._axis is None:
            self._axis = next((axis for axis in (0, 1) if any(fits[axis])), None)
        if self._axis is not None:
            return all(fits[self._axis])
        if shapes and self._count == 0:
            warnings.warn(
                f"the model's inputs begin with axes of {shapes[0]}, none of which is "
                f"micro_batch_size={self.micro_batch_size}, the examples of one backward pass.",
                stacklevel=4,
            )
        return True

    def _norms_of_step(self, micro: int, unit: float, ranks: int) -> Tensor:
        """Return n and the norm of the step's mean, by norm and parameter: (2, norms, parameters)."""
        partly = [name for name, norms in self._squares.items() if len(norms) < micro]
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
            whole = None if p.grad is None else dense(p.grad.detach())
            values = zeros if whole is None else [unit / micro * norm(whole) for norm in NORMS.values()]
            of_mean.append(torch.stack(values))
        found = torch.stack([torch.stack(noise, 1), torch.stack(of_mean, 1)])
        if ranks > 1:
            torch.distributed.all_reduce(found)
        return (found / ranks).cpu()

    @override
    def result(self, last: int | None = None) -> NoiseScale:
        found = super().result(last)
        start = -last // max(self.norms_every, 1) if last else 0  # they are measured every so many steps
        return dataclasses.replace(found, norms=norm_noise(self._norms[start:], self._parameters))

    @override
    def state_dict(self) -> dict[str, Any]:
        none = torch.zeros(0, 3, len(NORMS), len(self._parameters), dtype=torch.float64)
        return super().state_dict() | {"other_norms": torch.stack(self._norms) if self._norms else none}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._norms = list(self._in_order(state, "other_norms").unbind())


def _example_axes(inputs: Tensor) -> tuple[int, ...]:
    """Return the lengths of the axes that may count examples: the second, too, of a batch of sequences."""
    is_sequences = inputs.ndim == 3 or (inputs.ndim == 2 and not inputs.is_floating_point())
    return tuple(inputs.shape[: 2 if is_sequences else 1])
