import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.gans.networks import build_discriminator, build_generator


def shapes(params):
    return [
        tuple(leaf.shape) for leaf in jax.tree.leaves(params) if leaf.ndim in (2, 4) and leaf.shape[0] > 1
    ]


@pytest.mark.parametrize(
    ("name", "image", "kernels"),
    [
        (
            "CifarGenerator",
            (32, 32, 3),
            [(128, 8192), (4, 4, 512, 256), (4, 4, 256, 128), (4, 4, 128, 64), (3, 3, 64, 3)],
        ),
        ("MnistGenerator", (28, 28, 1), [(128, 3136), (5, 5, 64, 32), (5, 5, 32, 1)]),
    ],
)
def test_generator_layers(name, image, kernels):
    """The published layer table, and batch norm without any device axis."""
    network = build_generator(name, image)
    latents = jax.ShapeDtypeStruct((2, 128), jnp.float32)
    params, state = jax.eval_shape(network.init, jax.random.key(0), latents)
    assert sorted(shapes(params)) == sorted(kernels)
    for training in (True, False):
        images, _ = jax.eval_shape(
            lambda p, s, z, t=training: network.apply(p, s, z, t), params, state, latents
        )
        assert images.shape == (2, *image)


@pytest.mark.parametrize(
    ("name", "image", "channels", "features"),
    [
        ("CifarDiscriminator", (32, 32, 3), [64, 64, 128, 128, 256, 256, 512], 4 * 4 * 512),
        ("MnistDiscriminator", (28, 28, 1), [8, 16, 32, 64, 128], 4 * 4 * 128),
    ],
)
def test_discriminator_layers(name, image, channels, features):
    network = build_discriminator(name)
    images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    params, state = jax.eval_shape(network.init, jax.random.key(0), images)
    assert sorted(s[-1] for s in shapes(params) if len(s) == 4) == sorted(channels)
    assert (features, 1) in shapes(params)
    logits, _ = jax.eval_shape(lambda p, s, x: network.apply(p, s, x, True), params, state, images)
    assert logits.shape == (2, 1)


def test_mlp_images_lie_in_the_unit_range_and_points_do_not_have_to():
    latents = 50 * jax.random.normal(jax.random.key(0), (64, 4))
    for name, bounded in (("MLP", True), ("PointMLP", False)):
        network = build_generator(name, (2, 2, 1), sizes=(16,))
        params, state = network.init(jax.random.key(1), latents)
        images, _ = network.apply(params, state, latents, True)
        assert images.shape == (64, 2, 2, 1)
        assert (np.abs(images).max() <= 1) == bounded
