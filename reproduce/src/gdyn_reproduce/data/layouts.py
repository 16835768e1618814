"""Readers of the files in which real data sets are found on disk.

Every reader takes the data folder and a split and returns ``(x, y, source)`` as stored, or ``None``
when its files are not there. Damaged or foreign files raise ValueError. No pickle is executed: CIFAR
batches go through an unpickler that knows nothing but NumPy arrays.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import itertools
import math
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

Found = tuple[np.ndarray, np.ndarray, str]

# What readers raise on bytes that are not theirs.
DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    pickle.UnpicklingError,
)

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


def _damaged(path: Path, reason: object) -> ValueError:
    text = " ".join(str(reason).split())
    return ValueError(f"{path} cannot be used: {text}. Replace it by the original file, or remove it.")


def _check_md5(path: Path, key: str, content: bytes) -> None:
    expected = KNOWN_MD5.get(key)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if expected not in (None, found):
        raise _damaged(path, f"{key} has MD5 {found}, the published file {expected}")


def read_npz(root: Path, name: str, split: str) -> Found | None:
    """Read ``<name>.npz`` with arrays ``x_<split>`` (or JPEG bytes and offsets) and ``y_<split>``."""
    path = root / f"{name}.npz"
    if not path.is_file():
        return None
    try:
        # Opened here because np.load leaves the file open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            y = archive[f"y_{split}"]
            if f"jpeg_{split}" in archive:
                x = _decode_jpegs(archive[f"jpeg_{split}"], archive[f"offsets_{split}"])
            else:
                x = archive[f"x_{split}"]
    except DAMAGE as error:
        raise _damaged(path, error) from None
    return x, y, path.name


def _decode_jpegs(stream: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise ModuleNotFoundError("JPEG images need Pillow; run `pip install pillow`.") from None
    spans = itertools.pairwise(offsets)
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(stream[a:b].tobytes()), formats=["JPEG"]).convert("RGB"))
            for a, b in spans
        ]
    )


def read_idx(root: Path, folder: str, split: str) -> Found | None:
    """Read the IDX files of MNIST and Fashion-MNIST, raw or gzipped, from ``<folder>/raw``."""
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays = []
    for stem in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        candidates = [root / folder / "raw" / name for name in (stem, f"{stem}.gz")]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            return None
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            arrays.append(_parse_idx(content))
        except DAMAGE as error:
            raise _damaged(path, error) from None
    return arrays[0], arrays[1], f"{folder}/raw"


def _parse_idx(content: bytes) -> np.ndarray:
    # Two zero bytes, the type (8: unsigned byte), the number of axes, their lengths big-endian.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("no IDX file of unsigned bytes")
    num_axes = content[3]
    shape = tuple(np.frombuffer(content, ">u4", num_axes, offset=4).tolist())
    if len(content) != 4 + 4 * num_axes + math.prod(shape):
        raise ValueError(
            f"its header announces {math.prod(shape)} bytes, it holds {len(content) - 4 - 4 * num_axes}"
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def read_usps(root: Path, split: str) -> Found | None:
    """Read USPS in LIBSVM text, ``usps.bz2`` and ``usps.t.bz2``, plainly or in a folder ``USPS``."""
    name = {"train": "usps.bz2", "test": "usps.t.bz2"}[split]
    path = next((path for path in (root / "USPS" / name, root / name) if path.is_file()), None)
    if path is None:
        return None
    content = path.read_bytes()
    _check_md5(path, name, content)
    try:
        lines = bz2.decompress(content).decode("ascii").splitlines()
        x, y = np.zeros((len(lines), 256), np.float32), np.zeros(len(lines), np.int64)
        for i, line in enumerate(lines):
            label, *entries = line.split()
            y[i] = int(float(label)) - 1  # the file counts classes from 1
            for entry in entries:
                index, value = entry.split(":")
                if not 1 <= int(index) <= 256:
                    raise ValueError(f"pixel {index} in line {i + 1}")
                x[i, int(index) - 1] = float(value)
    except DAMAGE as error:
        raise _damaged(path, error) from None
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
    try:
        for member, content in _contents(path, folder, members).items():
            _check_md5(path, member, content)
            batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
            images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.array(batch[b"labels"] if b"labels" in batch else batch[b"fine_labels"]))
    except DAMAGE as error:
        raise error if str(error).startswith(str(path)) else _damaged(path, error) from None
    return np.concatenate(images), np.concatenate(labels), path.name


def _contents(path: Path, folder: str, members: list[str]) -> dict[str, bytes]:
    keys = [f"{folder}/{member}" for member in members]
    if path.is_dir():
        return {key: (path / Path(key).name).read_bytes() for key in keys}
    with tarfile.open(path, "r:gz") as archive:
        files = {key: archive.extractfile(key) for key in keys}
        return {key: file.read() for key, file in files.items() if file is not None}


def read_svhn(root: Path, split: str) -> Found | None:
    """Read SVHN's cropped digits, ``train_32x32.mat`` and ``test_32x32.mat``."""
    path = root / f"{split}_32x32.mat"
    if not path.is_file():
        return None
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    content = path.read_bytes()
    _check_md5(path, path.name, content)
    try:
        matrices = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        return matrices["X"].transpose(3, 0, 1, 2), matrices["y"].ravel() % 10, path.name  # 10 is digit 0
    except (*DAMAGE, MatReadError) as error:
        raise _damaged(path, error) from None
