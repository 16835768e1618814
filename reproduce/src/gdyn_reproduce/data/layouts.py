"""Readers of the files in which real data sets are found on disk.

Every reader takes the data folder and a split and returns ``(x, y, source)`` as stored, or ``None``
when its files are not there. Damaged or foreign files raise ValueError. No pickle is executed: CIFAR
batches go through an unpickler that knows nothing but NumPy arrays.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib.util
import io
import itertools
import math
import pickle
import tarfile
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from gdyn_common.storage import open_regular, read_arrays, reading

Found = tuple[np.ndarray, np.ndarray, str]

ADVICE = "replace it by the original file, or remove it"
LARGEST = 1 << 30
"""Bytes of the largest file, packed or unpacked, that is read into memory; ours have 200 MB at most."""

KNOWN_MD5 = {
    "usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
    "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def _bytes_of(path: Path, known_as: str = "") -> bytes:
    """Return the content of a file, if it is the published one where that is known."""
    with open_regular(path) as file:
        content = _read(file, LARGEST)
    _check_md5(known_as, content)
    return content


def _read(file: IO[bytes], limit: int) -> bytes:
    # In parts, since a single read makes room for all it is asked for.
    parts, size = [], 0
    while part := file.read(1 << 20):
        size += len(part)
        if size > limit:
            raise ValueError(f"it has more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def _check_md5(key: str, content: bytes) -> None:
    expected = KNOWN_MD5.get(key)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if expected not in (None, found):
        raise ValueError(f"{key} has MD5 {found}, the published file {expected}")


def read_npz(root: Path, name: str, split: str) -> Found | None:
    """Read ``<name>.npz`` with arrays ``x_<split>`` (or JPEG bytes and offsets) and ``y_<split>``."""
    path = root / f"{name}.npz"
    if not path.is_file():
        return None
    arrays = read_arrays(path, advice=ADVICE)
    if f"jpeg_{split}" in arrays:
        _need_pillow()
    with reading(path, ADVICE):
        y = arrays[f"y_{split}"]
        if f"jpeg_{split}" in arrays:
            x = _decode_jpegs(arrays[f"jpeg_{split}"], arrays[f"offsets_{split}"])
        else:
            x = arrays[f"x_{split}"]
        return x, y, path.name


def _need_pillow() -> None:
    if importlib.util.find_spec("PIL") is None:
        raise ModuleNotFoundError("JPEG images need Pillow; run `pip install pillow`.")


def _decode_jpegs(stream: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    from PIL import Image

    images: list[np.ndarray] = []
    for start, stop in itertools.pairwise(offsets):
        with Image.open(io.BytesIO(stream[start:stop].tobytes()), formats=["JPEG"]) as image:
            if (images and image.size != images[0].shape[1::-1]) or math.prod(image.size) > 1 << 24:
                raise ValueError(f"image {len(images)} is {image.width} x {image.height} pixels large")
            images.append(np.asarray(image.convert("RGB")))
    return np.stack(images)


def read_idx(root: Path, folder: str, split: str) -> Found | None:
    """Read the IDX files of MNIST and Fashion-MNIST, raw or gzipped, from ``<folder>/raw``."""
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays = []
    for stem in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        candidates = [root / folder / "raw" / name for name in (stem, f"{stem}.gz")]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            return None
        with reading(path, ADVICE), open_regular(path) as file:
            packed = path.suffix == ".gz"
            arrays.append(_parse_idx(cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file))
    return arrays[0], arrays[1], f"{folder}/raw"


def _parse_idx(file: IO[bytes]) -> np.ndarray:
    # Two zero bytes, the type (8: unsigned byte), the number of axes, their lengths big-endian.
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08":
        raise ValueError("no IDX file of unsigned bytes")
    shape = tuple(np.frombuffer(file.read(4 * magic[3]), ">u4", magic[3]).tolist())
    size = math.prod(shape)
    if size > LARGEST:
        raise ValueError(f"its header announces {size} bytes, at most {LARGEST} are read")
    content = _read(file, size)
    if len(content) != size:
        raise ValueError(f"its header announces {size} bytes, it holds {len(content)}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_usps(root: Path, split: str) -> Found | None:
    """Read USPS in LIBSVM text, ``usps.bz2`` and ``usps.t.bz2``, plainly or in a folder ``USPS``."""
    name = {"train": "usps.bz2", "test": "usps.t.bz2"}[split]
    path = next((path for path in (root / "USPS" / name, root / name) if path.is_file()), None)
    if path is None:
        return None
    with reading(path, ADVICE):
        unpacked = bz2.BZ2File(io.BytesIO(_bytes_of(path, name)))
        lines = _read(unpacked, LARGEST).decode("ascii").splitlines()
        x, y = np.zeros((len(lines), 256), np.float32), np.zeros(len(lines), np.int64)
        for i, line in enumerate(lines):
            label, *entries = line.split()
            y[i] = int(float(label)) - 1  # the file counts classes from 1
            for entry in entries:
                index, value = entry.split(":")
                if not 1 <= int(index) <= 256:
                    raise ValueError(f"pixel {index} in line {i + 1}")
                x[i, int(index) - 1] = float(value)
    return x.reshape(-1, 16, 16), y, str(path.relative_to(root))


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries of NumPy arrays, lists, strings and numbers; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")


def read_cifar(root: Path, folder: str, archive: str, split: str) -> Found | None:
    """Read CIFAR-10 or CIFAR-100 from its folder of batches or from the ``tar.gz`` that holds it."""
    members = {
        "cifar-10-batches-py": [f"data_batch_{i}" for i in range(1, 6)],
        "cifar-100-python": ["train"],
    }[folder]
    if split == "test":
        members = [{"cifar-10-batches-py": "test_batch", "cifar-100-python": "test"}[folder]]
    path = next((path for path in (root / folder, root / archive) if path.exists()), None)
    if path is None:
        return None
    images, labels = [], []
    with reading(path, ADVICE):
        for member, content in _contents(path, folder, members).items():
            _check_md5(member, content)
            batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
            images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.array(batch[b"labels"] if b"labels" in batch else batch[b"fine_labels"]))
        return np.concatenate(images), np.concatenate(labels), path.name


def _contents(path: Path, folder: str, members: list[str]) -> dict[str, bytes]:
    keys = [f"{folder}/{member}" for member in members]
    if path.is_dir():
        return {key: _bytes_of(path / Path(key).name) for key in keys}
    found: dict[str, bytes] = {}
    with (
        open_regular(path) as file,
        tarfile.open(fileobj=cast(IO[bytes], _Unpacked(file)), mode="r|") as archive,
    ):
        for entry in archive:  # one pass, so that nothing is unpacked twice
            if entry.name in keys and entry.isfile() and (content := archive.extractfile(entry)):
                found[entry.name] = _read(content, LARGEST)
    return {key: found[key] for key in keys}


class _Unpacked:
    """Unpacks a gzip file, but not endlessly."""

    def __init__(self, file: IO[bytes]) -> None:
        self._stream = gzip.GzipFile(fileobj=file)
        self._left = LARGEST

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {LARGEST} bytes")
        return content


def read_svhn(root: Path, split: str) -> Found | None:
    """Read SVHN's cropped digits, ``train_32x32.mat`` and ``test_32x32.mat``."""
    path = root / f"{split}_32x32.mat"
    if not path.is_file():
        return None
    from scipy.io import loadmat

    with reading(path, ADVICE):
        matrices = loadmat(io.BytesIO(_bytes_of(path, path.name)), variable_names=["X", "y"])
        return matrices["X"].transpose(3, 0, 1, 2), matrices["y"].ravel() % 10, path.name  # 10 is digit 0
