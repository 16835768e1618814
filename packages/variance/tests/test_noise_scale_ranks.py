"""The noise scale over data-parallel ranks."""

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from variance.errors import ConfigError
from variance.noise_scale import ExampleMeter, NoiseMeter


def parallel_loop(index: int, kind: str) -> dict[str, torch.Tensor] | str:
    """Five steps of one of two ranks; each sees half of every batch."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    x, y = torch.randn(96, 6), torch.randint(3, (96,))
    run = model if kind.startswith("own") else nn.parallel.DistributedDataParallel(model)
    meter = NoiseMeter(model, 4)
    try:
        for step in range(5):
            model.zero_grad()
            size = 2 if (kind, index) == ("short", 1) and step else 4
            part = (torch.arange(8) + 8 * step)[4 * index : 4 * index + size]
            if kind == "cleared":  # a micro-batch whose gradient is written over with zeros
                with run.no_sync():
                    F.cross_entropy(run(x[part.flip(0)]), y[part]).backward()
                model.zero_grad(set_to_none=False)
            F.cross_entropy(run(x[part]), y[part]).backward()
            if kind.startswith("own"):
                for p in model.parameters():
                    torch.distributed.all_reduce(p.grad)
                    p.grad /= 2 if kind == "own mean" else 1
            if kind == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            meter.step()
    except ConfigError as error:
        return str(error)
    return {"traces": meter.state_dict()["traces"], "num_skipped": torch.tensor(meter.num_skipped)}


def rank(index: int, port: int, results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=index, world_size=2)
    warnings.simplefilter("ignore")
    for kind in ("plain", "own mean", "own sum", "clipped", "short", "cleared"):
        found = parallel_loop(index, kind)
        results.put(
            (kind, index, found if isinstance(found, str) else {k: v.tolist() for k, v in found.items()})
        )
    torch.distributed.destroy_process_group()


def test_ranks_are_micro_batches() -> None:
    """Two gloo processes give what one process with two micro-batches gives, or refuse, on both ranks."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=rank, args=(i, port, results)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    x, y = torch.randn(96, 6), torch.randint(3, (96,))
    meter = NoiseMeter(model, 4)
    for step in range(5):
        model.zero_grad()
        for part in (torch.arange(8) + 8 * step).split(4):
            F.cross_entropy(model(x[part]), y[part]).backward()
        meter.step()
    for _ in range(12):
        kind, _, found = results.get()
        if kind in ("clipped", "own sum"):
            assert "not the mean of those of all ranks" in found
        elif kind == "short":  # on one rank after the first step, so both leave the others out
            assert len(found["traces"]) == 1
            assert found["num_skipped"] == 4
        else:
            np.testing.assert_allclose(found["traces"], meter.state_dict()["traces"], rtol=1e-5)


@contextmanager
def group_of_one() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def loop_of_one(
    kind: Any, wrap: Callable[[nn.Module], nn.Module], change: Callable[[nn.Module, int], object]
) -> torch.Tensor:
    """Three steps, with something done after each backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    size = 4 if kind is NoiseMeter else 8
    run, x = wrap(model), torch.randn(3, 8, 6)
    with kind(model, 4) if kind is NoiseMeter else kind(model) as meter:
        for batch in x:
            model.zero_grad()
            for i, part in enumerate(batch.split(size)):
                run(part).square().mean().backward()
                change(model, i)
            meter.step()
        return meter.state_dict()["traces"]


@pytest.mark.parametrize("kind", [NoiseMeter, ExampleMeter])
@pytest.mark.parametrize("as_view", [False, True])
def test_a_group_of_one_process_is_as_good_as_none(kind: Any, as_view: bool) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=as_view)

    plain = loop_of_one(kind, lambda model: model, lambda model, i: None)
    with group_of_one():
        torch.testing.assert_close(loop_of_one(kind, wrap, lambda model, i: None), plain)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda model, i: i == 1 and nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
            "after its last backward pass",
        ),
        (lambda model, i: i == 0 and model[1].zero_grad(set_to_none=False), "between two backward passes"),
    ],
    ids=["clipped", "partly cleared"],
)
def test_a_change_in_a_group_of_one_process_is_refused(change: Any, words: str) -> None:
    with group_of_one(), pytest.raises(ConfigError, match=words):
        loop_of_one(NoiseMeter, nn.parallel.DistributedDataParallel, change)
