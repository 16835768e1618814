"""Cost of regularised steps relative to a plain one, and of the convolution paths; one process, interleaved.

``python benchmarks/bench_steps.py [--short]`` writes ``results/bench.json``.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from dd_two_player import losses
from dd_two_player.drift import Coefficients, PlayerTerms
from dd_two_player.gan import Batch, Gan
from dd_two_player.networks import build_discriminator, build_generator
from dd_two_player.regularization import Regularization
from gdyn_common.provenance import collect

ALL = PlayerTerms(1.0, 1.0, -1.0)
RECIPES = {
    "plain": Regularization.leave(),
    "zero": Regularization.leave(),
    "cancel": Regularization.cancel_interaction(),
    "all_terms": Regularization(explicit_non_dd_coeffs=Coefficients(ALL, ALL)),
}


def make_gan(nets: str, method: str) -> tuple[Gan, tuple[int, ...]]:
    shape = (28, 28, 1)
    disc = (
        build_discriminator("MLP", (256, 128))
        if nets == "mlp"
        else build_discriminator("MnistDiscriminator", (), method)
    )
    gen = (
        build_generator("MLP", shape, (128, 256))
        if nets == "mlp"
        else build_generator("MnistGenerator", shape, (), method)
    )
    return Gan(disc, gen, losses.discriminator_goodfellow_loss, losses.generator_saturating_loss, 128), shape


def gradient_program(gan: Gan, recipe: Regularization):
    """Both players' gradients in one program, as a training step needs them."""
    mask = recipe.mask()

    @jax.jit
    def program(params, state, batch, coefficients):
        return gan.game(state).gradients(params, batch, coefficients, mask=mask)

    return program


def naive_program(gan: Gan):
    """Interaction terms the straightforward way: the gradient of an inner product of gradients."""

    def dot(a, b):
        return sum(jax.tree.leaves(jax.tree.map(lambda x, y: (x * y).sum(), a, b)))

    @jax.jit
    def program(params, state, batch, coefficients):
        game = gan.game(state)
        d, g = params

        def disc(d):
            frozen = jax.lax.stop_gradient(jax.grad(game.loss_gen, 1)(d, g, batch))
            inner = dot(jax.grad(game.loss_disc, 1)(d, g, batch), frozen)
            return game.loss_disc(d, g, batch) + coefficients.disc.other_dot_prod * inner

        def gen(g):
            frozen = jax.lax.stop_gradient(jax.grad(game.loss_disc, 0)(d, g, batch))
            inner = dot(jax.grad(game.loss_gen, 0)(d, g, batch), frozen)
            return game.loss_gen(d, g, batch) + coefficients.gen.other_dot_prod * inner

        return jax.grad(disc)(d), jax.grad(gen)(g)

    return program


def measure(programs: dict, repeats: int) -> dict:
    """Return compile seconds and the median milliseconds of each program, run in turn."""
    compile_s, times = {}, {name: [] for name in programs}
    for name, (program, arguments) in programs.items():
        started = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        compile_s[name] = time.perf_counter() - started
    for _ in range(repeats):
        for name, (program, arguments) in programs.items():
            started = time.process_time()
            jax.block_until_ready(program(*arguments))
            times[name].append(1e3 * (time.process_time() - started))
    return {
        name: {"cpu_ms_median": statistics.median(values), "compile_s": compile_s[name], "repeats": repeats}
        for name, values in times.items()
    }


def arguments(gan: Gan, shape: tuple[int, ...], batch_size: int):
    key = jax.random.key(0)
    params, state = gan.init(key, np.zeros((2, *shape), np.float32))
    batch = Batch(jax.random.normal(key, (batch_size, *shape)), jax.random.normal(key, (batch_size, 128)))
    return params, state, batch, Coefficients(PlayerTerms(0.1, 0.1, -0.1), PlayerTerms(0.1, 0.1, -0.1))


def main() -> None:
    short = "--short" in sys.argv
    repeats = 30
    gan, shape = make_gan("mlp", "auto")
    results = {
        "mlp_batch64": measure(
            {name: (gradient_program(gan, r), arguments(gan, shape, 64)) for name, r in RECIPES.items()},
            repeats,
        )
    }
    programs = {}
    for method in ("lax", "auto"):
        gan, shape = make_gan("mnist", method)
        inputs = arguments(gan, shape, 8 if short else 16)
        for name in ("plain", "cancel"):
            programs[f"{name}_{method}"] = (gradient_program(gan, RECIPES[name]), inputs)
        if method == "lax":
            programs["cancel_naive_lax"] = (naive_program(gan), inputs)
    results["mnist_batch16" if not short else "mnist_batch8"] = measure(programs, 3 if short else 30)
    report = {"threads": 1, "results": results, "environment": collect(0.0)}
    Path(__file__).parents[1].joinpath("results", "bench.json").write_text(
        json.dumps(report, indent=1) + "\n"
    )
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
