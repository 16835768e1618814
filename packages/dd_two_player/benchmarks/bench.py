"""Cost of corrected steps in plain steps, over the width of the networks, and against nested gradients.

The limit of a corrected step is the plain one: their ratio is the number of plain steps that it costs. The
limit of a Frechet distance is one product of two matrices of its size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import sqrtm

from dd_two_player.drift import Coefficients, PlayerTerms
from dd_two_player.evaluation import Moments, frechet_distance
from dd_two_player.gans import losses
from dd_two_player.gans.convolution import conv2d_transpose
from dd_two_player.gans.model import Batch, Gan
from dd_two_player.gans.networks import build_discriminator, build_generator
from dd_two_player.gans.optimizers import make_optimizer
from dd_two_player.gans.steps import Hyperparameters, UpdateRule, init_train_state, make_step
from dd_two_player.regularization import Regularization
from gdyn_reproduce.benchmark import LIMIT, OURS, Case, main

SHAPE, LATENTS, RATE = (28, 28, 1), 128, 0.01
SGD = (make_optimizer("sgd"), make_optimizer("sgd"))
ALL = PlayerTerms(0.1, 0.1, -0.1)
RECIPES = {
    "zero coefficients": Regularization.leave(),
    "interaction cancelled": Regularization.cancel_interaction(),
    "all terms": Regularization(explicit_non_dd_coeffs=Coefficients(ALL, ALL)),
}
Call = Callable[[], object]


def mlp(width: int) -> Gan:
    """Two hidden layers in each player."""
    disc = build_discriminator("MLP", (width, width // 2))
    return _gan(disc, build_generator("MLP", SHAPE, (width // 2, width)))


def convolutional(method: Any) -> Gan:
    """The released MNIST networks; ``method`` says how their convolutions are differentiated."""
    return _gan(
        build_discriminator("MnistDiscriminator", (), method),
        build_generator("MnistGenerator", SHAPE, (), method),
    )


def _gan(disc: Any, gen: Any) -> Gan:
    return Gan(disc, gen, losses.discriminator_goodfellow_loss, losses.generator_saturating_loss, LATENTS)


def ours(gan: Gan, recipe: Regularization, batch_size: int, scheme: Any = "simultaneous") -> Call:
    """Our compiled step."""
    rule = UpdateRule(scheme, mask=recipe.mask())
    step = jax.jit(make_step(gan, rule, SGD))
    hyper = Hyperparameters((RATE, RATE), recipe.dd_coeffs_multiplier, recipe.explicit_non_dd_coeffs)
    state, batches = _inputs(gan, rule.batches_per_step, batch_size)
    return lambda: jax.block_until_ready(step(state, hyper, batches))


def nested(gan: Gan, dot: float, batch_size: int) -> Call:
    """The step as one writes it down: gradients of losses plus inner products of gradients."""

    @jax.jit
    def step(state: Any, batches: Batch) -> Any:
        players, fixed = state.params, state.state
        functions = (
            lambda d, g, batch: gan.disc_loss(d, g, batch, fixed)[0],
            lambda d, g, batch: gan.gen_loss(d, g, batch, fixed)[0],
        )

        def total(own: int, mine: Any) -> Any:
            batch = jax.tree.map(lambda a: a[own], batches)
            at = (mine, players[1]) if own == 0 else (players[0], mine)
            value = functions[own](*at, batch)
            if dot:
                other = jax.lax.stop_gradient(jax.grad(functions[1 - own], 1 - own)(*at, batch))
                across = jax.grad(functions[own], 1 - own)(*at, batch)
                value += dot * sum(jax.tree.leaves(jax.tree.map(lambda x, y: (x * y).sum(), across, other)))
            return value

        gradients = [jax.grad(partial(total, own))(player) for own, player in enumerate(players)]
        return [
            jax.tree.map(lambda x, y: x - RATE * y, p, q) for p, q in zip(players, gradients, strict=True)
        ]

    state, batches = _inputs(gan, 2, batch_size)
    return lambda: jax.block_until_ready(step(state, batches))


def _inputs(gan: Gan, batches_per_step: int, batch_size: int) -> tuple[Any, Batch]:
    key = jax.random.key(0)
    data = jax.random.normal(key, (batches_per_step, batch_size, *SHAPE))
    latents = jax.random.normal(key, (batches_per_step, batch_size, LATENTS))
    return init_train_state(gan, SGD, key, jnp.zeros((2, *SHAPE))), Batch(data, latents)


def corrected(width: int, recipe: str) -> dict[str, Call]:
    """A corrected step of fully connected networks, batch 64."""
    gan = mlp(width)
    found = {OURS: ours(gan, RECIPES[recipe], 64), LIMIT: nested(gan, 0.0, 64)}
    if recipe == "interaction cancelled":
        found["nested gradients"] = nested(gan, -RATE / 2, 64)
    return found


def runge_kutta(width: int) -> dict[str, Call]:
    """A step of Runge-Kutta's method of order 4, batch 64."""
    gan = mlp(width)
    return {OURS: ours(gan, RECIPES["zero coefficients"], 64, "runge_kutta"), LIMIT: nested(gan, 0.0, 64)}


