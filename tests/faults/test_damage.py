"""Whatever the bytes of a file: it is read, or refused in one line that names it; nothing in it runs."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import hashlib
import importlib
import importlib.util
import io
import json
import os
import pickle
import re
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from gdyn_common.logging import JsonLines, read_jsonl
from gdyn_common.storage import read_array, read_arrays, read_json, read_text
from gdyn_reproduce.data import layouts
from gdyn_reproduce.records import read_record

pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]


@functools.cache  # reading all sources takes longer than reading a damaged file
def of(package: str, name: str) -> Callable[..., Any]:
    """Return a function of a package, wherever in it the function lives."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    source = Path(importlib.import_module(package).__file__).parent
    (path,) = [p for p in source.rglob("*.py") if re.search(rf"^def {name}\(", p.read_text(), re.M)]
    module = ".".join([package, *path.relative_to(source).with_suffix("").parts]).removesuffix(".__init__")
    return getattr(importlib.import_module(module), name)


def packed(save: Callable[..., None], **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    return packed(np.savez, **arrays)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def idx(packed: bool = False) -> bytes:
    content = b"\0\0\x08\x01" + (5).to_bytes(4, "big") + bytes(5)
    return gzip.compress(content, mtime=0) if packed else content


def cifar(labels: bytes) -> bytes:
    return pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), labels: [1, 2]}, 2)


CIFAR = {"cifar-10-batches-py/test_batch": cifar(b"labels"), "cifar-100-python/test": cifar(b"fine_labels")}


def tar() -> bytes:
    name = "cifar-10-batches-py/test_batch"
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(CIFAR[name])
        archive.addfile(member, io.BytesIO(CIFAR[name]))
    return file.getvalue()


def picture(kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, kind)
    return file.getvalue()


def jpegs() -> bytes:
    jpeg = np.frombuffer(picture("jpeg"), np.uint8)
    return npz(jpeg_train=jpeg, offsets_train=np.array([0, len(jpeg)]), y_train=np.zeros(1, np.uint8))


def record() -> bytes:
    return next(ROOT.glob("packages/*/results/*-quick.json")).read_bytes()


def rewound(path: Path) -> None:
    lines = JsonLines(path)
    try:
        lines.rewind(3, seed=0)
    finally:
        lines.close()


def mapped(path: Path) -> np.ndarray:
    return np.array(read_array(path, mapped="r"))


def read_idx(path: Path) -> Any:
    return layouts.read_idx(path.parents[2], "M", "train")


def eigenthings() -> bytes:
    things = {"values": np.ones(3), "log_values": np.zeros(3), "vectors": np.eye(3), "num_zero": 0, "step": 1}
    return npz(**things, learning_rate=0.1, momentum=0.0, seed=0, kind="lyapunov", format_version=1)


def tensors() -> bytes:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save((torch.ones(3), torch.eye(3)), file)
    return file.getvalue()


def tensor_state() -> bytes:
    return of("variance", "pack")({"a": np.ones(2).tolist(), "n": 1}).tobytes()


def training_config() -> bytes:
    from dataclasses import asdict

    from gdyn_reproduce.records import dump_json

    load = of("dd_two_player", "load_config")
    return dump_json(asdict(load.__globals__["TrainConfig"]())).encode()


LINES = b"".join(b'{"step": %d, "seed": 0, "loss": 0.5}\n' % step for step in range(6))
GRID = b"figure: F6\npreset: quick\ngrid:\n  learning_rates: [[0.1], [0.2]]\n  seeds: [[0]]\n"
META = json.dumps({"format": 2, "meta": {"epoch": 1}})

