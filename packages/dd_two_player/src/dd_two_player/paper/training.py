"""Training a GAN from a configuration: build, step, log, checkpoint, stop cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dd_two_player.gans.checkpoints import restore_checkpoint, save_checkpoint
from dd_two_player.gans.model import Gan
from dd_two_player.gans.optimizers import make_optimizer, make_schedule
from dd_two_player.gans.steps import (
    Hyperparameters,
    TrainState,
    UpdateRule,
    draw_latents,
    init_train_state,
    make_step,
)
from dd_two_player.paper.building import build_gan
from dd_two_player.paper.config import GradRegularizesConfig, OptimizerConfig, TrainConfig
from dd_two_player.paper.data import MIXTURES, BatchStream, Samples, load_samples
from dd_two_player.regularization import Regularization, active_terms
from gdyn_common.logging import JsonLines
from gdyn_common.storage import FolderLock, atomic_write, remove_folder
from gdyn_reproduce.provenance import collect
from gdyn_reproduce.records import dump_json
from gdyn_reproduce.runs import config_hash

__all__ = ["Trainer", "build", "run_folder", "train"]

RUN_KEYS = ("out", "overwrite", "dry_run", "num_steps", "log_every", "restore_path")


class Trainer(NamedTuple):
    """What a configuration stands for.

    Attributes:
        gan: Networks and losses.
        rule: The static structure of a step.
        hyper: Learning rates and coefficients.
        start: Draws the first train state.
        advance: ``(train state, hyper, data) -> (train state, metrics)``, jitted, its first argument donated.
        place: Puts the data of a step on the devices.
    """

    gan: Gan
    rule: UpdateRule
    hyper: Hyperparameters
    start: Callable[[], TrainState]
    advance: Callable[[TrainState, Hyperparameters, Any], tuple[TrainState, dict[str, Any]]]
    place: Callable[[np.ndarray], Any]


def build(config: TrainConfig, shape: tuple[int, ...]) -> Trainer:
    """Build networks, losses and the compiled step of a configuration for samples of a shape.

    Raises:
        ValueError: If values contradict each other or there are too few devices.
    """
    recipe = regularization(config.grad_regularizes)
    updates = config.updates
    rule = UpdateRule(
        scheme=updates.scheme,  # type: ignore[arg-type]  # UpdateRule checks it
        num_updates=(config.optimizers.disc.num_updates, config.optimizers.gen.num_updates),
        first=updates.first,  # type: ignore[arg-type]
        rk_order=updates.rk_order,
        convention=updates.convention,
        estimator=updates.estimator,
        mask=recipe.mask(),
        after_mask=active_terms(recipe.rk_after_explicit_coeffs),
        shared_batch=updates.shared_batch,
        fresh_stages=updates.rk_fresh_stages,
        shared_rate=updates.rk_shared_rate,
    )
    gan = build_gan(config.nets, config.losses, shape)
    optimizers = tuple(map(_optimizer, _both(config)))
    hyper = Hyperparameters(
        (config.optimizers.disc.lr, config.optimizers.gen.lr),
        recipe.dd_coeffs_multiplier,
        recipe.explicit_non_dd_coeffs,
        recipe.rk_after_explicit_coeffs,
    )
    step = make_step(
        gan,
        rule,
        optimizers,
        rate_schedule=_schedules(config),
        num_shards=config.device_count,
    )
    mesh = _mesh(config.device_count)
    batch_sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
    replicated = NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, donate_argnums=0)
    def advance(
        state: TrainState, hyper: Hyperparameters, data: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batches = draw_latents(state.key, state.step, data, gan.num_latents)
        batches = jax.lax.with_sharding_constraint(batches, batch_sharding)
        return step(state, hyper, batches)

    def start() -> TrainState:
        example = jax.numpy.zeros((2, *shape))
        state: TrainState = jax.jit(
            lambda key: init_train_state(gan, optimizers, key, example), out_shardings=replicated
        )(jax.random.key(config.seed))
        return state

    return Trainer(gan, rule, hyper, start, advance, lambda data: jax.device_put(data, batch_sharding))


def regularization(config: GradRegularizesConfig) -> Regularization:
    """Return the recipe of a configuration."""
    return Regularization.from_mapping(dataclasses.asdict(config))


def run_folder(config: TrainConfig) -> Path:
    """Return the folder of a run; options that do not change the path of training do not change it."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in RUN_KEYS}
    values["start"] = config.restore_path
    name = config_hash(json.loads(json.dumps(values)), "train-1")
    return Path(config.out) / "dd_two_player" / "train" / config.experiment / name


