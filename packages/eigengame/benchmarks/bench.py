"""Cost of a step against the work that no method avoids, and of an answer against its rivals.

`python benchmarks/bench.py [--full] [--only NAME]` writes results/bench.json.
"""

import os
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg, svds
from sklearn.decomposition import PCA, IncrementalPCA

from eigengame import EigenGame, reference
from eigengame.core import Config, init, step
from gdyn_reproduce.benchmark import LIMIT, OURS, Case, main
from gdyn_reproduce.data import load_dataset

OPTIMIZER = optax.sgd(1e-3, momentum=0.9, nesterov=True)
SIZES = {"small": (784, 16, 256), "middle": (1024, 64, 256), "large": (4096, 128, 1024)}  # d, k, n


@jax.jit
def two_products(V, trace, X):
    """Responses, their product with the batch, and momentum."""
    G = (V @ X.T) @ X / X.shape[0]
    trace = 0.9 * trace + G
    return V + 1e-3 * (G + 0.9 * trace), trace


@jax.jit
def per_player(V, opt_state, X, weights):
    """The published form: a function of one player, vmapped."""
    grads = jax.vmap(reference.eg_grads, in_axes=(0, 0, None, None))(V, weights, V, X)
    updates, opt_state = OPTIMIZER.update(-grads / X.shape[0], opt_state, V)
    V = optax.apply_updates(V, updates)
    return V / jnp.linalg.norm(V, axis=1, keepdims=True), opt_state


def finished(call: Callable[[], object]) -> Callable[[], object]:
    return lambda: jax.block_until_ready(call())


def a_step(d, k, n):
    X = jax.random.normal(jax.random.key(1), (n, d)) / np.sqrt(d)
    state, config = init(jax.random.key(0), k, d, OPTIMIZER), Config(OPTIMIZER)
    stream = EigenGame(k, batch_size=n, random_state=0).partial_fit(np.asarray(X))
    weights, trace = jnp.asarray(reference.player_weights(k), jnp.float32), jnp.zeros_like(state.V)
    return {
        OURS: finished(lambda: step(state, X, config)),
        LIMIT: finished(lambda: two_products(state.V, trace, X)),
        "per-player form": finished(lambda: per_player(state.V, state.opt_state, X, weights)),
        "partial_fit, with guard players, centring and error bounds": finished(
            lambda: stream.partial_fit(X)._state.V
        ),
    }


def a_compilation(d, k, n):
    X = jax.random.normal(jax.random.key(1), (n, d))
    state, config = init(jax.random.key(0), k, d, OPTIMIZER), Config(OPTIMIZER)

    def anew(call):
        jax.clear_caches()
        jax.block_until_ready(call())

    return {
        OURS: partial(anew, lambda: step(state, X, config)),
        LIMIT: partial(anew, lambda: two_products(state.V, state.V, X)),
    }


def an_answer(load, k):
    X = np.asarray(load(), np.float32)
    start = np.random.default_rng(0).standard_normal((X.shape[1], k + k // 2))

    def centred():
        mean = X.mean(axis=0)
        return LinearOperator(
            X.shape,
            matvec=lambda v: X @ v - mean @ v,
            rmatvec=lambda u: X.T @ u - mean * u.sum(),
            dtype=np.float32,
        )

    def operator():
        mean = X.mean(axis=0)
        return LinearOperator(
            (X.shape[1],) * 2,
            matvec=lambda v: X.T @ (X @ v) / len(X) - mean * (mean @ v),
            matmat=lambda V: X.T @ (X @ V) / len(X) - np.outer(mean, mean @ V),
            dtype=np.float32,
        )

    return {
        OURS: lambda: EigenGame(k, tol=0.1, random_state=0).fit(X),
        "PCA(covariance_eigh)": lambda: PCA(k, svd_solver="covariance_eigh").fit(X),
        "PCA(randomized)": lambda: PCA(k, svd_solver="randomized", random_state=0).fit(X),
        "IncrementalPCA": lambda: IncrementalPCA(k, batch_size=256).fit(X),
        "eigsh": lambda: eigsh(operator(), k, which="LA", tol=1e-2, v0=start[:, 0]),
        "svds": lambda: svds(centred(), k, tol=1e-2, random_state=0),
        "lobpcg": lambda: lobpcg(operator(), start.astype(np.float32), largest=True, maxiter=6, tol=1e-9),
    }


def fashion():
    return load_dataset("fashion_mnist", "train").x.reshape(60000, -1) / np.float32(255)


def wide(d=2000, n=6000):
    return np.random.default_rng(0).standard_normal((n, d), np.float32) * np.geomspace(
        1, 1e-3, d, dtype=np.float32
    )


CASES = (
    *(
        Case(f"step-{name}", f"a mu step, d = {d}, k = {k}, n = {n}", partial(a_step, d, k, n))
        for name, (d, k, n) in SIZES.items()
    ),
    *(
        Case(
            f"growth-{d}",
            f"a mu step, d = {d}, k = 32, n = 256",
            partial(a_step, d, 32, 256),
            growth="a mu step, k = 32, n = 256, over features",
            size=d,
        )
        for d in (256, 1024, 4096, 16384)
    ),
    Case(
        "compilation",
        "compiling the mu step, d = 784, k = 16, n = 256",
        partial(a_compilation, *SIZES["small"]),
        note="the limit compiles two products; a step also normalises, averages and checks its arguments",
    ),
    *(
        Case(
            f"answer-{name}",
            f"components of {words} to cosines of .99",
            partial(an_answer, load, k),
            note="lobpcg takes 6 steps, eigsh and svds tol=1e-2; IncrementalPCA stops before .99, after a "
            "pass; for data that fit in memory the game is not the method of choice",
        )
        for name, words, load, k in (
            ("fashion-mnist", "Fashion-MNIST, 60 000 x 784, k = 16,", fashion, 16),
            ("wide", "noise with a geometric spectrum, 6000 x 2000, k = 16,", wide, 16),
        )
        if name != "fashion-mnist" or "GDYN_DATA_DIR" in os.environ
    ),
)

if __name__ == "__main__":
    main("eigengame", CASES)
