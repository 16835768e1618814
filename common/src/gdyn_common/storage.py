"""Files that a kill cannot damage: atomic writes, named arrays, checkpoints.

Arrays are stored as npz without pickle, so reading one never executes anything.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file so that a reader or a kill sees the old or the new content, never a part."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as an npz file, atomically.

    Raises:
        TypeError: If a value is not numeric, boolean or text; such arrays would need pickle.
    """
    converted = {key: np.asarray(value) for key, value in arrays.items()}
    for key, array in converted.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {key!r} has dtype object, which only pickle can store; convert it first.")
    buffer = io.BytesIO()
    np.savez(buffer, **converted)  # type: ignore[arg-type]  # the stub types the keywords as one flag
    atomic_write(path, buffer.getvalue())


def read_arrays(path: Path) -> Arrays:
    """Read named arrays; pickled content is refused by NumPy.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to have it computed again.") from None


class Checkpoint:
    """State inside a long unit of work, as named arrays.

    Saving replaces the file atomically, so a kill at any moment leaves the old or the new state.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Arrays | None:
        """Return the saved arrays, or ``None`` if nothing was saved yet."""
        return read_arrays(self.path) if self.path.exists() else None

    def save(self, **arrays: Any) -> None:
        """Replace the saved arrays."""
        write_arrays(self.path, arrays)

    def clear(self) -> None:
        """Forget the saved state, once the unit of work is finished."""
        self.path.unlink(missing_ok=True)
