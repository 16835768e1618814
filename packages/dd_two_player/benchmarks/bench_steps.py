"""Cost of regularised steps against plain ones, and of the MNIST networks against the straightforward form.

``python benchmarks/bench_steps.py [--short]`` writes ``results/bench.json``. All programs of a comparison run
in turn in one process on one thread; numbers are medians of processor time.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp

from dd_two_player.drift import Coefficients, PlayerTerms
from dd_two_player.gans import losses
from dd_two_player.gans.convolution import conv2d_transpose
from dd_two_player.gans.model import Batch, Gan
from dd_two_player.gans.networks import build_discriminator, build_generator
from dd_two_player.gans.optimizers import make_optimizer
from dd_two_player.gans.steps import Hyperparameters, TrainState, UpdateRule, init_train_state, make_step
from dd_two_player.regularization import Regularization
from gdyn_reproduce.provenance import collect

SHAPE, LATENTS, RATE = (28, 28, 1), 128, 0.01
ALL = PlayerTerms(0.1, 0.1, -0.1)
SGD = (make_optimizer("sgd"), make_optimizer("sgd"))
TARGETS = {  # registered before the first complete run
    "zero_over_plain": ("at most", 1.05, "zero coefficients cost under 5 % of a plain step"),
    "traces": ("at most", 1, "changing coefficients does not recompile"),
    "mnist_cancel_speedup": ("at least", 2.0, "MNIST step with cancelled interaction against nested lax"),
}


def make_gan(nets: str, method: Any) -> Gan:
    if nets == "mlp":
        disc, gen = build_discriminator("MLP", (256, 128)), build_generator("MLP", SHAPE, (128, 256))
    else:
        disc = build_discriminator("MnistDiscriminator", (), method)
        gen = build_generator("MnistGenerator", SHAPE, (), method)
    return Gan(disc, gen, losses.discriminator_goodfellow_loss, losses.generator_saturating_loss, LATENTS)


def ours(gan: Gan, recipe: Regularization, scheme: Any = "simultaneous") -> tuple[Callable[..., Any], int]:
    """Return our compiled step, and how many batches it takes."""
    rule = UpdateRule(scheme, mask=recipe.mask())
    step = jax.jit(make_step(gan, rule, SGD))
    hyper = Hyperparameters((RATE, RATE), recipe.dd_coeffs_multiplier, recipe.explicit_non_dd_coeffs)
    return lambda state, batches: step(state, hyper, batches), rule.batches_per_step


def straightforward(gan: Gan, dot: float) -> Callable[..., Any]:
    """Return the step as one writes it down: gradients of losses plus inner products of gradients."""

    def inner(a: Any, b: Any) -> Any:
        return sum(jax.tree.leaves(jax.tree.map(lambda x, y: (x * y).sum(), a, b)))

    @jax.jit
    def step(state: TrainState, batches: Batch) -> Any:
        (d, g), fixed = state.params, state.state

        def loss_disc(d: Any, g: Any, batch: Batch) -> Any:
            return gan.disc_loss(d, g, batch, fixed)[0]

        def loss_gen(d: Any, g: Any, batch: Batch) -> Any:
            return gan.gen_loss(d, g, batch, fixed)[0]

        def total(own: int, mine: Any, batch: Batch) -> Any:
            at = (mine, g) if own == 0 else (d, mine)
            mine_loss, other_loss = (loss_disc, loss_gen) if own == 0 else (loss_gen, loss_disc)
            value = mine_loss(*at, batch)
            if dot:
                frozen = jax.lax.stop_gradient(jax.grad(other_loss, 1 - own)(*at, batch))
                value += dot * inner(jax.grad(mine_loss, 1 - own)(*at, batch), frozen)
            return value

        gradients = [
            jax.grad(lambda mine, own=own: total(own, mine, jax.tree.map(lambda a: a[own], batches)))(p)
            for own, p in enumerate((d, g))
        ]
        return [jax.tree.map(lambda x, y: x - RATE * y, p, q) for p, q in zip((d, g), gradients, strict=True)]

    return step


def measure(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Return compile seconds and the median milliseconds of each program, run in turn."""
    compile_s: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for name, program in programs.items():
        started = time.process_time()
        jax.block_until_ready(program())
        compile_s[name] = time.process_time() - started
        print(f"  {name}: compiled in {compile_s[name]:.1f} s", file=sys.stderr, flush=True)
    for _ in range(repeats):
        for name, program in programs.items():
            started = time.process_time()
            jax.block_until_ready(program())
            times[name].append(1e3 * (time.process_time() - started))
    return {
        name: {"cpu_ms_median": statistics.median(values), "compile_cpu_s": compile_s[name]}
        for name, values in times.items()
    }


