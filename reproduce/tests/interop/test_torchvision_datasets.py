"""Our readers against torchvision's, on the same files: synthetic ones in every published layout."""

import bz2
import dataclasses
import gzip
import pickle

import numpy as np
import pytest
import scipy.io

import gdyn_reproduce.data.catalogue as catalogue
import gdyn_reproduce.data.layouts as layouts
from gdyn_reproduce.data import load

torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
datasets = torchvision.datasets

BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
SPLITS = pytest.mark.parametrize("split", ["train", "test"])


@pytest.fixture(autouse=True)
def any_content(monkeypatch):
    """Accept small files under the names of published ones, in both libraries."""
    monkeypatch.setattr(layouts, "KNOWN_MD5", {})
    for name, entry in catalogue.ON_DISK.items():
        monkeypatch.setitem(catalogue.ON_DISK, name, dataclasses.replace(entry, sha256=None))
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    for module in (datasets.cifar, datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: True)


def images(*shape):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape, dtype=np.uint8), rng.integers(
        0, 10, len(range(shape[0])), dtype=np.uint8
    )


@SPLITS
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx(tmp_path, split, suffix, name, kind):
    folder = tmp_path / kind / "raw"
    folder.mkdir(parents=True)
    for seed, prefix in enumerate(("train", "t10k")):
        x, y = images(5 + seed, 28, 28)
        for stem, array in ((f"{prefix}-images-idx3-ubyte", x), (f"{prefix}-labels-idx1-ubyte", y)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            content = header + array.tobytes()
            (folder / stem).write_bytes(content)
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
    theirs = getattr(datasets, kind)(tmp_path, train=split == "train", download=False)
    if suffix:  # ours reads what they unpack, and what they fetch
        for path in folder.glob("*ubyte"):
            path.unlink()
    x, y = load(name, split, root=tmp_path)
    np.testing.assert_array_equal(x, theirs.data.numpy())
    np.testing.assert_array_equal(y, theirs.targets.numpy())


@SPLITS
def test_usps(tmp_path, split):
    rng = np.random.default_rng(1)
    for name in ("usps.bz2", "usps.t.bz2"):
        rows = [
            f"{rng.integers(1, 11)} "
            + " ".join(f"{i + 1}:{v:.6f}" for i, v in enumerate(rng.uniform(-1, 1, 256)))
            for _ in range(4)
        ]
        (tmp_path / name).write_bytes(bz2.compress("\n".join(rows).encode()))
    theirs = datasets.USPS(tmp_path, train=split == "train", download=False)
    x, y = load("usps", split, root=tmp_path)
    np.testing.assert_array_equal(((x + 1) / 2 * 255).astype(np.uint8), theirs.data)
    np.testing.assert_array_equal(y, theirs.targets)


@SPLITS
@pytest.mark.parametrize(
    ("name", "kind", "folder", "key", "members"),
    [
        ("cifar10", "CIFAR10", "cifar-10-batches-py", "labels", [*BATCHES, "test_batch"]),
        ("cifar100", "CIFAR100", "cifar-100-python", "fine_labels", ["train", "test"]),
    ],
)  # fmt: skip
def test_cifar(tmp_path, split, name, kind, folder, key, members):
    (tmp_path / folder).mkdir()
    rng = np.random.default_rng(2)
    for member in members:
        pixels, labels = rng.integers(0, 256, (3, 3072), dtype=np.uint8), rng.integers(0, 10, 3).tolist()
        (tmp_path / folder / member).write_bytes(pickle.dumps({"data": pixels, key: labels}, protocol=2))
    for meta, names in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        (tmp_path / folder / meta).write_bytes(pickle.dumps({names: [str(i) for i in range(100)]}))
    theirs = getattr(datasets, kind)(tmp_path, train=split == "train", download=False)
    for member in members:  # the published files are of Python 2: their keys are bytes to us
        batch = pickle.loads((tmp_path / folder / member).read_bytes())
        as_bytes = {name.encode(): value for name, value in batch.items()}
        (tmp_path / folder / member).write_bytes(pickle.dumps(as_bytes, protocol=2))
    x, y = load(name, split, root=tmp_path)
    np.testing.assert_array_equal(x, theirs.data)
    np.testing.assert_array_equal(y, theirs.targets)


@SPLITS
def test_svhn(tmp_path, split):
    x, _ = images(4, 32, 32, 3)
    labels = np.array([[10], [1], [9], [5]], np.uint8)
    scipy.io.savemat(tmp_path / f"{split}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": labels})
    theirs = datasets.SVHN(tmp_path, split=split, download=False)
    x, y = load("svhn", split, root=tmp_path)
    np.testing.assert_array_equal(x.transpose(0, 3, 1, 2), theirs.data)
    np.testing.assert_array_equal(y, theirs.labels)
