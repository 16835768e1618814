"""The published pseudo-code of mu-EigenGame, corrected so that it runs. Slow on purpose.

One function per function of Appendix B of "EigenGame Unloaded" (Copyright 2020 DeepMind Technologies
Limited, Apache License 2.0), with its names and argument order. It is the oracle of the tests and the
slow side of the benchmarks; the production path is `eigengame.core`.

What was changed: the gradient helper uses its `eigs`; methods take `self`; return and unpack counts
agree; the group keyword is `axis_index_groups`; `in_axes` matches the parameters and no step counter
is passed (schedules count inside the optax state); one attribute name for the weights; a valid random
key and process index; valid signatures of `init` and `step`; the optimiser state is initialised;
players are summed with their own copies only; V is gathered once per block, also over several hosts;
initial vectors depend on (seed, global player index); utilities are scalars; the reduction is explicit.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

__all__ = ["Experiment", "eg_grads", "player_weights", "utility"]


def player_weights(total_k: int) -> Float[np.ndarray, "k k"]:
    """Return 1 on the diagonal, -1 strictly below, 0 above."""
    weights = np.eye(total_k) * 2 - np.ones((total_k, total_k))
    weights[np.triu_indices(total_k, 1)] = 0.0
    return weights


def eg_grads(
    vi: Float[Array, " d"],
    weights: Float[Array, " k"],
    eigs: Float[Array, "k d"],
    data: Float[Array, "n d"],
) -> Float[Array, " d"]:
    """Return the ascent direction of one player, summed over the batch.

    Example:
        >>> import jax.numpy as jnp
        >>> V, X = jnp.eye(2), jnp.array([[2.0, 1.0]])
        >>> eg_grads(V[1], jnp.array([-1.0, 1.0]), V, X)
        Array([0., 1.], dtype=float32)
    """
    weights_ij = (jnp.sign(weights + 0.5) - 1.0) / 2.0  # maps -1 to -1 else to 0
    data_vi = jnp.dot(data, vi)
    data_eigs = jnp.transpose(jnp.dot(data, jnp.transpose(eigs)))  # X v_j on row j
    vi_m_vj = jnp.dot(data_eigs, data_vi)
    penalty_grads = vi_m_vj * jnp.transpose(eigs)
    penalty_grads = jnp.dot(penalty_grads, weights_ij)
    return jnp.dot(jnp.transpose(data), data_vi) + penalty_grads


def utility(
    vi: Float[Array, " d"],
    weights: Float[Array, " k"],
    eigs: Float[Array, "k d"],
    data: Float[Array, "n d"],
) -> Float[Array, ""]:
    """Return the alpha utility of one player, summed over the batch.

    Example:
        >>> import jax.numpy as jnp
        >>> utility(jnp.array([1.0, 0.0]), jnp.array([1.0]), jnp.eye(2)[:1], jnp.array([[2.0, 1.0]]))
        Array(4., dtype=float32)
    """
    data_vi = jnp.dot(data, vi)
    data_eigs = jnp.transpose(jnp.dot(data, jnp.transpose(eigs)))  # X v_j on row j
    vi_m_vj2 = jnp.dot(data_eigs, data_vi) ** 2.0
    vj_m_vj = jnp.sum(data_eigs * data_eigs, axis=1)
    return jnp.dot(vi_m_vj2 / vj_m_vj, weights)


class Experiment:
    """The pseudo-code's experiment: players over devices, each block with one or more copies.

    Args:
        total_k: Number of players.
        dims: Dimension d.
        axis_index_groups: Devices that are copies of one block of players, one list per block, such as
            [[0, 1], [2, 3]]; players are split over the lists in order. None means one block with all
            players, copied to every device.
        k_per_device: Players per device, total_k divided by the number of groups.
        optimizer: optax transformation, applied to each player; default the pseudo-code's.
        reduction: `"sum"` as published, or `"mean"` over the samples of all copies.

    Raises:
        ValueError: If groups and players do not fit together.
    """

    def __init__(
        self,
        total_k: int,
        dims: int,
        *,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        k_per_device: int | None = None,
        optimizer: optax.GradientTransformation | None = None,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        num_devices = jax.device_count()
        groups = [list(range(num_devices))] if axis_index_groups is None else axis_index_groups
        if sorted(device for group in groups for device in group) != list(range(num_devices)):
            raise ValueError(
                f"axis_index_groups {axis_index_groups} must name each of {num_devices} devices once."
            )
        if len({len(group) for group in groups}) != 1 or total_k % len(groups):
            raise ValueError(
                f"{len(groups)} groups need equal numbers of copies and must divide total_k={total_k}."
            )
        if k_per_device not in (None, total_k // len(groups)):
            raise ValueError(
                f"k_per_device={k_per_device} with {len(groups)} group(s) and total_k={total_k}: without "
                "axis_index_groups different players would be summed with one another. "
                "Pass one group of devices per block of players."
            )
        self._total_k, self._dims, self._reduction = total_k, dims, reduction
        self._k_per_device = total_k // len(groups)
        self._axis_index_groups = [list(group) for group in groups]
        self._block = {device: block for block, group in enumerate(groups) for device in group}
        self._optimizer = optimizer or optax.sgd(learning_rate=1e-4, momentum=0.9, nesterov=True)

    def _grads_and_utils(self, vi: Array, weights: Array, V: Array, inputs: Array) -> tuple[Array, Array]:
        """Compute utility and direction of one player; vmapped over the players of a device."""
        return eg_grads(vi, weights, V, inputs), utility(vi, weights, V, inputs)

    def _update_with_grads(self, vi: Array, grads: Array, opt_state: Any) -> tuple[Array, Any]:
        """Apply the optimiser to one player; vmapped over the players of a device."""
        updates, opt_state = self._optimizer.update(-grads, opt_state, vi)
        vi_new = optax.apply_updates(vi, updates)
        return vi_new / jnp.linalg.norm(vi_new), opt_state

    def _grads_and_update(
        self,
        vi: Float[Array, "own d"],
        weights: Float[Array, "own k"],
        eigs: Float[Array, "k d"],
        input: Float[Array, "n d"],
        opt_state: Any,
        axis_index_groups: Sequence[Sequence[int]],
    ) -> tuple[Array, Any, Array]:
        """Sum directions and utilities over the copies of this device's players, then update them."""
        grads, utilities = jax.vmap(self._grads_and_utils, in_axes=(0, 0, None, None))(
            vi, weights, eigs, input
        )
        grads, utilities = jax.lax.psum(
            (grads, utilities), axis_name="i", axis_index_groups=axis_index_groups
        )
        if self._reduction == "mean":
            samples = input.shape[0] * len(axis_index_groups[0])
            grads, utilities = grads / samples, utilities / samples
        vi_new, opt_state = jax.vmap(self._update_with_grads)(vi, grads, opt_state)
        return vi_new, opt_state, utilities

    def _local_blocks(self) -> list[int]:
        return [self._block[device.id] for device in jax.local_devices()]

    def init(self, *, seed: int = 0, V: Float[Array, "k d"] | None = None) -> None:
        """Draw the vectors of every player, or take the given ones, and build the parallel update."""
        if V is None:
            key = jax.random.key(seed)
            rows = [
                jax.random.normal(jax.random.fold_in(key, player), (self._dims,))
                for player in range(self._total_k)
            ]
            V = jnp.stack(rows)
            V = V / jnp.linalg.norm(V, axis=1, keepdims=True)
        shape = (-1, self._k_per_device, self._total_k)
        weights = jnp.asarray(player_weights(self._total_k), V.dtype).reshape(shape)
        blocks = jnp.asarray(self._local_blocks())
        self._weights = weights[blocks]
        self._V = V.reshape(-1, self._k_per_device, self._dims)[blocks]
        self._opt_state = jax.pmap(jax.vmap(self._optimizer.init))(self._V)
        self._par_grad_update = jax.pmap(
            functools.partial(self._grads_and_update, axis_index_groups=self._axis_index_groups),
            in_axes=(0, 0, None, 0, 0),
            axis_name="i",
        )

    def _gather(self) -> Float[np.ndarray, "k d"]:
        """Return all vectors, one copy per block, from every host."""
        copies = np.asarray(self._V)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            copies = np.asarray(multihost_utils.process_allgather(copies)).reshape(-1, *copies.shape[1:])
        leaders = [group[0] for group in self._axis_index_groups]
        return copies[leaders].reshape(self._total_k, self._dims)

    @property
    def vectors(self) -> Float[np.ndarray, "k d"]:
        """All vectors on rows."""
        return self._gather()

    def step(self, *, inputs: Float[Array, "devices n d"]) -> Float[np.ndarray, " own"]:
        """Take one step on per-device batches; return the utilities of the local players."""
        self._V, self._opt_state, utilities = self._par_grad_update(
            self._V, self._weights, self._gather(), inputs, self._opt_state
        )
        return np.asarray(utilities).reshape(-1)