# name of the file, its content when whole, and what reads it, given the path
KINDS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], Any]]] = {
    "arrays": ("a.npz", lambda: npz(a=np.arange(12.0).reshape(3, 4), b=np.array(["x", "yy"])), read_arrays),
    "packed arrays": ("a.npz", lambda: packed(np.savez_compressed, a=np.arange(99.0)), read_arrays),
    "array": ("a.npy", lambda: npy(np.arange(12.0).reshape(3, 4)), read_array),
    "mapped array": (
        "a.npy",
        lambda: npy(np.arange(12.0)),
        lambda path: np.array(read_array(path, mapped="r")),
    ),
    "text": ("a.txt", lambda: "0 1\n1 2\n é".encode(), read_text),
    "JSON": ("a.json", lambda: b'{"a": [1, 2.5, {"b": null}], "c": "text"}', read_json),
    "record": ("record/result.json", record, lambda path: read_record(path.parent)),
    "metrics": ("metrics.jsonl", lambda: LINES, lambda path: list(read_jsonl(path))),
    "metrics, rewound": ("metrics.jsonl", lambda: LINES, rewound),
    "IDX": (
        "M/raw/train-images-idx3-ubyte",
        idx,
        read_idx,
    ),
    "packed IDX": (
        "M/raw/train-images-idx3-ubyte.gz",
        lambda: idx(packed=True),
        read_idx,
    ),
    "images": (
        "q.npz",
        lambda: npz(x_train=np.zeros((3, 4, 4), np.uint8), y_train=np.zeros(3, np.uint8)),
        lambda path: layouts.read_npz(path.parent, "q", "train"),
    ),
    "JPEG images": ("q.npz", jpegs, lambda path: layouts.read_npz(path.parent, "q", "train")),
    "CIFAR archive": (
        "cifar-10-python.tar.gz",
        tar,
        lambda path: layouts.read_cifar(path.parent, "cifar-10-batches-py", path.name, "test"),
    ),
    "CIFAR batch": (
        "cifar-100-python/test",
        lambda: CIFAR["cifar-100-python/test"],
        lambda path: layouts.read_cifar(path.parents[1], "cifar-100-python", "x", "test"),
    ),
    "USPS": (
        "usps.bz2",
        lambda: bz2.compress(b"1 1:0.5 2:-1\n3 256:1\n"),
        lambda path: layouts.read_usps(path.parent, "train"),
    ),
    "eigenpairs": ("e.npz", eigenthings, lambda path: of("chaos", "load_eigenthings")(path)),
    "eigenpairs of torch": ("e.pt", tensors, lambda path: of("chaos", "load_eigenthings")(path)),
    "Hessian": ("h.npz", lambda: npz(hessian=np.eye(3)), lambda path: of("chaos", "load_hessian")(path)),
    "fit": (
        "c.npz",
        lambda: npz(a=np.arange(4.0), __meta__=np.array(META)),
        lambda path: of("eigengame", "read")(path),
    ),
    "samples": (
        "s.npy",
        lambda: npy(np.arange(40.0).reshape(10, 4)),
        lambda path: np.array(of("eigengame", "read_samples")(str(path))),
    ),
    "edges": ("e.txt", lambda: b"0 1\n1 2\n2,0\n", lambda path: of("eigengame", "read_edges")(str(path))),
    "accuracies": (
        "acc.npy",
        lambda: npy(np.zeros((2, 3, 4))),
        lambda path: of("instability", "_read_accuracies")(path),
    ),
    "image": (
        "image.npy",
        lambda: npy(np.zeros((4, 4))),
        lambda path: of("instability", "make_image")(str(path), 4),
    ),
    "grid": ("grid.yaml", lambda: GRID, lambda path: of("variance", "load_grid")(path)),
    "training options": (
        "config.json",
        training_config,
        lambda path: of("dd_two_player", "load_config")(path),
    ),
    "reference images": (
        "images/0.png",
        lambda: picture("png"),
        lambda path: of("dd_two_player", "_read_images")(path.parent, (8, 8, 1)),
    ),
}


@pytest.fixture(autouse=True)
def any_content(monkeypatch):
    """Let the readers of data sets see more than the hash of a file."""
    monkeypatch.setattr(layouts, "KNOWN_MD5", {})


def lay_out(folder: Path, kind: str) -> tuple[Path, bytes, Callable[[Path], Any]]:
    name, make, read = KINDS[kind]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = make()
    path.write_bytes(content)
    if "idx3" in name:
        (path.parent / "train-labels-idx1-ubyte").write_bytes(idx())
    read(path)  # the whole file is read
    return path, content, read


