from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import golden, golden_network
from torch import nn

from chaos.o2grad import (
    LossSurface,
    O2Model,
    get_hessian,
    load_eigenpairs,
    load_hessian,
    save_eigenpairs,
    save_hessian,
)


@pytest.fixture
def case():
    model, x, y = golden_network("mlp_relu")
    return model, x, y, LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y)


def test_what_is_held_by_fewer_coordinates_prints_their_number(case):
    model, x, y, H = case
    surface = LossSurface(model, nn.CrossEntropyLoss(), backend="compression")
    compressed = surface.hessian(None, x[:2], y[:2])
    held = f"held by {len(compressed.core)} coordinates"
    assert len(compressed.core) < 53
    assert repr(compressed) == f"Hessian of 53 parameters, {held}, torch.float64 (backend compression+sweep)"
    assert repr(H).startswith("Hessian of 53 parameters")


def test_forms(case):
    *_, H = case
    dense = H.dense()
    assert H.shape == (53, 53)
    assert (dense - dense.T).abs().max() < 1e-16
    assert torch.equal(H.to("sparse").to_dense(), dense)
    assert (H.diagonal() - dense.diagonal()).abs().max() < 1e-16
    assert abs(H.trace() - dense.trace()) < 1e-15
    v = torch.randn(53, 2, dtype=torch.float64)
    assert (H.matvec(v) - dense @ v).abs().max() < 1e-15
    assert (H.matvec(v[:, 0]) - dense @ v[:, 0]).abs().max() < 1e-15


def test_blocks(case):
    *_, H = case
    blocks, dense = H.blocks(), H.dense()
    assert len(blocks) == len(list(blocks)) == 16
    assert (blocks["0.weight", "2.bias"] - dense[:30, 50:]).abs().max() < 1e-16
    assert torch.equal(blocks["0.weight"]["2.bias"], blocks["0.weight", "2.bias"])
    with pytest.raises(KeyError, match=r"parameters are 0.weight, 0.bias"):
        blocks["0.weights", "2.bias"]


@pytest.mark.parametrize("mapped_above", [1 << 30, 0])
def test_save_and_load(case, tmp_path, mapped_above):
    *_, H = case
    path = save_hessian(H, tmp_path / "H", mapped_above)
    assert path.suffix == (".npz" if mapped_above else ".npy")
    assert (load_hessian(path) - H.dense()).abs().max() < 1e-15


def test_eigenpairs_round_trip(case, tmp_path):
    *_, H = case
    pairs = H.eigh()
    again = load_eigenpairs(save_eigenpairs(pairs, tmp_path / "pairs"))
    assert torch.equal(again.values, pairs.values)
    assert torch.equal(again.vectors, pairs.vectors)
    assert again.num_zero == pairs.num_zero


@pytest.mark.parametrize("load", [load_hessian, load_eigenpairs])
def test_foreign_files_are_refused(tmp_path, load):
    path = tmp_path / "bad.npz"
    np.savez(path, something=np.zeros(3))
    with pytest.raises(ValueError, match=r"bad\.npz"):
        load(path)
    path.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"bad\.npz"):
        load(path)


def test_names_of_the_original(case):
    model, x, y, H = case
    wrapped = O2Model(model, nn.CrossEntropyLoss())
    assert torch.equal(wrapped(x), model(x))
    assert torch.equal(wrapped.get_hessian_from_input(x, y), H.dense())
    part = wrapped.get_hessian_from_input(x, y, rows=slice(0, 5))
    assert (part - H.rows(slice(0, 5))).abs().max() < 1e-15
    nested = wrapped.get_hessian_from_input(x, y, as_type="blocks")
    assert torch.equal(nested["2.weight"]["2.bias"], H.block("2.weight", "2.bias"))
    diagonal = get_hessian(model, x, y, nn.CrossEntropyLoss(), diagonal_blocks=True)
    assert (diagonal["0.weight"] - golden("mlp_relu/hessian")[:30, :30]).abs().max() < 1e-14
    each = get_hessian(model, x, y, nn.CrossEntropyLoss(), per_batch=False)
    assert (each.mean(0) - H.dense()).abs().max() < 1e-15
