"""Expected cost of a run on this machine, from a few steps of it."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from chaos.cgd import CGD
from chaos.eigenthings import Eigenthings
from chaos.paper.data import Data
from chaos.paper.train.config import TrainConfig
from chaos.paper.train.member import Member
from gdyn_reproduce.runs import Estimate

_STEPS = 3
_SAMPLE = 160


def seconds_per_call(call: Callable[[], object], calls: int = _STEPS) -> float:
    """Mean wall time of a call, after one that is not counted."""
    call()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def decomposition_seconds(n: int, dtype: torch.dtype) -> float:
    """Time of the singular values of an n x n matrix: that of a small one, times the cube of the ratio."""
    size = min(n, _SAMPLE)
    sample = torch.eye(size, dtype=dtype) + torch.ones(size, size, dtype=dtype) / size
    return seconds_per_call(lambda: torch.linalg.svdvals(sample)) * (n / size) ** 3


def announce(estimate: Estimate) -> None:
    """Print what a run is expected to take, in one line."""
    minutes = estimate.seconds / 60
    length = f"{estimate.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
    memory = estimate.memory_bytes / 1e9
    print(f"expected on this machine: about {length}, {memory:.2g} GB of arrays", flush=True)


def train_estimate(
    config: TrainConfig,
    data: Data,
    model: nn.Module,
    pairs: Eigenthings | None,
    num_steps: int,
    lyapunov_freq: int,
) -> Estimate:
    """Expected cost of ``train``: steps before and after the start of pruning, and decompositions.

    Plots, stored files and validation are left out.

    Args:
        config: Options.
        data: Training set.
        model: The network; a copy is trained.
        pairs: Stored pairs for global pruning.
        num_steps: Length of the run.
        lyapunov_freq: Steps between decompositions.
    """
    rows = next(data.batches(0, config.batch_size))
    x, y = data.x_train[rows], data.y_train[rows]
    member = Member(0, copy.deepcopy(model), config, pairs, num_steps, lyapunov_freq=num_steps)
    pruned = max(num_steps - config.optim.prune_start, 0) if isinstance(member.optimizer, CGD) else 0
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for steps, counter in ((num_steps - pruned, 0), (pruned, config.optim.prune_start)):
            if not steps:
                continue
            if isinstance(member.optimizer, CGD):
                member.optimizer.num_steps = counter
            seconds += steps * seconds_per_call(lambda: member.advance(0, x, y, Path(folder)))
    n, itemsize = member.surface.n, member.surface.dtype.itemsize
    if member.tracker is not None:
        seconds += (num_steps // lyapunov_freq) * decomposition_seconds(n, member.surface.dtype)
    tangent = 3 * n * n * itemsize if member.tracker is not None else 0
    images = (data.x_train.numel() + data.x_test.numel()) * itemsize
    return Estimate(config.parallel * seconds, float(config.parallel * tangent + images))
