import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.convolution import conv2d, conv2d_transpose, prefers_slices

TOLERANCE = 1e-5  # float32 sums of at most 5 * 5 * 4 terms in another order
LAYERS = [(5, 2), (5, 1), (4, 2), (3, 1), (3, 2), (1, 2), (2, 3)]


@pytest.mark.parametrize(("size", "stride"), LAYERS)
@pytest.mark.parametrize("layer", [conv2d, conv2d_transpose])
def test_slices_equal_lax_with_derivatives(layer, size, stride):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((2, 7, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, 3, 4)) / size, jnp.float32)
    results = []
    for method in ("lax", "slices"):

        def loss(x, w, method=method):
            return (jnp.sin(layer(x, w, stride, method)) ** 2).sum()

        output = layer(images, kernel, stride, method)
        results.append((output, *jax.jit(jax.grad(loss, (0, 1)))(images, kernel)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(
            ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * float(jnp.abs(theirs).max())
        )


def test_method_is_checked():
    with pytest.raises(ValueError, match="convolution method is 'fft'; allowed: auto, lax, slices"):
        prefers_slices(5, 1, "fft")
