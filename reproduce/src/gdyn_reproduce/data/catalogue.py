"""Which data sets there are, where they are looked for, and how they are checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gdyn_common.errors import UnknownNameError, unknown
from gdyn_reproduce.data import embedded, generators
from gdyn_reproduce.data.download import File, fetch
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
        downloads: Published files by path under the data folder; empty if there are none.
    """

    shape: tuple[int, ...]
    num_classes: int = 10
    layout: Callable[[Path, str], Found | None] = lambda root, split: None
    files: str = ""
    sha256: dict[str, tuple[str, str]] | None = None
    hashed_files: bool = False
    downloads: dict[str, File] = field(default_factory=dict)
    lossy: bool = False


def _files(folder: str, site: str, *files: tuple[str, int, str]) -> dict[str, File]:
    return {f"{folder}{name}": File(site + name, sha256, size) for name, size, sha256 in files}


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
        downloads=_files(
            "USPS/",
            "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",
            ("usps.bz2", 6_579_383, "3771e9dd6ba685185f89867b6e249233dd74652389f263963b3b741e994b034f"),
            ("usps.t.bz2", 1_831_726, "a9c0164e797d60142a50604917f0baa604f326e9a689698763793fa5d12ffc4e"),
        ),
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
        downloads=_files(
            "MNIST/raw/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            (
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
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
        downloads=_files(
            "FashionMNIST/raw/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            (
                "train-images-idx3-ubyte.gz",
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                5_148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
    ),
    "cifar10": _OnDisk(
        (32, 32, 3),
        layout=lambda root, split: read_cifar(root, "cifar-10-batches-py", "cifar-10-python.tar.gz", split),
        files="cifar-10-batches-py/, cifar-10-python.tar.gz",
        hashed_files=True,
        downloads=_files(
            "",
            "https://www.cs.toronto.edu/~kriz/",
            (
                "cifar-10-python.tar.gz",
                170_498_071,
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            ),
        ),
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
        downloads=_files(
            "",
            "https://www.cs.toronto.edu/~kriz/",
            (
                "cifar-100-python.tar.gz",
                169_001_437,
                "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            ),
        ),
    ),
    "svhn": _OnDisk(
        (32, 32, 3),
        layout=read_svhn,
        files="train_32x32.mat and test_32x32.mat",
        hashed_files=True,
        downloads=_files(
            "",
            "http://ufldl.stanford.edu/housenumbers/",  # the host has no https
            (
                "train_32x32.mat",
                182_040_794,
                "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            ),
            (
                "test_32x32.mat",
                64_275_384,
                "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
            ),
        ),
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


def fetch_dataset(name: str, root: str | Path | None = None) -> None:
    """Download what is missing of a data set, checking every file.

    Raises:
        UnknownNameError: If the name is unknown.
        ValueError: If it is published nowhere that we know of.
        ConnectionError: If a file cannot be fetched or is not the published one.
    """
    _check_name(name)
    if name in _ALWAYS:
        return
    entry, folder = ON_DISK[name], data_folder(root)
    if all(read_npz(folder, name, split) or entry.layout(folder, split) for split in SPLITS):
        return
    if not entry.downloads:
        raise ValueError(f"{name} cannot be fetched; put {name}.npz into {folder}.")
    fetch(name, entry.downloads, folder)


def describe(name: str, root: str | Path | None = None) -> str:
    """Return one line on a data set: its samples, and whether it is there."""
    _check_name(name)
    if name in _ALWAYS:
        return f"always there, {_ALWAYS[name][1]}"
    entry = ON_DISK[name]
    what = f"{'x'.join(map(str, entry.shape))}, {entry.num_classes} classes{', lossy' if entry.lossy else ''}"
    if is_available(name, root):
        return f"{what}; there"
    return f"{what}; not there" + (f": {_fetch_command(name)}" if entry.downloads else f": needs {name}.npz")


def _fetch_command(name: str) -> str:
    megabytes = sum(file.size for file in ON_DISK[name].downloads.values()) / 1e6
    return f"gdyn-data fetch {name} ({megabytes:.0f} MB)"


def _check_name(name: str) -> None:
    if name not in names():
        raise UnknownNameError(unknown("data set", name, names()))


def _missing(name: str, entry: _OnDisk, folder: Path) -> str:
    accepted = f"{name}.npz" + (f" or {entry.files}" if entry.files else "")
    command = f"Run {_fetch_command(name)}, or put" if entry.downloads else "Put"
    return (
        f"{name} not found in {folder}. {command} {accepted} there, or point GDYN_DATA_DIR to the folder "
        "that has it. Nothing was downloaded."
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
