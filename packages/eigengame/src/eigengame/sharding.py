"""Players, samples and features spread over devices and hosts.

One mesh with up to three axes describes the layout:

- ``data``, samples: each device holds a part of the batch, directions are summed over it;
- ``players``, vectors: each device owns a block of rows of V and responds only for them;
- ``features``, coordinates: V is split by columns and never gathered (d of 1e6 to 1e7).

`players` and `features` exclude each other. Directions are summed over `data` BEFORE the nonlinear
update, and for alpha the Gram matrix too, so the result does not depend on the layout.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from eigengame.core.directions import Algorithm, direction_from_responses
from eigengame.core.trees import batch_size, combine, responses
from gdyn_common.errors import ends_with_the_others

__all__ = [
    "batch_sharding",
    "distributed",
    "gather",
    "init_distributed",
    "make_mesh",
    "padded_players",
    "put",
    "shard_batch",
    "sharded_direction",
    "vector_sharding",
]


def make_mesh(*, data: int = 1, players: int = 1, features: int = 1, devices: Any = None) -> Mesh:
    """Return a mesh with axes data, players and features over the first devices.

    Raises:
        ValueError: If both players and features are above 1, or there are too few devices.

    Example:
        >>> dict(make_mesh(data=1).shape)
        {'data': 1, 'players': 1, 'features': 1}
    """
    shape = (data, players, features)
    if min(shape) < 1:
        raise ValueError(
            f"Mesh axes must be at least 1; got data={data}, players={players}, features={features}."
        )
    if players > 1 and features > 1:
        raise ValueError(
            f"players={players} and features={features} cannot both exceed 1: "
            "split the vectors by rows or by columns."
        )
    devices = jax.devices() if devices is None else devices
    needed = data * players * features
    if needed > len(devices):
        raise ValueError(
            f"A mesh of {data} x {players} x {features} needs {needed} devices; {len(devices)} present. "
            f"On a CPU set XLA_FLAGS=--xla_force_host_platform_device_count={needed} before importing jax."
        )
    mesh = jax.make_mesh(
        shape, ("data", "players", "features"), axis_types=(AxisType.Auto,) * 3, devices=devices[:needed]
    )
    if mesh.is_multi_process and mesh.local_devices:
        _meet(mesh)
    return mesh


def _meet(mesh: Mesh) -> None:
    """Let the processes sum over every axis once.

    At the first sum of a group of devices JAX waits 30 seconds for a process that still compiles or reads
    data, and then takes it for lost. At later ones it waits as long as the process is alive.
    """
    everywhere = PartitionSpec()

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=everywhere, out_specs=everywhere)
    def sums(one: Array) -> list[Array]:
        return [jax.lax.psum(one, axes) for axes in (*mesh.axis_names, mesh.axis_names)]

    jax.block_until_ready(sums(jnp.ones(())))


def init_distributed(coordinator: str, num_processes: int, process_id: int, *, timeout: int = 100) -> None:
    """Join `num_processes` processes into one JAX runtime; call before anything else touches JAX.

    Args:
        coordinator: `host:port` of process 0.
        num_processes: Total number of processes.
        process_id: Index of this one; only process 0 writes checkpoints.
        timeout: Seconds without a sign of life after which a process counts as lost; the others then end.
    """
    if not 0 <= process_id < num_processes:
        raise ValueError(f"process_id {process_id} is outside 0..{num_processes - 1}.")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
    )


@contextmanager
def distributed(
    coordinator: str, num_processes: int, process_id: int, *, timeout: int = 100
) -> Iterator[None]:
    """Join processes as `init_distributed` does, and end in one line when another of them is lost.

    One that is done waits for the others. The exit code is 75, as `gdyn_common.errors.ends_with_the_others`
    says.

    Args:
        coordinator: As in `init_distributed`, like the other arguments.
        num_processes: Total number of processes.
        process_id: Index of this one.
        timeout: Seconds without a sign of life after which a process counts as lost.
    """
    init_distributed(coordinator, num_processes, process_id, timeout=timeout)
    from jax.experimental import multihost_utils

    with ends_with_the_others(process_id, num_processes):
        multihost_utils.sync_global_devices(
            "start"
        )  # the group of devices that meets at the end, see `_meet`
        yield
        multihost_utils.sync_global_devices("end")  # at exit JAX takes one that works on for lost


def check_mesh(mesh: Any) -> None:
    """Refuse what is neither None nor a mesh with the axes of `make_mesh`."""
    if mesh is not None and set(getattr(mesh, "shape", ())) != {"data", "players", "features"}:
        raise ValueError(f"mesh={mesh!r} has not the axes data, players, features; take one of make_mesh.")


def padded_players(k: int, mesh: Mesh | None) -> int:
    """Return k rounded up to a multiple of the players axis; the extra rows are masked zeros."""
    check_mesh(mesh)
    blocks = 1 if mesh is None else mesh.shape["players"]
    return -(-k // blocks) * blocks


def _vector_spec(leaf: Any) -> PartitionSpec:
    return _spec("players", leaf.ndim)


def _batch_spec(leaf: Any) -> PartitionSpec:
    return _spec("data", leaf.ndim)


def _spec(first: str, ndim: int) -> PartitionSpec:
    """Return the axes of a leaf; one with a single number per row has no features to split."""
    return PartitionSpec(first, *[None] * (ndim - 2), "features") if ndim > 1 else PartitionSpec(first)


def vector_sharding(V: PyTree, mesh: Mesh) -> PyTree:
    """Return the shardings of the leaves of V: rows over players, last axis over features."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _vector_spec(leaf)), V)


