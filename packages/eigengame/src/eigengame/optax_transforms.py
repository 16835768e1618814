"""optax transformations for vectors on the unit sphere, and the learning-rate schedule of the papers.

All act on pytrees with players on the first axis of each leaf; nothing is vmapped over players.

Example:
    >>> import jax.numpy as jnp, optax
    >>> optimizer = optax.chain(optax.sgd(0.1, momentum=0.9, nesterov=True), sphere_retraction())
    >>> V = jnp.array([[1.0, 0.0]])
    >>> updates, _ = optimizer.update(-jnp.array([[0.0, 1.0]]), optimizer.init(V), V)
    >>> float(jnp.round(jnp.linalg.norm(optax.apply_updates(V, updates)), 6))
    1.0
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from eigengame.core.directions import project_to_tangent
from eigengame.core.trees import row_norms, scale_rows, subtract

__all__ = ["check_optimizer", "sphere_retraction", "tangent_projection", "warmup_harmonic"]


def normalize_rows(V: Any) -> Any:
    """Return v_i / ||v_i||; rows of zeros (padding players) stay zero."""
    norms = row_norms(V)
    return scale_rows(jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0), V)


def check_optimizer(optimizer: Any, V: Any) -> None:
    """Refuse what is no optax transformation of the vectors, and one that needs a loss or own parameters."""
    if not callable(getattr(optimizer, "update", None)):
        raise ValueError(f"optimizer={optimizer!r} is not an optax transformation, such as optax.adam(1e-2).")
    try:
        jax.eval_shape(lambda v: optimizer.update(v, optimizer.init(v), v), V)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"optimizer needs more than gradients and vectors ({error}), such as the value of a loss, which "
            "the game has not. Take one like optax.sgd or optax.adam."
        ) from error


def _require_params(params: Any, name: str) -> None:
    if params is None:
        raise ValueError(f"{name} needs the vectors: call optimizer.update(gradients, state, params).")


def sphere_retraction() -> optax.GradientTransformation:
    """Turn an update u of unit vectors p into normalise(p + u) - p. Last in a chain.

    Raises:
        ValueError: From `update` when it is called without `params`.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _require_params(params, "sphere_retraction")
        moved = jax.tree.map(jnp.add, params, updates)
        return subtract(normalize_rows(moved), params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def tangent_projection() -> optax.GradientTransformation:
    """Remove from each gradient its component along its vector. First in a chain.

    Raises:
        ValueError: From `update` when it is called without `params`.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _require_params(params, "tangent_projection")
        return project_to_tangent(params, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def warmup_harmonic(base: float, warmup: int, end_step: int, end_lr: float) -> optax.Schedule:
    """Return a schedule rising linearly to `base`, then decaying as a / (t + s).

    The harmonic part passes through (warmup, base) and (end_step, end_lr) and goes on decaying.

    Args:
        base: Learning rate at the end of the warm-up.
        warmup: Number of warm-up steps; 0 starts at `base`.
        end_step: Step at which `end_lr` is reached, greater than `warmup`.
        end_lr: Learning rate there, below `base`.

    Raises:
        ValueError: If `end_step <= warmup` or not `0 < end_lr < base`.

    Source: Appendix of Gemp et al. 2021b (learning-rate schedule of the large-scale runs).

    Example:
        >>> schedule = warmup_harmonic(1.0, 10, 100, 0.1)
        >>> [round(float(schedule(t)), 4) for t in (0, 5, 10, 100)]
        [0.0, 0.5, 1.0, 0.1]
    """
    if end_step <= warmup or not 0 < end_lr < base:
        raise ValueError(
            f"warmup_harmonic needs end_step > warmup and 0 < end_lr < base; got base={base}, "
            f"warmup={warmup}, end_step={end_step}, end_lr={end_lr}."
        )
    shift = (end_lr * end_step - base * warmup) / (base - end_lr)
    amplitude = base * (warmup + shift)

    def schedule(count: Any) -> Array:
        t = jnp.asarray(count, jnp.float32)
        rising = base * t / max(warmup, 1)
        decaying = amplitude / jnp.maximum(t + shift, 1e-30)
        return jnp.where(t < warmup, rising, decaying)

    return schedule
