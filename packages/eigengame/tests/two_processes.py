"""Child program of test_sharding: one of two processes, or the same run alone."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

from eigengame.checkpoint import save
from eigengame.core import Config, init, step
from eigengame.sharding import init_distributed, make_mesh, shard_batch

K, D, N, STEPS = 4, 12, 16, 20


def main(coordinator, index, folder):
    alone = coordinator == "alone"
    if not alone:
        init_distributed(coordinator, 2, index)
    mesh = None if alone else make_mesh(data=2, players=2)
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
    config = Config(optimizer, center=True, mesh=mesh)
    state = init(jax.random.key(0), K, D, optimizer, mesh=mesh)
    batches = np.random.default_rng(0).standard_normal((STEPS, N, D)).astype(np.float32)
    for batch in batches:
        if mesh is not None:
            own = np.split(batch, 2)[index]  # each process feeds its own rows
            batch = shard_batch(own, mesh)
        state, _ = step(state, batch, config)
    save(folder / f"{'alone' if alone else 'together'}.npz", state)
    if jax.process_index() == 0:
        with np.load(folder / f"{'alone' if alone else 'together'}.npz") as archive:
            np.save(folder / f"{'alone' if alone else 'together'}.npy", archive[".V"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
