"""State and update of the streaming solvers: init, step, step_operator, scan_steps.

One step is direction -> optax update -> retraction (v / ||v|| for mu and alpha, clipping into the unit
ball for GHA, QR for Oja). No tangent projection by default: both papers drop it, and normalisation
alone makes the full-batch step a shifted power iteration.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from eigengame.core.directions import (
    Algorithm,
    Reduction,
    check_reduction,
    direction_and_gram,
    direction_from_products,
    penalty_weights,
    project_to_tangent,
)
from eigengame.core.trees import (
    batch_size,
    checked_batch,
    combine,
    gram,
    num_players,
    responses,
    row_norms,
    scale_rows,
)
from eigengame.core.values import utilities_from_products
from eigengame.optax_transforms import check_optimizer, normalize_rows
from eigengame.sharding import check_features, padded_players, put, sharded_direction, vector_sharding

__all__ = [
    "Config",
    "Moments",
    "State",
    "init",
    "initial_vectors",
    "retract",
    "sample_steps",
    "scan_steps",
    "step",
    "step_operator",
]

_MAX_COUNT = 2**31 - 2**24  # the running mean becomes an exponential average beyond; int32 never wraps
_DECAY = 50  # steps after which the adaptive rate has fallen by the square root of two


@dataclass(frozen=True)
class Config:
    """What a step does. Hashable: equal configs share one compiled step.

    Attributes:
        optimizer: optax transformation; receives the negated direction. One that rescales coordinates (Adam,
            RMSProp, Lion, ...) needs `project=True`, else it turns the vectors towards its own rest point.
        algorithm: `"mu"`, `"alpha"`, `"gha"` or `"oja"`.
        reduction: `"mean"` divides by the number of samples, `"sum"` does not.
        project: Remove the radial component of the direction first.
        center: Subtract the mean of all samples seen so far, this batch included.
        moments: Track total variance, averaged vectors and their products in `State.aux`.
        adaptive: With a number, the learning rate of `learning_rate.nesterov` is this number over the top
            variance of the stream so far, smaller for batches below 256 rows, and decays; needs `moments`.
        utilities: Which utility to report with each step; None reports none.
        precision: Matrix-multiply precision, as `jax.default_matmul_precision` takes it.
        mesh: Device layout from `make_mesh`; None for one device.
    """

    optimizer: optax.GradientTransformation
    algorithm: Algorithm = "mu"
    reduction: Reduction = "mean"
    project: bool = False
    center: bool = False
    moments: bool = False
    adaptive: float | None = None
    utilities: Literal["alpha", "mu"] | None = None
    precision: str | None = None
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        if self.algorithm not in ("mu", "alpha", "gha", "oja"):
            raise ValueError(f"Unknown algorithm {self.algorithm!r}. Allowed: 'mu', 'alpha', 'gha', 'oja'.")
        if self.utilities not in (None, "alpha", "mu"):
            raise ValueError(f"utilities is {self.utilities!r}; allowed are 'alpha', 'mu' and None.")
        if self.adaptive is not None and not self.moments:
            raise ValueError(f"adaptive={self.adaptive} needs moments=True, which follow the top variance.")


class Moments(NamedTuple):
    """The total variance, and running averages in which a sample's weight grows with the samples before it.

    Products are linear in the vectors, so the average of C V belongs to the average of V: the pair gives
    Rayleigh quotients, residuals and the Rayleigh-Ritz rotation without another pass (`core.ritz`).

    Attributes:
        total: Mean squared distance of all samples from their mean.
        recent: The same with the weights of the averages below, to which shares of variance refer.
        vectors: Average of the vectors V.
        products: Average of C V, in the structure of V.
        top: Average of the largest norm of a batch's C v_i, about the largest eigenvalue.
    """

    total: Float[Array, ""]
    recent: Float[Array, ""]
    vectors: PyTree
    products: PyTree
    top: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything a run needs to continue.

    Attributes:
        V: Vectors on rows, with padding rows of zeros where the mesh needs them.
        opt_state: State of the optax transformation.
        mean: Running mean of the samples, in the structure of one sample.
        count: Samples seen.
        step: Steps taken.
        aux: `Moments`, the `Auxiliary` averages of gamma, or ().
        key: Data of a JAX random key, consumed by `sample_steps`. Raw, because a typed key among the
            arguments would send every call past JAX's compiled dispatch.
        k: Number of real players.
    """

    V: PyTree
    opt_state: Any
    mean: PyTree
    count: Int[Array, ""]
    step: Int[Array, ""]
    aux: Any
    key: UInt32[Array, " words"]
    k: int = field(metadata={"static": True})

    @property
    def vectors(self) -> PyTree:
        """The k real vectors, without padding rows."""
        return jax.tree.map(lambda v: v[: self.k], self.V)


