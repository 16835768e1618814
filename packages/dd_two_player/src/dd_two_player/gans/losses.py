"""GAN losses on logits of shape ``(N, 1)``, as batch means; every one is minimised by its player.

No generator loss has a data term. Softplus forms keep all of them finite at any logit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = [
    "DISCRIMINATOR_LOSSES",
    "GENERATOR_LOSSES",
    "discriminator_goodfellow_loss",
    "discriminator_square_loss",
    "discriminator_square_loss_with_sigmoid",
    "generator_goodfellow_loss",
    "generator_saturating_loss",
    "generator_square_loss",
    "generator_square_loss_with_sigmoid",
    "wasserstein_discriminator_loss",
    "wasserstein_generator_loss",
    "wgan_gradient_penalty_loss",
]

Logits = Float[Array, "n 1"]
Scalar = Float[Array, ""]
SLOPE_EPSILON = 1e-5  # keeps the slope differentiable at a zero gradient


def discriminator_goodfellow_loss(real: Logits, fake: Logits) -> Scalar:
    """Return ``mean softplus(-D(x)) + mean softplus(D(G(z)))``, the cross entropy.

    >>> float(discriminator_goodfellow_loss(jnp.full((1, 1), 1e4), jnp.full((1, 1), 1e4)))
    10000.0
    """
    _check_logits(real, fake)
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


def generator_goodfellow_loss(fake: Logits) -> Scalar:
    """Return ``mean softplus(-D(G(z)))``, the non-saturating loss."""
    _check_logits(fake)
    return jax.nn.softplus(-fake).mean()


def generator_saturating_loss(fake: Logits) -> Scalar:
    """Return ``-mean softplus(D(G(z)))``, which makes the game zero-sum up to the data term."""
    _check_logits(fake)
    return -jax.nn.softplus(fake).mean()


def discriminator_square_loss(real: Logits, fake: Logits) -> Scalar:
    """Return ``mean (D(x) - 1)^2 + mean D(G(z))^2``, least squares."""
    _check_logits(real, fake)
    return ((real - 1) ** 2).mean() + (fake**2).mean()


def generator_square_loss(fake: Logits) -> Scalar:
    """Return ``-mean D(G(z))^2``, the zero-sum form of least squares."""
    _check_logits(fake)
    return -(fake**2).mean()


def discriminator_square_loss_with_sigmoid(real: Logits, fake: Logits) -> Scalar:
    """Return the square loss of ``sigmoid(D)``."""
    return discriminator_square_loss(jax.nn.sigmoid(real), jax.nn.sigmoid(fake))


def generator_square_loss_with_sigmoid(fake: Logits) -> Scalar:
    """Return the square loss of ``sigmoid(D)``."""
    return generator_square_loss(jax.nn.sigmoid(fake))


def wasserstein_discriminator_loss(real: Logits, fake: Logits) -> Scalar:
    """Return ``mean D(G(z)) - mean D(x)``."""
    _check_logits(real, fake)
    return fake.mean() - real.mean()


def wasserstein_generator_loss(fake: Logits) -> Scalar:
    """Return ``-mean D(G(z))``."""
    _check_logits(fake)
    return -fake.mean()


def wgan_gradient_penalty_loss(
    discriminator: Callable[[Any], Logits],
    real: Float[Array, "n ..."],
    fake: Float[Array, "n ..."],
    key: PRNGKeyArray,
) -> Scalar:
    """Return ``mean (|grad D(x_hat)| - 1)^2`` at random points between data and samples.

    Args:
        discriminator: Images to logits.
        real: Data.
        fake: Samples, of the same shape.
        key: Random source of the mixing weights, one per example; its own, apart from that of the latents.

    Source: Gulrajani et al. 2017, with slope ``sqrt(1e-5 + sum g^2)``.
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"data of shape {real.shape} and samples of shape {fake.shape} have no points between."
        )
    alpha = jax.random.uniform(key, (real.shape[0],) + (1,) * (real.ndim - 1), real.dtype)
    mixed = real + alpha * (fake - real)
    gradient = jax.grad(lambda x: discriminator(x).sum())(mixed)
    slope = jnp.sqrt(SLOPE_EPSILON + (gradient**2).sum(tuple(range(1, gradient.ndim))))
    return ((slope - 1) ** 2).mean()


def _check_logits(*logits: jax.Array) -> None:
    for values in logits:
        if values.ndim != 2 or values.shape[1] != 1:
            raise ValueError(f"logits have shape {values.shape}; a discriminator must return (N, 1).")


DISCRIMINATOR_LOSSES = {
    f.__name__: f
    for f in (
        discriminator_goodfellow_loss,
        discriminator_square_loss,
        discriminator_square_loss_with_sigmoid,
        wasserstein_discriminator_loss,
    )
}
GENERATOR_LOSSES = {
    f.__name__: f
    for f in (
        generator_goodfellow_loss,
        generator_saturating_loss,
        generator_square_loss,
        generator_square_loss_with_sigmoid,
        wasserstein_generator_loss,
    )
}