def train(config: TrainConfig) -> int:
    """Train as configured, resuming an unfinished run of the same configuration; the ``train`` command.

    Raises:
        FloatingPointError: If a loss is not finite, with the step; the last good checkpoint is kept.
        KeyboardInterrupt: After SIGINT or SIGTERM, once the state is saved.
    """
    _warn_about_momentum(config)
    samples = load_samples(config.dataset, "train", config.data_path)
    trainer = build(config, samples.shape)
    stream = BatchStream(samples, config.batch_size, config.seed)
    folder = run_folder(config)
    if config.dry_run:
        print(dump_json(dataclasses.asdict(config)))
        seconds = _seconds_per_step(trainer, stream)
        print(f"{seconds * 1e3:.1f} ms per step, {seconds * config.num_steps / 60:.1f} min in all: {folder}")
        return 0
    if config.overwrite:
        remove_folder(folder)
    with FolderLock(folder) as lock:
        return _train(config, samples, trainer, stream, lock)


def _train(
    config: TrainConfig, samples: Samples, trainer: Trainer, stream: BatchStream, lock: FolderLock
) -> int:
    from dd_two_player.paper import monitoring

    folder = lock.folder
    last = folder / "checkpoints" / "last.npz"
    state = _first_state(config, trainer, last)
    print(folder, flush=True)
    if int(state.step) >= config.num_steps:
        print(f"finished at step {int(state.step)}; raise num_steps= to continue, or pass overwrite=true")
        return 0
    atomic_write(folder / "config.json", dump_json(dataclasses.asdict(config)))
    atomic_write(folder / "provenance.json", dump_json(collect(0.0) | {"data": samples.provenance}))
    observer = monitoring.Observer(config, trainer, samples, folder)
    observer.rewind(int(state.step) + 1)
    tracker = JsonLines(folder / "metrics.jsonl")
    tracker.rewind(int(state.step) + 1)
    with _stop_requests() as stop, contextlib.closing(tracker):
        _loop(config, trainer, stream, state, last, tracker, observer, stop, lock)
    print(folder)
    return 0


def _loop(
    config: TrainConfig,
    trainer: Trainer,
    stream: BatchStream,
    state: TrainState,
    last: Path,
    tracker: JsonLines,
    observer: Any,
    stop: list[int],
    lock: FolderLock,
) -> None:
    pending: list[dict[str, Any]] = []
    first, started = int(state.step), time.perf_counter()
    for number in range(first, config.num_steps):
        data = trainer.place(stream.step(number, trainer.rule.batches_per_step))
        state, metrics = trainer.advance(state, trainer.hyper, data)
        pending.append(metrics)
        done = number + 1
        final, stopping = done == config.num_steps, bool(stop)  # a signal from here on waits one step
        saves = done % config.checkpoint_every == 0 or final or stopping
        if done % config.log_every == 0 or saves:
            values = jax.device_get(pending)
            pending.clear()
            if not config.continue_on_nan:
                _check_finite(values, done, last)
            if done % config.log_every == 0 or final:
                line = {k: float(v) for k, v in values[-1].items()}
                line["steps_per_second"] = (done - first) / (time.perf_counter() - started)
                tracker.log(done, line)
                shown = {k: v for k, v in line.items() if not k.startswith("singular_value")}
                print(dump_line({"step": done, **shown}), flush=True)
        if (saves or (config.eval_every and done % config.eval_every == 0)) and not config.continue_on_nan:
            _check_parameters(state, done, last)
        # Observed before it is saved: what a kill in between repeats, a resumed run has rewound.
        observer(done, state, final=final)
        if saves:
            lock.check()
            save_checkpoint(last, state)
        if stopping:
            raise KeyboardInterrupt


