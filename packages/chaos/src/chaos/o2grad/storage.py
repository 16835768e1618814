"""Hessians and eigenpairs on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from chaos.o2grad.eigenpairs import Eigenpairs
from chaos.o2grad.frames import IdentityFrame
from chaos.o2grad.hessian import Hessian
from gdyn_common.storage import read_array, read_arrays, reading, write_arrays

#: Above this many bytes a dense Hessian goes to a plain ``.npy`` that can be memory-mapped.
MAPPED_ABOVE = 1 << 30


def save_hessian(hessian: Hessian, path: str | Path, mapped_above: int = MAPPED_ABOVE) -> Path:
    """Write the dense matrix: ``.npz``, or a memory-mappable ``.npy`` above a size.

    Returns:
        The path written, with its suffix.
    """
    path = Path(path)
    needed = hessian.n**2 * hessian.core.element_size()
    if needed > mapped_above:
        path = path.with_suffix(".npy")
        mapped = np.lib.format.open_memmap(
            path, mode="w+", dtype=hessian.core.numpy().dtype, shape=hessian.shape
        )
        for start in range(0, hessian.n, 512):
            mapped[start : start + 512] = hessian.rows(slice(start, start + 512)).numpy()
        mapped.flush()
        return path
    path = path.with_suffix(".npz")
    write_arrays(path, {"hessian": hessian.dense().numpy(), "names": np.array(hessian.layout.names)})
    return path


def load_hessian(path: str | Path) -> torch.Tensor:
    """Read the matrix that :func:`save_hessian` wrote; an ``.npy`` stays on disk (copy on write).

    Raises:
        ValueError: If the file is not one.
    """
    path = Path(path)
    stored = read_array(path, mapped="c") if path.suffix == ".npy" else read_arrays(path)
    with reading(path):
        return torch.from_numpy(stored["hessian"] if isinstance(stored, dict) else stored)


def save_eigenpairs(pairs: Eigenpairs, path: str | Path) -> Path:
    """Write non-null eigenpairs and the size of the null space as ``.npz``."""
    path = Path(path).with_suffix(".npz")
    write_arrays(path, {"values": pairs.values.numpy(), "vectors": pairs.vectors.numpy(), "tol": pairs.tol})
    return path


def load_eigenpairs(path: str | Path) -> Eigenpairs:
    """Read what :func:`save_eigenpairs` wrote.

    Raises:
        ValueError: If the file is not one.
    """
    stored = read_arrays(Path(path))
    with reading(Path(path)):
        values, vectors = torch.from_numpy(stored["values"]), torch.from_numpy(stored["vectors"])
        if values.ndim != 1 or vectors.ndim != 2 or vectors.shape[1] != len(values):
            raise ValueError(f"{tuple(values.shape)} values do not fit {tuple(vectors.shape)} vectors")
        return Eigenpairs(values, vectors, IdentityFrame(len(vectors)), float(stored["tol"]))
