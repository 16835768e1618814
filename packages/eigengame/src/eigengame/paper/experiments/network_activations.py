"""Principal components of a network's activations, all layers jointly, as a pytree."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from eigengame.core.learning_rate import nesterov, with_learning_rate
from eigengame.core.solver import Config, init, sample_steps
from eigengame.core.trees import responses
from eigengame.metrics import captured_value_ratio
from eigengame.paper.config import ComputeOptions, on_device, per_seed
from eigengame.sharding import make_mesh, shard_batch
from gdyn_common.seeding import named_seed
from gdyn_reproduce.data import textures32
from gdyn_reproduce.plotting import COLOURS, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run


@dataclass
class ActivationsConfig(ComputeOptions):
    """Activations of a random convolutional network as a pytree.

    Attributes:
        num_images: Images passed through the network.
        image_size: Side of the images.
        width: Channels of the first layer.
        batch_size: Rows per step.
        rate_factor: Learning rate times the top eigenvalue.
        features: Devices over which the coordinates of vectors and activations are split.
        seeds: Seeds of network, vectors and batches.
    """

    num_images: int = 2048
    image_size: int = 32
    width: int = 32
    num_components: int = 8
    batch_size: int = 128
    num_steps: int = 1000
    rate_factor: float = 0.5
    features: int = 1
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@on_device
def compute(config: ActivationsConfig, run: Run) -> Result:
    """Compare the captured variance with randomised SVD of the flattened activations."""
    arrays = per_seed(run, "", partial(_captured, config), config.seeds)
    measurements: dict[str, list[float] | float] = {"dimension": float(arrays.pop("dimension")[0])}
    for name, vectors in (("captured_ratio", "ours"), ("start_captured_ratio", "start")):
        measurements[name] = [
            captured_value_ratio(found, exact)
            for found, exact in zip(arrays[vectors], arrays["exact"], strict=True)
        ]
    return Result(measurements, arrays)


def plot(result: Result) -> Figure:
    """Draw the variance along each component beside the exact eigenvalues."""
    figure, axis = new_figure()
    index = np.arange(1, result.arrays["ours"].shape[1] + 1)
    for seed, (colour, ours, exact) in enumerate(
        zip(COLOURS, result.arrays["ours"], result.arrays["exact"], strict=False)
    ):
        axis.plot(index, exact, color=colour, label=f"network {seed}")
        axis.plot(index, ours, "o", color=colour)
    axis.set(
        title="Variance of activations by component (line: exact; dots: mu-EigenGame)",
        xlabel="component",
        ylabel="variance",
        yscale="log",
    )
    label_curves(axis)
    return figure


def activations(images: Float[Array, "n h w c"], key: Array, width: int) -> dict[str, Array]:
    """Return the activations of three random convolutions with ReLU, centred over the images."""
    found: dict[str, Array] = {}
    layer = images
    for depth, (channels, stride) in enumerate(((width, 2), (2 * width, 2), (2 * width, 2))):
        shape = (3, 3, layer.shape[-1], channels)
        kernel = jax.random.normal(jax.random.fold_in(key, depth), shape) * np.sqrt(2 / np.prod(shape[:3]))
        layer = jax.nn.relu(
            jax.lax.conv_general_dilated(
                layer, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
        found[f"layer{depth}"] = layer - layer.mean(axis=0)
    return found


def _captured(config: ActivationsConfig, seed: int) -> dict[str, NDArray]:
    images, _ = textures32("train", seed=seed, num_samples=config.num_images)
    pixels = jnp.asarray(np.asarray(images, config.dtype) / 255)[:, : config.image_size, : config.image_size]
    data = jax.jit(activations, static_argnames="width")(pixels, jax.random.key(seed), config.width)
    flat = np.concatenate(
        [np.asarray(leaf).reshape(config.num_images, -1) for leaf in jax.tree.leaves(data)], axis=1
    )
    _, singular, _ = randomized_svd(flat, config.num_components, random_state=seed)
    exact = singular**2 / config.num_images
    mesh = make_mesh(features=config.features, devices=config.devices())
    step = Config(nesterov(0.9), mesh=mesh)
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
    key = jax.random.key(named_seed(seed, "activations") % 2**31)
    state = init(key, config.num_components, template, step.optimizer, dtype=config.dtype, mesh=mesh)
    state = with_learning_rate(state, config.rate_factor / float(exact[0]))
    start = jax.tree.map(np.array, state.vectors)
    state, _ = sample_steps(state, shard_batch(data, mesh), config.num_steps, config.batch_size, step)
    return {
        "ours": _variances(state.vectors, data),
        "start": _variances(start, data),
        "exact": exact,
        "dimension": np.array(flat.shape[1]),
    }


def _variances(vectors: dict[str, Array], data: dict[str, Array]) -> NDArray:
    """Return the variances in the span of the vectors, along a basis built from the first player on."""
    V = {name: np.asarray(leaf) for name, leaf in vectors.items()}
    Y = np.asarray(responses(V, data), np.float64)
    flat = np.concatenate([V[name].reshape(len(Y), -1) for name in sorted(V)], axis=1)
    orthonormal = np.linalg.solve(np.linalg.qr(flat.T)[1].T, Y)
    return np.asarray(np.mean(orthonormal**2, axis=1))
