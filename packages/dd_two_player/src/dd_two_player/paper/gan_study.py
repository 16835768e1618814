"""Comparing update rules on one GAN task: which runs diverge, and how close the samples come to the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dd_two_player.evaluation import classifier_score, classify, frechet_distance, moments
from dd_two_player.gans.checkpoints import state_arrays, state_from_arrays
from dd_two_player.gans.model import Batch
from dd_two_player.gans.steps import Hyperparameters, Step, TrainState
from dd_two_player.paper import engine
from dd_two_player.paper.classifiers import Classifier, accuracy, train_classifier
from dd_two_player.paper.config import TrainConfig, choice
from dd_two_player.paper.data import Samples, load_samples
from dd_two_player.paper.device import computing
from dd_two_player.paper.experiment_config import GanStudyConfig
from gdyn_common.seeding import generator
from gdyn_reproduce import keys
from gdyn_reproduce.runs import Run

__all__ = ["Program", "arms_of", "build_program", "measure", "seconds_of", "train_setting"]

PICTURES = 36
DRAWN = 500  # samples per call of the generator


def arms_of(config: GanStudyConfig) -> dict[str, dict[str, Any]]:
    """Return every method of the comparison, as what it overrides in `TrainConfig`."""

    def both(group: str, **terms: float) -> dict[str, Any]:
        return {"grad_regularizes": {group: {"disc": terms, "gen": terms}}}

    cancel = both("dd_coeffs_multiplier", other_dot_prod=-1.0)
    double = both("dd_coeffs_multiplier", other_dot_prod=1.0)  # the opposite of cancelling, for controls
    norm, adam = config.strength, {"name": "adam", "lr": config.adam_rate}
    alternating = {"updates": {"scheme": "alternating"}}
    return {
        "plain": {},
        "cancel": cancel,
        "strengthen": both("dd_coeffs_multiplier", self_norm=1.0, other_dot_prod=-1.0),
        "double": double,
        "sga": both("explicit_non_dd_coeffs", other_norm=norm),
        "consensus": both("explicit_non_dd_coeffs", self_norm=norm, other_norm=norm),
        "alternating": alternating,
        "alternating_cancel": alternating | cancel,
        "alternating_double": alternating | double,
        "rk4": {"updates": {"scheme": "runge_kutta"}},
        "adam": alternating | {"optimizers": {"disc": adam, "gen": adam}},
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
        choice("arm", arm, tuple(arms_of(config)))
    with computing(config.device, config.dtype):
        return _measure(config, run)


def _measure(config: GanStudyConfig, run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    samples = load_samples(config.dataset, "train", config.data_root, download=config.download)
    run.note(data=samples.provenance)
    classifier = train_classifier(samples, steps=config.classifier_steps)
    count = min(config.eval_samples, len(samples))
    real = moments(classify(classifier, samples.scaled(slice(count)))[1])
    groups = [list(config.seeds)] if config.vmapped else [[seed] for seed in config.seeds]

    test = load_samples(config.dataset, "test", config.data_root, download=config.download)
    measured: dict[str, Any] = {"classifier_accuracy": accuracy(classifier, test)}
    arrays: dict[str, np.ndarray] = {}
    distances = np.zeros((len(config.arms), len(config.disc_rates), len(config.seeds)))
    untrained = np.zeros(distances.shape)
    for i, arm in enumerate(config.arms):
        program = build_program(config, samples, arm)
        for j, rates in enumerate(zip(config.disc_rates, config.gen_rates, strict=True)):
            hyper = program.hyper(rates)
            label = "{}@{:g}:{:g}".format(arm, *hyper.learning_rates)
            parts = []
            for group in groups:
                name = f"{label}/seeds={group}"
                train = partial(train_setting, config, run, samples, classifier, program, hyper, group, name)
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
        trainer: The arm as a training run.
        hyper: What it really uses at the learning rates of a setting.
        steps: Steps for a number of gradients per player.
        start: Draws the states of the given seeds, along a leading axis.
        advance: One step of all of them; the states given are used up.
        draws: Examples and latents of a step of the given seeds.
    """

    trainer: engine.Trainer
    hyper: Callable[[tuple[float, float]], Hyperparameters]
    steps: int
    start: Callable[[list[int]], TrainState]
    advance: Step
    draws: Callable[[list[int]], Callable[[int], Any]]


