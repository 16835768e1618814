"""A file of samples that is read for hours: is it still the one that the fit began with?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WatchedRows", "fingerprint", "watched"]

_PARTS, _PART = 256, 4096


def fingerprint(path: Path) -> str:
    """Return a digest of the size and of a megabyte spread over the file: the same after a copy or a move.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     one, other = Path(folder, "one"), Path(folder, "other")
        ...     sizes = one.write_bytes(b"abc"), other.write_bytes(b"abd")
        ...     fingerprint(one) == fingerprint(other)
        False
    """
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.unique(np.linspace(0, max(size - _PART, 0), _PARTS).astype(np.int64)):
            file.seek(int(start))
            found.update(file.read(_PART))
    return found.hexdigest()[:32]


class WatchedRows(np.memmap):
    """A memory map that copies what is read from it, and refuses once its file has changed.

    A map of a file that has become shorter would end the process without a word.
    """

    _path: Path
    _seen: tuple[int, int]

    def __array_finalize__(self, obj: Any) -> None:
        super().__array_finalize__(obj)
        if isinstance(obj, WatchedRows):
            self._path, self._seen = obj._path, obj._seen

    def __getitem__(self, index: Any) -> Any:
        self._check()
        part = np.array(super().__getitem__(index))
        self._check()
        return part

    def _check(self) -> None:
        try:
            now = _state(self._path)
        except FileNotFoundError:
            raise ValueError(f"{self._path} was removed while it was read. {_ADVICE}") from None
        if now != self._seen:
            sizes = f" ({self._seen[0]} bytes before, {now[0]} now)" if now[0] != self._seen[0] else ""
            raise ValueError(f"{self._path} changed while it was read{sizes}. {_ADVICE}")


_ADVICE = "Put the file back and run the same command again: it goes on from its last checkpoint."


def watched(rows: NDArray, path: Path) -> NDArray:
    """Return rows of a memory map that are checked at every read; other arrays as they are.

    Raises:
        ValueError: By reading, once the file was changed, cut or removed.
    """
    if not isinstance(rows, np.memmap):
        return rows
    found = rows.view(WatchedRows)
    found._path, found._seen = path, _state(path)
    return found


def _state(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written: size and time of the last change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