def damaged(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    place = random.randrange(len(changed))
    kind = random.choice(
        ["cut", "flip", "flip", "flips", "head", "zeros", "insert", "repeat", "noise", "empty"]
    )
    if kind == "cut":
        del changed[place:]
    elif kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 8):
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    elif kind == "head":
        changed[random.randrange(min(len(changed), 300))] = random.randrange(256)
    elif kind == "zeros":
        changed[place : place + 40] = bytes(len(changed[place : place + 40]))
    elif kind == "insert":
        changed[place:place] = random.randbytes(random.randint(1, 9))
    elif kind == "repeat":
        changed += changed[place:]
    elif kind == "noise":
        changed = bytearray(random.randbytes(random.randint(1, 400)))
    else:
        changed.clear()
    return bytes(changed)


def try_to_read(path: Path, read: Callable[[Path], Any]) -> None:
    """Read a file that may be damaged; whatever is refused must be so in one line that names it."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        return
    # A record in a folder, a batch of an archive: the folder or archive may be what is named.
    assert any(str(place) in message for place in (path, path.parent)), message
    assert message.isprintable(), message
    assert len(message) < len(str(path)) * 2 + 500, message


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, tmp_path, form, random, tally, monkeypatch):
    path, content, read = lay_out(tmp_path, kind)
    # As in use: nothing is unpickled but a batch of a known hash, since a damaged one can ask for 64 GB.
    hashes = {name: hashlib.md5(batch, usedforsecurity=False).hexdigest() for name, batch in CIFAR.items()}
    monkeypatch.setattr(layouts, "KNOWN_MD5", hashes)
    for _ in range(form.mutations):
        path.write_bytes(damaged(content, random))
        try_to_read(path, read)
    tally("damaged files", kind, form.mutations)


@functools.cache
def zeros() -> bytes:
    """Return an archive that unpacks to a thousand times its size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (300 << 20,)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(300):
            member.write(bytes(1 << 20))
    return file.getvalue()


@functools.cache
def whole_files() -> list[bytes]:
    """Return a file of every kind."""
    return [make() for _, make, _ in KINDS.values() if importlib.util.find_spec("torch")]


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_another_kind_and_bombs(kind, tmp_path, tally):
    path, _, read = lay_out(tmp_path, kind)
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb()], dtype=object), allow_pickle=True)
    bombs = [
        pickle.dumps(Bomb()),
        pickle.dumps(Bomb(), 2),
        pickle.dumps({b"data": Bomb(), b"fine_labels": Bomb()}, 2),
        objects.getvalue(),
        npz(x_train=np.array([Bomb()], dtype=object), values=np.array([Bomb()], dtype=object)),
        zeros(),
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode(),
        gzip.compress(b"\0\0\x08\x01" + (1 << 31).to_bytes(4, "big") + bytes(1 << 20)),
        b"\0\0\x08\x03" + b"\xff" * 12,
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"step": ' + b"9" * 5000 + b"}\n",
        f'!!python/object/apply:os.system ["touch {marker}"]\n'.encode(),
        b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nfigure: *c\n",
        b'{"_target_": "os.system", "updates": {"rate_schedule": {}}}',
        b'{"experiment": "${oc.env:HOME}", "updates": {"rate_schedule": {}}}',
        '{"a": 1}'.encode("utf-16"),
        b"\xff\xfe\x00\xd8",
        b"9" * 100_000,
    ]
    whole_files()  # made before memory is measured
    tracemalloc.start()
    for content in [*bombs, *whole_files()]:
        path.write_bytes(content)
        try_to_read(path, read)
        assert not marker.exists()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if not kind.startswith("CIFAR"):  # whose unpickler may make room for much, but is only given known files
        assert peak < 1 << 28, f"{peak} bytes were allocated"
    tally("bombs and files of another kind", kind, len(bombs) + len(whole_files()))


@pytest.mark.parametrize("kind", KINDS)
def test_pipes_are_refused(kind, tmp_path):
    path, _, read = lay_out(tmp_path, kind)
    path.unlink()
    os.mkfifo(path)
    with contextlib.suppress(ValueError, OSError):
        assert read(path) is None  # as if there were no file
