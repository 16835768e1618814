"""Comparing update rules on one GAN task: which runs diverge, and how close the samples come to the data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dd_two_player.drift import Coefficients, PlayerTerms
from dd_two_player.evaluation import classifier_score, classify, frechet_distance, moments
from dd_two_player.gans.checkpoints import state_arrays, state_from_arrays
from dd_two_player.gans.model import Batch, Gan
from dd_two_player.gans.optimizers import make_optimizer
from dd_two_player.gans.steps import (
    Hyperparameters,
    TrainState,
    UpdateRule,
    init_train_state,
    make_step,
)
from dd_two_player.paper.building import build_gan
from dd_two_player.paper.classifiers import Classifier, accuracy, train_classifier
from dd_two_player.paper.config import LossesConfig, choice
from dd_two_player.paper.data import Samples, load_samples
from dd_two_player.paper.experiment_config import GanStudyConfig
from dd_two_player.regularization import Regularization
from gdyn_common.seeding import generator
from gdyn_reproduce.runs import Run

__all__ = ["ARMS", "Arm", "Program", "build_program", "measure", "seconds_of", "train_setting"]

PICTURES = 36
DRAWN = 500  # samples per call of the generator


@dataclass(frozen=True)
class Arm:
    """A method of the comparison.

    Attributes:
        scheme: As in `UpdateRule`.
        recipe: Name of the regularisation.
        optimizer: ``sgd`` or ``adam``.
        gradients_per_step: Gradients per player that one step costs.
    """

    scheme: str = "simultaneous"
    recipe: str = "leave"
    optimizer: str = "sgd"
    gradients_per_step: int = 1


ARMS = {
    "plain": Arm(),
    "cancel": Arm(recipe="cancel_interaction"),
    "strengthen": Arm(recipe="cancel_and_strengthen"),
    "double": Arm(recipe="double_interaction"),
    "sga": Arm(recipe="sga"),
    "consensus": Arm(recipe="consensus"),
    "alternating": Arm("alternating"),
    "alternating_cancel": Arm("alternating", "cancel_interaction"),
    "alternating_double": Arm("alternating", "double_interaction"),
    "rk4": Arm("runge_kutta", gradients_per_step=4),
    "adam": Arm("alternating", optimizer="adam"),
}


def measure(config: GanStudyConfig, run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train every arm at every pair of rates and score it.

    Returns:
        Measurements and arrays. Per arm and pair of rates, one value per seed: ``distance`` (Frechet
        classifier distance at the end, infinite if samples or parameters are not finite),
        ``untrained_distance`` (the same before training), ``score`` (classifier score, the formula of the
        Inception Score) and ``diverged`` (further from the data than before training). Per arm over all
        rates: ``<arm>_trained`` (per seed, closer to the data than before training at every pair of rates),
        ``<arm>_diverged_share``, and as geometric means over rates, per seed,
        ``<arm>_distance_ratio`` (its distance over that of the first arm) and ``<arm>_training_ratio`` (its
        distance over the untrained one). ``untrained_distance_ratio`` is what a method that does nothing
        would have as its distance ratio. ``classifier_accuracy`` is that of the scoring classifier on the
        test split.
    """
    for arm in config.arms:
        choice("arm", arm, tuple(ARMS))
    samples = load_samples(config.dataset, "train", config.data_path)
    run.note(data=samples.provenance)
    classifier = train_classifier(samples, steps=config.classifier_steps)
    count = min(config.eval_samples, len(samples))
    real = moments(classify(classifier, samples.scaled(slice(count)))[1])
    groups = [list(config.seeds)] if config.vmapped else [[seed] for seed in config.seeds]

    test = load_samples(config.dataset, "test", config.data_path)
    measured: dict[str, Any] = {"classifier_accuracy": accuracy(classifier, test)}
    arrays: dict[str, np.ndarray] = {}
    distances = np.zeros((len(config.arms), len(config.disc_rates), len(config.seeds)))
    untrained = np.zeros(distances.shape)
    for i, arm in enumerate(config.arms):
        program = build_program(config, samples, ARMS[arm])
        for j, rates in enumerate(zip(config.disc_rates, config.gen_rates, strict=True)):
            used = program.rates(rates)
            label = f"{arm}@{used[0]:g}:{used[1]:g}"
            parts = []
            for group in groups:
                name = f"{label}/seeds={group}"
                train = partial(train_setting, config, run, samples, classifier, program, used, group, name)
                parts.append(run.piece(name, train))
            drawn = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for k in range(len(config.seeds)):
                untrained[i, j, k] = frechet_distance(real, moments(drawn["untrained_features"][k]))
                features = drawn["features"][k]
                finite = bool(np.isfinite(features).all() and drawn["finite"][k])
                distances[i, j, k] = frechet_distance(real, moments(features)) if finite else np.inf
            measured[f"{label}/distance"] = distances[i, j].tolist()
            measured[f"{label}/untrained_distance"] = untrained[i, j].tolist()
            measured[f"{label}/score"] = [classifier_score(logits) for logits in drawn["logits"]]
            measured[f"{label}/diverged"] = (distances[i, j] > untrained[i, j]).tolist()
            arrays[f"{label}/pictures"] = drawn["pictures"][0]
            arrays[f"{label}/disc_loss"] = drawn["disc_loss"]
    measured["untrained_distance_ratio"] = _mean_ratio(untrained[0], distances[0]).tolist()
    for i, arm in enumerate(config.arms):
        measured[f"{arm}_trained"] = (distances[i] < untrained[i]).all(0).tolist()
        measured[f"{arm}_diverged_share"] = float((distances[i] > untrained[i]).mean())
        measured[f"{arm}_distance_ratio"] = _mean_ratio(distances[i], distances[0]).tolist()
        measured[f"{arm}_training_ratio"] = _mean_ratio(distances[i], untrained[i]).tolist()
    return measured, arrays | {"distances": distances, "untrained": untrained}


