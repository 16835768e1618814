"""Every layout is written small and read back; damaged, foreign and hostile files are refused."""

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import pickle
import re
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io

import gdyn_reproduce.data.catalogue as catalogue
import gdyn_reproduce.data.layouts as layouts
from gdyn_reproduce.data import (
    gaussians,
    is_available,
    load,
    load_dataset,
    resize_bilinear,
    teacher,
    textures32,
)
from gdyn_reproduce.data.command import main as gdyn_data_main


@pytest.fixture
def any_content(monkeypatch):
    """Accept small files under the names of published ones."""
    monkeypatch.setattr(layouts, "KNOWN_MD5", {})
    for name, entry in catalogue.ON_DISK.items():
        monkeypatch.setitem(catalogue.ON_DISK, name, dataclasses.replace(entry, sha256=None))


def images(shape, num=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, *shape), dtype=np.uint8), rng.integers(0, 10, num, dtype=np.uint8)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def expect(name, root, split, x, y):
    found_x, found_y = load(name, split, root=root)
    np.testing.assert_array_equal(found_x, x)
    np.testing.assert_array_equal(found_y, y)
    assert found_x.flags.c_contiguous
    assert found_y.dtype == np.int64


# --- embedded and generated ---


def test_digits_are_scikit_learns_once_each():
    datasets = pytest.importorskip("sklearn.datasets")
    ours = np.concatenate([load("digits", split)[0] for split in ("train", "test")]).reshape(1797, 64)
    labels = np.concatenate([load("digits", split)[1] for split in ("train", "test")])
    theirs = datasets.load_digits()
    both = [
        np.unique(np.c_[x, y].astype(int), axis=0) for x, y in ((ours, labels), (theirs.data, theirs.target))
    ]
    np.testing.assert_array_equal(*both)
    assert len(both[0]) == 1797
    assert np.bincount(load("digits", "test")[1]).min() >= 25


def test_digits16_has_the_format_of_usps():
    x, _ = load("digits16", "train")
    assert (x.shape, x.dtype, x.min(), x.max()) == ((1437, 16, 16), np.float32, -1, 1)
    small = load("digits", "train")[0] / 8.0 - 1
    # Where weights are 9/16, 3/16, 3/16, 1/16: the pixel right below the first centre.
    corner = (9 * small[:, 0, 0] + 3 * small[:, 0, 1] + 3 * small[:, 1, 0] + small[:, 1, 1]) / 16
    np.testing.assert_allclose(x[:, 1, 1], corner, atol=1e-6)


def test_resize_keeps_constants_ramps_and_size():
    np.testing.assert_allclose(resize_bilinear(np.full((1, 5, 7), 3.0), 16), 3.0, rtol=1e-14)
    ramp = np.broadcast_to(np.arange(8.0), (1, 8, 8))
    inner = resize_bilinear(ramp, 16)[0, 0, 1:-1]
    np.testing.assert_allclose(np.diff(inner), 0.5, rtol=1e-12)
    np.testing.assert_allclose(resize_bilinear(ramp, 8), ramp, rtol=1e-14)


def test_resize_agrees_with_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((3, 8, 8))
    theirs = torch.nn.functional.interpolate(torch.from_numpy(x)[:, None], size=16, mode="bilinear")
    np.testing.assert_allclose(resize_bilinear(x, 16), theirs[:, 0].numpy(), atol=1e-14)


@pytest.mark.parametrize("make", [gaussians, teacher, textures32])
def test_generators_depend_on_seed_and_split_only(make):
    x, y = make("train", seed=3, num_samples=40)
    again, _ = make("train", seed=3, num_samples=40)
    assert x.tobytes() == again.tobytes()
    assert (
        len(
            {
                make(split, seed=seed, num_samples=40)[0].tobytes()
                for split in ("train", "test")
                for seed in (3, 4)
            }
        )
        == 4
    )
    assert y.dtype == np.int64


