"""Child program of test_hosts: one of two processes that train together, with a checkpoint every few steps.

Usage: ``python host.py PROGRAM ADDRESS:PORT INDEX FOLDER``; the programs are functions below.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from gdyn_common.errors import ends_with_the_others

STEPS, EVERY, BATCH = 40, 5, 16


def say(folder: Path, index: int, step: int) -> None:
    """Tell the test how far this process is."""
    (folder / f"step-{index}").write_text(str(step))


def dd_two_player(coordinator: str, index: int, folder: Path) -> None:
    """A GAN, half of every batch on each process."""
    import jax
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
    jax.distributed.initialize(
        coordinator, 2, index, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10
    )
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
    state = jax.jit(lambda: start, out_shardings=everywhere)()  # device_put refuses keys of other processes
    draws = np.random.default_rng(0).standard_normal((STEPS, rule.batches_per_step, BATCH, 5))
    own = np.split(draws.astype(np.float32), 2, axis=2)[index]
    with ends_with_the_others(index, 2):
        for number in range(done, STEPS):
            x, z = (
                jax.make_array_from_process_local_data(halves, part)
                for part in (own[number, ..., :2], own[number, ..., 2:])
            )
            state, _ = step(state, hyper, Batch(x, z))
            jax.block_until_ready(state)
            if index == 0 and (number + 1) % EVERY == 0:
                save_checkpoint(checkpoint, state)
            say(folder, index, number + 1)


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
    with ends_with_the_others(index, 2):
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
