import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eigengame.optax_transforms import sphere_retraction, tangent_projection, warmup_harmonic


def test_retraction_ends_on_the_sphere(rng):
    V = jnp.asarray(np.eye(3, 5))
    transform = sphere_retraction()
    updates, _ = transform.update(jnp.asarray(rng.standard_normal((3, 5))), transform.init(V), V)
    np.testing.assert_allclose(jnp.linalg.norm(optax.apply_updates(V, updates), axis=1), 1, atol=1e-6)


def test_retraction_of_a_pytree_normalises_over_leaves():
    V = {"a": jnp.array([[0.6]]), "b": jnp.array([[0.8]])}
    updates, _ = sphere_retraction().update({"a": jnp.array([[2.4]]), "b": jnp.array([[3.2]])}, (), V)
    moved = optax.apply_updates(V, updates)
    np.testing.assert_allclose([moved["a"][0, 0], moved["b"][0, 0]], [0.6, 0.8], atol=1e-6)


def test_projection_removes_the_radial_part(rng):
    V = jnp.asarray(np.eye(3, 5))
    updates, _ = tangent_projection().update(jnp.asarray(rng.standard_normal((3, 5))), (), V)
    np.testing.assert_allclose(jnp.sum(updates * V, axis=1), 0, atol=1e-6)


@pytest.mark.parametrize("transform", [sphere_retraction(), tangent_projection()])
def test_both_need_the_vectors(transform):
    with pytest.raises(ValueError, match=r"call optimizer.update\(gradients, state, params\)"):
        transform.update(jnp.ones((1, 2)), ())


def test_schedule_passes_through_both_ends_and_is_harmonic():
    schedule = warmup_harmonic(0.5, 20, 1000, 0.01)
    assert float(schedule(20)) == pytest.approx(0.5)
    assert float(schedule(1000)) == pytest.approx(0.01, rel=1e-5)
    t = np.array([20.0, 100.0, 1000.0])
    np.testing.assert_allclose(
        np.diff(1 / np.array([float(schedule(s)) for s in t])) / np.diff(t), 0.1, rtol=1e-4
    )


def test_schedule_without_warmup_starts_at_base():
    assert float(warmup_harmonic(0.5, 0, 10, 0.1)(0)) == pytest.approx(0.5)


@pytest.mark.parametrize("arguments", [(1.0, 10, 10, 0.1), (1.0, 0, 10, 1.0), (1.0, 0, 10, 0.0)])
def test_schedule_refuses_impossible_ends(arguments):
    with pytest.raises(ValueError, match="end_step > warmup and 0 < end_lr < base"):
        warmup_harmonic(*arguments)
