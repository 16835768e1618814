"""The game of a PCA estimator: its settings as a step, its players, and what they have found so far."""

from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from eigengame.core.learning_rate import auto_gain, nesterov, with_learning_rate
from eigengame.core.ritz import Block, Quality, orthogonal_rows, quality, rayleigh_ritz
from eigengame.core.solver import Config, Moments, State, init, initial_vectors, step
from eigengame.estimators.frames import Frame
from eigengame.estimators.streams import check_finite, pad_rows
from eigengame.sharding import gather

__all__ = ["Game"]

_DEVIATIONS = 3  # standard ones of what the weights of a stream do
_DRIFT = 7  # times the asymmetry seen; by simulation, with streams that turn half way or later
_COLLAPSED = 0.01  # directions in which the averaged players span less than this share are not their finding

FIXED = ("n_components", "learning_rate", "momentum", "center", "optimizer", "mesh", "dtype")

# what follows from an estimator's state, apart from it: reading an attribute does not change the estimator
_SOLUTIONS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class Game(BaseEstimator):
    """Players of one estimator, a few more than asked for, and the steps they take."""

    n_components: Any
    algorithm: Any
    learning_rate: Any
    batch_size: int
    momentum: float
    center: Any
    optimizer: Any
    mesh: Any
    dtype: str
    n_samples_seen_: int
    n_iter_: int
    n_passes_: int
    solver_: str
    _state: State
    _frame: Frame
    _rows: int
    _seed: int
    _streamed_rows = 0  # since the last exact pass
    _wanted: Any
    _begun_with: dict[str, Any]

    def _forget(self) -> None:
        for name in ("_state", "_distinct", "_former"):
            self.__dict__.pop(name, None)
        self.n_samples_seen_, self.n_iter_, self.n_passes_, self.solver_ = 0, 0, 0, "game"
        self._streamed_rows = 0

    def _config(self) -> Config:
        schedule = self.learning_rate if callable(self.learning_rate) else None
        automatic = self.optimizer is None and self.learning_rate == "auto"
        return Config(
            optimizer=self.optimizer or nesterov(float(self.momentum), schedule),
            algorithm="mu" if self.algorithm == "auto" else self.algorithm,
            project=self.optimizer is not None,
            center=self.center == "running",
            moments=True,
            adaptive=auto_gain(float(self.momentum)) if automatic else None,
            mesh=self.mesh,
        )

    def _share(self) -> float | None:
        """Return the share of the variance asked for, or None where a number of components is."""
        k: Any = self.n_components
        return None if k is None or isinstance(k, Integral) else float(k)

    def _start(self, rows: NDArray, position: int) -> None:
        """Begin with the first rows: their frame, the number of players, their vectors."""
        n, d = rows.shape
        if self._wanted is None:
            self._wanted = min(n, d)
        k = self._wanted = int(self._wanted)
        if k > d and self._share() is not None:
            k = self._wanted = d
        if k > d:
            raise ValueError(f"n_components={k} exceeds n_features={d}; ask for at most {d} components.")
        frame = self._frame_for(rows, position)
        players = min(k + max(8, k // 2), d)
        config = self._config()
        key = jax.random.key(self._seed)
        V = self._first_vectors(key, players, d)
        state = init(key, players, d, config.optimizer, V=V, moments=True, dtype=self.dtype, mesh=self.mesh)
        self._state, self._frame = self._with_own_rate(state, frame), frame
        self._begun_with = {name: getattr(self, name) for name in FIXED}

    def _frame_for(self, rows: NDArray, position: int) -> Frame:
        check_finite(rows, position)
        frame = Frame.of(rows, center=self.center == "running")
        if frame.unit != 1 and (self.optimizer is not None or callable(self.learning_rate)):
            raise ValueError(
                f"The data are of size {frame.unit:.1g}; with an own optimizer or schedule 1e-6 to 1e6 is "
                "allowed, as its steps fit one unit. Scale the data, or pass learning_rate='auto'."
            )
        return frame

    def _with_own_rate(self, state: State, frame: Frame) -> State:
        if self.optimizer is not None or callable(self.learning_rate) or self.learning_rate == "auto":
            return state
        return with_learning_rate(state, float(self.learning_rate) * frame.unit**2)

    def _choose_frame_anew(self, rows: NDArray, position: int) -> None:
        """Move to the frame of rows that are the first to vary: the unit of those before was a guess."""
        mean = np.asarray(self._frame.shift + self._frame.unit * np.asarray(self._state.mean, np.float64))
        frame = self._frame_for(np.concatenate([mean[None], rows]), position)
        moved = jnp.asarray((mean - frame.shift) / frame.unit, self._state.mean.dtype)
        self._state, self._frame = self._with_own_rate(replace(self._state, mean=moved), frame), frame

    def _first_vectors(self, key: jax.Array, k: int, d: int) -> NDArray | None:
        former: NDArray | None = self.__dict__.pop("_former", None)
        if former is None:
            return None
        if former.shape[1] != d:
            raise ValueError(
                f"warm_start=True, but the last fit had {former.shape[1]} features and X has {d}; "
                "use a new estimator, or warm_start=False."
            )
        return np.concatenate([former[:k], np.asarray(initial_vectors(key, k, d, self.dtype))[len(former) :]])

    def _absorb(self, rows: Any, position: int) -> None:
        """Take one step on at most `batch_size` rows, padded to one size or, after a small start, two."""
        if not hasattr(self, "_state"):
            self._start(rows, position)
        elif not self._state.aux.total:
            self._choose_frame_anew(np.asarray(rows), position)
        n = len(rows)
        entered = self._frame.enter(rows, self.dtype)
        if not isinstance(entered, jax.Array):
            entered = pad_rows(entered, self._rows if n <= self._rows else self._divisible(self.batch_size))
        state, metrics = step(self._state, entered, self._config(), np.int32(n))
        if not metrics["finite"]:
            check_finite(np.asarray(rows), position)
            raise ValueError(
                f"The update on batch {position} is not finite although the data are: "
                f"learning_rate={self.learning_rate_} is too large, or the data overflow {self.dtype}, as a "
                "row does that is 1e10 times larger than the others; lower the rate, drop such rows, or "
                "scale the data. The state before it was kept."
            )
        self._state = state
        self.n_samples_seen_ += n
        self.n_iter_ += 1
        self._streamed_rows += n

    def _divisible(self, rows: int) -> int:
        """Return the number of rows rounded up to what the mesh can split; the rest is padding."""
        parts = 1 if self.mesh is None else self.mesh.shape["data"]
        return -(-int(rows) // parts) * parts

    @property
    def _noise(self) -> float:
        """Relative accuracy of products in the type of the fit."""
        return 10 * float(np.finfo(self._begun_with["dtype"]).eps)

    def _streamed(self) -> Block:
        """Return the best vectors in the span of the players, from what the steps added up."""
        moments, k = self._state.aux, self._state.k
        V, AV = (np.asarray(gather(leaf), np.float64)[:k] for leaf in (moments.vectors, moments.products))
        block = rayleigh_ritz(V, AV, threshold=_COLLAPSED)
        missing = k - block.values.size
        extra = orthogonal_rows(block.V, missing)
        return Block(
            np.concatenate([block.V, extra]),
            np.concatenate([block.AV, 0 * extra]),
            np.concatenate([block.BV, extra]),
            np.concatenate([block.values, np.zeros(missing)]),
        )

    def _current(self) -> tuple[Block, Quality]:
        """Return the vectors and their quality, computed once per state."""
        held: Any = _SOLUTIONS.get(self)
        if held is None or held[0] is not self._state or held[1] != self._wanted:
            block = self._streamed()
            found = quality(block, self._wanted, noise=self._noise)
            values, total = np.maximum(block.values, 0), float(self._state.aux.recent)
            # where variance is left over, a player that found none has lost its way rather than no prey;
            # more variance than there is was found by averages of vectors that still move
            left = total - values.sum()
            if abs(left) > 100 * self._noise * total:
                angles = np.where(block.values[: self._wanted] > 0, found.angles, np.pi / 2)
                found = replace(found, angles=angles, unresolved=np.flatnonzero(np.zeros(0)))
                block = block._replace(values=block.values * min(total / (values.sum() or 1), 1))
            found = self._with_weights(self._with_trace(found, values, left), values, total)
            found = self._with_drift(found, block)
            _SOLUTIONS[self] = held = (self._state, self._wanted, block, found)
        return held[2], held[3]

    @staticmethod
    def _with_trace(found: Quality, values: NDArray, left: float) -> Quality:
        """Bound the variances of which the residual tells nothing by what the trace leaves for them.

        No variance found is above the true one of its rank, and the true ones sum to the total. So the true
        ones exceed those found by at most what is left over, and the i-th is at most the mean of the first i.
        """
        k, left = found.angles.size, abs(left)
        highest = (left + np.cumsum(values)) / np.arange(1, values.size + 1)
        most = np.minimum(left, highest - values)[:k]
        unknown = found.angles >= np.pi / 2
        unknown[found.tied] = False  # their residuals say how near the value is
        least = np.where(unknown, most, 0)
        return replace(found, value_errors=np.maximum(found.value_errors, least))

    def _with_weights(self, found: Quality, values: NDArray, total: float) -> Quality:
        """Add to the bounds what the weights of a stream do: its last rows count more than its first.

        The variances of n rows whose weights w_t sum to 1 differ from those with weights 1 / n as an estimate
        from 1 / sum (w_t - 1 / n)**2 samples does; for Gaussian data the angles follow (Anderson 1963).
        Total variances of both weights that differ by more than Gaussian ones do count as fewer samples.
        Three standard deviations are added: one would be exceeded by every eighth value.
        """
        n, last = max(int(self._state.count), 1), self._streamed_rows
        # the sum: last / n**2 where the last rows weigh twice, 1 / (3 n) where weights grow linearly
        excess, rest = min(last / n**2, 1 / (3 * n)), values.size
        if total > 0:
            shift = float(self._state.aux.total) / total - 1
            excess = max(excess, shift**2 * total**2 / (2 * float(np.square(values).sum()) or np.inf))
        deviations = _DEVIATIONS * np.sqrt(excess)
        k, d = found.angles.size, self._state.mean.size
        below = np.full(d - rest, max(total - values.sum(), 0) / max(d - rest, 1))
        others, own = np.append(values, below), values[:k, None]
        gaps = np.square(own - others)
        gaps[np.arange(k), np.arange(k)] = np.inf
        spread = np.sqrt(np.sum(own * others / np.maximum(gaps, np.finfo(float).tiny), axis=1))
        return replace(
            found,
            angles=np.minimum(found.angles + deviations * spread, np.pi / 2),
            value_errors=found.value_errors + deviations * np.sqrt(2) * values[:k],
        )

    def _with_drift(self, found: Quality, block: Block) -> Quality:
        """Add to the bounds what a change of the distribution in the course of a stream does.

        With one covariance V C V' is symmetric, whatever the players; averages of vectors and of products
        over a time in which it changed are not those of one covariance, and V (C V)' is symmetric no longer.
        """
        if not self._streamed_rows:
            return found
        table, k = block.AV @ block.V.T, found.angles.size
        drift = _DRIFT * np.linalg.norm(table - table.T, axis=1)[:k] / 2
        gaps = np.abs(block.values[:k, None] - block.values)
        gaps[np.arange(k), np.arange(k)] = np.inf
        angles = drift / np.maximum(gaps.min(axis=1, initial=np.inf), found.floor)
        return replace(
            found,
            angles=np.minimum(np.hypot(found.angles, angles), np.pi / 2),
            value_errors=np.hypot(found.value_errors, drift),
        )

    def _adopt(self, block: Block, mean: NDArray, total: float) -> None:
        """Continue from vectors with exact products in the frame; momentum starts anew."""
        state, dtype = self._state, jnp.dtype(self.dtype)
        missing = state.k - block.values.size
        V = np.concatenate([block.V, orthogonal_rows(block.V, missing)])
        AV = np.concatenate([block.AV, np.zeros((missing, V.shape[1]))])
        padding = ((0, state.V.shape[0] - state.k), (0, 0))
        place = partial(jax.device_put, device=state.V.sharding)
        vectors = place(jnp.asarray(np.pad(V, padding), dtype))
        moments = Moments(
            jnp.asarray(total, dtype),
            jnp.asarray(total, dtype),
            place(jnp.asarray(np.pad(V, padding), dtype)),
            place(jnp.asarray(np.pad(AV, padding), dtype)),
            jnp.asarray(np.linalg.norm(AV, axis=1).max(), dtype),
        )
        fresh = init(
            jax.random.key(0), state.k, V.shape[1], self._config().optimizer, dtype=dtype, mesh=self.mesh
        )
        opt_state = fresh.opt_state
        if self.learning_rate_ is not None:
            opt_state = with_learning_rate(fresh, self.learning_rate_ * self._frame.unit**2).opt_state
        self._state = replace(
            state, V=vectors, aux=moments, mean=jnp.asarray(mean, dtype), opt_state=opt_state
        )
        self._streamed_rows = 0

    @property
    def n_components_(self) -> int:
        """Number of components."""
        return int(self._wanted)

    @property
    def learning_rate_(self) -> float | None:
        """Learning rate of the last step."""
        hyperparams = getattr(self._state.opt_state, "hyperparams", None)
        if hyperparams is None or self.optimizer is not None:
            return None
        return float(hyperparams["learning_rate"]) / self._frame.unit**2
