"""Files that a kill cannot damage, and readers that damaged or hostile files cannot hurt.

Writing replaces a file whole or not at all. Reading checks type and size before anything is allocated,
executes nothing, and turns whatever is wrong into one line that names the file: ``ValueError`` for
content, ``OSError`` for what the operating system refuses.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gdyn_common.errors import printable

Arrays = dict[str, NDArray[Any]]

REPLACE = "replace it by a whole copy"
RECOMPUTE = "delete it to have it computed again"

_TEXT_LIMIT = 1 << 26
_HEADER_LIMIT = 10_000  # bytes of an array's header, as in NumPy
_EMPTY_ARCHIVE = 22  # bytes of a zip file without members
_CHUNK = 1 << 20


@contextlib.contextmanager
def atomic_file(path: Path, *, parents: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when the block ends, and leaves it alone when it fails.

    A reader or a kill sees the old or the new content, never a part. Two writers take turns. What a kill
    leaves beside the file, the next write of the same file takes over.

    Args:
        path: The file; a link stays one.
        parents: Make its folder if there is none.

    Raises:
        OSError: If the file cannot be written, named with the reason; no partial file stays behind.
    """
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f".{target.name}.part")
    with naming(path, "written", "Free some space or write elsewhere"):
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise OSError(f"{path} is no regular file; give the name of a file.")
        try:
            file = _open_locked(scratch, wait=True)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                if not scratch.stat().st_size:  # made by us at the moment of the interruption
                    scratch.unlink()
            raise
        try:
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(scratch, target)  # noqa: PTH105 - one name for the tests that count replacements
        except BaseException:
            scratch.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # of what is left in the buffer, once more
                file.close()
            raise
        file.close()
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def atomic_write(path: Path, content: str | bytes, *, parents: bool = True) -> None:
    """Replace the content of a file, as `atomic_file` does."""
    with atomic_file(path, parents=parents) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_arrays(path: Path, arrays: Mapping[str, Any], *, parents: bool = True) -> None:
    """Write named arrays as an npz file, atomically.

    Raises:
        TypeError: If a value is not numeric, boolean or text; such arrays would need pickle.
    """
    converted = {key: np.asarray(value) for key, value in arrays.items()}
    for key, array in converted.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {key!r} has dtype object, which only pickle can store; convert it first.")
    with atomic_file(path, parents=parents) as file:
        np.savez(file, **converted)  # type: ignore[arg-type]  # the stub types the keywords as one flag


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write one array as an npy file, atomically."""
    with atomic_file(path) as file:
        np.save(file, array, allow_pickle=False)


def read_arrays(path: Path, *, advice: str = REPLACE) -> Arrays:
    """Read the named arrays of an npz file.

    Args:
        path: The file.
        advice: What to do about a damaged file, for the message.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is damaged, holds Python objects, or unpacks to far more than it weighs.
    """
    with reading(path, advice), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members, packed = archive.infolist(), os.fstat(file.fileno()).st_size
        if not members and packed > _EMPTY_ARCHIVE:
            raise ValueError("its table of contents is gone")
        _check_unpacked_size(sum(member.file_size for member in members), packed)
        arrays = {}
        for member in members:
            with archive.open(member) as stream:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"two arrays are called {name!r}")
                arrays[name] = _read_npy(stream, member.file_size)
        return arrays


def read_array(path: Path, *, mapped: Literal["", "r", "c"] = "", advice: str = REPLACE) -> NDArray[Any]:
    """Read an npy file.

    Args:
        path: The file.
        mapped: Leave the numbers on disk: ``"r"`` read-only, ``"c"`` with changes in memory only. The
            file must not shrink meanwhile.
        advice: What to do about a damaged file, for the message.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is damaged or holds Python objects.
    """
    with reading(path, advice), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not mapped:
            return _read_npy(file, size)
        shape, order, dtype = _npy_header(file)
        _check_length(shape, dtype, size - file.tell())
        if not math.prod(shape):
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, mapped, file.tell(), shape, order)


def read_text(path: Path, *, limit: int | None = _TEXT_LIMIT, advice: str = REPLACE) -> str:
    """Read a UTF-8 text file of at most `limit` bytes.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is too large or not UTF-8.
    """
    with reading(path, advice), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_memory(size)
        if limit is not None and size > limit:
            raise ValueError(f"it has {size} bytes, more than the {limit} that such a file may have")
        return file.read().decode("utf-8-sig")


def read_json(path: Path, *, advice: str = REPLACE) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no JSON object, too large, or nested too deeply.
    """
    text = read_text(path, advice=advice)
    with reading(path, advice):
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError("it holds no JSON object")
        return body


