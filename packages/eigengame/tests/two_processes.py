"""Child program of test_sharding: one of two processes, or the same run alone."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import optax

from eigengame.checkpoint import save
from eigengame.core import Config, init, step
from eigengame.sharding import distributed, make_mesh, shard_batch

K, D, N, STEPS = 4, 12, 16, 20


def main(coordinator, index, folder, late):
    alone = coordinator == "alone"
    with nullcontext() if alone else distributed(coordinator, 2, index, timeout=10 if late else 100):
        run(alone, index, folder, late * index)


def run(alone, index, folder, late):
    mesh = None if alone else make_mesh(data=2, players=2)
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
    config = Config(optimizer, center=True, mesh=mesh)
    state = init(jax.random.key(0), K, D, optimizer, mesh=mesh)
    batches = np.random.default_rng(0).standard_normal((STEPS, N, D)).astype(np.float32)
    time.sleep(35 * late)  # JAX gives the first sum of a group of devices 30 seconds
    for batch in batches:
        if mesh is not None:
            own = np.split(batch, 2)[index]  # each process feeds its own rows
            batch = shard_batch(own, mesh)
        state, _ = step(state, batch, config)
    save(folder / f"{'alone' if alone else 'together'}.npz", state)
    if jax.process_index() == 0:
        with np.load(folder / f"{'alone' if alone else 'together'}.npz") as archive:
            np.save(folder / f"{'alone' if alone else 'together'}.npy", archive[".V"])
    time.sleep(20 * late)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), len(sys.argv) > 4)
