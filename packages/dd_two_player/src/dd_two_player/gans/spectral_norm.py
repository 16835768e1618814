"""Spectral normalisation of weights as a pure function of parameters and power-iteration vectors.

Every weight (array of two or more axes; biases are left alone), seen as a matrix ``(inputs, outputs)``, is
divided by a power-iteration estimate of its largest singular value. The vectors carry over from step to
step, so one iteration per step suffices.

Source: Miyato et al. 2018.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dd_two_player.stopped import held_constant

__all__ = ["SpectralState", "initial_vectors", "normalize_weights"]

Params = Any
SpectralState = dict[str, dict[str, Array]]


def initial_vectors(key: PRNGKeyArray, params: Params) -> SpectralState:
    """Draw the start of the power iteration: ``{path: {"u0": (1, outputs), "sigma": ()}}``."""
    state = {}
    for i, (path, weight) in enumerate(_weights(params)):
        u0 = jax.random.normal(jax.random.fold_in(key, i), (1, weight.shape[-1]), weight.dtype)
        state[path] = {"u0": u0, "sigma": jnp.ones((), weight.dtype)}
    return state


def normalize_weights(
    params: Params, state: SpectralState, *, apply: bool = True
) -> tuple[Params, SpectralState]:
    """Divide each weight by its estimated largest singular value.

    The vectors are constants to differentiation; the gradient flows through the weight in ``sigma = v W
    u^T``.

    Args:
        params: Any pytree of arrays.
        state: From :func:`initial_vectors` or the previous call.
        apply: False only tracks the singular values (``no_op``).

    Returns:
        The normalised parameters and the advanced state.

    Example:
        >>> weights = {"w": jnp.diag(jnp.array([3.0, 1.0]))}
        >>> state = initial_vectors(jax.random.key(0), weights)
        >>> for _ in range(20):
        ...     normalized, state = normalize_weights(weights, state)
        >>> normalized["w"].round(4).tolist()
        [[1.0, 0.0], [0.0, 0.33329999446868896]]
    """
    advanced: SpectralState = {}
    factors = {}
    for path, weight in _weights(params):
        matrix = weight.reshape(-1, weight.shape[-1])
        constant = held_constant(matrix)
        u0 = state[path]["u0"]
        v = _normalize(u0 @ constant.T)
        u = _normalize(v @ constant)
        sigma = (v @ matrix @ u.T)[0, 0]
        zero = ~u.any()  # of a weight of zeros, which stays as it is
        advanced[path] = {"u0": jnp.where(zero, u0, u), "sigma": held_constant(sigma)}
        factors[path] = jnp.where(zero, 1.0, sigma)
    if not apply:
        return params, advanced
    divided = jax.tree_util.tree_map_with_path(
        lambda path, a: a / factors[jax.tree_util.keystr(path)] if _is_weight(a) else a, params
    )
    return divided, advanced


def _weights(params: Params) -> list[tuple[str, Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if _is_weight(leaf)]


def _is_weight(array: Array) -> bool:
    """Tell weights from biases and from the scales of batch norm, of shape (1, 1, 1, channels)."""
    return jnp.ndim(array) >= 2 and array.size > array.shape[-1]


def _normalize(a: Float[Array, "1 n"]) -> Float[Array, "1 n"]:
    """Return the unit vector, of zeros itself; squares of weights of any size stay in range."""
    largest = jnp.abs(a).max()
    a = a / jnp.where(largest > 0, largest, 1)
    return a * jax.lax.rsqrt(jnp.maximum((jnp.abs(a) ** 2).sum(), 1))
