"""Child program of test_hosts: two processes that train together, with a checkpoint every few steps.

Usage: ``python host.py PROGRAM FOLDER``; the programs are functions below. It trains in ``FOLDER/whole``
without a fault, and in ``FOLDER/lost`` three times: process 0 is lost, then process 1, then none. Of every
process it leaves the exit code and what it said, as ``FOLDER/lost/0-1.json``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from gdyn_common.errors import TRY_AGAIN, ends_with_the_others

STEPS, EVERY, BATCH, LAST = 12, 5, 16, 7
lost: int | None = None
"""Which process loses its life after step `LAST`."""


def steps(done: int) -> range:
    """Say from where this process goes on, and return the steps that are left."""
    print(f"from step {done}", file=sys.stderr, flush=True)
    return range(done, STEPS)


def say(index: int, step: int) -> None:
    """Come to the end of a step, which for one process may be its last."""
    if step != LAST or lost is None:
        return
    if index == lost:
        os.kill(os.getpid(), signal.SIGKILL)
    if lost == 0:
        time.sleep(2)  # now a thread of JAX sees the loss first; otherwise the next sum over processes does


def dd_two_player(coordinator: str, index: int, folder: Path) -> None:
    """A GAN, half of every batch on each process."""
    import jax
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from dd_two_player.gans import losses
    from dd_two_player.gans.checkpoints import restore_checkpoint, save_checkpoint
    from dd_two_player.gans.model import Batch, Gan
    from dd_two_player.gans.networks import build_discriminator, build_generator
    from dd_two_player.gans.optimizers import make_optimizer
    from dd_two_player.gans.rule import UpdateRule
    from dd_two_player.gans.steps import Hyperparameters, init_train_state, make_step
    from dd_two_player.regularization import Regularization

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, 2, index)
    with ends_with_the_others(index, 2):
        multihost_utils.sync_global_devices("start")  # JAX waits 30 seconds for others that still compile
        mesh = Mesh(np.array(jax.devices()), ("data",))
        everywhere, halves = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (None, "data")))
        recipe = Regularization.cancel_and_strengthen()
        rule = UpdateRule("simultaneous", mask=recipe.mask())
        optimizers = (make_optimizer("adam"), make_optimizer("adam"))
        gan = Gan(
            build_discriminator("MLP", (8,)),
            build_generator("PointMLP", (2,), (8,)),
            losses.discriminator_goodfellow_loss,
            losses.generator_saturating_loss,
            3,
        )
        step = jax.jit(make_step(gan, rule, optimizers), out_shardings=everywhere)
        hyper = Hyperparameters((0.01, 0.01), recipe.dd_coeffs_multiplier)
        start = init_train_state(gan, optimizers, jax.random.key(0), np.zeros((2, 2), np.float32))
        checkpoint = folder / "checkpoint.npz"
        if checkpoint.is_file():
            start = restore_checkpoint(checkpoint, start)
        done = int(start.step)
        state = jax.jit(lambda: start, out_shardings=everywhere)()  # device_put refuses others' keys
        draws = np.random.default_rng(0).standard_normal((STEPS, rule.batches_per_step, BATCH, 5))
        own = np.split(draws.astype(np.float32), 2, axis=2)[index]
        for number in steps(done):
            x, z = (
                jax.make_array_from_process_local_data(halves, part)
                for part in (own[number, ..., :2], own[number, ..., 2:])
            )
            state, _ = step(state, hyper, Batch(x, z))
            jax.block_until_ready(state)
            if index == 0 and (number + 1) % EVERY == 0:
                save_checkpoint(checkpoint, state)
            say(index, number + 1)
        if index == 0:
            save_checkpoint(folder / "end.npz", state)
        multihost_utils.sync_global_devices("end")  # who leaves early ends the others after a while


def eigengame(coordinator: str, index: int, folder: Path) -> None:
    """Components of a stream, half of every batch on each process."""
    import jax
    import optax
    from jax.experimental import multihost_utils

    from eigengame.checkpoint import load, save
    from eigengame.core import Config, init, step
    from eigengame.sharding import distributed, make_mesh, shard_batch

    with distributed(coordinator, 2, index):
        multihost_utils.sync_global_devices("start")
        mesh = make_mesh(data=2)
        optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
        config = Config(optimizer, center=True, mesh=mesh)
        state = init(jax.random.key(0), 4, 12, optimizer, mesh=mesh)
        batches = np.random.default_rng(0).standard_normal((STEPS, BATCH, 12)).astype(np.float32)
        done, checkpoint = 0, folder / "checkpoint.npz"
        if checkpoint.is_file():
            state, meta = load(checkpoint, state)
            done = meta["done"]
        for number in steps(done):
            state, _ = step(state, shard_batch(np.split(batches[number], 2)[index], mesh), config)
            if (number + 1) % EVERY == 0:
                save(checkpoint, state, {"done": number + 1})
            say(index, number + 1)
        save(folder / "end.npz", state, {})
        multihost_utils.sync_global_devices("end")


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
    with ends_with_the_others(index, 2):
        for number in steps(done):
            model.zero_grad()
            rows = slice(BATCH * number + BATCH // 2 * index, BATCH * number + BATCH // 2 * (index + 1))
            nn.functional.cross_entropy(parallel(x[rows]), y[rows]).backward()
            meter.step()
            optimizer.step()
            if index == 0 and (number + 1) % EVERY == 0:
                content = {"done": number + 1, "model": model.state_dict(), "meter": meter.state_dict()}
                with atomic_file(checkpoint) as file:
                    torch.save(content, file)
            say(index, number + 1)
    if index == 0:
        arrays = meter.state_dict() | model.state_dict()
        np.savez(folder / "end.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    # Before the group: as its last owner the wrapper would wait for gloo's thread without giving it Python's
    # lock, for which that thread may wait in turn to let go of the last sum.
    del parallel
    torch.distributed.destroy_process_group()


IMPORTS = {
    "dd_two_player": (
        "jax.experimental.multihost_utils",
        "dd_two_player.gans.checkpoints",
        "dd_two_player.gans.steps",
    ),
    "eigengame": ("jax.experimental.multihost_utils", "optax", "eigengame.checkpoint", "eigengame.sharding"),
    "variance": ("torch._dynamo", "torch.distributed", "torch.nn.parallel", "variance.noise_scale"),
}
"""What is imported once, before the processes are forked."""


def free_port(sign: socket.socket) -> int:
    """Return a free port below those of outgoing connections; `sign` keeps other tests off it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000, 2)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("", port))
            sign.bind(("", port + 1))
            return port


