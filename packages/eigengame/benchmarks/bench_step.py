# ruff: noqa: E402 - thread limits must be set before JAX and NumPy are imported
"""Cost of a step against its unavoidable work and its peers; writes results/bench.json.

All ratios are measured in one process on one thread, in interleaved rounds after compilation, with
warm caches; the minimum over the rounds counts. On a busy machine multiply the rounds by a factor:

    python benchmarks/bench_step.py [FACTOR]
"""

import json
import os
import platform
import sys
import time
from functools import partial
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
if hasattr(
    os, "sched_setaffinity"
):  # XLA sizes its pool by the cores it may use; waiting threads burn CPU time
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.decomposition import IncrementalPCA

from eigengame import EigenGame, reference
from eigengame.core import Config, init, mu_direction, scan_steps, step

SIZES = {"S": (784, 16, 256), "M": (1024, 64, 256), "L": (4096, 128, 1024)}  # d, k, n
OPTIMIZER = optax.sgd(1e-3, momentum=0.9, nesterov=True)
ROUNDS = {"S": 100, "M": 20, "L": 5}
SCAN = 8
WARM = 3  # untimed calls before each timed one


def two_gemms(V, trace, X):
    """The work no method avoids: responses, their product with the batch, and momentum."""
    G = (V @ X.T) @ X / X.shape[0]
    trace = 0.9 * trace + G
    return V + 1e-3 * (G + 0.9 * trace), trace


def per_player(V, opt_state, X, weights):
    """The pseudo-code's form: one function per player, vmapped."""
    grads = jax.vmap(reference.eg_grads, in_axes=(0, 0, None, None))(V, weights, V, X)
    updates, opt_state = OPTIMIZER.update(-grads / X.shape[0], opt_state, V)
    V = optax.apply_updates(V, updates)
    return V / jnp.linalg.norm(V, axis=1, keepdims=True), opt_state


def seconds(calls, rounds):
    """Return the minimum time of each call over interleaved rounds, CPU time of this process."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        jax.block_until_ready(call())
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(WARM):  # the call before it has filled the caches with other arrays
                jax.block_until_ready(call())
            started = time.process_time()
            jax.block_until_ready(call())
            best[name] = min(best[name], time.process_time() - started)
    return best


def copies(state, count):
    return [jax.tree.map(jnp.copy, state) for _ in range(count)]


def bench_size(name, rounds):
    d, k, n = SIZES[name]
    X = jax.random.normal(jax.random.key(1), (n, d)) / np.sqrt(d)
    state = init(jax.random.key(0), k, d, OPTIMIZER)
    plain, reported = Config(OPTIMIZER), Config(OPTIMIZER, utilities="alpha")
    streaming = EigenGame(k, batch_size=n, learning_rate=1e-3, random_state=0).partial_fit(np.asarray(X))
    stream_state, stream_config = streaming._state, streaming._config()
    weights = jnp.asarray(reference.player_weights(k), jnp.float32)
    square = jax.random.normal(jax.random.key(2), (1536, 1536))
    stacked = jnp.broadcast_to(X, (SCAN, n, d))
    donated = iter(copies(state, (WARM + 1) * rounds + 2))
    gemms, slow = jax.jit(two_gemms), jax.jit(per_player)
    trace = jnp.zeros_like(state.V)
    calls = {
        "step": lambda: step(state, X, plain),
        "two_gemms": lambda: gemms(state.V, trace, X),
        "per_player": lambda: slow(state.V, state.opt_state, X, weights),
        "with_utilities": lambda: step(state, X, reported),
        "scan": lambda: scan_steps(next(donated), stacked, plain),
        "streaming_step": lambda: step(stream_state, X, stream_config, np.int32(n)),
        "partial_fit": lambda: streaming.partial_fit(X)._state.V,
    }
    best = seconds(calls, rounds)
    # apart: the 85 ms of full load before it would slow the first of the short calls of a round
    best |= seconds({"square_gemm": lambda: square @ square}, rounds)
    flops = 4 * n * d * k + 2 * n * k * k + 2 * k * k * d
    compiled = step.lower(state, X, plain).compile()
    slow_compiled = slow.lower(state.V, state.opt_state, X, weights).compile()
    return {
        "d_k_n": [d, k, n],
        "seconds": best,
        "step_over_two_gemms": best["step"] / best["two_gemms"],
        "per_player_over_step": best["per_player"] / best["step"],
        "rate_over_square_gemm": (flops / best["step"]) / (2 * 1536**3 / best["square_gemm"]),
        "xla_flops_over_formula": compiled.cost_analysis()["flops"] / flops,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "temporary_bytes_allowed": 2 * 4 * (n * k + k * d + k * k),
        "temporary_bytes_per_player_form": slow_compiled.memory_analysis().temp_size_in_bytes,
        "with_utilities_over_step": best["with_utilities"] / best["step"],
        "scan_per_step_over_step": best["scan"] / SCAN / best["step"],
        "partial_fit_over_streaming_step": best["partial_fit"] / best["streaming_step"],
        "streaming_step_over_step": best["streaming_step"] / best["step"],
    }


def bench_incremental_pca(rounds):
    """Batches of 256 rows with 784 features, k = 16: the shape of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    X = (rng.random((256, 784)) * np.geomspace(1, 0.01, 784)).astype(np.float32)
    ours = EigenGame(16, batch_size=256, random_state=0).partial_fit(X)
    theirs = IncrementalPCA(16).partial_fit(X)
    best = seconds(
        {
            "partial_fit": lambda: ours.partial_fit(X)._state.V,
            "incremental_pca": lambda: theirs.partial_fit(X).components_,
        },
        rounds,
    )
    return {
        "seconds": best,
        "incremental_pca_over_partial_fit": best["incremental_pca"] / best["partial_fit"],
    }


def bench_half_precision(rounds):
    """bfloat16 inputs with float32 accumulation, size M."""
    d, k, n = SIZES["M"]
    X = jax.random.normal(jax.random.key(1), (n, d))
    V = init(jax.random.key(0), k, d, OPTIMIZER).V
    direction = jax.jit(mu_direction)
    narrow = (V.astype(jnp.bfloat16), X.astype(jnp.bfloat16))
    best = seconds({"float32": partial(direction, V, X), "bfloat16": partial(direction, *narrow)}, rounds)
    return {"seconds": best, "bfloat16_over_float32": best["bfloat16"] / best["float32"]}


def cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main(factor):
    report = {
        "environment": {
            "cpu": cpu_name(),
            "threads": 1,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "optax": optax.__version__,
            "rounds": {name: factor * rounds for name, rounds in ROUNDS.items()},
            "clock": "process CPU time, minimum over interleaved rounds",
        },
        "sizes": {name: bench_size(name, factor * ROUNDS[name]) for name in SIZES},
        "incremental_pca": bench_incremental_pca(factor * ROUNDS["S"]),
        "half_precision": bench_half_precision(factor * ROUNDS["M"]),
    }
    target = Path(__file__).resolve().parents[1] / "results" / "bench.json"
    memory = target.with_name("memmap.json")
    if memory.exists():
        report["memmap"] = json.loads(memory.read_text())
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
