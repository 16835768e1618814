"""Exact checkpoints of a training run: arrays by path in one npz file, nothing that executes on loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdyn_common.storage import REPLACE, read_arrays, write_arrays

__all__ = ["restore_checkpoint", "save_checkpoint", "state_arrays", "state_from_arrays"]

KEY = "prng_key:"  # marks arrays that hold the words of a JAX key


def save_checkpoint(path: Path, state: Any) -> None:
    """Write a pytree of arrays and JAX keys, atomically."""
    write_arrays(path, state_arrays(state))


def state_arrays(state: Any) -> dict[str, np.ndarray]:
    """Return a pytree of arrays and JAX keys as plain arrays by path."""
    arrays = {}
    for name, leaf in _leaves(state):
        if _is_key(leaf):
            arrays[KEY + name] = np.asarray(jax.random.key_data(leaf))
        else:
            arrays[name] = np.asarray(leaf)
    return arrays


def restore_checkpoint(path: Path, template: Any, *, advice: str = REPLACE) -> Any:
    """Read a pytree of the template's structure; every bit as it was saved.

    Args:
        path: The file.
        template: A pytree of the same structure, shapes and types.
        advice: What to do about a damaged file, for the message.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or a parameter is missing, unknown or of another shape, naming it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_checkpoint(folder / "last.npz", {"w": np.arange(3.0)})
        >>> restore_checkpoint(folder / "last.npz", {"w": np.zeros(3)})["w"].tolist()
        [0.0, 1.0, 2.0]
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; give restore_path=<file or run folder>.")
    return state_from_arrays(read_arrays(path, advice=advice), template, str(path))


def state_from_arrays(arrays: dict[str, np.ndarray], template: Any, path: str) -> Any:
    """Return a pytree of the template's structure from arrays by path, which must be all of it.

    Raises:
        ValueError: As `restore_checkpoint`; ``path`` says where they come from.
    """
    arrays, leaves = dict(arrays), []
    for name, leaf in _leaves(template):
        stored = arrays.pop(KEY + name if _is_key(leaf) else name, None)
        if stored is None:
            raise ValueError(f"{path} does not hold {name}; it belongs to another configuration.")
        expected = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        if stored.dtype.kind == "V":  # a type of JAX that the file does not know, such as bfloat16
            if expected.dtype.itemsize != stored.dtype.itemsize:
                raise ValueError(f"{name} is not {expected.dtype} in {path}, as in this configuration.")
            stored = stored.view(expected.dtype)
        if stored.shape != expected.shape:
            raise ValueError(
                f"{name} has shape {stored.shape} in {path} and {expected.shape} in this configuration."
            )
        if _is_key(leaf):
            stored = jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(leaf))
        leaves.append(stored)
    if arrays:
        raise ValueError(f"{path} holds {next(iter(arrays))}, which this configuration does not have.")
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
