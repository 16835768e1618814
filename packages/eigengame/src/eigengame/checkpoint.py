"""Checkpoints: arrays and JSON in one npz file, replaced atomically, no pickle.

The JSON sits inside the archive because two files cannot be replaced in one atomic rename.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from eigengame.core.solver import State
from eigengame.sharding import gather, put
from gdyn_common.storage import read_arrays, reading, write_arrays

__all__ = ["from_arrays", "load", "read", "save", "to_arrays"]

FORMAT_VERSION = 2
_META = "__meta__"
_REFIT = "delete it to fit anew"


def to_arrays(state: State) -> dict[str, NDArray]:
    """Return the leaves of a state by path, as host arrays (sharded leaves are gathered).

    With several processes all of them must call this together.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): gather(leaf) for path, leaf in leaves} | {"k": np.array(state.k)}


def from_arrays(arrays: dict[str, NDArray], like: State) -> State:
    """Return a state with the structure and placement of `like` and the given leaves.

    Raises:
        ValueError: If a leaf is missing, has another shape or precision, or has no place in `like`; names it.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)

    def restore(path: Any, template: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if name not in arrays:
            raise ValueError(f"Checkpoint has no entry {name}; it was written by another configuration.")
        value = arrays[name]
        if value.shape != template.shape:
            raise ValueError(
                f"Checkpoint entry {name} has shape {value.shape}, expected {template.shape}; "
                "k, d and the optimiser must be those of the run that wrote it."
            )
        if value.dtype.kind == template.dtype.kind == "V" and value.dtype.itemsize == template.dtype.itemsize:
            value = value.view(template.dtype)  # NumPy writes bfloat16 as two bytes without a name
        if name.startswith(".V") and value.dtype != template.dtype:
            raise ValueError(f"Checkpoint entry {name} is of type {value.dtype}, expected {template.dtype}.")
        return put(jnp.asarray(value, template.dtype), template.sharding)

    state: State = jax.tree.unflatten(structure, [restore(path, leaf) for path, leaf in leaves])
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    unknown = [name for name in arrays if name.startswith(".") and name not in names]
    if unknown:
        raise ValueError(f"Checkpoint has an entry {unknown[0]}; it was written by another configuration.")
    if arrays.get("k", like.k) != like.k:
        raise ValueError(f"Checkpoint has k={arrays['k']} vectors, and the state k={like.k}.")
    return state


def save(
    path: str | os.PathLike[str],
    state: State,
    meta: dict[str, Any] | None = None,
    beside: dict[str, NDArray] | None = None,
) -> None:
    """Write a checkpoint; a reader sees the old file or the new one, never a part.

    With several processes all must call this; only process 0 writes.

    Args:
        path: File name, by convention ending in `.npz`.
        state: Any state.
        meta: JSON values to keep with it, such as the position in the data.
        beside: Arrays to keep with it, returned by `read`.
    """
    arrays, target = to_arrays(state) | (beside or {}), Path(path)
    if jax.process_index() != 0:
        return
    record = json.dumps({"format": FORMAT_VERSION, "meta": meta or {}})
    write_arrays(target, arrays | {_META: np.array(record)})


def read(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Return the arrays of a checkpoint by leaf path, and its metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint of a known format version.
    """
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"No checkpoint at {target}.")
    arrays = read_arrays(target, advice=_REFIT)
    with reading(target, _REFIT):
        record = json.loads(str(arrays.pop(_META)))
        if record["format"] != FORMAT_VERSION:
            raise ValueError(f"checkpoint format {record['format']}; this version reads {FORMAT_VERSION}")
        if not isinstance(record["meta"], dict):
            raise ValueError("no metadata")
        return arrays, record["meta"]


def load(path: str | os.PathLike[str], like: State) -> tuple[State, dict[str, Any]]:
    """Return the state and the metadata of a checkpoint.

    Args:
        path: Written by `save`.
        like: A state of the same configuration (from `init`); gives structure, types and placement.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint or does not fit `like`.
    """
    arrays, meta = read(path)
    return from_arrays(arrays, like), meta