def test_gaussians_share_their_means_across_splits():
    (a, y), (b, _) = (gaussians(split, num_samples=8000, separation=5.0) for split in ("train", "test"))
    for label in range(4):
        # Means of 2000 unit normals differ by sqrt(2/2000) = 0.03: 0.2 is over 6 deviations.
        np.testing.assert_allclose(a[y == label].mean(0), b[y == label].mean(0), atol=0.2)


def test_teacher_is_balanced_and_learnable():
    x, y = teacher("train", num_samples=4000, dim=20)
    assert 0.4 < y.mean() < 0.6
    train, test = slice(0, 3000), slice(3000, None)
    weights = np.linalg.lstsq(x[train], 2.0 * y[train] - 1, rcond=None)[0]
    assert np.mean((x[test] @ weights > 0) == y[test]) > 0.7  # chance is about 0.5


def test_textures_look_like_cifar_and_are_learnable():
    x, y = load("textures32", "train")
    assert (x.shape, x.dtype, np.bincount(y).tolist()) == ((2000, 32, 32, 3), np.uint8, [200] * 10)
    # The column profile of the vertical differences tells stripes across from stripes along.
    change_down = np.abs(np.diff(x.astype(float), axis=1)).mean((1, 2, 3))
    change_right = np.abs(np.diff(x.astype(float), axis=2)).mean((1, 2, 3))
    assert np.mean(change_down[y == 6] > change_right[y == 6]) > 0.95
    assert np.mean(change_down[y == 7] < change_right[y == 7]) > 0.95


# --- files ---


def test_npz(tmp_path, any_content):
    x, y = images((28, 28))
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    expect("mnist", tmp_path, "train", x, y)
    expect("mnist", tmp_path, "test", x[:2], y[:2])


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, any_content, name, folder, suffix):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    pack = gzip.compress if suffix else bytes
    for split, stem in (("train", "train"), ("test", "t10k")):
        x, y = images((28, 28), seed=len(stem))
        (raw / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(x)))
        (raw / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(y)))
        expect(name, tmp_path, split, x, y)
    assert is_available(name, tmp_path)


@pytest.mark.parametrize("folder", ["USPS", "."])
def test_usps_libsvm(tmp_path, any_content, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    x, y = np.zeros((2, 16, 16), np.float32), np.array([9, 0])
    x[0, 0, 0], x[0, 15, 15], x[1, 1, 0] = -1, 0.5, 0.25
    text = "10 1:-1 256:0.5\n1 17:0.25\n"
    (tmp_path / folder / "usps.t.bz2").write_bytes(bz2.compress(text.encode()))
    expect("usps", tmp_path, "test", x, y)


def test_usps_npz_is_in_thousandths(tmp_path, any_content):
    x = np.array([[-1000, 0, 503]] * 2, np.int16).repeat(86, axis=1)[:, :256].reshape(2, 16, 16)
    np.savez(tmp_path / "usps.npz", x_train=x, y_train=np.array([1, 2], np.uint8))
    found, _ = load("usps", "train", root=tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (x / 1000).astype(np.float32))


def write_cifar(folder, labels_key=b"labels", members=("data_batch_1",), seed=0):
    folder.mkdir()
    collected = []
    for i, member in enumerate(members):
        x, y = images((32, 32, 3), seed=seed + i)
        flat = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(len(x), -1)
        batch = {b"data": flat, labels_key: y.tolist(), b"filenames": ["a.png"]}
        (folder / member).write_bytes(pickle.dumps(batch, protocol=2))
        collected.append((x, y))
    return tuple(np.concatenate(part) for part in zip(*collected, strict=True))


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


def test_cifar_folder(tmp_path, any_content):
    x, y = write_cifar(tmp_path / "cifar-10-batches-py", members=BATCHES)
    expect("cifar10", tmp_path, "train", x, y)


def test_cifar_archive(tmp_path, any_content):
    x, y = write_cifar(tmp_path / "extracted", members=("test_batch",))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "extracted", arcname="cifar-10-batches-py")
    expect("cifar10", tmp_path, "test", x, y)