def batch_sharding(X: PyTree, mesh: Mesh) -> PyTree:
    """Return the shardings of the leaves of X: rows over data, last axis over features."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _batch_spec(leaf)), X)


def shard_batch(X: PyTree, mesh: Mesh) -> PyTree:
    """Place this process's rows of the global batch on its devices.

    With one process `X` is the global batch. With several, each passes its own rows; the global batch
    is their concatenation in process order.

    Raises:
        ValueError: If an axis of the mesh does not divide the batch.
    """
    check_divisible(X, mesh, rows_factor=jax.process_count())
    return jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)),
        X,
        batch_sharding(X, mesh),
    )


def put(leaf: Array, sharding: NamedSharding) -> Array:
    """Return the array laid out as told, also over devices of other processes.

    Every process passes the same full array.
    """
    if sharding.is_fully_addressable:
        placed: Array = jax.device_put(leaf, sharding)
        return placed
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def gather(leaf: Array) -> np.ndarray:
    """Return the full array on this host; all processes must call it together."""
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def check_divisible(X: PyTree, mesh: Mesh, rows_factor: int = 1) -> None:
    """Refuse a batch whose rows or last axes the mesh does not divide."""
    rows, data = batch_size(X) * rows_factor, mesh.shape["data"]
    if rows % data:
        raise ValueError(
            f"A batch of {rows} rows cannot be split over data={data} devices; "
            f"use a batch size divisible by {data}."
        )
    check_features([math.prod(leaf.shape[1:][-1:]) for leaf in jax.tree.leaves(X)], mesh)


def check_features(widths: Sequence[int], mesh: Mesh) -> None:
    """Refuse last axes of leaves that the mesh does not divide."""
    features = mesh.shape["features"]
    for width in widths:
        if width % features:
            raise ValueError(
                f"A last axis of {width} features cannot be split over features={features} devices; pad it "
                "with zeros to a multiple, which changes no component."
            )


def sharded_direction(
    algorithm: Algorithm,
    V: PyTree,
    X: PyTree,
    weights: Float[Array, "k k"],
    mesh: Mesh,
    *,
    local_penalties: bool = False,
) -> tuple[PyTree, Float[Array, "k k"], PyTree]:
    """Return the direction summed over the global batch, S = Y Y' and G = Y X, laid out like V.

    Args:
        algorithm: Which update.
        V: All vectors, sharded as `vector_sharding` says.
        X: Global batch, sharded as `batch_sharding` says.
        weights: `penalty_weights(k)`, zero for padding players.
        mesh: From `make_mesh`.
        local_penalties: For alpha, form the penalties from each device's own samples. This is the
            biased divide-and-conquer variant that the data-parallel experiment compares with.
    """
    check_divisible(X, mesh)
    vector_specs, batch_specs = jax.tree.map(_vector_spec, V), jax.tree.map(_batch_spec, X)
    rows = PartitionSpec("players", None)

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(vector_specs, batch_specs, rows),
        out_specs=(vector_specs, rows, vector_specs),
    )
    def on_device(V_own: PyTree, X_own: PyTree, weights_own: Array) -> tuple[PyTree, Array, PyTree]:
        Y_own = jax.lax.psum(responses(V_own, X_own), "features")
        Y = jax.lax.all_gather(Y_own, "players", axis=0, tiled=True)
        V_all = jax.tree.map(lambda v: jax.lax.all_gather(v, "players", axis=0, tiled=True), V_own)
        S_local, diagonal_local = Y_own @ Y.T, jnp.sum(jnp.square(Y), axis=1)
        S = jax.lax.psum(S_local, "data")
        if algorithm == "alpha" and not local_penalties:
            penalty_S, diagonal = S, jax.lax.psum(diagonal_local, "data")
        else:
            penalty_S, diagonal = S_local, diagonal_local
        direction = direction_from_responses(
            algorithm, V_all, X_own, Y, Y_own, penalty_S, diagonal, weights_own
        )
        return jax.lax.psum(direction, "data"), S, jax.lax.psum(combine(Y_own, X_own), "data")

    direction, S, G = on_device(V, X, weights)
    return direction, S, G
