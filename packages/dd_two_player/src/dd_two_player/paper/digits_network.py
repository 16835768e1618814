"""A two-layer tanh network on embedded digits, trained by full batches, and its descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dd_two_player.paper.data import load_samples

__all__ = ["DigitsNetwork", "descend", "digits_network"]


@dataclass(frozen=True)
class DigitsNetwork:
    """Functions of the parameters.

    Attributes:
        start: The parameters of a seed.
        loss: Cross-entropy over all training examples.
        accuracy: Share of right answers on the other digits.
    """

    start: Callable[[int], Any]
    loss: Callable[[Any], Any]
    accuracy: Callable[[Any], Any]


def digits_network(num_examples: int, width: int) -> DigitsNetwork:
    """Return the network that is trained on the first ``num_examples`` digits and tested on the others."""
    samples = load_samples("digits")
    images, labels = samples.scaled().reshape(len(samples), -1), samples.labels

    def start(seed: int) -> Any:
        keys = jax.random.split(jax.random.key(seed))
        return {
            "w0": jax.random.normal(keys[0], (images.shape[1], width)) / images.shape[1] ** 0.5,
            "b0": jnp.zeros(width),
            "w1": jax.random.normal(keys[1], (width, 10)) / width**0.5,
            "b1": jnp.zeros(10),
        }

    def logits(params: Any, inputs: Any) -> Any:
        return jnp.tanh(inputs @ params["w0"] + params["b0"]) @ params["w1"] + params["b1"]

    def loss(params: Any) -> Any:
        found = logits(params, images[:num_examples])
        return optax.softmax_cross_entropy_with_integer_labels(found, labels[:num_examples]).mean()

    def accuracy(params: Any) -> Any:
        return (logits(params, images[num_examples:]).argmax(1) == labels[num_examples:]).mean()

    return DigitsNetwork(start, loss, accuracy)


def descend(
    loss: Callable[[Any], Any],
    optimizer: Any,
    num_steps: int,
    watch: Callable[[Any], dict[str, Any]] = lambda params: {},
) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return a function from a start to the curves of DAL's run: its loss and rate, and what is watched.

    Args:
        loss: ``params -> scalar``.
        optimizer: Made by `dd_two_player.principal_flow.dal`.
        num_steps: Steps, and so the length of each curve.
        watch: ``params -> {name: value}``, called before each step.
    """

    @jax.jit
    def run(params: Any) -> Any:
        def body(carry: Any, _: None) -> Any:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            found = {"loss": value, "rate": state.rate} | watch(params)
            return (optax.apply_updates(params, updates), state), found

        return jax.lax.scan(body, (params, optimizer.init(params)), None, length=num_steps)[1]

    return lambda params: {name: np.asarray(curve) for name, curve in run(params).items()}
