"""Comparing update rules on one GAN task: which runs diverge, and how close the samples come to the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dd_two_player import losses
from dd_two_player.classifiers import Classifier, train_classifier
from dd_two_player.config import choice
from dd_two_player.data import Samples, load_samples
from dd_two_player.evaluation import classify, frechet_distance, moments
from dd_two_player.experiment_config import GanStudyConfig
from dd_two_player.gan import Batch, Gan
from dd_two_player.networks import build_discriminator, build_generator
from dd_two_player.optimizers import make_optimizer
from dd_two_player.regularization import Regularization
from dd_two_player.steps import (
    Hyperparameters,
    TrainState,
    UpdateRule,
    init_train_state,
    make_step,
)
from gdyn_common.runs import Run
from gdyn_common.seeding import generator

__all__ = ["ARMS", "Arm", "measure", "train_setting"]

PICTURES = 36


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
    "sga": Arm(recipe="sga"),
    "consensus": Arm(recipe="consensus"),
    "alternating": Arm("alternating"),
    "alternating_cancel": Arm("alternating", "cancel_interaction"),
    "rk4": Arm("runge_kutta", gradients_per_step=4),
    "adam": Arm("alternating", optimizer="adam"),
}


def measure(config: GanStudyConfig, run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train every arm at every pair of rates and score it.

    Returns:
        Measurements and arrays. Per arm and pair of rates: ``distance`` (Frechet classifier distance at the
        end, per seed), ``diverged`` (not finite, or further from the data than the untrained generator). Per
        arm over all rates: ``<arm>_diverged_share`` and ``<arm>_distance_ratio``, the geometric mean over
        rates of its distance over that of the first arm, per seed; a diverged run counts with the untrained
        distance.
    """
    for arm in config.arms:
        choice("arm", arm, tuple(ARMS))
    samples = load_samples(config.dataset, "train", config.data_path)
    run.note(data=samples.provenance)
    classifier = train_classifier(samples, steps=config.classifier_steps)
    count = min(config.eval_samples, len(samples))
    real = moments(classify(classifier, samples.scaled(slice(count)))[1])
    groups = [list(range(config.num_seeds))] if config.vmapped else [[s] for s in range(config.num_seeds)]

    measured: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    scores = np.zeros((len(config.arms), len(config.disc_rates), config.num_seeds))
    diverged = np.zeros(scores.shape, bool)
    for i, arm in enumerate(config.arms):
        for j, rates in enumerate(zip(config.disc_rates, config.gen_rates, strict=True)):
            label = f"{arm}@{rates[0]:g}:{rates[1]:g}"
            parts = [
                run.piece(
                    f"{label}/seeds={group}",
                    partial(
                        train_setting,
                        config,
                        run,
                        samples,
                        classifier,
                        arm,
                        rates,
                        group,
                        f"{label}/seeds={group}",
                    ),
                )
                for group in groups
            ]
            drawn = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for k in range(config.num_seeds):
                untrained = frechet_distance(real, moments(drawn["untrained_features"][k]))
                features = drawn["features"][k]
                finite = bool(np.isfinite(features).all() and drawn["finite"][k])
                distance = frechet_distance(real, moments(features)) if finite else np.inf
                diverged[i, j, k] = distance > untrained
                scores[i, j, k] = min(distance, untrained)
            measured[f"{label}/distance"] = scores[i, j].tolist()
            measured[f"{label}/diverged"] = diverged[i, j].tolist()
            arrays[f"{label}/pictures"] = drawn["pictures"][0]
            arrays[f"{label}/disc_loss"] = drawn["disc_loss"]
    ratios = np.exp(np.log(scores / scores[:1]).mean(1))
    for i, arm in enumerate(config.arms):
        measured[f"{arm}_diverged_share"] = float(diverged[i].mean())
        measured[f"{arm}_distance"] = scores[i].mean(0).tolist()
        measured[f"{arm}_distance_ratio"] = ratios[i].tolist()
    return measured, arrays | {"scores": scores, "diverged": diverged}