def bound(step: Callable[..., Any], gan: Gan, width: int, batch_size: int) -> Callable[[], Any]:
    """Return a call of a step on fixed inputs."""
    key = jax.random.key(0)
    state = init_train_state(gan, SGD, key, jnp.zeros((2, *SHAPE)))
    data = jax.random.normal(key, (width, batch_size, *SHAPE))
    batches = Batch(data, jax.random.normal(key, (width, batch_size, LATENTS)))
    return lambda: step(state, batches)


def count_traces() -> int:
    """Return how often a step is traced while its coefficients and rates take three values."""
    gan, recipe, traces = make_gan("mlp", "lax"), Regularization.cancel_and_strengthen(), []
    inner = make_step(gan, UpdateRule(mask=recipe.mask()), SGD)

    @jax.jit
    def step(*arguments: Any) -> Any:
        traces.append(1)
        return inner(*arguments)

    for value in (-1.0, -0.5, 0.0):
        terms = PlayerTerms(value, 0.0, value)
        hyper = Hyperparameters((RATE * (2 + value), RATE), Coefficients(terms, terms))
        bound(lambda state, batches, hyper=hyper: step(state, hyper, batches), gan, 2, 8)()
    return len(traces)


def kernel_gradients(method: Any) -> Callable[[], Any]:
    """Return the kernel gradient of the first transposed convolution of the CIFAR generator, batch 16."""
    x, kernel = jnp.ones((16, 4, 4, 512)), jnp.ones((4, 4, 512, 256))
    gradient = jax.jit(jax.grad(lambda w: (conv2d_transpose(x, w, 2, method) ** 2).sum()))
    return lambda: gradient(kernel)


def main() -> None:
    """Run all comparisons and write the report."""
    short = "--short" in sys.argv
    all_terms = Regularization(explicit_non_dd_coeffs=Coefficients(ALL, ALL))
    gan = make_gan("mlp", "lax")
    small = {"plain": bound(straightforward(gan, 0.0), gan, 2, 64)}
    for name, recipe, scheme in (
        ("zero", Regularization.leave(), "simultaneous"),
        ("cancel", Regularization.cancel_interaction(), "simultaneous"),
        ("all_terms", all_terms, "simultaneous"),
        ("rk4", Regularization.leave(), "runge_kutta"),
    ):
        step, width = ours(gan, recipe, scheme)
        small[name] = bound(step, gan, width, 64)
    mlp = measure(small, 60 if short else 300)

    batch_size = 16 if short else 64
    naive, fast = make_gan("mnist", "lax"), make_gan("mnist", "auto")
    images = {
        "straightforward_plain": bound(straightforward(naive, 0.0), naive, 2, batch_size),
        "straightforward_cancel": bound(straightforward(naive, -RATE / 2), naive, 2, batch_size),
        "ours_plain": bound(ours(fast, Regularization.leave())[0], fast, 2, batch_size),
        "ours_cancel": bound(ours(fast, Regularization.cancel_interaction())[0], fast, 2, batch_size),
    }
    mnist = measure(images, 8 if short else 30)
    layer = measure({method: kernel_gradients(method) for method in ("lax", "slices")}, 3)

    def ratio(results: dict[str, dict[str, float]], above: str, below: str) -> float:
        return results[above]["cpu_ms_median"] / results[below]["cpu_ms_median"]

    measured: dict[str, float] = {
        "zero_over_plain": ratio(mlp, "zero", "plain"),
        "traces": count_traces(),
        "mnist_cancel_speedup": ratio(mnist, "straightforward_cancel", "ours_cancel"),
    }
    verdicts = {
        name: {
            "what": what,
            "target": f"{direction} {target:g}",
            "measured": measured[name],
            "met": measured[name] <= target if direction == "at most" else measured[name] >= target,
        }
        for name, (direction, target, what) in TARGETS.items()
    }
    report = {
        "mode": "short" if short else "full",
        "threads": 1,
        "targets": verdicts,
        "ratios": {
            **{f"mlp_{name}_over_plain": ratio(mlp, name, "plain") for name in mlp if name != "plain"},
            "mnist_plain_speedup": ratio(mnist, "straightforward_plain", "ours_plain"),
            "mnist_cancel_over_plain": ratio(mnist, "ours_cancel", "ours_plain"),
            "cifar_layer_kernel_gradient_speedup": ratio(layer, "lax", "slices"),
        },
        "results": {"mlp_batch64": mlp, f"mnist_batch{batch_size}": mnist, "cifar_layer_batch16": layer},
        "environment": collect(0.0),
    }
    path = Path(__file__).parents[1] / "results" / "bench.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"targets": verdicts, "ratios": report["ratios"]}, indent=1))


if __name__ == "__main__":
    main()
