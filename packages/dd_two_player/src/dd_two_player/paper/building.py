"""The GAN that a configuration describes; commands and studies build it here."""

from __future__ import annotations

from dd_two_player.gans import losses as known
from dd_two_player.gans.model import Gan
from dd_two_player.gans.named import named
from dd_two_player.gans.networks import build_discriminator, build_generator
from dd_two_player.paper.config import LossesConfig, NetsConfig

__all__ = ["build_gan"]


def build_gan(nets: NetsConfig, losses: LossesConfig, shape: tuple[int, ...]) -> Gan:
    """Build networks and losses for samples of a shape.

    Raises:
        ValueError: For unknown names, and a generator whose samples have another shape.
    """
    gan = Gan(
        build_discriminator(nets.disc, nets.hidden, nets.convolution),  # type: ignore[arg-type]
        build_generator(nets.gen, shape, nets.hidden, nets.convolution),  # type: ignore[arg-type]
        named("discriminator loss", losses.disc, known.DISCRIMINATOR_LOSSES),
        named("generator loss", losses.gen, known.GENERATOR_LOSSES),
        nets.num_latents,
        nets.spectral_norm,  # type: ignore[arg-type]
        losses.gradient_penalty,
    )
    gan.check_samples(shape)
    return gan