def _sample_shape(leaf: Any) -> tuple[int, ...]:
    return (int(leaf),) if np.ndim(leaf) == 0 and not hasattr(leaf, "shape") else tuple(leaf.shape)


def initial_vectors(key: Array, k: int, d: PyTree, dtype: Any = jnp.float32) -> PyTree:
    """Return k random unit vectors; row i depends on (key, i) only, not on k or on any device layout.

    Args:
        key: JAX random key.
        k: Number of vectors.
        d: Dimension, or a pytree with one entry per leaf: an int, or anything with a `shape`.
        dtype: Floating-point type.

    Example:
        >>> import jax
        >>> key = jax.random.key(0)
        >>> bool((initial_vectors(key, 5, 3)[:2] == initial_vectors(key, 2, 3)).all())
        True
    """
    leaves, structure = jax.tree.flatten(d)
    shapes = tuple(_sample_shape(leaf) for leaf in leaves)
    return jax.tree.unflatten(structure, _random_unit_rows(key, k, shapes, jnp.dtype(dtype)))


@partial(jax.jit, static_argnames=("k", "shapes", "dtype"))
def _random_unit_rows(key: Array, k: int, shapes: tuple[tuple[int, ...], ...], dtype: Any) -> list[Array]:
    def draw(index: int, shape: tuple[int, ...]) -> Array:
        leaf_key = jax.random.fold_in(key, index)
        return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(leaf_key, i), shape, dtype))(
            jnp.arange(k)
        )

    rows: list[Array] = normalize_rows([draw(index, shape) for index, shape in enumerate(shapes)])
    return rows


def _check_players(k: int, dim: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one component.")
    if k > dim:
        raise ValueError(f"k={k} exceeds the dimension d={dim}; ask for at most {dim} components.")


def _check_unit_rows(V: PyTree, k: int) -> None:
    if num_players(V) != k:
        raise ValueError(f"V has {num_players(V)} rows but k={k}; rows must be the vectors.")
    worst = float(jnp.max(jnp.abs(row_norms(V) - 1)))
    if not worst < 1e-3:
        raise ValueError(f"Rows of V must have unit norm; the worst deviates by {worst:.2g}. Normalise them.")


def init(
    key: Array,
    k: int,
    d: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    V: PyTree | None = None,
    moments: bool = False,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
) -> State:
    """Return the starting state: random unit vectors, fresh optimiser state.

    Args:
        key: JAX random key, typed or raw; the state keeps its raw data.
        k: Number of vectors, 1 <= k <= d.
        d: Dimension, or pytree of dimensions or of things with a `shape` (one per leaf).
        optimizer: optax transformation.
        V: Starting vectors instead of random ones (unit rows).
        moments: Whether the steps will track `Moments`.
        dtype: Floating-point type of the vectors.
        mesh: Device layout; vectors, optimiser state and moments are placed on it.

    Raises:
        ValueError: For k outside 1..d, rows of `V` that are not unit vectors, or an optimiser that needs a
            loss.

    Example:
        >>> import jax, optax
        >>> init(jax.random.key(0), 2, 5, optax.sgd(0.1)).V.shape
        (2, 5)
    """
    leaves, structure = jax.tree.flatten(d)
    shapes = tuple(_sample_shape(leaf) for leaf in leaves)
    _check_players(k, sum(math.prod(shape) for shape in shapes))
    rows = [jax.ShapeDtypeStruct((int(k), *shape), jnp.dtype(dtype)) for shape in shapes]
    template = jax.tree.unflatten(structure, rows)
    check_optimizer(optimizer, template)
    if V is not None:
        V = jax.tree.map(lambda v: jnp.array(v, dtype), V)
        _check_unit_rows(V, k)
        given, expected = (jax.tree.map(jnp.shape, tree) for tree in (V, template))
        if given != expected:
            raise ValueError(f"V has shapes {given}, and k and d say {expected}.")
    padding = padded_players(k, mesh) - k
    if mesh is not None:
        check_features([math.prod(shape[-1:]) for shape in shapes], mesh)
    state = _fresh(key, V, k, padding, shapes, structure, optimizer, moments, jnp.dtype(dtype))
    return state if mesh is None else place(state, mesh)


@partial(jax.jit, static_argnames=("k", "padding", "shapes", "structure", "optimizer", "moments", "dtype"))
def _fresh(
    key: Array,
    V: PyTree | None,
    k: int,
    padding: int,
    shapes: tuple[tuple[int, ...], ...],
    structure: Any,
    optimizer: optax.GradientTransformation,
    moments: bool,
    dtype: Any,
) -> State:
    """Build the state in one compiled piece: its own buffers, which later steps may donate."""
    template = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes])
    V = initial_vectors(key, k, template, dtype) if V is None else V
    V = jax.tree.map(lambda v: jnp.pad(v, [(0, padding)] + [(0, 0)] * (v.ndim - 1)), V)
    accumulation = jnp.promote_types(dtype, jnp.float32)
    return State(
        V=V,
        opt_state=optimizer.init(V),
        mean=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, accumulation), template),
        count=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
        aux=_no_moments(V, accumulation) if moments else (),
        key=_raw_key(key),
        k=k,
    )


