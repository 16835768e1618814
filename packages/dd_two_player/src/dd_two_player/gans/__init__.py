"""GANs as two-player games with state: networks, losses, spectral norm, optimisers, training steps."""