def dump_line(values: dict[str, Any]) -> str:
    """Return one line of JSON; what is not finite is spelled as a word, as in the records.

    >>> dump_line({"loss": float("nan")})
    '{"loss": "nan"}'
    """
    spelled = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(spelled, allow_nan=False)


def _check_parameters(state: TrainState, done: int, last: Path) -> None:
    """Refuse to save what the losses did not show yet: a finite loss whose update overflowed."""
    if not all(bool(jax.numpy.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params)):
        raise FloatingPointError(
            f"parameters are not finite after step {done}; {_kept(last)}. "
            "Lower the learning rates, or pass continue_on_nan=true."
        )


def _kept(last: Path) -> str:
    return f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was saved yet"


def _check_finite(values: list[dict[str, Any]], done: int, last: Path) -> None:
    for index, metrics in enumerate(values):
        for name in ("disc_loss", "gen_loss"):
            if not math.isfinite(metrics[name]):
                step = done - len(values) + index + 1
                raise FloatingPointError(
                    f"{name} is {float(metrics[name])} at step {step}; {_kept(last)}. "
                    "Lower the learning rates, or pass continue_on_nan=true."
                )


def _first_state(config: TrainConfig, trainer: Trainer, last: Path) -> TrainState:
    template = trainer.start()
    if last.exists():
        path = last
    elif config.restore_path:
        path = Path(config.restore_path)
        path = path / "checkpoints" / "last.npz" if path.is_dir() else path
    else:
        return template
    restored = restore_checkpoint(path, template)
    placed: TrainState = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), restored, template)
    return placed


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the loop ends after a whole step; a second one ends at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    # only the main thread may set handlers; in another one the caller's stay
    caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {s: signal.signal(s, note) for s in caught}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _mesh(device_count: int) -> Mesh:
    devices = jax.devices()
    if device_count > len(devices):
        raise ValueError(f"device_count is {device_count}; this machine shows JAX {len(devices)} device(s).")
    return Mesh(np.array(devices[:device_count]), ("data",))


def _optimizer(config: OptimizerConfig) -> Any:
    return make_optimizer(
        config.name,
        momentum=config.momentum,
        b1=config.b1,
        b2=config.b2,
        clip=config.clip,
        options=config.options,
    )


def _schedules(config: TrainConfig) -> Any:
    """Return the schedule of both players, one for each, or none."""
    shared, own = config.updates.rate_schedule, [o.rate_schedule for o in _both(config)]
    if not any(own):
        return make_schedule(shared) if shared else None
    both = make_schedule(shared)
    return tuple(lambda step, f=f: both(step) * f(step) for f in map(make_schedule, own))


def _both(config: TrainConfig) -> tuple[OptimizerConfig, OptimizerConfig]:
    return config.optimizers.disc, config.optimizers.gen


def _warn_about_momentum(config: TrainConfig) -> None:
    recipe = regularization(config.grad_regularizes)
    adaptive = any(o.name != "sgd" or o.momentum for o in _both(config))
    if adaptive and any(map(any, active_terms(recipe.dd_coeffs_multiplier))):
        import warnings

        warnings.warn(
            "drift coefficients are those of gradient descent; with any other optimiser they are a heuristic",
            stacklevel=2,
        )


def _seconds_per_step(trainer: Trainer, stream: BatchStream, steps: int = 3) -> float:
    state = trainer.start()
    data = trainer.place(stream.step(0, trainer.rule.batches_per_step))
    state, _ = trainer.advance(state, trainer.hyper, data)
    jax.block_until_ready(state.params)
    started = time.perf_counter()
    for _ in range(steps):
        state, _ = trainer.advance(state, trainer.hyper, data)
    jax.block_until_ready(state.params)
    return (time.perf_counter() - started) / steps


def is_image(samples: Samples) -> bool:
    """Return whether samples are images, not points of a mixture."""
    return samples.name not in MIXTURES and len(samples.shape) == 3