def test_cifar100(tmp_path, any_content):
    x, y = write_cifar(tmp_path / "cifar-100-python", b"fine_labels", ("train",))
    expect("cifar100", tmp_path, "train", x, y)


def test_svhn(tmp_path, any_content):
    x, y = images((32, 32, 3))
    stored = np.where(y == 0, 10, y)[:, None]
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": stored})
    expect("svhn", tmp_path, "test", x, y)


def jpeg_archive(path):
    image_module = pytest.importorskip("PIL.Image")
    x, y = images((32, 32, 3))
    encoded = []
    for image in x:
        buffer = io.BytesIO()
        image_module.fromarray(image // 16 + 96).save(buffer, "JPEG", quality=100, subsampling=0)
        encoded.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offsets = np.cumsum([0] + [len(part) for part in encoded])
    np.savez(path, jpeg_test=np.concatenate(encoded), offsets_test=offsets, y_test=y)
    return x // 16 + 96, y


def test_jpeg_archive(tmp_path):
    x, y = jpeg_archive(tmp_path / "cifar10_jpeg.npz")
    dataset = load_dataset("cifar10_jpeg", "test", root=tmp_path)
    assert dataset.lossy
    assert np.abs(dataset.x.astype(int) - x).max() <= 6  # quality 100 rounds the colour transform
    np.testing.assert_array_equal(dataset.y, y)


def test_jpeg_without_pillow_says_what_to_install(tmp_path, monkeypatch):
    jpeg_archive(tmp_path / "cifar10_jpeg.npz")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"^JPEG images need Pillow; run `pip install pillow`\.$"):
        load("cifar10_jpeg", "test", root=tmp_path)


def test_environment_variable_names_the_folder(tmp_path, any_content, monkeypatch):
    x, y = images((28, 28))
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y)
    monkeypatch.setenv("GDYN_DATA_DIR", str(tmp_path))
    expect("mnist", None, "train", x, y)
    assert is_available("mnist")
    assert not is_available("svhn")


def test_provenance(tmp_path, any_content):
    x, y = images((28, 28))
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y)
    facts = load_dataset("mnist", "train", root=tmp_path).provenance()
    assert facts["source"] == "mnist.npz"
    assert facts["sha256_x"] == hashlib.sha256(x.tobytes()).hexdigest()
    assert (facts["lossy"], facts["verified"], facts["shape"]) == (False, False, [6, 28, 28])


# --- refusals ---


def test_missing_file_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", "train", root=tmp_path)
    assert str(error.value) == (
        f"cifar10 not found in {tmp_path}. Run gdyn-data fetch cifar10 (170 MB), or put cifar10.npz or "
        "cifar-10-batches-py/, cifar-10-python.tar.gz there, or point GDYN_DATA_DIR to the folder that has "
        "it. Nothing was downloaded."
    )
    with pytest.raises(FileNotFoundError, match=r"\. Put cifar10_small\.npz there, or point"):
        load("cifar10_small", "train", root=tmp_path)


def test_unknown_names():
    with pytest.raises(
        ValueError, match=r"^Unknown data set 'minst'\. Allowed: digits, .* Did you mean 'mnist'\?$"
    ):
        load("minst", "train")
    with pytest.raises(ValueError, match=r"^Unknown split 'val'; pass 'train' or 'test'\.$"):
        load("digits", "val")


