"""Hessians and eigenpairs on disk."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from chaos.o2grad.eigenpairs import Eigenpairs
from chaos.o2grad.frames import IdentityFrame
from chaos.o2grad.hessian import Hessian

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
    np.savez(path, hessian=hessian.dense().numpy(), names=np.array(hessian.layout.names))
    return path


def load_hessian(path: str | Path) -> torch.Tensor:
    """Read the matrix that :func:`save_hessian` wrote; an ``.npy`` stays on disk (copy on write).

    Raises:
        ValueError: If the file is not one.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return torch.from_numpy(stored["hessian"])
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a stored Hessian: {error}.") from error


def save_eigenpairs(pairs: Eigenpairs, path: str | Path) -> Path:
    """Write non-null eigenpairs and the size of the null space as ``.npz``."""
    path = Path(path).with_suffix(".npz")
    np.savez(path, values=pairs.values.numpy(), vectors=pairs.vectors.numpy(), tol=pairs.tol)
    return path


def load_eigenpairs(path: str | Path) -> Eigenpairs:
    """Read what :func:`save_eigenpairs` wrote.

    Raises:
        ValueError: If the file is not one.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            values, vectors = torch.from_numpy(stored["values"]), torch.from_numpy(stored["vectors"])
            return Eigenpairs(values, vectors, IdentityFrame(len(vectors)), float(stored["tol"]))
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no eigenpairs: {error}.") from error
