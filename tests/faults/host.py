"""Child program of test_hosts: one of two processes that train together, with a checkpoint every few steps.

Usage: ``python host.py eigengame|variance COORDINATOR INDEX FOLDER``; COORDINATOR is ``address:port``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

STEPS, EVERY, BATCH = 40, 5, 16


def say(folder: Path, index: int, step: int) -> None:
    """Tell the test how far this process is."""
    (folder / f"step-{index}").write_text(str(step))


def eigengame(coordinator: str, index: int, folder: Path) -> None:
    """Components of a stream, half of every batch on each process."""
    import jax
    import optax

    from eigengame.checkpoint import load, save
    from eigengame.core import Config, init, step
    from eigengame.sharding import distributed, make_mesh, shard_batch

    with distributed(coordinator, 2, index, timeout=10):
        mesh = make_mesh(data=2)
        optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
        config = Config(optimizer, center=True, mesh=mesh)
        state = init(jax.random.key(0), 4, 12, optimizer, mesh=mesh)
        batches = np.random.default_rng(0).standard_normal((STEPS, BATCH, 12)).astype(np.float32)
        done, checkpoint = 0, folder / "checkpoint.npz"
        if checkpoint.is_file():
            state, meta = load(checkpoint, state)
            done = meta["done"]
        for number in range(done, STEPS):
            state, _ = step(state, shard_batch(np.split(batches[number], 2)[index], mesh), config)
            if (number + 1) % EVERY == 0:
                save(checkpoint, state, {"done": number + 1})
            say(folder, index, number + 1)


def variance(coordinator: str, index: int, folder: Path) -> None:
    """The noise scale of data-parallel training; every rank's gradient is one micro-batch."""
    import torch
    from torch import nn

    from gdyn_common.storage import atomic_file
    from variance import NoiseMeter

    address, port = coordinator.rsplit(":", 1)
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": port}
    torch.distributed.init_process_group("gloo", rank=index, world_size=2)
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    x, y = torch.randn(STEPS * BATCH, 6), torch.randint(3, (STEPS * BATCH,))
    parallel = nn.parallel.DistributedDataParallel(model)
    meter = NoiseMeter(model, BATCH // 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    done, checkpoint = 0, folder / "checkpoint.pt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved["done"]
        model.load_state_dict(saved["model"])
        meter.load_state_dict(saved["meter"])
    for number in range(done, STEPS):
        model.zero_grad()
        rows = slice(BATCH * number + BATCH // 2 * index, BATCH * number + BATCH // 2 * (index + 1))
        nn.functional.cross_entropy(parallel(x[rows]), y[rows]).backward()
        meter.step()
        optimizer.step()
        if index == 0 and (number + 1) % EVERY == 0:
            content = {"done": number + 1, "model": model.state_dict(), "meter": meter.state_dict()}
            with atomic_file(checkpoint) as file:
                torch.save(content, file)
        say(folder, index, number + 1)
    if index == 0:
        arrays = meter.state_dict() | model.state_dict()
        np.savez(folder / "end.npz", **{name: array.numpy() for name, array in arrays.items()})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
