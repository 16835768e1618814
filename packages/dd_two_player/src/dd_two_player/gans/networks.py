"""Networks of the paper's experiments (haiku) behind one small pair of pure functions.

The layer tables are those of the released configurations; images are NHWC in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dd_two_player.gans.convolution import Method, conv2d, conv2d_transpose
from dd_two_player.gans.naming import named

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "MLP",
    "CifarDiscriminator",
    "CifarGenerator",
    "MnistDiscriminator",
    "MnistGenerator",
    "Network",
    "build_discriminator",
    "build_generator",
    "haiku_network",
]

Images = Float[Array, "n height width channels"]


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
        init: ``(key, example_input) -> (params, state)``; the state holds batch-norm statistics.
        apply: ``(params, state, inputs, is_training) -> (outputs, state)``.
        random: Whether ``apply`` takes a key as its fifth argument, ``None`` in evaluation (dropout).
    """

    init: Callable[[Any, Any], tuple[Any, Any]]
    apply: Callable[..., tuple[Any, Any]]
    random: bool = False


class Convolution(hk.Module):
    """SAME convolution or transposed convolution with bias; kernels start with variance 1 / fan_in."""

    def __init__(
        self, channels: int, size: int, stride: int, *, transpose: bool = False, method: Method = "auto"
    ) -> None:
        super().__init__("conv_transpose" if transpose else "conv")
        self.channels, self.size, self.stride, self.method = channels, size, stride, method
        self.convolve = conv2d_transpose if transpose else conv2d

    def __call__(self, images: Images) -> Images:
        """Apply the layer."""
        shape = (self.size, self.size, images.shape[-1], self.channels)
        init = hk.initializers.TruncatedNormal(1 / (self.size**2 * images.shape[-1]) ** 0.5)
        kernel = hk.get_parameter("w", shape, images.dtype, init)
        bias = hk.get_parameter("b", (self.channels,), images.dtype, jnp.zeros)
        return self.convolve(images, kernel, self.stride, self.method) + bias


class CifarGenerator(hk.Module):
    """Linear to 4x4x512, transposed convolutions to 32x32x3 with batch norm and relu, tanh."""

    def __init__(self, image_shape: Sequence[int] = (32, 32, 3), method: Method = "auto") -> None:
        super().__init__()
        self.channels, self.method = image_shape[-1], method

    def __call__(self, latents: Float[Array, "n latents"], is_training: bool = True) -> Images:
        """Map latents to images in [-1, 1]."""
        x = hk.Linear(4 * 4 * 512)(latents).reshape(-1, 4, 4, 512)
        for channels in (256, 128, 64):
            x = Convolution(channels, 4, 2, transpose=True, method=self.method)(x)
            x = jax.nn.relu(hk.BatchNorm(True, True, decay_rate=0.999)(x, is_training))
        return jnp.tanh(Convolution(self.channels, 3, 1, transpose=True, method=self.method)(x))


class CifarDiscriminator(hk.Module):
    """Seven convolutions with leaky relu 0.1, flatten, linear to one logit."""

    LAYERS = ((64, 3, 1), (64, 4, 2), (128, 3, 1), (128, 4, 2), (256, 3, 1), (256, 4, 2), (512, 3, 1))

    def __init__(self, method: Method = "auto") -> None:
        super().__init__()
        self.method = method

    def __call__(self, images: Images, is_training: bool = True) -> Float[Array, "n 1"]:
        """Map images to logits."""
        x = images
        for channels, size, stride in self.LAYERS:
            x = jax.nn.leaky_relu(Convolution(channels, size, stride, method=self.method)(x), 0.1)
        return hk.Linear(1)(hk.Flatten()(x))


class MnistGenerator(hk.Module):
    """Linear to 7x7x64, relu, two transposed convolutions of kernel 5, tanh."""

    def __init__(self, image_shape: Sequence[int] = (28, 28, 1), method: Method = "auto") -> None:
        super().__init__()
        self.channels, self.method = image_shape[-1], method

    def __call__(self, latents: Float[Array, "n latents"], is_training: bool = True) -> Images:
        """Map latents to images in [-1, 1]."""
        x = jax.nn.relu(hk.Linear(7 * 7 * 64)(latents).reshape(-1, 7, 7, 64))
        x = jax.nn.relu(Convolution(32, 5, 2, transpose=True, method=self.method)(x))
        return jnp.tanh(Convolution(self.channels, 5, 2, transpose=True, method=self.method)(x))


