from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from chaos.eigenthings import Eigenthings, load_eigenthings, load_values_and_vectors


@pytest.fixture
def things():
    logs = torch.tensor([-4.0, 0.0, 2.0], dtype=torch.float64)
    return Eigenthings(logs.exp(), logs, torch.eye(3, dtype=torch.float64), 0, 10, 0.01, 0.0, 42, "lyapunov")


def test_round_trip(things, tmp_path):
    path = things.save(tmp_path / "folder" / "eigenthings-mlp-0.npz")
    again = load_eigenthings(path)
    assert torch.equal(again.log_values, things.log_values)
    assert torch.equal(again.vectors, things.vectors)
    assert (again.step, again.seed, again.kind, again.learning_rate) == (10, 42, "lyapunov", 0.01)
    assert again.exponents.tolist() == [-0.2, 0.0, 0.1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_it_prints_one_line(things):
    assert repr(things) == "3 stored lyapunov pairs of 3 parameters, from step 10, seed 42"


def test_pair_of_the_original(tmp_path):
    path = tmp_path / "eigenthings.pt"
    torch.save((torch.tensor([0.9, 1.2]), torch.eye(2)), path)
    things = load_eigenthings(path)
    assert repr(things).endswith("from an unknown step")
    assert things.step == -1
    assert things.exponents.sign().tolist() == [-1, 1]


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_is_executed(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save(Evil(), path)
    with pytest.raises(ValueError, match="nothing in it was executed"):
        load_eigenthings(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="nothing in it was executed"):
        load_eigenthings(path)
    npz = tmp_path / "evil.npz"
    np.savez(npz, format_version=1, kind="lyapunov", values=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="only numbers and text"):
        load_eigenthings(npz)
    assert "executed" not in capsys.readouterr().out


def test_missing_file_says_how_to_make_one():
    with pytest.raises(FileNotFoundError, match="save_eigenthings=True seed=42"):
        load_eigenthings("path/to/save")


@pytest.mark.parametrize("damage", ["truncate", "version", "kind", "shape", "nan"])
def test_damaged_files_are_refused(things, tmp_path, damage):
    path = things.save(tmp_path / "a.npz")
    data = dict(np.load(path))
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "version":
        np.savez(path, **data | {"format_version": 99})
    elif damage == "kind":
        np.savez(path, **data | {"kind": "other"})
    elif damage == "shape":
        np.savez(path, **data | {"vectors": np.eye(4)})
    else:
        np.savez(path, **data | {"vectors": np.full((3, 3), np.nan)})
    with pytest.raises(ValueError, match=r"a\.npz"):
        load_eigenthings(path)


def test_values_and_vectors_from_two_files(tmp_path):
    np.save(tmp_path / "w.npy", np.array([0.5, 1.0 + 1e-16, 2.0]))
    np.save(tmp_path / "V.npy", np.eye(3))
    things = load_values_and_vectors(tmp_path / "w.npy", tmp_path / "V.npy")
    assert things.exponents.sign().tolist() == [-1, 0, 1]
    assert things.n == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.eye(2), "one per value"),
        (np.full((3, 3), np.inf), "non-finite"),
        (np.array([Evil()], dtype=object), "only numbers and text are read"),
        (b"text", "no NumPy array"),
        (None, "No such file"),
    ],
)
def test_foreign_arrays_are_refused(tmp_path, content, message, capsys):
    np.save(tmp_path / "w.npy", np.ones(3))
    path = tmp_path / "V.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_values_and_vectors(tmp_path / "w.npy", path)
    assert "executed" not in capsys.readouterr().out


def test_any_type_of_tensor_is_saved_and_only_what_can_be_found_again(tmp_path):
    pairs = {"values": torch.tensor([4.0, 1.0]), "log_values": torch.tensor([4.0, 1.0]).log()}
    run = {"num_zero": 0, "step": 2, "learning_rate": 0.1, "momentum": 0.0, "seed": 0, "kind": "lyapunov"}
    vectors = torch.eye(3, dtype=torch.bfloat16)[:, :2].requires_grad_()
    things = Eigenthings(**pairs, vectors=vectors, **run)
    loaded = load_eigenthings(things.save(tmp_path / "a.npz"))
    assert torch.equal(loaded.vectors, torch.eye(3)[:, :2])
    with pytest.raises(ValueError, match="does not end in"):
        things.save(tmp_path / "a.pairs")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([torch.inf, 1.0], "are NaN or infinite"),  # beside which all finite ones looked neutral
        ([torch.nan, 1.0], "are NaN or infinite"),
        ([1j, 1.0], "are complex"),
    ],
)
def test_stored_values_that_mean_nothing_are_refused(tmp_path, values, message):
    torch.save((torch.tensor(values), torch.eye(3)[:, :2]), tmp_path / "pair.pt")
    with pytest.raises(ValueError, match=message):
        load_eigenthings(tmp_path / "pair.pt")