def build_program(config: GanStudyConfig, samples: Samples, arm: str) -> Program:
    """Return the compiled step of an arm; it compiles when it is first called."""
    overrides = arms_of(config)[arm]
    updates = {"estimator": config.estimator, "convention": config.convention} | overrides.get("updates", {})
    shared = {"dataset": config.dataset, "batch_size": config.batch_size, "nets": asdict(config.nets)}
    trainer = engine.build(keys.build(TrainConfig, overrides | shared | {"updates": updates}), samples.shape)
    raw, first = jnp.asarray(samples.raw), jax.jit(trainer.start)

    def start(seeds: list[int]) -> TrainState:
        states: TrainState = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(first, seeds))
        return states

    def advance(state: TrainState, hyper: Hyperparameters, drawn: Any) -> tuple[TrainState, Any]:
        chosen, latents = drawn
        data = (raw[chosen].astype(config.dtype) - samples.offset) / samples.scale
        return trainer.step(state, hyper, Batch(data, latents.astype(config.dtype)))

    def alone(states: TrainState, hyper: Hyperparameters, drawn: Any) -> tuple[TrainState, Any]:
        # not vmapped: a batch of kernels makes grouped convolutions, which are slow on the CPU
        state, one = jax.tree.map(lambda a: a[0], (states, drawn))
        moved: tuple[TrainState, Any] = jax.tree.map(lambda a: a[None], advance(state, hyper, one))
        return moved

    steps = config.num_steps // trainer.rule.stages
    return Program(
        trainer,
        lambda rates: trainer.hyper if arm == "adam" else trainer.hyper._replace(learning_rates=rates),
        steps,
        start,
        jax.jit(jax.vmap(advance, (0, None, 0)) if config.vmapped else alone, donate_argnums=0),
        lambda seeds: _draws(config, len(samples), seeds, steps, trainer.rule.batches_per_step),
    )


def seconds_of(config: GanStudyConfig) -> float:
    """Return the wall time of all training steps of a study, from a few steps of every arm on this machine.

    Compiling, some ten seconds per arm, and scoring are not in it.
    """
    samples = load_samples(config.dataset, "train", config.data_root, download=config.download)
    seeds = list(config.seeds) if config.vmapped else config.seeds[:1]
    runs, total = len(config.disc_rates) * (1 if config.vmapped else len(config.seeds)), 0.0
    with computing(config.device, config.dtype):
        for name in config.arms:
            program = build_program(config, samples, name)
            hyper = program.hyper((config.disc_rates[0], config.gen_rates[0]))
            draw = partial(program.draws(seeds), 0)  # always the first batch, however short the run
            seconds = engine.seconds_per_step(program.advance, program.start(seeds), hyper, draw)
            total += seconds * program.steps * runs
    return total


def train_setting(
    config: GanStudyConfig,
    run: Run,
    samples: Samples,
    classifier: Classifier,
    program: Program,
    hyper: Hyperparameters,
    seeds: list[int],
    name: str,
) -> dict[str, np.ndarray]:
    """Train one arm at the rates in ``hyper`` for a group of seeds in one program; resumable by chunks.

    Returns:
        Per seed: logits and features of samples after training, features before, a few samples, the
        discriminator's losses, whether everything stayed finite.
    """
    state = program.start(seeds)
    shape = (config.eval_samples, config.nets.num_latents)
    latents = generator(0, "gan-study", "evaluation").standard_normal(shape, dtype=np.float32)
    sample = jax.jit(program.trainer.gan.sample)

    def classified(state: TrainState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return samples, logits and features of every seed."""
        rows = []
        for k in range(len(seeds)):
            one = jax.tree.map(lambda leaf, k=k: leaf[k], state)
            parts = [latents[i : i + DRAWN] for i in range(0, len(latents), DRAWN)]
            images = np.concatenate([sample(one.params[1], one.state, z) for z in parts])
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

    def visit(done: int, state: TrainState, metrics: list[dict[str, Any]]) -> None:
        nonlocal history
        history = np.concatenate([history, np.stack([m["disc_loss"] for m in metrics], 1)], 1)
        if done < program.steps:
            checkpoint.save(done=np.asarray(done), history=history, **state_arrays(state))

    steps, draw = range(done, program.steps), program.draws(seeds)
    state = engine.run(program.advance, state, hyper, draw, steps, lambda n: n % config.chunk == 0, visit)
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
    config: GanStudyConfig, count: int, seeds: list[int], steps: int, width: int
) -> Callable[[int], Any]:
    """Return examples and latents by step, drawn by chunks on the host: the same for every arm."""

    @lru_cache(maxsize=1)
    def chunk(first: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (min(config.chunk, steps - first), width, config.batch_size)
        chosen, latents = [], []
        for seed in seeds:
            stream = generator(seed, "gan-study", first)
            chosen.append(stream.integers(count, size=shape, dtype=np.int32))
            latents.append(stream.standard_normal((*shape, config.nets.num_latents), dtype=np.float32))
        return np.stack(chosen), np.stack(latents)

    def draw(number: int) -> Any:
        first = number - number % config.chunk
        return tuple(a[:, number - first] for a in chunk(first))

    return draw
