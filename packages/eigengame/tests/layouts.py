"""Child program of test_sharding: one problem on several meshes of four forced host devices."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eigengame import EigenGame
from eigengame.core import Config, init, sample_steps, step
from eigengame.reference import Experiment
from eigengame.sharding import make_mesh, padded_players, shard_batch

LAYOUTS = {
    "data 4": {"data": 4},
    "data 2 x players 2": {"data": 2, "players": 2},
    "players 4": {"players": 4},
    "features 2": {"features": 2},
    "features 4": {"features": 4},
    "data 2 x features 2": {"data": 2, "features": 2},
}
K, D, N, STEPS = 6, 16, 32, 20  # 6 players do not divide over 4 blocks: padding is exercised


def trajectory(algorithm, dtype, layout, batches, momentum=True):
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True) if momentum else optax.adam(0.01)
    mesh = None if layout is None else make_mesh(**layout)
    config = Config(optimizer, algorithm=algorithm, center=True, moments=True, utilities="mu", mesh=mesh)
    state = init(jax.random.key(3), K, D, optimizer, moments=True, dtype=dtype, mesh=mesh)
    metrics = {}
    for batch in batches.astype(dtype):
        state, metrics = step(state, batch if mesh is None else shard_batch(batch, mesh), config)
    assert bool(metrics["finite"])
    assert mesh is None or state.V.shape[0] == padded_players(K, mesh)
    return np.concatenate([np.asarray(state.vectors).ravel(), np.asarray(metrics["utilities"]), state.mean])


def worst_difference(algorithm, dtype, layouts=("data 2 x players 2", "features 2"), momentum=True):
    batches = np.random.default_rng(0).standard_normal((STEPS, N, D)) * np.linspace(2, 0.5, D)
    reference = trajectory(algorithm, dtype, None, batches, momentum)
    return {
        name: float(np.abs(trajectory(algorithm, dtype, LAYOUTS[name], batches, momentum) - reference).max())
        for name in layouts
    }


def pytree_on_features():
    """Layers of activations as a pytree, split by channels, on rows drawn from a data set."""
    rng = np.random.default_rng(2)
    layers = {"first": rng.standard_normal((N, 4, 4, 2)), "second": rng.standard_normal((N, 2, 2, 4))}
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), layers)
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
    found = []
    for mesh in (make_mesh(), make_mesh(features=2)):
        start = init(jax.random.key(1), K, template, optimizer, dtype=jnp.float64, mesh=mesh)
        config = Config(optimizer, mesh=mesh)
        state, _ = sample_steps(start, shard_batch(layers, mesh), STEPS, 8, config)
        found.append(np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.V)]))
    return {"features 2": float(np.abs(found[0] - found[1]).max())}


def golden_copies(path):
    """The 2 x 2 layout of the pseudo-code: two copies of each half of the players."""
    with np.load(path) as archive:
        golden = dict(archive)
    optimizer = optax.sgd(float(golden["lr"]), momentum=0.9, nesterov=True)
    experiment = Experiment(4, 12, axis_index_groups=[[0, 1], [2, 3]], optimizer=optimizer)
    experiment.init(V=jnp.asarray(golden["V0"]))
    experiment.step(inputs=jnp.asarray(golden["dp2_inputs"]))
    return {"reference": float(np.abs(experiment.vectors - golden["dp2_V"]).max())}


def reference_against_core():
    """One block with four copies equals the fused step on the global batch."""
    batches = np.random.default_rng(1).standard_normal((5, 4, 8, D))
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
    experiment = Experiment(K, D, optimizer=optimizer, reduction="mean")
    start = init(jax.random.key(0), K, D, optimizer, dtype=jnp.float64)
    experiment.init(V=start.V)
    for batch in batches:
        experiment.step(inputs=batch)
        start, _ = step(start, batch.reshape(-1, D), Config(optimizer))
    return {"copies": float(np.abs(experiment.vectors - np.asarray(start.V)).max())}


def layouts_of_the_reference():
    """Initial vectors of the pseudo-code do not depend on how players lie on devices."""
    drawn = []
    for groups in (None, [[0, 1], [2, 3]], [[0], [1], [2], [3]]):
        experiment = Experiment(8, D, axis_index_groups=groups)
        experiment.init(seed=5)
        drawn.append(experiment.vectors)
    return {"init": float(max(np.abs(V - drawn[0]).max() for V in drawn))}


def wide(k=4, d=10_000, num_steps=40):
    """Planted vectors of many coordinates, of which every device holds a part and none holds all."""
    mesh, optimizer = make_mesh(features=4), optax.sgd(0.1, momentum=0.9, nesterov=True)
    signs = np.random.default_rng(3).choice([-1.0, 1.0], d) / np.sqrt(d / k)
    planted = np.repeat(np.eye(k), d // k, axis=1) * signs
    scores = np.random.default_rng(4).standard_normal((num_steps, 64, k)) * [4, 3, 2, 1]
    state, config = init(jax.random.key(0), k, d, optimizer, mesh=mesh), Config(optimizer, mesh=mesh)
    for batch in scores:
        state, _ = step(state, shard_batch((batch @ planted).astype(np.float32), mesh), config)
    overlaps = np.asarray(state.V, np.float64) @ planted.T
    return {"span": float(k - np.sum(np.square(overlaps))), "part": state.V.addressable_shards[0].data.shape}


def estimator_on_three():
    """A mesh that does not divide the batches pads them; they hold the same rows as on one device."""
    X = np.random.default_rng(5).standard_normal((515, 12)) * np.linspace(3, 1, 12)
    options = {"n_components": 3, "n_epochs": 2, "tol": None, "random_state": 0, "dtype": "float64"}
    alone, spread = (EigenGame(mesh=mesh, **options).fit(X) for mesh in (None, make_mesh(data=3)))
    return float(np.abs(alone.components_ - spread.components_).max())


def one_number_per_sample(mesh):
    """Return vectors of a pytree with a leaf of one number per sample."""
    X = np.random.default_rng(6).standard_normal((12, 3))
    batch = {"a": X[:, :2], "b": X[:, 2]}
    shapes = {"a": 2, "b": jax.ShapeDtypeStruct((), np.float64)}
    optimizer = optax.sgd(0.1)
    state = init(jax.random.key(0), 2, shapes, optimizer, dtype=jnp.float64, mesh=mesh)
    return step(state, batch, Config(optimizer, mesh=mesh))[0].vectors["b"]


def rejected():
    """Messages of layouts that cannot be."""
    messages = []
    mesh, players, SGD = make_mesh(data=4), make_mesh(players=2), optax.sgd(0.1)
    for attempt in (
        lambda: shard_batch(np.zeros((6, 4), np.float32), mesh),
        lambda: shard_batch(np.zeros((4, 6), np.float32), make_mesh(features=4)),
        lambda: make_mesh(data=8),
        lambda: make_mesh(players=2, features=2),
        lambda: Experiment(8, D, k_per_device=2),
        lambda: step(init(jax.random.key(0), 3, D, SGD), np.ones((4, D)), Config(SGD, mesh=players)),
        lambda: init(jax.random.key(0), 3, D, SGD, mesh=jax.make_mesh((2,), ("x",))),
        lambda: EigenGame(2, mesh="data").fit(np.eye(4)),
        lambda: one_number_per_sample(make_mesh(features=2)),
    ):
        try:
            attempt()
        except ValueError as error:
            messages.append(str(error))
    return messages


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    report = {
        "golden": golden_copies(sys.argv[1]),
        "reference": reference_against_core() | layouts_of_the_reference(),
        "float64": {name: worst_difference(name, np.float64) for name in ("alpha", "gha", "oja")}
        | {"mu": worst_difference("mu", np.float64, layouts=LAYOUTS)},
        "adam": worst_difference("mu", np.float64, momentum=False),
        "float32": worst_difference("mu", np.float32),
        "pytree": pytree_on_features(),
        "wide": wide(),
        "estimator": estimator_on_three(),
        "scalar": float(
            np.abs(one_number_per_sample(None) - one_number_per_sample(make_mesh(data=2, players=2))).max()
        ),
        "rejected": rejected(),
    }
    json.dump(report, sys.stdout)
