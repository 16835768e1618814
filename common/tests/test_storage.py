import contextlib
import errno
import os
import re
import shutil
import threading
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest

from gdyn_common.logging import read_jsonl
from gdyn_common.storage import (
    Checkpoint,
    FolderLock,
    atomic_write,
    read_array,
    read_arrays,
    read_json,
    read_text,
    remove_folder,
    write_array,
    write_arrays,
)


def test_arrays_come_back_bit_for_bit(tmp_path):
    arrays = {"x": np.array([np.pi, -0.0, np.nan]), "n": np.int64(3), "s": np.array(["a", "bc"])}
    write_arrays(tmp_path / "a.npz", arrays)
    back = read_arrays(tmp_path / "a.npz")
    assert {key: value.tobytes() for key, value in back.items()} == {
        key: np.asarray(value).tobytes() for key, value in arrays.items()
    }


def test_equal_arrays_are_equal_files(tmp_path):
    for name in "ab":
        write_arrays(tmp_path / f"{name}.npz", {"x": np.arange(5.0)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_objects_are_refused_because_they_need_pickle(tmp_path):
    with pytest.raises(TypeError, match="dtype object"):
        write_arrays(tmp_path / "a.npz", {"x": np.array([None])})


def test_a_pickled_array_is_refused_and_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match="damaged"):
        read_arrays(tmp_path / "a.npz")
    assert not (tmp_path / "executed").exists()


def test_a_truncated_file_is_named(tmp_path):
    write_arrays(tmp_path / "a.npz", {"x": np.arange(1000.0)})
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"a\.npz is damaged .*; replace it by a whole copy\.$"):
        read_arrays(tmp_path / "a.npz")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(OSError, match=r"a\.txt cannot be written: disk full\. Free some space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_is_none_until_saved_and_after_clearing(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.npz")
    assert checkpoint.load() is None
    checkpoint.save(step=3, x=np.ones(2))
    assert checkpoint.load()["step"] == 3
    checkpoint.clear()
    assert checkpoint.load() is None


ARRAYS = {
    "matrix": np.arange(12.0).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "text": np.array(["x", "yy"]),
    "scalar": np.float32(1.5),
    "empty": np.empty((0, 7)),
    "flags": np.array([True, False]),
}


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[key].dtype == np.asarray(value).dtype and np.array_equal(found[key], value)
        for key, value in expected.items()
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    assert same(read_arrays(tmp_path / "a.npz"), ARRAYS)


@pytest.mark.parametrize("mapped", ["", "r", "c"])
@pytest.mark.parametrize("name", ARRAYS)
def test_single_arrays_are_read(tmp_path, name, mapped):
    write_array(tmp_path / "a.npy", np.asarray(ARRAYS[name]))
    assert same({name: read_array(tmp_path / "a.npy", mapped=mapped)}, {name: ARRAYS[name]})


def mutations(content, count, seed):
    random = np.random.default_rng(seed)
    for _ in range(count):
        mutated = bytearray(content)
        kind = random.integers(5)
        place = int(random.integers(len(mutated)))
        if kind == 0:
            del mutated[place:]
        elif kind == 1:
            mutated[place:place] = random.bytes(3)
        elif kind == 2:
            mutated[place : place + 20] = bytes(20)
        else:
            mutated[place] ^= 1 << int(random.integers(8))
        if mutated != content:
            yield bytes(mutated)


def test_damaged_archives_are_whole_or_refused(tmp_path):
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    refused = 0
    for content in mutations(path.read_bytes(), 600, seed=0):
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            assert same(read_arrays(path), ARRAYS)  # bytes that say nothing, such as a date, may differ
            continue
        refused += 1
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is damaged") as caught:
            read_arrays(path)
        assert str(caught.value).isprintable()
    assert refused > 400


def test_damaged_single_arrays_raise_nothing_else(tmp_path):
    path = tmp_path / "a.npy"
    write_array(path, ARRAYS["matrix"])
    for content in mutations(path.read_bytes(), 600, seed=1):
        path.write_bytes(content)
        for mapped in ("", "r", "c"):
            with contextlib.suppress(ValueError):
                assert read_array(path, mapped=mapped).nbytes < 1000


BILLION = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,)}"
OBJECT = "{'descr': '|O', 'fortran_order': False, 'shape': ()}"


def npy(header, content=b""):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
            "announces 8000000000000",
        ),
        (npy("{'descr': '<U500000000', 'fortran_order': False, 'shape': ()}"), "announces 2000000000 bytes"),
        (
            npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", b"\x80\x02cos\nsystem\n."),
            "only numbers",
        ),
        (npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': ()}"), "only numbers"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", bytes(8)), "no shape"),
        (npy("(" * 9000), "damaged"),
        (npy("__import__('os').getcwd()"), "damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "at most 10000"),
        (b"\x80\x04cos\nsystem\n.", "no NumPy array"),
        (b"", "no NumPy array"),
    ],
)
def test_hostile_headers_are_refused_before_anything_is_allocated(tmp_path, content, reason):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    tracemalloc.start()
    for read in (read_array, partial(read_array, mapped="r"), lambda p: read_arrays(p.with_suffix(".npz"))):
        with pytest.raises(ValueError, match=reason):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_an_archive_that_unpacks_to_far_more_than_it_weighs_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="announce 314572800 unpacked"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1'.decode().encode("utf-16"), "codec"),
        (b"[1]", "no JSON object"),
        (b"", "Expecting value"),
        (b" " * ((1 << 26) + 1), "more than"),
    ],
)
def test_hostile_json_is_one_line(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    "read", [read_arrays, read_array, read_text, read_json, lambda p: list(read_jsonl(p))]
)
def test_pipes_folders_and_missing_files_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        with pytest.raises(OSError, match=str(tmp_path)):
            read(tmp_path / name)


def test_devices_and_folders_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="no regular file"):
            atomic_write(tmp_path / name, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("file")
    atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_what_a_kill_left_is_taken_over(tmp_path):
    (tmp_path / ".a.txt.part").write_text("a long half of something")
    atomic_write(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_two_writers_take_turns(tmp_path):
    path = tmp_path / "a.txt"
    threads = [
        threading.Thread(
            target=lambda letter=letter: [atomic_write(path, letter * 10_000) for _ in range(50)]
        )
        for letter in "ab"
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert len(set(path.read_text())) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_has_one_holder(tmp_path):
    folder = tmp_path / "run"
    with FolderLock(folder):
        with pytest.raises(BlockingIOError, match="in use by another process"):
            FolderLock(folder)
        with pytest.raises(BlockingIOError, match="in use by another process"):
            remove_folder(folder)
        assert folder.exists()
    remove_folder(folder)
    assert not folder.exists()


def test_a_removed_folder_is_noticed(tmp_path):
    with FolderLock(tmp_path / "run") as lock:
        checkpoint = Checkpoint(tmp_path / "run" / "c.npz", lock=lock)
        checkpoint.save(x=1)
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(FileNotFoundError, match="was removed or replaced"):
            checkpoint.save(x=2)
        assert not (tmp_path / "run").exists()
        with FolderLock(tmp_path / "run"), pytest.raises(FileNotFoundError, match="removed or replaced"):
            lock.check()


def test_a_checkpoint_of_other_work_is_refused(tmp_path):
    Checkpoint(tmp_path / "c.npz", "seed 0").save(x=1)
    assert Checkpoint(tmp_path / "c.npz", "seed 0").load() == {"x": 1}
    with pytest.raises(ValueError, match=r"c\.npz belongs to 'seed 0', not to 'seed 1'; delete it"):
        Checkpoint(tmp_path / "c.npz", "seed 1").load()
