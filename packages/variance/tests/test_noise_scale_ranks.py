"""The noise scale over data-parallel ranks."""

import os
import socket
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from variance.errors import ConfigError
from variance.noise_scale import NoiseMeter


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
    for kind in ("plain", "own mean", "own sum", "clipped", "short"):
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
    for _ in range(10):
        kind, _, found = results.get()
        if kind in ("clipped", "own sum"):
            assert "not the mean of those of all ranks" in found
        elif kind == "short":  # on one rank after the first step, so both leave the others out
            assert len(found["traces"]) == 1
            assert found["num_skipped"] == 4
        else:
            np.testing.assert_allclose(found["traces"], meter.state_dict()["traces"], rtol=1e-5)