def _no_moments(V: PyTree, dtype: Any) -> Moments:
    zero = jnp.zeros((), dtype)
    empty = jax.tree.map(lambda v: jnp.zeros(v.shape, dtype), V)
    return Moments(zero, zero, empty, empty, zero)


def _raw_key(key: Array) -> Array:
    """Return the data of a key of the default kind; a key of another kind seeds one."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if jax.random.key_impl(key) != jax.random.key_impl(jax.random.key(0)):
            key = jax.random.key(jax.random.bits(key, dtype=jnp.uint32))
        return jax.random.key_data(key)
    return key


def place(state: State, mesh: Mesh) -> State:
    """Lay a state out on a mesh: V and everything of its shape sharded, the rest replicated."""
    by_shape = {
        leaf.shape: sharding
        for leaf, sharding in zip(
            jax.tree.leaves(state.V), jax.tree.leaves(vector_sharding(state.V, mesh)), strict=True
        )
    }
    replicated = NamedSharding(mesh, PartitionSpec())
    placed: State = jax.tree.map(lambda leaf: put(leaf, by_shape.get(leaf.shape, replicated)), state)
    return placed


def retract(algorithm: Algorithm, V: PyTree, k: int) -> PyTree:
    """Return V brought back to its constraint set; only the first k rows are players.

    Normalised rows for mu and alpha, rows clipped into the unit ball for GHA, an orthonormal basis by
    QR with the signs of diag(R) for Oja.
    """
    if algorithm == "gha":
        norms = row_norms(V)
        return scale_rows(1 / jnp.maximum(norms, 1), V)
    if algorithm != "oja":
        return normalize_rows(V)
    leaves, structure = jax.tree.flatten(V)
    flat = jnp.concatenate([leaf[:k].reshape(k, -1) for leaf in leaves], axis=1)
    Q, R = jnp.linalg.qr(flat.T)
    rows = (Q * jnp.where(jnp.diagonal(R) < 0, -1, 1)).T
    cuts = np.cumsum([leaf[0].size for leaf in leaves])[:-1]
    parts = jnp.split(rows, cuts, axis=1)
    filled = [
        leaf.at[:k].set(part.reshape(k, *leaf.shape[1:])) for leaf, part in zip(leaves, parts, strict=True)
    ]
    return jax.tree.unflatten(structure, filled)


def _center(state: State, X: PyTree, num_valid: Array) -> tuple[PyTree, PyTree, Array]:
    """Return the rows minus the mean of all samples so far, that mean, and its squared movement."""
    seen = jnp.maximum(state.count + num_valid, 1)

    def deviations(x: Array, mean: Array) -> Array:
        return _masked(x - mean[None], num_valid)

    def movement(x: Array, mean: Array) -> Array:
        return jnp.sum(deviations(x, mean), axis=0) / seen

    moved = jax.tree.map(movement, X, state.mean)
    mean = jax.tree.map(jnp.add, state.mean, moved)
    return jax.tree.map(deviations, X, mean), mean, _sum_of_squares(moved)


def _masked(x: Array, num_valid: Array) -> Array:
    mask = jnp.arange(x.shape[0]) < num_valid
    return jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def _sum_of_squares(tree: PyTree) -> Array:
    # In half precision squares overflow, and their sum keeps three digits.
    wide = (leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(tree))
    return jnp.asarray(sum(jnp.sum(jnp.square(leaf)) for leaf in wide))


def _advance(state: State, direction: PyTree, config: Config) -> tuple[PyTree, Any, Bool[Array, ""]]:
    if config.project:
        direction = project_to_tangent(state.V, direction)
    # an optimiser's buffers keep the type of the vectors, bfloat16 or half precision included
    descent = jax.tree.map(lambda g, v: jnp.negative(g).astype(v.dtype), direction, state.V)
    updates, opt_state = config.optimizer.update(descent, state.opt_state, state.V)
    moved = optax.apply_updates(state.V, updates)
    finite = jnp.all(jnp.isfinite(row_norms(moved)))
    return retract(config.algorithm, moved, state.k), opt_state, finite


def _masked_weights(state: State) -> Float[Array, "k k"]:
    real = jnp.arange(num_players(state.V)) < state.k
    return penalty_weights(num_players(state.V)) * real[:, None] * real[None, :]


def _precision(config: Config) -> AbstractContextManager[Any]:
    """Return the context of the products; None leaves the one that the user set for JAX."""
    return jax.default_matmul_precision(config.precision) if config.precision else nullcontext()


def _step(
    state: State, batch: PyTree, config: Config, num_valid: Int[Array, ""] | int | None = None
) -> tuple[State, dict[str, Array]]:
    if config.moments and not isinstance(state.aux, Moments):
        raise ValueError("The config has moments=True and the state has none; pass moments=True to init.")
    if num_players(state.V) != padded_players(state.k, config.mesh) and config.mesh is not None:
        raise ValueError("The config has a mesh that the state was not made for; pass the same mesh to init.")
    with _precision(config):
        X = checked_batch(state.V, batch)
        n = jnp.asarray(batch_size(X), jnp.int32)
        n = n if num_valid is None else jnp.clip(jnp.asarray(num_valid, jnp.int32), 0, n)
        if num_valid is not None and not config.center:
            X = jax.tree.map(lambda x: _masked(x, n), X)
        mean, aux, movement = state.mean, state.aux, jnp.zeros(())
        if config.center:
            X, mean, movement = _center(state, X, n)
        if config.mesh is None:
            direction, S = direction_and_gram(config.algorithm, state.V, X)
            G = (
                combine(responses(state.V, X), X) if config.moments else ()
            )  # compiled once with the direction
        else:
            direction, S, G = sharded_direction(
                config.algorithm, state.V, X, _masked_weights(state), config.mesh
            )
        rows = jnp.maximum(n, 1)
        along = jnp.diagonal(S) / rows
        scale = 1 if config.reduction == "sum" else 1 / rows
        direction = jax.tree.map(lambda g: g * jnp.asarray(scale, g.dtype), direction)
        if config.moments:
            aux = _update_moments(state, X, G, n, movement)
        if config.adaptive is not None:
            state = replace(state, opt_state=_with_rate(state, aux.top, n, config.adaptive))
        V, opt_state, finite = _advance(state, direction, config)
        metrics = {"finite": finite, "rayleigh": along[: state.k]}
        if config.utilities is not None:
            values = utilities_from_products(S, gram(state.V, state.V), config.utilities)
            metrics["utilities"] = (values * scale)[: state.k]
        count = jnp.minimum(state.count + n, _MAX_COUNT)
        # averages keep their type when a batch has a wider one, or no loop could carry them
        averages = jax.tree.map(lambda new, old: new.astype(old.dtype), (mean, aux), (state.mean, state.aux))
        mean, aux = averages
        return State(V, opt_state, mean, count, state.step + 1, aux, state.key, state.k), metrics


def _update_moments(state: State, X: PyTree, G: PyTree, n: Array, movement: Array) -> Moments:
    """Merge the batch into the moments; `X` is centred on the new mean, so nothing cancels."""
    old: Moments = state.aux
    rows, seen = jnp.maximum(n, 1), state.count.astype(jnp.float32)
    rate = 2 * n / jnp.maximum(seen + 2 * n, 1)
    norms = row_norms(G)[: state.k] / rows
    share, spread = n / jnp.maximum(state.count + n, 1), _sum_of_squares(X) / rows
    return Moments(
        total=(1 - share) * (old.total + movement) + share * spread,
        recent=(1 - rate) * (old.recent + movement) + rate * spread,
        vectors=jax.tree.map(lambda held, v: held + rate * (v - held), old.vectors, state.V),
        products=jax.tree.map(lambda held, g: held + rate * (g / rows - held), old.products, G),
        top=old.top + rate * (jnp.max(norms) - old.top),
    )


def _with_rate(state: State, top: Array, n: Array, base: float) -> Any:
    """Return the optimiser state of `learning_rate.nesterov` with the rate of this step."""
    if not hasattr(state.opt_state, "hyperparams"):
        raise ValueError("adaptive sets the rate of learning_rate.nesterov(momentum); pass it as optimizer.")
    hyperparams = state.opt_state.hyperparams
    decay = 1 / jnp.sqrt(1 + state.step / _DECAY)
    rate = base * jnp.minimum(1, n / 256) * decay / jnp.where(top > 0, top, 1)
    held = hyperparams["learning_rate"]
    return state.opt_state._replace(hyperparams=hyperparams | {"learning_rate": rate.astype(held.dtype)})


step = jax.jit(_step, static_argnames="config")
step.__doc__ = """Take one step on a batch; return the new state and its metrics. Compiled.

