"""Steps of gamma-EigenGame on a pencil given by its products."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from numpy.typing import NDArray

from eigengame.core.gamma import Auxiliary, diagonal_products, gamma_direction, update_auxiliary
from eigengame.core.solver import State, init
from eigengame.core.trees import row_norms
from eigengame.optax_transforms import normalize_rows

__all__ = [
    "PencilAverages",
    "PencilConfig",
    "pencil_init",
    "pencil_step",
    "repeat_pencil_step",
    "unresolved_players",
]


@dataclass(frozen=True)
class PencilConfig:
    """What a step on a pencil does. Hashable: equal configs share one compiled step.

    Attributes:
        optimizer: optax transformation for the vectors; receives the negated direction. Adam is the
            usual choice, since the direction scales like A times B.
        products: Maps (V, batches) to (A V, B V); see `eigengame.pencils`.
        exact: Whether the products are exact; then parents' products are not averaged.
        aux_rate: Rate of the running averages of the parents' products.
        rho: Lower clip of beta_j = v_j'B v_j.
        epsilon: Multiple of the identity added to B.
        maximize: Whether to look for the largest eigenvalues; False negates A.
    """

    optimizer: optax.GradientTransformation
    products: Callable[[PyTree, Any], tuple[PyTree, PyTree]]
    exact: bool = False
    aux_rate: float = 0.1
    rho: float = 1e-10
    epsilon: float = 0.0
    maximize: bool = True


class PencilAverages(NamedTuple):
    """What gamma-EigenGame remembers between steps, in `State.aux`.

    Attributes:
        parents: Running averages that enter the penalties.
        numerator: Average of v'A v, step t weighted by t.
        denominator: Average of v'B v, step t weighted by t.
        clipped: Number of players and steps at which beta was clipped at rho.
    """

    parents: Auxiliary
    numerator: Float[Array, " k"]
    denominator: Float[Array, " k"]
    clipped: Array


def pencil_init(key: Array, k: int, d: PyTree, config: PencilConfig, **options: Any) -> State:
    """Return the starting state for `pencil_step`; arguments as `solver.init`."""
    state = init(key, k, d, config.optimizer, **options)
    leaf = jax.tree.leaves(state.V)[0]
    zeros = jnp.zeros(k, jnp.promote_types(leaf.dtype, jnp.float32))
    parents = Auxiliary(w=jax.tree.map(jnp.zeros_like, state.V), beta=zeros)
    averages = PencilAverages(parents, zeros, zeros, jnp.zeros((), jnp.int32))
    return State(state.V, state.opt_state, state.mean, state.count, state.step, averages, state.key, state.k)


def _pencil_step(state: State, batches: Any, config: PencilConfig) -> tuple[State, dict[str, Array]]:
    V, old = state.V, state.aux
    AV, BV = config.products(V, batches)
    if not config.maximize:
        AV = jax.tree.map(jnp.negative, AV)
    if config.epsilon:
        BV = jax.tree.map(lambda b, v: b + config.epsilon * v, BV, V)
    a, b = diagonal_products(V, AV), diagonal_products(V, BV)
    # the averages start from B v on the first batch, not from zero
    first = state.step == 0
    parents = jax.tree.map(lambda new, held: jnp.where(first, new, held), Auxiliary(BV, b), old.parents)
    direction = gamma_direction(V, AV, BV, None if config.exact else parents, config.rho)
    descent = jax.tree.map(jnp.negative, direction)
    updates, opt_state = config.optimizer.update(descent, state.opt_state, V)
    moved = optax.apply_updates(V, updates)
    rate = 2 / (state.step + 2)
    averages = PencilAverages(
        parents=update_auxiliary(parents, V, BV, config.aux_rate),
        numerator=old.numerator + rate * (a - old.numerator),
        denominator=old.denominator + rate * (b - old.denominator),
        clipped=old.clipped + jnp.sum((b if config.exact else parents.beta) < config.rho, dtype=jnp.int32),
    )
    metrics = {"finite": jnp.all(jnp.isfinite(row_norms(moved))), "numerator": a, "denominator": b}
    return State(
        normalize_rows(moved),
        opt_state,
        state.mean,
        state.count,
        state.step + 1,
        averages,
        state.key,
        state.k,
    ), metrics


@partial(jax.jit, static_argnames="config")
def pencil_step(state: State, batches: Any, config: PencilConfig) -> tuple[State, dict[str, Array]]:
    """Take one gamma-EigenGame step.

    Args:
        state: From `pencil_init`.
        batches: Passed on to `config.products`: a tuple of independent batches, or the operators.
        config: Static; a new one compiles anew.

    Returns:
        The new state and a dict: `finite`, and `numerator` v'A v and `denominator` v'B v before the step.

    Example:
        >>> import jax, optax
        >>> A, B = jnp.diag(jnp.array([2.0, 3.0, 1.0])), jnp.diag(jnp.array([1.0, 3.0, 1.0]))
        >>> config = PencilConfig(optax.adam(0.03), lambda V, ops: (V @ ops[0], V @ ops[1]), exact=True)
        >>> state = pencil_init(jax.random.key(0), 1, 3, config)
        >>> for _ in range(300):
        ...     state, metrics = pencil_step(state, (A, B), config)
        >>> round(float((metrics["numerator"] / metrics["denominator"])[0]), 2)
        2.0
    """
    return _pencil_step(state, batches, config)


@partial(jax.jit, static_argnames=("config", "num_steps"))
def repeat_pencil_step(
    state: State, batches: Any, config: PencilConfig, num_steps: int
) -> tuple[State, Array]:
    """Take `num_steps` steps on the same batches; return the state and whether all were finite."""

    def one(carry: State, _: None) -> tuple[State, Array]:
        carry, metrics = _pencil_step(carry, batches, config)
        return carry, metrics["finite"]

    state, finite = jax.lax.scan(one, state, None, length=num_steps)
    return state, jnp.all(finite)


def unresolved_players(values: NDArray, overlap: NDArray, noise: float = 1e-6) -> NDArray[np.int64]:
    """Return the players that found nothing of their own.

    Those whose value is not positive beyond rounding error of the largest, and those that lie mostly in the
    span of their parents: where only non-positive values are left, copying a parent costs nothing.

    Args:
        values: Generalised Rayleigh quotients, (k,).
        overlap: v_i'B v_j, (k, k).
        noise: Relative rounding error of the values.

    Example:
        >>> unresolved_players(np.array([2.0, 1.0, 2.0]), np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1.0]]))
        array([2])
    """
    norms = np.sqrt(np.maximum(np.diagonal(overlap), np.finfo(np.float32).tiny))
    cosines = overlap / norms[:, None] / norms[None, :]
    copied = np.sum(np.square(np.tril(cosines, -1)), axis=1) > 0.5
    return np.flatnonzero((values <= noise * np.abs(values).max(initial=0)) | copied)