class MnistDiscriminator(hk.Module):
    """Five convolutions of kernel 5 with leaky relu 0.2, flatten, linear to one logit."""

    LAYERS = ((8, 2), (16, 1), (32, 2), (64, 1), (128, 2))

    def __init__(self, method: Method = "auto") -> None:
        super().__init__()
        self.method = method

    def __call__(self, images: Images, is_training: bool = True) -> Float[Array, "n 1"]:
        """Map images to logits."""
        x = images
        for channels, stride in self.LAYERS:
            x = jax.nn.leaky_relu(Convolution(channels, 5, stride, method=self.method)(x), 0.2)
        return hk.Linear(1)(hk.Flatten()(x))


class MLP(hk.Module):
    """Fully connected layers with one activation between them; reshapes images in and out.

    Attributes:
        sizes: Widths of the hidden layers.
        output_shape: Shape of one output, ``(1,)`` for a discriminator.
        final: Applied to the output: ``tanh`` for images in [-1, 1], none otherwise.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        output_shape: Sequence[int],
        *,
        activation: Callable[[Array], Array] = jax.nn.relu,
        final: Callable[[Array], Array] | None = None,
    ) -> None:
        super().__init__()
        self.sizes, self.output_shape = tuple(sizes), tuple(output_shape)
        self.activation, self.final = activation, final

    def __call__(self, inputs: Array, is_training: bool = True) -> Array:
        """Apply the layers."""
        x = inputs.reshape(inputs.shape[0], -1)
        for size in self.sizes:
            x = self.activation(hk.Linear(size)(x))
        size = 1
        for extent in self.output_shape:
            size *= extent
        x = hk.Linear(size)(x).reshape(-1, *self.output_shape)
        return x if self.final is None else self.final(x)


def _leaky(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.2)


GENERATORS: dict[str, Callable[..., Any]] = {
    "CifarGenerator": lambda shape, sizes, method: CifarGenerator(shape, method),
    "MnistGenerator": lambda shape, sizes, method: MnistGenerator(shape, method),
    "MLP": lambda shape, sizes, method: MLP(sizes, shape, final=jnp.tanh),
    "PointMLP": lambda shape, sizes, method: MLP(sizes, shape),
}
DISCRIMINATORS: dict[str, Callable[..., Any]] = {
    "CifarDiscriminator": lambda sizes, method: CifarDiscriminator(method),
    "MnistDiscriminator": lambda sizes, method: MnistDiscriminator(method),
    "MLP": lambda sizes, method: MLP(sizes, (1,), activation=_leaky),
}


def build_generator(
    name: str, shape: Sequence[int], sizes: Sequence[int] = (128, 128), method: Method = "auto"
) -> Network:
    """Return a generator of samples of ``shape``.

    Args:
        name: A key of `GENERATORS` (``PointMLP`` leaves its output unbounded, for mixtures), or
            ``module:name`` of your own function from the shape to a `Network`.
        shape: Of one sample.
        sizes: Widths of the hidden layers of MLPs.
        method: Of the convolutions.
    """
    made = named("generator", name, GENERATORS, ["shape"])
    if name not in GENERATORS:
        return _own(made(tuple(shape)))
    return haiku_network(lambda x, training: made(shape, sizes, method)(x, training))


def build_discriminator(name: str, sizes: Sequence[int] = (128, 128), method: Method = "auto") -> Network:
    """Return a discriminator: inputs to logits ``(N, 1)``; ``module:name`` takes no arguments."""
    made = named("discriminator", name, DISCRIMINATORS, [])
    if name not in DISCRIMINATORS:
        return _own(made())
    return haiku_network(lambda x, training: made(sizes, method)(x, training))


def _own(made: Any) -> Network:
    if not isinstance(made, Network):
        raise ValueError(
            f"your network is a {type(made).__name__}; return a dd_two_player.gans.networks.Network, as "
            "haiku_network does."
        )
    return made


def haiku_network(function: Callable[[Array, bool], Array], *, random: bool = False) -> Network:
    """Return the network of a haiku function of ``(inputs, is_training)``.

    Args:
        function: It may use state, such as that of batch norm.
        random: Whether it asks for random keys, as dropout does.

    Example:
        >>> def net(x, is_training):
        ...     return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x)
        >>> network = haiku_network(net, random=True)
        >>> params, state = network.init(jax.random.key(0), jnp.ones((4, 3)))
        >>> network.apply(params, state, jnp.ones((4, 3)), True, jax.random.key(1))[0].shape
        (4, 1)
    """
    transformed = hk.transform_with_state(function)

    def init(key: Any, example: Array) -> tuple[Any, Any]:
        return transformed.init(key, example, True)

    def apply(
        params: Any, state: Any, inputs: Array, is_training: bool, key: Any = None
    ) -> tuple[Array, Any]:
        return transformed.apply(params, state, key, inputs, is_training)

    return Network(init, apply, random)