def _mean_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the geometric mean over rates of ``a / b`` ``(rates, seeds)``; two infinite distances make NaN.

    >>> _mean_ratio(np.array([[1.0, np.inf], [4.0, 1.0]]), np.ones((2, 2)))
    array([ 2., inf])
    """
    with np.errstate(invalid="ignore"):
        ratios: np.ndarray = np.exp((np.log(a) - np.log(b)).mean(0))
    return ratios


class Program(NamedTuple):
    """One arm, compiled once for all rates and seeds.

    Attributes:
        gan: Networks and losses.
        width: Batches per step.
        rates: Learning rates that the arm really uses, given those of the setting.
        steps: Steps for a number of gradients per player.
        start: Draws the state of one seed.
        advance: One step, ``(states, rates, (examples, latents)) -> (states, disc_losses)``, with a leading
            axis of seeds; the states given are used up. A Python loop calls it: inside of a compiled loop XLA
            runs convolutions on the CPU seven times slower.
    """

    gan: Gan
    width: int
    rates: Callable[[tuple[float, float]], tuple[float, float]]
    steps: int
    start: Callable[[int], TrainState]
    advance: Callable[[TrainState, Any, Any], tuple[TrainState, Any]]


def build_program(config: GanStudyConfig, samples: Samples, arm: Arm) -> Program:
    """Return the compiled step of an arm; it compiles when it is first called."""
    gan = build_gan(config.nets, LossesConfig(), samples.shape)
    recipe = _recipe(arm.recipe, config.strength)
    rule = UpdateRule(
        arm.scheme,  # type: ignore[arg-type]
        convention=config.convention,
        estimator=config.estimator,
        mask=recipe.mask(),
    )
    optimizers = (make_optimizer(arm.optimizer), make_optimizer(arm.optimizer))
    step = make_step(gan, rule, optimizers)
    raw = jnp.asarray(samples.raw)

    def start(seed: int) -> TrainState:
        example = jnp.zeros((2, *samples.shape))
        return init_train_state(gan, optimizers, jax.random.key(seed), example)

    def advance(state: TrainState, rates: Any, drawn: tuple[Any, Any]) -> tuple[TrainState, Any]:
        chosen, latents = drawn
        data = (raw[chosen].astype(jnp.float32) - samples.offset) / samples.scale
        hyper = Hyperparameters(rates, recipe.dd_coeffs_multiplier, recipe.explicit_non_dd_coeffs)
        moved, metrics = step(state, hyper, Batch(data, latents))
        return moved, metrics["disc_loss"]

    def alone(states: TrainState, rates: Any, drawn: tuple[Any, Any]) -> tuple[TrainState, Any]:
        # not vmapped: a batch of kernels makes grouped convolutions, which are slow on the CPU
        state, first = jax.tree.map(lambda a: a[0], (states, drawn))
        moved: tuple[TrainState, Any] = jax.tree.map(lambda a: a[None], advance(state, rates, first))
        return moved

    fixed = (config.adam_rate, config.adam_rate) if arm.optimizer == "adam" else None
    return Program(
        gan,
        rule.batches_per_step,
        lambda rates: fixed or rates,
        config.num_steps // arm.gradients_per_step,
        jax.jit(start),
        jax.jit(jax.vmap(advance, (0, None, 0)) if config.vmapped else alone, donate_argnums=0),
    )


def seconds_of(config: GanStudyConfig, steps: int = 3) -> float:
    """Return the wall time of all training steps of a study, from a few steps of every arm on this machine.

    Compiling, some ten seconds per arm, and scoring are not in it.
    """
    samples = load_samples(config.dataset, "train", config.data_path)
    seeds = list(config.seeds) if config.vmapped else config.seeds[:1]
    runs = len(config.disc_rates) * (1 if config.vmapped else len(config.seeds))
    total = 0.0
    for name in config.arms:
        program = build_program(config, samples, ARMS[name])
        rates = program.rates((config.disc_rates[0], config.gen_rates[0]))
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(program.start(seed) for seed in seeds))
        drawn = _draws(config, samples, seeds, 0, steps + 1, program.width)
        started = 0.0
        for i in range(steps + 1):
            state, _ = program.advance(state, rates, tuple(a[:, i] for a in drawn))
            jax.block_until_ready(state)
            if i == 0:  # that one compiled
                started = time.perf_counter()
        total += (time.perf_counter() - started) / steps * program.steps * runs
    return total


def train_setting(
    config: GanStudyConfig,
    run: Run,
    samples: Samples,
    classifier: Classifier,
    program: Program,
    rates: tuple[float, float],
    seeds: list[int],
    name: str,
) -> dict[str, np.ndarray]:
    """Train one arm at one pair of rates for a group of seeds in one program; resumable by chunks.

    Returns:
        Per seed: logits and features of samples after training, features before, a few samples, the
        discriminator's losses, whether everything stayed finite.
    """
    gan = program.gan
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(program.start(seed) for seed in seeds))
    shape = (config.eval_samples, config.nets.num_latents)
    latents = generator(0, "gan-study", "evaluation").standard_normal(shape, dtype=np.float32)
    draw = jax.jit(gan.sample)

    def classified(state: TrainState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return samples, logits and features of every seed."""
        rows = []
        for k in range(len(seeds)):
            one = jax.tree.map(lambda leaf, k=k: leaf[k], state)
            parts = [latents[i : i + DRAWN] for i in range(0, len(latents), DRAWN)]
            images = np.concatenate([draw(one.params[1], one.state, z) for z in parts])
            bounded = np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=-1.0)
            rows.append((images, *classify(classifier, bounded)))
        images, logits, features = (np.stack(column) for column in zip(*rows, strict=True))
        return images, logits, features

    untrained = classified(state)[2]
    checkpoint = run.checkpoint(name)
    done, history = 0, np.zeros((len(seeds), 0), np.float32)
    saved = checkpoint.load()
    if saved is not None:
        done, history = int(saved.pop("done")), saved.pop("history")
        state = jax.device_put(state_from_arrays(saved, state, name))
    while done < program.steps:
        length = min(config.chunk, program.steps - done)
        drawn = _draws(config, samples, seeds, done, length, program.width)
        values = []
        for i in range(length):
            state, loss = program.advance(state, rates, tuple(a[:, i] for a in drawn))
            values.append(loss)
        done, history = done + length, np.concatenate([history, np.stack(values, 1)], 1)
        if done < program.steps:
            checkpoint.save(done=np.asarray(done), history=history, **state_arrays(state))
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
    finite = [all(np.isfinite(a[k]).all() for a in arrays) for k in range(len(seeds))]
    images, logits, features = classified(state)
    checkpoint.clear()
    return {
        "logits": logits,
        "features": features,
        "untrained_features": untrained,
        "pictures": images[:, :PICTURES],
        "disc_loss": history,
        "finite": np.array(finite) & np.isfinite(images).all(tuple(range(1, images.ndim))),
    }


def _draws(
    config: GanStudyConfig, samples: Samples, seeds: list[int], done: int, length: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples and latents of a chunk on the host: the same for every arm, and cheap to compile."""
    shape = (length, width, config.batch_size)
    chosen, latents = [], []
    for seed in seeds:
        stream = generator(seed, "gan-study", done)
        chosen.append(stream.integers(len(samples), size=shape, dtype=np.int32))
        latents.append(stream.standard_normal((*shape, config.nets.num_latents), dtype=np.float32))
    return np.stack(chosen), np.stack(latents)


def _recipe(name: str, strength: float) -> Regularization:
    if name == "double_interaction":  # the opposite of cancelling, for controls
        terms = PlayerTerms(other_dot_prod=1.0)
        return Regularization(dd_coeffs_multiplier=Coefficients(terms, terms))
    if name in ("sga", "consensus"):
        return getattr(Regularization, name)(strength)  # type: ignore[no-any-return]
    return getattr(Regularization, name)()  # type: ignore[no-any-return]
