import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.gans.convolution import conv2d, conv2d_transpose

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
        conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), 1, "fft")


def programs(layer, images, kernel, stride):
    """Return the compiled text of both first derivatives, as XLA will run them."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (images, kernel)]
    gradient = jax.grad(lambda x, w: (layer(x, w, stride) ** 2).sum(), (0, 1))
    return jax.jit(gradient).lower(*shapes).compile().as_text()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice is made for the CPU")
@pytest.mark.parametrize(
    ("layer", "images", "kernel", "stride"),
    [
        (conv2d, (2, 7, 7, 4), (5, 5, 4, 8), 2),  # last layer of MnistDiscriminator
        (conv2d, (2, 14, 14, 4), (5, 5, 4, 8), 2),
        (conv2d, (2, 8, 8, 4), (4, 4, 4, 8), 2),  # last strided layer of CifarDiscriminator
        (conv2d_transpose, (2, 7, 7, 8), (5, 5, 8, 4), 2),  # MnistGenerator
        (conv2d_transpose, (2, 4, 4, 8), (4, 4, 8, 4), 2),  # CifarGenerator
    ],
)
def test_no_layer_of_the_networks_meets_the_slow_path(layer, images, kernel, stride):
    """Swapped operands show as a reversed window, which XLA's CPU backend runs in plain loops."""
    assert "rhs_reversal" not in programs(layer, images, kernel, stride)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice is made for the CPU")
def test_the_slow_path_still_exists():
    """Once this fails, XLA has mended it and the second form may go."""
    text = programs(lambda x, w, s: conv2d_transpose(x, w, s, "lax"), (2, 7, 7, 8), (5, 5, 8, 4), 2)
    assert "rhs_reversal" in text
