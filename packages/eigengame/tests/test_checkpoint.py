import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eigengame.checkpoint import load, read, save
from eigengame.core import Config, init, sample_steps

OPTIMIZER = optax.adam(0.01)
CONFIG = Config(OPTIMIZER, center=True, moments=True)


def fresh(key=0):
    return init(jax.random.key(key), 3, 6, OPTIMIZER, moments=True)


@pytest.fixture
def data(rng):
    return jnp.asarray(rng.standard_normal((40, 6)), jnp.float32)


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, data):
    whole, _ = sample_steps(fresh(), data, 10, 8, CONFIG)
    whole, _ = sample_steps(whole, data, 10, 8, CONFIG)
    half, _ = sample_steps(fresh(), data, 10, 8, CONFIG)
    save(tmp_path / "run.npz", half, {"epoch": 1})
    resumed, meta = load(tmp_path / "run.npz", fresh(key=9))
    resumed, _ = sample_steps(resumed, data, 10, 8, CONFIG)
    assert meta == {"epoch": 1}
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        assert jnp.array_equal(ours, theirs)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save(tmp_path / "run.npz", fresh(), {"step": 1})
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "run.npz", fresh(), {"step": 2})
    assert read(tmp_path / "run.npz")[1] == {"step": 1}


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        read(tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_not_a_checkpoint(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or of another kind"):
        read(tmp_path / "bad.npz")


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([object()], dtype=object), __meta__=np.array("{}"))
    with pytest.raises(ValueError, match="damaged or of another kind"):
        read(tmp_path / "evil.npz")


def test_unknown_format(tmp_path):
    np.savez(tmp_path / "new.npz", __meta__=np.array(json.dumps({"format": 99, "meta": {}})))
    with pytest.raises(ValueError, match="checkpoint format 99; this version reads 2"):
        read(tmp_path / "new.npz")


def test_another_configuration(tmp_path):
    save(tmp_path / "run.npz", fresh())
    with pytest.raises(ValueError, match=r"entry \.V has shape \(3, 6\), expected \(2, 6\)"):
        load(tmp_path / "run.npz", init(jax.random.key(0), 2, 6, OPTIMIZER, moments=True))
    with pytest.raises(ValueError, match="has no entry"):
        load(tmp_path / "run.npz", init(jax.random.key(0), 3, 6, optax.sgd(0.1, momentum=0.9), moments=True))


def test_what_the_state_has_no_place_for_is_not_dropped(tmp_path):
    """A momentum, moments or players of the file were lost without a word."""
    momentum = optax.sgd(0.1, momentum=0.9)
    save(tmp_path / "run.npz", init(jax.random.key(0), 4, 6, momentum))
    with pytest.raises(ValueError, match=r"has an entry \.opt_state\[0\]\.trace"):
        load(tmp_path / "run.npz", init(jax.random.key(0), 4, 6, optax.sgd(0.1)))
    padded = init(jax.random.key(0), 4, 6, momentum)
    padded = replace(padded, k=3)  # as on a mesh that splits four rows
    with pytest.raises(ValueError, match="has k=4 vectors, and the state k=3"):
        load(tmp_path / "run.npz", padded)


def test_another_precision_is_refused(tmp_path, x64):
    save(tmp_path / "run.npz", init(jax.random.key(0), 2, 6, OPTIMIZER, dtype="float64"))
    with pytest.raises(ValueError, match="of type float64, expected float32"):
        load(tmp_path / "run.npz", init(jax.random.key(0), 2, 6, OPTIMIZER))


def test_bfloat16_comes_back(tmp_path):
    state = init(jax.random.key(3), 2, 6, OPTIMIZER, dtype="bfloat16")
    save(tmp_path / "run.npz", state)
    found, _ = load(tmp_path / "run.npz", init(jax.random.key(0), 2, 6, OPTIMIZER, dtype="bfloat16"))
    assert found.V.dtype == jnp.bfloat16
    assert jnp.array_equal(found.V, state.V)
    with pytest.raises(ValueError, match="expected float16"):
        load(tmp_path / "run.npz", init(jax.random.key(0), 2, 6, OPTIMIZER, dtype="float16"))
