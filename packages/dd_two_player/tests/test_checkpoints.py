import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.gans.checkpoints import restore_checkpoint, save_checkpoint
from gdyn_common.storage import RECOMPUTE


def state(seed=0):
    return {"w": jnp.arange(3.0) + seed, "key": jax.random.key(seed), "step": jnp.asarray(7 + seed)}


def test_round_trip_is_exact_with_keys(tmp_path):
    save_checkpoint(tmp_path / "last.npz", state(3))
    restored = restore_checkpoint(tmp_path / "last.npz", state(0))
    np.testing.assert_array_equal(restored["w"], state(3)["w"])
    assert int(restored["step"]) == 10
    assert float(jax.random.normal(restored["key"])) == float(jax.random.normal(jax.random.key(3)))


def test_mismatches_name_the_parameter(tmp_path):
    path = tmp_path / "last.npz"
    save_checkpoint(path, state())
    with pytest.raises(ValueError, match=r"\['w'\] has shape \(3,\) in .* and \(4,\) in this configuration"):
        restore_checkpoint(path, state() | {"w": jnp.zeros(4)})
    with pytest.raises(ValueError, match=r"does not hold \['extra'\]; it belongs to another configuration"):
        restore_checkpoint(path, state() | {"extra": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"holds \['w'\], which this configuration does not have"):
        restore_checkpoint(path, {k: v for k, v in state().items() if k != "w"})
    with pytest.raises(FileNotFoundError, match="does not exist; give restore_path="):
        restore_checkpoint(tmp_path / "other.npz", state())


def test_a_damaged_file_is_to_be_replaced_unless_it_is_made_anew(tmp_path):
    path = tmp_path / "last.npz"
    save_checkpoint(path, state())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="replace it by a whole copy"):
        restore_checkpoint(path, state())
    with pytest.raises(ValueError, match="delete it to have it computed again"):
        restore_checkpoint(path, state(), advice=RECOMPUTE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "complex64"])
def test_types_that_numpy_does_not_know_come_back(tmp_path, dtype):
    state = {"w": jnp.asarray([1, 2], dtype)}
    save_checkpoint(tmp_path / "a.npz", state)
    found = restore_checkpoint(tmp_path / "a.npz", state)["w"]
    assert (found.dtype, found.tolist()) == (state["w"].dtype, state["w"].tolist())
    if dtype == "bfloat16":
        with pytest.raises(ValueError, match=r"is not float32 in .*, as in this configuration"):
            restore_checkpoint(tmp_path / "a.npz", {"w": jnp.ones(2)})


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_keys_of_every_kind_come_back(tmp_path, kind):
    state = {"key": jax.random.key(3, impl=kind)}
    save_checkpoint(tmp_path / "a.npz", state)
    found = restore_checkpoint(tmp_path / "a.npz", state)["key"]
    assert jax.random.key_impl(found) == jax.random.key_impl(state["key"])
    assert jax.random.uniform(found) == jax.random.uniform(state["key"])
    if kind == "rbg":
        with pytest.raises(ValueError, match=r"has shape \(4,\) in .* and \(2,\) in this configuration"):
            restore_checkpoint(tmp_path / "a.npz", {"key": jax.random.key(3, impl="threefry2x32")})