@contextlib.contextmanager
def reading(path: Path, advice: str = REPLACE) -> Iterator[None]:
    """Turn whatever a reader raises on foreign bytes into one line about the file.

    Raises:
        OSError: For what the operating system refuses.
        ValueError: For everything else.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and (error.errno is not None or str(path) in str(error)):
            raise _with_path(error, path, "read", "Check the path") from None
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise ValueError(f"{path} is damaged or of another kind ({reason[:200]}); {advice}.") from None


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading, without ever waiting for a pipe or a device.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
    """
    with naming(path, "read", "Check the path"):
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(f"{path} is no regular file; copy its content to one.")
        return os.fdopen(handle, "rb")


class FolderLock:
    """Holds a folder against every other process until it is closed or the process ends.

    Args:
        folder: Made if missing.

    Raises:
        BlockingIOError: If someone else holds it.
        OSError: If the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with naming(folder, "written", "Pass another out="):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(folder / ".lock", wait=False)

    def check(self) -> None:
        """Make sure that the folder is still the one that was locked.

        Raises:
            FileNotFoundError: If it was removed, or replaced by another.
        """
        if not _is_at(self._file, self.folder / ".lock"):
            raise FileNotFoundError(
                f"{self.folder} was removed or replaced while it was in use; start the command again."
            )

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        self._file.close()


def remove_folder(folder: Path) -> None:
    """Delete a folder and all it holds, unless someone else holds it.

    The marks of a finished run go first, so that a kill in between leaves an unfinished one.

    Raises:
        BlockingIOError: If another process holds it.
    """
    import shutil

    if folder.exists():
        with FolderLock(folder):
            for name in ("result.json", "summary.json"):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder)


class Checkpoint:
    """State inside a long unit of work, as named arrays.

    Saving replaces the file atomically, so a kill at any moment leaves the old or the new state.

    Args:
        path: The file.
        belongs_to: Name of the work it is the state of; the state of other work is refused.
        lock: Of the folder it lies in; nothing is saved once that is gone.
    """

    def __init__(self, path: Path, belongs_to: str = "", lock: FolderLock | None = None) -> None:
        self.path = path
        self._belongs_to = belongs_to
        self._lock = lock

    def load(self) -> Arrays | None:
        """Return the saved arrays, or ``None`` if nothing was saved yet."""
        if not self.path.exists():
            return None
        return claim_arrays(read_arrays(self.path, advice=RECOMPUTE), self._belongs_to, self.path)

    def save(self, **arrays: Any) -> None:
        """Replace the saved arrays."""
        if self._lock is not None:
            self._lock.check()
        write_arrays(self.path, arrays | owner(self._belongs_to), parents=self._lock is None)

    def clear(self) -> None:
        """Forget the saved state, once the unit of work is finished."""
        self.path.unlink(missing_ok=True)


_OWNER = "__belongs_to__"


def owner(name: str) -> Arrays:
    """Return the array that says what a file of arrays belongs to; none for an empty name."""
    return {_OWNER: np.array(name)} if name else {}


def claim_arrays(arrays: Arrays, name: str, path: Path) -> Arrays:
    """Return arrays read from `path` without their `owner`, which must be `name`.

    Raises:
        ValueError: If they belong to something else, or do not say to what.
    """
    found = str(arrays.pop(_OWNER, ""))
    if found != name:
        other = f"belongs to {found!r}" if found else "does not say what it belongs to"
        raise ValueError(f"{path} {printable(other)}, not to {name!r}; {RECOMPUTE}.")
    return arrays


@contextlib.contextmanager
def naming(path: Path, action: str, advice: str) -> Iterator[None]:
    """Give errors of the operating system the name of the file."""
    try:
        yield
    except OSError as error:
        raise _with_path(error, path, action, advice) from None


def _with_path(error: OSError, path: Path, action: str, advice: str) -> OSError:
    if error.strerror is None:  # ours already
        return error
    named = type(error)(f"{path} cannot be {action}: {error.strerror}. {advice}.")
    named.errno = error.errno
    return named


def _open_locked(path: Path, *, wait: bool) -> IO[bytes]:
    """Open a file for writing and lock it; where there are no advisory locks, only open it."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = os.fdopen(os.open(path, flags, 0o666), "r+b")
        try:
            with contextlib.suppress(ImportError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            raise BlockingIOError(
                f"{path.parent} is in use by another process; wait for it, or pass another out=."
            ) from None
        except BaseException:
            file.close()
            raise
        if _is_at(file, path):  # the one who held it may have replaced or removed it
            return file
        file.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _check_unpacked_size(size: int, packed: int) -> None:
    _check_memory(size)
    if size > max(1 << 28, 64 * packed):
        raise ValueError(f"its {packed} bytes announce {size} unpacked")


def _check_memory(size: int) -> None:
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else size
    if size > available:
        raise ValueError(f"it takes {size} bytes of memory, this machine has {available}")


def _check_length(shape: tuple[int, ...], dtype: np.dtype[Any], length: int) -> None:
    announced = math.prod(shape) * dtype.itemsize
    if announced != length:
        raise ValueError(f"its header announces {announced} bytes, it holds {length}")


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    """Read shape, order and type of an array, and accept plain numbers and text only."""
    if stream.read(6) != b"\x93NUMPY":
        raise ValueError("no NumPy array")
    width = {1: 2, 2: 4, 3: 4}.get(stream.read(2)[0])
    if width is None:
        raise ValueError("unknown version of the NumPy format")
    length = int.from_bytes(stream.read(width), "little")
    if length > _HEADER_LIMIT:
        raise ValueError(f"its header has {length} bytes, at most {_HEADER_LIMIT} are read")
    header = ast.literal_eval(stream.read(length).decode("utf-8"))
    shape, descr, by_columns = (header.pop(key) for key in ("shape", "descr", "fortran_order"))
    if header or not isinstance(by_columns, bool):
        raise ValueError("no header of a NumPy array")
    if not isinstance(shape, tuple) or not all(type(axis) is int and axis >= 0 for axis in shape):
        raise ValueError(f"no shape of an array: {str(shape)[:60]}")
    dtype = np.dtype(descr) if isinstance(descr, str) else None
    if dtype is None or dtype.hasobject or dtype.fields or dtype.subdtype:
        raise ValueError(f"it holds {str(descr)[:60]}, only numbers and text are read")
    return shape, "F" if by_columns else "C", dtype


def _read_npy(stream: IO[bytes], size: int) -> NDArray[Any]:
    """Read an array of exactly `size` bytes, header included."""
    start = stream.tell()
    shape, order, dtype = _npy_header(stream)
    length = size - (stream.tell() - start)
    _check_length(shape, dtype, length)
    _check_memory(length)
    array = np.empty(shape, dtype, order)
    memory = array.reshape(-1, order="A").view(np.uint8) if length else np.empty(0, np.uint8)
    filled = 0
    while filled < length:
        part = stream.read(min(_CHUNK, length - filled))
        if not part:
            raise ValueError(f"it ends after {filled} of {length} bytes")
        memory[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    if stream.read(1):  # reading to the end also checks the checksum of an archive
        raise ValueError("it goes on after the last number")
    return array