def test_other_content_under_a_known_name_is_refused(tmp_path):
    x, y = images((28, 28))
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y)
    with pytest.raises(ValueError, match=r"^mnist\.npz does not hold the known mnist \(train\)"):
        load("mnist", "train", root=tmp_path)
    write_cifar(tmp_path / "cifar-10-batches-py", members=BATCHES)
    with pytest.raises(
        ValueError, match=r"of another kind \(cifar-10-batches-py/data_batch_1 has MD5 .* published file c99c"
    ):
        load("cifar10", "train", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("mnist", "mnist.npz", b"PK\x03\x04 truncated"),
        ("mnist", "mnist.npz", b""),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte", idx(images((28, 28))[0])[:-1]),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte", b"\0\0\x0d\x03"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz", b"no gzip"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz", gzip.compress(b"text", mtime=0)[:-4]),
        ("usps", "usps.bz2", b"no bzip2"),
        ("usps", "usps.bz2", bz2.compress(b"1 257:0.5\n")),
        ("usps", "usps.bz2", bz2.compress(b"<html>\n")),
        ("cifar10", "cifar-10-python.tar.gz", b"no archive"),
        ("cifar100", "cifar-100-python/train", b"no pickle"),
        ("cifar100", "cifar-100-python/train", pickle.dumps([1, 2])),
        ("cifar100", "cifar-100-python/train", pickle.dumps({b"data": b"text", b"fine_labels": []})),
        ("svhn", "train_32x32.mat", b"no matrix"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_one_line(tmp_path, any_content, name, file, content):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged .+; replace it by the original file") as error:
        load(name, "train", root=tmp_path)
    assert "\n" not in str(error.value)


def test_foreign_arrays_are_refused(tmp_path, any_content):
    x, y = images((28, 28))
    np.savez(tmp_path / "mnist.npz", x_train=x.astype(float), y_train=y)
    with pytest.raises(
        ValueError, match=r"^mnist\.npz holds x float64 \(6, 28, 28\) and y uint8 \(6,\), which is not mnist"
    ):
        load("mnist", "train", root=tmp_path)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y + 10)
    with pytest.raises(ValueError, match=r"labels outside 0\.\.9"):
        load("mnist", "train", root=tmp_path)


