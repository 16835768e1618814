"""A GAN as a two-player game with state: two networks, two losses, and what they remember."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from dd_two_player.game import Game
from dd_two_player.gans.losses import wgan_gradient_penalty_loss
from dd_two_player.gans.networks import Network
from dd_two_player.gans.spectral_norm import SpectralState, initial_vectors, normalize_weights

__all__ = ["Batch", "Gan", "GanState"]

Params = Any
Pair = tuple[Params, Params]


class Batch(NamedTuple):
    """What the losses see beside parameters: data ``(n, ...)`` and latents ``(n, num_latents)``."""

    data: Array
    latents: Array


class GanState(NamedTuple):
    """State of both players, by kind.

    Attributes:
        spectral: Power-iteration vectors of the discriminator; training state, advanced by its own loss only.
        disc_statistics: Batch statistics of the discriminator, for evaluation; either loss may refresh them.
        gen_statistics: Batch statistics of the generator, likewise.
    """

    spectral: SpectralState
    disc_statistics: Any
    gen_statistics: Any


@dataclass(frozen=True)
class Gan:
    """Networks and losses of a GAN.

    Attributes:
        discriminator: Samples to logits ``(n, 1)``.
        generator: Latents to samples.
        loss_disc: ``(real_logits, fake_logits) -> scalar``.
        loss_gen: ``(fake_logits) -> scalar``.
        num_latents: Dimension of the latents.
        spectral_norm: ``apply`` divides the discriminator's weights; ``no_op`` only tracks singular values;
            ``none`` computes nothing.
        gradient_penalty: Weight of the WGAN gradient penalty in the discriminator's loss.
    """

    discriminator: Network
    generator: Network
    loss_disc: Callable[[Array, Array], Array]
    loss_gen: Callable[[Array], Array]
    num_latents: int
    spectral_norm: Literal["apply", "no_op", "none"] = "none"
    gradient_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a kind of spectral norm that there is not."""
        if self.spectral_norm not in ("apply", "no_op", "none"):
            raise ValueError(f"spectral_norm is {self.spectral_norm!r}; allowed: apply, no_op, none.")

    def init(self, key: PRNGKeyArray, example: Array) -> tuple[Pair, GanState]:
        """Draw parameters and state for data shaped like ``example`` (with a batch axis)."""
        disc_key, gen_key, spectral_key = jax.random.split(key, 3)
        disc, disc_statistics = self.discriminator.init(disc_key, example)
        latents = jnp.zeros((example.shape[0], self.num_latents), example.dtype)
        gen, gen_statistics = self.generator.init(gen_key, latents)
        spectral = {} if self.spectral_norm == "none" else initial_vectors(spectral_key, disc)
        return (disc, gen), GanState(spectral, disc_statistics, gen_statistics)

    def sample(self, gen: Params, state: GanState, latents: Array) -> Array:
        """Return samples in evaluation mode (stored batch statistics)."""
        return _apply(self.generator, gen, state.gen_statistics, latents, None)[0]

    def check_samples(self, shape: tuple[int, ...]) -> None:
        """Refuse data that do not have the shape of the generator's samples.

        Raises:
            ValueError: With both shapes.
        """

        def sample(key: PRNGKeyArray) -> Array:
            latents = jnp.zeros((2, self.num_latents))
            params, state = self.generator.init(key, latents)
            return _apply(self.generator, params, state, latents, key)[0]

        made = jax.eval_shape(sample, jax.random.key(0)).shape[1:]
        if made != shape:
            raise ValueError(
                f"the generator makes samples of shape {made}; the data set has {shape}. Change nets.gen."
            )

    def disc_loss(
        self, disc: Params, gen: Params, batch: Batch, state: GanState, key: Any = None
    ) -> tuple[Array, GanState]:
        """Return the discriminator's loss and the state after it.

        Data and samples share one forward pass if the discriminator has batch norm or is random. Else each
        has its own: the data do not depend on the generator, and only so can differentiation along the
        generator's parameters leave half of the work undone.
        """
        fake, gen_statistics = _apply(self.generator, gen, state.gen_statistics, batch.latents, (key, 2))
        weights, spectral = self._weights(disc, state)
        count = batch.data.shape[0]
        together = self.discriminator.random or bool(jax.tree.leaves(state.disc_statistics))
        groups = [jnp.concatenate([batch.data, fake])] if together else [batch.data, fake]
        applied = [_apply(self.discriminator, weights, state.disc_statistics, x, (key, 3)) for x in groups]
        real_logits = applied[0][0][:count]
        fake_logits = applied[-1][0][-fake.shape[0] :]
        loss = self.loss_disc(real_logits, fake_logits)
        if self.gradient_penalty:

            def discriminate(x: Array) -> Array:
                made = _apply(self.discriminator, weights, state.disc_statistics, x, (key, 3))
                return made[0]

            if key is None:
                raise ValueError("the gradient penalty draws points; pass a key: gan.game(state, key).")
            loss += self.gradient_penalty * wgan_gradient_penalty_loss(discriminate, batch.data, fake, key)
        return loss, GanState(spectral, applied[0][1], gen_statistics)

    def gen_loss(
        self, disc: Params, gen: Params, batch: Batch, state: GanState, key: Any = None
    ) -> tuple[Array, GanState]:
        """Return the generator's loss, which has no data term, and the state after it."""
        fake, gen_statistics = _apply(self.generator, gen, state.gen_statistics, batch.latents, (key, 2))
        weights, _ = self._weights(disc, state)
        logits, disc_statistics = _apply(self.discriminator, weights, state.disc_statistics, fake, (key, 3))
        return self.loss_gen(logits), GanState(state.spectral, disc_statistics, gen_statistics)

    def game(self, state: GanState, key: Any = None, *, has_aux: bool = False) -> Game:
        """Return the game at a fixed state; with ``has_aux`` its losses also return the state after them."""

        def fixed(loss: Callable[..., tuple[Array, GanState]]) -> Callable[[Params, Params, Batch], Any]:
            if has_aux:
                return lambda disc, gen, batch: loss(disc, gen, batch, state, key)
            return lambda disc, gen, batch: loss(disc, gen, batch, state, key)[0]

        return Game(fixed(self.disc_loss), fixed(self.gen_loss), has_aux)

    def _weights(self, disc: Params, state: GanState) -> tuple[Params, SpectralState]:
        if self.spectral_norm == "none":
            return disc, state.spectral
        return normalize_weights(disc, state.spectral, apply=self.spectral_norm == "apply")


def _apply(network: Network, params: Params, state: Any, inputs: Array, source: Any) -> tuple[Array, Any]:
    """Apply a network in training, with a key if it is random; ``None`` as source means evaluation.

    Args:
        network: The network.
        params: Its parameters.
        state: Its statistics.
        inputs: A batch.
        source: ``(key, number)``: the number tells the networks of one loss apart.
    """
    if not network.random:
        return network.apply(params, state, inputs, source is not None)
    if source is None:
        return network.apply(params, state, inputs, False, None)
    key, number = source if isinstance(source, tuple) else (source, 0)
    if key is None:
        raise ValueError("this network is random; pass a key: gan.game(state, key).")
    return network.apply(params, state, inputs, True, jax.random.fold_in(key, number))