def train_setting(
    config: GanStudyConfig,
    run: Run,
    samples: Samples,
    classifier: Classifier,
    arm: str,
    rates: tuple[float, float],
    seeds: list[int],
    name: str,
) -> dict[str, np.ndarray]:
    """Train one arm at one pair of rates for a group of seeds in one program; resumable by chunks.

    Returns:
        Per seed: classifier features of samples before and after, a few samples, the discriminator's losses,
        whether everything stayed finite.
    """
    gan, width, start, advance = _program(config, samples, ARMS[arm], rates)
    steps = config.num_steps // ARMS[arm].gradients_per_step
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start(seed) for seed in seeds))
    shape = (config.eval_samples, config.nets.num_latents)
    latents = generator(0, "gan-study", "evaluation").standard_normal(shape, dtype=np.float32)
    draw = jax.jit(jax.vmap(lambda s: gan.sample(s.params[1], s.state, latents)))

    def features(state: TrainState) -> np.ndarray:
        images = np.nan_to_num(np.asarray(draw(state)), nan=0.0, posinf=1.0, neginf=-1.0)
        return np.stack([classify(classifier, group)[1] for group in images])

    untrained = features(state)
    checkpoint = run.checkpoint(name)
    done, history = 0, np.zeros((len(seeds), 0), np.float32)
    saved = checkpoint.load()
    if saved is not None:
        done, history = int(saved["done"]), saved["history"]
        state = _unpack(saved, state)
    while done < steps:
        length = min(config.chunk, steps - done)
        state, values = advance(state, _draws(config, samples, seeds, done, length, width))
        done, history = done + length, np.concatenate([history, np.asarray(values)], 1)
        if done < steps:
            checkpoint.save(done=np.asarray(done), history=history, **_pack(state))
    finite = np.array(
        [all(np.isfinite(a[k]).all() for a in _arrays(state.params)) for k in range(len(seeds))]
    )
    pictures = np.asarray(draw(state))[:, :PICTURES]
    checkpoint.clear()
    return {
        "features": features(state),
        "untrained_features": untrained,
        "pictures": pictures,
        "disc_loss": history,
        "finite": finite & np.isfinite(pictures).all(tuple(range(1, pictures.ndim))),
    }


def _program(config: GanStudyConfig, samples: Samples, arm: Arm, rates: tuple[float, float]) -> Any:
    """Return the GAN, the initialiser of one seed, and the chunked, vmapped training loop."""
    nets = config.nets
    gan = Gan(
        build_discriminator(nets.disc, nets.hidden, nets.convolution),  # type: ignore[arg-type]
        build_generator(nets.gen, samples.shape, nets.hidden, nets.convolution),  # type: ignore[arg-type]
        losses.discriminator_goodfellow_loss,
        losses.generator_saturating_loss,
        nets.num_latents,
        nets.spectral_norm,  # type: ignore[arg-type]
    )
    recipe = _recipe(arm.recipe, config.strength)
    rule = UpdateRule(
        arm.scheme,  # type: ignore[arg-type]
        convention=config.convention,
        estimator=config.estimator,
        mask=recipe.mask(),
    )
    optimizers = (make_optimizer(arm.optimizer), make_optimizer(arm.optimizer))
    used = (config.adam_rate, config.adam_rate) if arm.optimizer == "adam" else rates
    hyper = Hyperparameters(used, recipe.dd_coeffs_multiplier, recipe.explicit_non_dd_coeffs)
    step = make_step(gan, rule, optimizers)
    raw = jnp.asarray(samples.raw)

    def start(seed: int) -> TrainState:
        example = jnp.zeros((2, *samples.shape))
        return init_train_state(gan, optimizers, jax.random.key(seed), example)

    def one(state: TrainState, drawn: tuple[Any, Any]) -> tuple[TrainState, Any]:
        chosen, latents = drawn
        data = (raw[chosen].astype(jnp.float32) - samples.offset) / samples.scale
        moved, metrics = step(state, hyper, Batch(data, latents))
        return moved, metrics["disc_loss"]

    advance = jax.jit(jax.vmap(lambda state, drawn: jax.lax.scan(one, state, drawn)))
    return gan, rule.batches_per_step, start, advance


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
    if name in ("sga", "consensus"):
        return getattr(Regularization, name)(strength)  # type: ignore[no-any-return]
    return getattr(Regularization, name)()  # type: ignore[no-any-return]


def _arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _pack(state: TrainState) -> dict[str, np.ndarray]:
    plain = state._replace(key=jax.random.key_data(state.key))
    return {f"leaf{i}": leaf for i, leaf in enumerate(_arrays(plain))}


def _unpack(saved: dict[str, np.ndarray], state: TrainState) -> TrainState:
    plain = state._replace(key=jax.random.key_data(state.key))
    structure = jax.tree.structure(plain)
    leaves = [jnp.asarray(saved[f"leaf{i}"]) for i in range(len(jax.tree.leaves(plain)))]
    restored: TrainState = jax.tree.unflatten(structure, leaves)
    return restored._replace(key=jax.random.wrap_key_data(restored.key))
