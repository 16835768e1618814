import numpy as np
import pytest

from gdyn_common.storage import Checkpoint, atomic_write, read_arrays, write_arrays


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
    with pytest.raises(ValueError, match=r"a\.npz is damaged .* delete it"):
        read_arrays(tmp_path / "a.npz")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
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