Args:
    state: From `init`.
    batch: Samples on rows, array or pytree.
    config: Static; a new one compiles anew.
    num_valid: Number of leading rows that count; the rest is padding.

Returns:
    The new state and a dict: `finite` (one flag for the whole update), `rayleigh` (k,) v_i'C v_i on
    the batch before the update, and `utilities` (k,) if the config asks for them.
"""


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def scan_steps(state: State, batches: PyTree, config: Config) -> tuple[State, dict[str, Array]]:
    """Take one step per entry of `batches` (leading axis T) in one compiled loop.

    The incoming state is donated: its buffers are reused, do not read it afterwards.

    Returns:
        The last state and the metrics of all steps, each with leading axis T.
    """
    return jax.lax.scan(lambda carry, batch: _step(carry, batch, config), state, batches)


@partial(jax.jit, static_argnames=("num_steps", "batch_size", "config"), donate_argnames="state")
def sample_steps(
    state: State, data: PyTree, num_steps: int, batch_size: int, config: Config
) -> tuple[State, dict[str, Array]]:
    """Take `num_steps` steps on rows drawn with replacement from a data set that fits on the device.

    The draws consume `state.key`. The incoming state is donated.
    """
    checked_batch(state.V, data)  # indices beyond the end of a shorter leaf would read its last row
    size = num_players(data)

    def one(carry: State, _: None) -> tuple[State, dict[str, Array]]:
        key, draw = jax.random.split(carry.key)
        rows = jax.random.randint(draw, (batch_size,), 0, size)
        return _step(replace(carry, key=key), jax.tree.map(lambda x: x[rows], data), config)

    return jax.lax.scan(one, state, None, length=num_steps)


@partial(jax.jit, static_argnames=("matmul", "config"))
def step_operator(
    state: State, matmul: Callable[[PyTree], PyTree], config: Config
) -> tuple[State, dict[str, Array]]:
    """Take one step for a symmetric operator given only by its products.

    Args:
        state: From `init`.
        matmul: Maps V (k, d) to A V (k, d), rows to rows; for kernels, Hessians, graphs. Traced once.
        config: Static. `reduction` does not apply.

    Returns:
        The new state and the metrics `finite` and `rayleigh`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> config = Config(optax.sgd(1.0))
        >>> A = jnp.diag(jnp.array([4.0, 1.0, 0.0]))
        >>> product = lambda V: V @ A
        >>> state = init(jax.random.key(0), 2, 3, config.optimizer)
        >>> for _ in range(50):
        ...     state, metrics = step_operator(state, product, config)
        >>> jnp.round(metrics["rayleigh"], 4)
        Array([4., 1.], dtype=float32)
    """
    with _precision(config):
        AV = matmul(state.V)
        direction = direction_from_products(config.algorithm, state.V, AV)
        along = jnp.diagonal(gram(state.V, AV))
        V, opt_state, finite = _advance(state, direction, config)
        new = State(V, opt_state, state.mean, state.count, state.step + 1, state.aux, state.key, state.k)
        return new, {"finite": finite, "rayleigh": along[: state.k]}