class Hostile:
    """Unpickling this writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_pickle_executes_nothing(tmp_path, any_content, protocol):
    marker, folder = tmp_path / "executed", tmp_path / "cifar-100-python"
    folder.mkdir()
    payload = pickle.dumps(Hostile(marker), protocol=protocol)
    (folder / "train").write_bytes(payload)
    with pytest.raises(ValueError, match=r"it asks for .*builtin.*\.exec, which no CIFAR file does"):
        load("cifar100", "train", root=tmp_path)
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists()  # the payload does work elsewhere: the test can fail


def test_a_hostile_npz_executes_nothing(tmp_path, any_content):
    marker = tmp_path / "executed"
    np.savez(tmp_path / "mnist.npz", x_train=np.array([Hostile(marker)], dtype=object), y_train=np.zeros(1))
    with pytest.raises(ValueError, match="of another kind"):
        load("mnist", "train", root=tmp_path)
    assert not marker.exists()


class Host(http.server.BaseHTTPRequestHandler):
    """Serves `files` by path, from a byte on if asked, and drops the connection after `limit` bytes."""

    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.asked.append((self.path, self.headers.get("Range")))
        if content is None:
            return self.send_error(404)
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.server.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked may hang up
            self.wfile.write(content[start:][: self.server.limit])
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def host(monkeypatch):
    """A local host that has USPS in two tiny files, and the catalogue that knows it."""
    content = {"usps.bz2": bz2.compress(b"3 5:1\n" * 999), "usps.t.bz2": bz2.compress(b"4 5:1\n")}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.files = {f"/{name}": data for name, data in content.items()}
    server.asked, server.limit, server.ranges = [], 1 << 30, True
    site = f"http://127.0.0.1:{server.server_address[1]}/"
    rows = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in content.items()]
    entry = dataclasses.replace(
        catalogue.ON_DISK["usps"], downloads=catalogue._files("USPS/", site, *rows), sha256=None
    )
    monkeypatch.setitem(catalogue.ON_DISK, "usps", entry)
    monkeypatch.setattr(layouts, "KNOWN_MD5", {})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def gdyn_data(capfd, *arguments):
    code = gdyn_data_main(list(map(str, arguments)))
    out, errors = capfd.readouterr()
    return code, out, errors


def test_nothing_is_downloaded_unasked(tmp_path, host):
    with pytest.raises(FileNotFoundError, match="gdyn-data fetch usps"):
        load("usps", "train", root=tmp_path)
    assert host.asked == []
    assert load("usps", "train", root=tmp_path, download=True)[1].tolist() == [2] * 999


def test_fetch_check_and_list(tmp_path, host, capfd):
    code, out, errors = gdyn_data(capfd, "fetch", "usps", "--root", tmp_path / "new")
    assert (code, errors) == (0, "")
    assert out.splitlines()[0].startswith("usps train: 999 samples, as published (USPS/usps.bz2)")
    assert sorted(p.name for p in (tmp_path / "new" / "USPS").iterdir()) == ["usps.bz2", "usps.t.bz2"]
    asked = len(host.asked)
    assert gdyn_data(capfd, "fetch", "usps", "--root", tmp_path / "new")[0] == 0
    assert len(host.asked) == asked, "what is there is not fetched again"
    _, out, _ = gdyn_data(capfd, "list", "--root", tmp_path / "new")
    assert "usps            16x16, 10 classes; there" in out
    assert "mnist           28x28, 10 classes; not there: gdyn-data fetch mnist (12 MB)" in out
    (tmp_path / "new" / "mnist.npz").write_bytes(b"damaged")
    code, out, errors = gdyn_data(capfd, "check", "--root", tmp_path / "new")
    assert code == 1
    assert "usps test: 1 samples" in out
    assert errors.count("mnist.npz") == 2


@pytest.mark.parametrize("ranges", [True, False], ids=["host continues", "host starts over"])
def test_an_interrupted_download_goes_on(tmp_path, host, ranges, capfd):
    host.limit, host.ranges = 20, ranges
    code, _, errors = gdyn_data(capfd, "fetch", "usps", "--root", tmp_path)
    assert (code, errors.count("\n")) == (2, 1)
    assert "Start the command again to go on" in errors
    assert [path.name for path in (tmp_path / "USPS").iterdir()] == ["usps.bz2.part"]
    host.limit = 1 << 30
    assert gdyn_data(capfd, "fetch", "usps", "--root", tmp_path)[0] == 0
    assert ("/usps.bz2", "bytes=20-") in host.asked
    assert not list(tmp_path.rglob("*.part"))


def test_what_an_interrupted_download_left_may_be_whole_or_too_long(tmp_path, host, capfd):
    (tmp_path / "USPS").mkdir()
    for name, extra in (("usps.bz2", b""), ("usps.t.bz2", b"more")):
        (tmp_path / "USPS" / f"{name}.part").write_bytes(host.files[f"/{name}"] + extra)
    assert gdyn_data(capfd, "fetch", "usps", "--root", tmp_path)[0] == 0
    assert [path for path, _ in host.asked] == ["/usps.t.bz2", "/usps.t.bz2"]


@pytest.mark.parametrize("tampered", [b"x", b""], ids=["one byte more", "one byte changed"])
def test_a_tampered_file_is_refused_and_not_kept(tmp_path, host, tampered, capfd):
    original = host.files["/usps.bz2"]
    host.files["/usps.bz2"] = original + tampered if tampered else bytes([original[0] ^ 1]) + original[1:]
    code, _, errors = gdyn_data(capfd, "fetch", "usps", "--root", tmp_path)
    assert (code, errors.count("\n")) == (2, 1)
    assert "what came has SHA-256" in errors
    assert f"the published file {hashlib.sha256(original).hexdigest()}" in errors
    assert not list((tmp_path / "USPS").iterdir())


def test_an_endless_answer_fills_no_disk(tmp_path, host, capfd):
    host.files["/usps.bz2"] = bytes(1 << 22)
    assert gdyn_data(capfd, "fetch", "usps", "--root", tmp_path)[0] == 2
    assert not list((tmp_path / "USPS").iterdir())


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("", "the following arguments are required"),
        ("ls", "invalid choice: 'ls'"),
        ("fetch", "the following arguments are required: NAME"),
        ("fetch minst", "Unknown data set 'minst'. Allowed: digits, "),
        ("fetch digits minst", "Unknown data set 'minst'. Allowed: digits, "),
        ("check digits minst", "Unknown data set 'minst'. Allowed: digits, "),
        ("fetch cifar10_small", "cifar10_small cannot be fetched; put cifar10_small.npz into"),
        ("check svhn", "Run gdyn-data fetch svhn (246 MB)"),
        ("list --all", "unrecognized arguments: --all"),
    ],
)
def test_mistakes_of_gdyn_data(typed, answer, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("GDYN_DATA_DIR", str(tmp_path))
    try:
        code = gdyn_data_main(typed.split())
    except SystemExit as stop:
        code = stop.code
    errors = capfd.readouterr().err
    assert (code, errors.count("\n")) == (2, 1), errors
    assert answer in errors


def test_an_unreachable_host_is_told_with_the_way_by_hand(tmp_path, host, capfd):
    host.files.clear()
    code, _, errors = gdyn_data(capfd, "fetch", "usps", "--root", tmp_path)
    assert code == 2
    assert "usps: could not fetch usps.bz2 (HTTP Error 404" in errors
    assert f"by other means and save it as {tmp_path}/USPS/usps.bz2" in errors


def test_every_file_to_download_is_one_the_reader_looks_for():
    insecure = set()
    for name, entry in catalogue.ON_DISK.items():
        for relative, file in entry.downloads.items():
            assert file.url.endswith(Path(relative).name)
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            if not file.url.startswith("https:"):
                insecure.add(name)
    assert insecure == {"svhn"}


# --- the real files ---


@pytest.mark.data("usps")
def test_real_usps():
    dataset = load_dataset("usps", "test")
    assert dataset.verified
    assert np.bincount(dataset.y).tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    assert (dataset.x.min(), dataset.x.max()) == (-1, 1)


@pytest.mark.data("mnist")
def test_real_mnist():
    dataset = load_dataset("mnist", "train")
    assert dataset.verified
    assert dataset.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.x.mean() == pytest.approx(33.318421449829934, rel=1e-12)


@pytest.mark.data("fashion_mnist")
def test_real_fashion_mnist():
    dataset = load_dataset("fashion_mnist", "test")
    assert dataset.verified
    assert np.bincount(dataset.y).tolist() == [1000] * 10


@pytest.mark.data("cifar10_small")
def test_real_cifar10_small():
    dataset = load_dataset("cifar10_small", "test")
    assert (dataset.verified, dataset.lossy, dataset.x.shape) == (True, True, (2000, 32, 32, 3))


@pytest.mark.data("cifar10_jpeg", "cifar10_small")
def test_real_cifar10_jpeg():
    pytest.importorskip("PIL")
    dataset = load_dataset("cifar10_jpeg", "test")
    assert (dataset.lossy, dataset.x.shape) == (True, (10_000, 32, 32, 3))
    small, _ = load("cifar10_small", "test")
    # Decoders may differ by a level here and there.
    assert np.abs(dataset.x[:2000].astype(int) - small).max() <= 2


@pytest.mark.parametrize("command", [["list"], ["check"], ["fetch", "mnist"]])
def test_a_data_folder_that_is_a_file_is_said(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "data").write_text("")
    monkeypatch.setenv("GDYN_DATA_DIR", str(tmp_path / "data"))
    assert gdyn_data_main(command) == 2
    message = f"gdyn-data: The data folder {tmp_path / 'data'} is a file. Pass --root or set GDYN_DATA_DIR.\n"
    assert capsys.readouterr().err == message
