"""Classifiers that scores are made with: ``images in [-1, 1] -> (logits, features)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dd_two_player.paper.data import Samples
from gdyn_common.seeding import generator

__all__ = ["Classifier", "accuracy", "load_classifier", "train_classifier"]

Classifier = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
FEATURES = 64
INCEPTION = "tfgan_inception:"  # marks the SavedModel whose scores may be called IS and FID


def _network(images: Any) -> tuple[Any, Any]:
    x = images.reshape(images.shape[0], -1)
    x = jax.nn.relu(hk.Linear(256)(x))
    features = jnp.tanh(hk.Linear(FEATURES)(x))
    return hk.Linear(10)(features), features


def train_classifier(
    samples: Samples, *, steps: int = 1500, batch_size: int = 128, seed: int = 0
) -> Classifier:
    """Train a small fully connected network on labelled images; features are its last hidden layer (64).

    Deterministic in its arguments. The tests assert an accuracy above 0.92 on digits after 400 steps.
    """
    network: Any = hk.without_apply_rng(hk.transform(_network))
    params = network.init(jax.random.key(seed), jnp.zeros((1, *samples.shape)))
    optimizer = optax.adam(1e-3)

    def loss(params: Any, images: Any, labels: Any) -> Any:
        logits, _ = network.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params: Any, state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    state, stream = optimizer.init(params), generator(seed, "classifier")
    for _ in range(steps):
        chosen = stream.integers(len(samples), size=min(batch_size, len(samples)))
        params, state = step(params, state, samples.scaled(chosen), samples.labels[chosen])
    apply = jax.jit(network.apply)

    def classify(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = apply(params, jnp.asarray(images))
        return np.asarray(logits), np.asarray(features)

    return classify


def accuracy(classifier: Classifier, samples: Samples) -> float:
    """Return the share of samples that a classifier labels correctly."""
    logits, _ = classifier(samples.scaled())
    return float((logits.argmax(1) == samples.labels).mean())


def load_classifier(name: str, samples: Samples) -> Classifier:
    """Return a classifier by the name used in configurations.

    Args:
        name: ``auto``: trained here on the data. ``tfgan_inception:PATH``: the Inception network as a local
            SavedModel. Otherwise the path of a SavedModel with outputs ``logits`` and ``pool_3``; both
            through TF-GAN.
        samples: The training data.

    Raises:
        FileNotFoundError: If there is no such SavedModel.
        ImportError: If the extra ``tfgan`` is missing.
    """
    if name == "auto":
        if len(samples.shape) != 3:
            raise ValueError(f"{samples.name} has no classifier; scores need images, see `toy` for mixtures.")
        return train_classifier(samples)
    path = name.removeprefix(INCEPTION)
    if not (Path(path) / "saved_model.pb").is_file():
        raise FileNotFoundError(
            f"{path!r} is not a SavedModel folder; classifier is auto, PATH or {INCEPTION}PATH."
        )
    from dd_two_player.gans import tfgan

    return tfgan.saved_model_classifier(path, inception=path != name)