def train(program: str, folder: Path, name: str, who: int | None = None) -> set[int]:
    """Run two processes to their ends, of which one may be lost, and return their exit codes."""
    global lost
    lost, started, codes = who, {}, set()
    with socket.socket() as sign:
        coordinator = f"127.0.0.1:{free_port(sign)}"
        for index in range(2):
            child = os.fork()
            if child == 0:
                os.dup2(os.open(folder / f"{name}-{index}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                globals()[program](coordinator, index, folder)
                sys.exit()  # in order, as a program does: JAX waits for the others then
            started[child] = index
        while started:
            child, status = os.wait()
            codes.add(code := os.waitstatus_to_exitcode(status))
            index = started.pop(child)
            said = (folder / f"{name}-{index}.txt").read_text(errors="replace")
            (folder / f"{name}-{index}.json").write_text(json.dumps({"code": code, "said": said}))
    return codes


if __name__ == "__main__":
    warnings.filterwarnings("ignore", ".*fork.*")
    program, folder = sys.argv[1], Path(sys.argv[2])
    for module in IMPORTS[program]:
        importlib.import_module(module)
    for place, name, who in (
        ("whole", "all", None),
        ("lost", "0", 0),
        ("lost", "1", 1),
        ("lost", "all", None),
    ):
        (folder / place).mkdir(exist_ok=True)
        for _ in range(9):  # a starved machine takes a slow process for a lost one: do as the line says
            if train(program, folder / place, name, who) != {TRY_AGAIN}:
                break
