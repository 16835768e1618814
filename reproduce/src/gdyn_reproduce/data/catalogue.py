"""Which data sets there are, where they are looked for, and how they are checked."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gdyn_reproduce.data import embedded, generators
from gdyn_reproduce.data.layouts import Found, read_cifar, read_idx, read_npz, read_svhn, read_usps

SPLITS = ("train", "test")
_ALWAYS: dict[str, tuple[Callable[[str], tuple[np.ndarray, np.ndarray]], str]] = {
    "digits": (embedded.digits, "embedded"),
    "digits16": (embedded.digits16, "embedded, resized to 16x16"),
    "gaussians": (generators.gaussians, "generated from seed 0"),
    "teacher": (generators.teacher, "generated from seed 0"),
    "textures32": (generators.textures32, "generated from seed 0"),
}


@dataclass(frozen=True)
class Dataset:
    """One split of a data set with what a record of a run should say about it.

    Attributes:
        name: As passed to `load`.
        split: ``"train"`` or ``"test"``.
        x: Samples, see the package docstring.
        y: Labels, int64 from 0.
        source: ``"embedded"``, ``"generated..."`` or the file it was read from.
        lossy: Whether pixels differ from the original release (JPEG).
        verified: Whether content was checked against a known hash.
    """

    name: str
    split: str
    x: np.ndarray
    y: np.ndarray
    source: str
    lossy: bool
    verified: bool

    def provenance(self) -> dict[str, Any]:
        """Return plain data for a run's record, with SHA-256 of both arrays as returned."""
        return {
            "name": self.name,
            "split": self.split,
            "source": self.source,
            "lossy": self.lossy,
            "verified": self.verified,
            "shape": list(self.x.shape),
            "sha256_x": sha256(self.x),
            "sha256_y": sha256(self.y),
        }


@dataclass(frozen=True)
class _OnDisk:
    """A data set that is read from files.

    Attributes:
        shape: Of one sample.
        num_classes: Labels run from 0 to this, exclusive.
        layout: Reader of the layout other than ``<name>.npz``, if there is one.
        files: Accepted file names of that layout, for messages.
        sha256: Known hashes of (x, y) as stored (y as uint8) by split, whatever the layout.
        hashed_files: Whether `layouts` knows the hashes of the other layout's files.
        downloads: Path under the data folder to (URL, hash).
    """

    shape: tuple[int, ...]
    num_classes: int = 10
    layout: Callable[[Path, str], Found | None] = lambda root, split: None
    files: str = ""
    sha256: dict[str, tuple[str, str]] | None = None
    hashed_files: bool = False
    downloads: dict[str, tuple[str, str | None]] | None = None
    lossy: bool = False