def images(cancel: bool) -> dict[str, Call]:
    """A step of the released MNIST networks at the published batch."""
    recipe = RECIPES["interaction cancelled" if cancel else "zero coefficients"]
    return {
        OURS: ours(convolutional("auto"), recipe, 64),
        "lax convolutions, nested gradients": nested(convolutional("lax"), -RATE / 2 if cancel else 0.0, 64),
    }


def frechet(features: int) -> dict[str, Call]:
    """The distance from means and covariances, as the statistics of a data set are stored."""
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((2 * features, features)) for _ in range(2)]
    a, b = (Moments(side.mean(0), np.cov(side, rowvar=False)) for side in sides)

    def pytorch_fid() -> float:
        gap, root = a.mean - b.mean, sqrtm(a.covariance @ b.covariance)
        return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root).real)

    return {
        OURS: lambda: frechet_distance(a, b),
        "formula of pytorch-fid": pytorch_fid,
        LIMIT: lambda: a.covariance @ b.covariance,
    }


def kernel_gradient() -> dict[str, Call]:
    """The kernel's gradient in the first transposed convolution of the CIFAR generator, batch 16."""
    x, kernel = jnp.ones((16, 4, 4, 512)), jnp.ones((4, 4, 512, 256))

    def gradient(method: Any) -> Call:
        call = jax.jit(jax.grad(lambda w: (conv2d_transpose(x, w, 2, method) ** 2).sum()))
        return lambda: jax.block_until_ready(call(kernel))

    return {OURS: gradient("slices"), "lax": gradient("lax")}


CASES = (
    *(
        Case(f"{key}-256", f"a step with {recipe}, width 256", partial(corrected, 256, recipe), note=note)
        for key, recipe, note in (
            ("zero", "zero coefficients", ""),
            (
                "cancelled",
                "interaction cancelled",
                "each player needs a Hessian-vector product, which costs a gradient at the very least",
            ),
            ("all", "all terms", "three terms a player, each the gradient of an inner product of gradients"),
        )
    ),
    Case(
        "runge-kutta-256",
        "a step of Runge-Kutta's method, width 256",
        partial(runge_kutta, 256),
        note="it evaluates four gradients by definition",
    ),
    Case("mnist-plain", "a plain step of the MNIST networks, batch 64", partial(images, False)),
    Case("mnist-cancelled", "the same with the interaction cancelled", partial(images, True)),
    Case(
        "kernel-gradient",
        "kernel gradient of a transposed convolution, 512 to 256 channels, batch 16",
        kernel_gradient,
    ),
    *(
        Case(
            f"growth-{width}",
            f"a step with the interaction cancelled, width {width}",
            partial(corrected, width, "interaction cancelled"),
            growth="a step with the interaction cancelled over the width",
            size=width,
        )
        for width in (64, 128, 256, 512, 1024)
    ),
    *(
        Case(
            f"growth-frechet-{features}",
            f"Frechet distance of {features} features",
            partial(frechet, features),
            growth="Frechet distance over features",
            size=features,
            note="two eigendecompositions and a singular value decomposition keep it from turning negative"
            if features < 256
            else "",
        )
        for features in (64, 128, 256, 512)
    ),
)

if __name__ == "__main__":
    main("dd_two_player", CASES)