def _idx_downloads(folder: str, site: str, md5: tuple[str | None, ...]) -> dict[str, tuple[str, str | None]]:
    stems = [
        f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    return {
        f"{folder}/raw/{stem}": (site + stem, digest and f"md5:{digest}")
        for stem, digest in zip(stems, md5, strict=True)
    }


_LIBSVM = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
ON_DISK = {
    "usps": _OnDisk(
        (16, 16),
        layout=read_usps,
        files="USPS/usps.bz2 and USPS/usps.t.bz2",
        sha256={
            "train": (
                "19278ce4e0242e481c6dd79ee608eac38d318df582628cd12bb841fdf0568f44",
                "ee5027fd47b76715ac18ca27e72fa1332bde98e0b8ce593b503bb2bdb6c03da0",
            ),
            "test": (
                "9c748d6be2e9da7d29b975c23c281f30a623fe85d17554cdeb3081ad123882f6",
                "0b8b792b8ca1c5c704fd9d5bbd1b261623a359e6c8c65b23db428257beea7800",
            ),
        },
        hashed_files=True,
        downloads={
            "USPS/usps.bz2": (_LIBSVM + "usps.bz2", "md5:ec16c51db3855ca6c91edd34d0e9b197"),
            "USPS/usps.t.bz2": (_LIBSVM + "usps.t.bz2", "md5:8ea070ee2aca1ac39742fdd1ef5ed118"),
        },
    ),
    "mnist": _OnDisk(
        (28, 28),
        layout=lambda root, split: read_idx(root, "MNIST", split),
        files="MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]",
        sha256={
            "train": (
                "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
                "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            ),
            "test": (
                "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
                "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
            ),
        },
        downloads=_idx_downloads(
            "MNIST",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
    ),
    "fashion_mnist": _OnDisk(
        (28, 28),
        layout=lambda root, split: read_idx(root, "FashionMNIST", split),
        files="FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]",
        sha256={
            "train": (
                "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
                "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            ),
            "test": (
                "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
                "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
            ),
        },
        # No file hashes known to us: the decoded arrays are checked when read.
        downloads=_idx_downloads(
            "FashionMNIST",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            (None, None, None, None),
        ),
    ),
    "cifar10": _OnDisk(
        (32, 32, 3),
        layout=lambda root, split: read_cifar(root, "cifar-10-batches-py", "cifar-10-python.tar.gz", split),
        files="cifar-10-batches-py/, cifar-10-python.tar.gz",
        hashed_files=True,
        downloads={
            "cifar-10-python.tar.gz": (
                _TORONTO + "cifar-10-python.tar.gz",
                "md5:c58f30108f718f92721af3b95e74349a",
            )
        },
    ),
    "cifar10_small": _OnDisk(
        (32, 32, 3),
        lossy=True,
        sha256={
            "train": (
                "0def9ad2e6d89468040220c6349bccf53c9c4ff869fc5a60b6b0e3b72e564769",
                "f24756e9fc27107597cd054b9df7247b4e5ab61780d1e5d55e7b1015307573de",
            ),
            "test": (
                "b1ba480b04129e48be47b3bd8f9bc34938618c30633d3dd3285f32f3655a5eb9",
                "19efeabbd5fed476d80e2ce2609cdc76c23b9694a1631c6371599ab362810a91",
            ),
        },
    ),
    # Decoders of JPEG differ by a level here and there, hence no hash of the pixels.
    "cifar10_jpeg": _OnDisk((32, 32, 3), lossy=True),
    "cifar100": _OnDisk(
        (32, 32, 3),
        num_classes=100,
        layout=lambda root, split: read_cifar(root, "cifar-100-python", "cifar-100-python.tar.gz", split),
        files="cifar-100-python/, cifar-100-python.tar.gz",
        hashed_files=True,
        downloads={
            "cifar-100-python.tar.gz": (
                _TORONTO + "cifar-100-python.tar.gz",
                "md5:eb9058c3a382ffc7106e4002c42a8d85",
            )
        },
    ),
    "svhn": _OnDisk(
        (32, 32, 3),
        layout=read_svhn,
        files="train_32x32.mat and test_32x32.mat",
        hashed_files=True,
        downloads={
            "train_32x32.mat": (_SVHN + "train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
            "test_32x32.mat": (_SVHN + "test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
        },
    ),
}


def names() -> tuple[str, ...]:
    """Return the names `load` knows, those that are always available first."""
    return (*_ALWAYS, *ON_DISK)


def sha256(array: np.ndarray) -> str:
    """Return the SHA-256 of the array's bytes in row-major order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def load(
    name: str, split: str, root: str | Path | None = None, download: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples and labels of one split; `load_dataset` also says where they came from.

    Args:
        name: One of `names`.
        split: ``"train"`` or ``"test"``.
        root: Data folder; default ``$GDYN_DATA_DIR``, else ``~/.cache/gdyn``.
        download: Whether a missing file may be fetched into the data folder.

    Raises:
        ValueError: If the name or split is unknown, or a file is damaged or not the known one.
        FileNotFoundError: If the files are missing; the message says which, and what to do.

    >>> x, y = load("digits", "train")
    >>> x.shape, int(x.max()), sorted(set(y.tolist())) == list(range(10))
    ((1437, 8, 8), 16, True)
    """
    dataset = load_dataset(name, split, root, download)
    return dataset.x, dataset.y


def load_dataset(name: str, split: str, root: str | Path | None = None, download: bool = False) -> Dataset:
    """Load as `load` does, with source, hashes and whether pixels are the original ones.

    >>> load_dataset("digits", "test").provenance()["source"]
    'embedded'
    """
    _check_name(name)
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; pass 'train' or 'test'.")
    if name in _ALWAYS:
        make, source = _ALWAYS[name]
        return Dataset(name, split, *make(split), source, lossy=False, verified=True)
    entry, folder = ON_DISK[name], data_folder(root)
    found = read_npz(folder, name, split) or entry.layout(folder, split)
    if found is None and download and entry.downloads:
        from gdyn_reproduce.data.download import fetch

        fetch(name, entry.downloads, folder)
        found = entry.layout(folder, split)
    if found is None:
        raise FileNotFoundError(_missing(name, entry, folder))
    return _checked(name, split, entry, found)


def is_available(name: str, root: str | Path | None = None) -> bool:
    """Return whether files of the data set are in the data folder, without reading them."""
    _check_name(name)
    if name in _ALWAYS:
        return True
    folder, entry = data_folder(root), ON_DISK[name]
    accepted = [
        f"{name}.npz",
        *(part.split("{")[0] for part in entry.files.replace(" and ", ", ").split(", ") if part),
    ]
    return any(any(folder.glob(f"{prefix.rstrip('/')}*")) for prefix in accepted)


def data_folder(root: str | Path | None = None) -> Path:
    """Return where files are looked for: `root`, else ``$GDYN_DATA_DIR``, else ``~/.cache/gdyn``."""
    return Path(root or os.environ.get("GDYN_DATA_DIR") or Path.home() / ".cache" / "gdyn").expanduser()


def _check_name(name: str) -> None:
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown data set {name!r}. There are: {', '.join(names())}.{hint}")


def _missing(name: str, entry: _OnDisk, folder: Path) -> str:
    accepted = f"{name}.npz" + (f" or {entry.files}" if entry.files else "")
    or_fetch = ", or pass download=True" if entry.downloads else ""
    return (
        f"{name} not found in {folder}. Put {accepted} there, or point GDYN_DATA_DIR to the folder "
        f"that has it{or_fetch}. Nothing was downloaded."
    )


def _checked(name: str, split: str, entry: _OnDisk, found: Found) -> Dataset:
    x, y, source = found
    stored = {np.dtype(np.uint8)} if name != "usps" else {np.dtype(np.int16), np.dtype(np.float32)}
    if (
        x.shape[1:] != entry.shape
        or x.dtype not in stored
        or y.shape != x.shape[:1]
        or y.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"{source} holds x {x.dtype} {x.shape} and y {y.dtype} {y.shape}, which is not {name}; "
            "replace or remove it."
        )
    if len(y) == 0 or y.min() < 0 or y.max() >= entry.num_classes:
        raise ValueError(f"{source} holds labels outside 0..{entry.num_classes - 1}; replace or remove it.")
    is_npz = source.endswith(".npz")
    hashes = (entry.sha256 or {}).get(split) if is_npz or not entry.hashed_files else None
    if hashes and (sha256(x), sha256(y.astype(np.uint8))) != hashes:
        raise ValueError(
            f"{source} does not hold the known {name} ({split}): its SHA-256 differs; replace it."
        )
    if x.dtype == np.int16:  # our usps.npz: the value times 1000
        x = (x / 1000).astype(np.float32)
    verified = bool(hashes) or (entry.hashed_files and not is_npz)
    x, y = np.ascontiguousarray(x), y.astype(np.int64)
    return Dataset(name, split, x, y, source, lossy=entry.lossy, verified=verified)
