"""The ``train`` command: one run with its folder, logs and checkpoints, resumable after any stop."""

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
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dd_two_player.gans.checkpoints import restore_checkpoint, save_checkpoint
from dd_two_player.gans.steps import Hyperparameters, Step, TrainState, draw_latents
from dd_two_player.paper import engine
from dd_two_player.paper.classifiers import Classifier, load_classifier
from dd_two_player.paper.config import TrainConfig, choice
from dd_two_player.paper.data import MIXTURES, BatchStream, Samples, load_samples
from dd_two_player.paper.device import computing, devices_of
from dd_two_player.paper.unread import check_read
from dd_two_player.regularization import active_terms
from gdyn_common.logging import JsonLines
from gdyn_common.storage import RECOMPUTE, FolderLock, atomic_write
from gdyn_reproduce.provenance import collect
from gdyn_reproduce.records import dump_json
from gdyn_reproduce.runs import config_hash, hold, start_anew

__all__ = ["run_folder", "train"]

RUN_KEYS = ("out", "overwrite", "dry_run", "num_steps", "log_every", "restore_path", "download")
LAST = Path("checkpoints", "last.npz")


def run_folder(config: TrainConfig) -> Path:
    """Return the folder of a run; options that do not change the path of training do not change it."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in RUN_KEYS}
    values["start"] = config.restore_path
    name = config_hash(json.loads(json.dumps(values)), "train-1")
    return Path(config.out) / "dd_two_player" / "train" / config.experiment / name


def train(config: TrainConfig) -> int:
    """Train as configured, resuming an unfinished run of the same configuration; the ``train`` command.

    Raises:
        ValueError: If an option has no effect beside the others.
        FloatingPointError: If a loss is not finite, with the step; the last good checkpoint is kept.
        KeyboardInterrupt: After SIGINT or SIGTERM, once the state is saved.
    """
    check_read(config)
    with computing(config.device, config.dtype):
        _warn_about_momentum(config)
        samples = load_samples(config.dataset, "train", config.data_root, download=config.download)
        classifier = _own_classifier(config, samples)
        trainer = engine.build(config, samples.shape)
        stream = BatchStream(samples, config.batch_size, config.seed)
        start, advance, draw = _placed(config, trainer, stream)
        folder = run_folder(config)
        if config.dry_run:
            print(dump_json(dataclasses.asdict(config)))
            seconds = engine.seconds_per_step(advance, start(config.seed), trainer.hyper, partial(draw, 0))
            minutes = seconds * config.num_steps / 60
            print(f"{seconds * 1e3:.1f} ms per step, {minutes:.1f} min in all: {folder}")
            return 0
        if config.overwrite:
            start_anew(folder)
        with hold(folder) as lock:
            state = _first_state(config, start(config.seed), folder / LAST)
            return _train(config, samples, classifier, trainer, state, advance, draw, lock)


def _own_classifier(config: TrainConfig, samples: Samples) -> Classifier | None:
    """Return the classifier of the scores, if it is one of the user's: a wrong one ends before it starts."""
    if samples.name in MIXTURES:
        choice("classifier", config.classifier, ("auto", "modes", "none"))
        return None
    if config.classifier in ("auto", "none"):
        return None
    return load_classifier(config.classifier, samples)


def _placed(
    config: TrainConfig, trainer: engine.Trainer, stream: BatchStream
) -> tuple[Callable[[int], TrainState], Step, Callable[[int], Any]]:
    """Return start, compiled step and data of a run on its devices; every batch is shared by all of them."""
    devices = devices_of(config.device)
    if config.device_count > len(devices):
        raise ValueError(
            f"device_count is {config.device_count}; this machine shows JAX {len(devices)} device(s)."
        )
    mesh = Mesh(np.array(devices[: config.device_count]), ("data",))
    shared = NamedSharding(mesh, PartitionSpec(None, "data"))

    @partial(jax.jit, donate_argnums=0)
    def advance(
        state: TrainState, hyper: Hyperparameters, data: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batches = draw_latents(state.key, state.step, data, trainer.gan.num_latents)
        return trainer.step(state, hyper, jax.lax.with_sharding_constraint(batches, shared))

    def draw(number: int) -> Any:
        data = stream.step(number, trainer.rule.batches_per_step)
        return jax.device_put(data.astype(config.dtype), shared)

    return jax.jit(trainer.start, out_shardings=NamedSharding(mesh, PartitionSpec())), advance, draw


def _train(
    config: TrainConfig,
    samples: Samples,
    classifier: Classifier | None,
    trainer: engine.Trainer,
    state: TrainState,
    advance: Step,
    draw: Callable[[int], Any],
    lock: FolderLock,
) -> int:
    from dd_two_player.paper import monitoring

    folder, last, first = lock.folder, lock.folder / LAST, int(state.step)
    print(folder, flush=True)
    if first >= config.num_steps:
        print(f"finished at step {first}; raise num_steps= to continue, or pass overwrite=true")
        return 0
    atomic_write(folder / "config.json", dump_json(dataclasses.asdict(config)))
    atomic_write(folder / "provenance.json", dump_json(collect(0.0) | {"data": samples.provenance}))
    observer = monitoring.Observer(config, trainer.gan, samples, folder, classifier)
    observer.rewind(first + 1)
    tracker = JsonLines(folder / "metrics.jsonl")
    tracker.rewind(first + 1)
    since = [first, time.perf_counter()]  # the end of the last visit: pictures and scores are not counted

    def visit(done: int, state: TrainState, metrics: list[dict[str, Any]]) -> None:
        final = done == config.num_steps
        rate = (done - since[0]) / (time.perf_counter() - since[1])
        if not config.continue_on_nan:
            _check_finite(metrics, state, done, last)
        if done % config.log_every == 0 or final:
            line = {k: float(v) for k, v in metrics[-1].items()} | {"steps_per_second": rate}
            tracker.log(done, line)
            shown = {k: v for k, v in line.items() if not k.startswith("singular_value")}
            print(dump_line({"step": done, **shown}), flush=True)
        # Observed before it is saved: what a kill in between repeats, a resumed run has rewound.
        observer(done, state, final=final)
        if done % config.checkpoint_every == 0 or final or stop:
            lock.check()
            save_checkpoint(last, state)
        since[:] = done, time.perf_counter()

    # the step that compiles is visited as well, which starts the clock anew
    every = [
        n for n in (config.log_every, config.checkpoint_every, config.sample_every, config.eval_every) if n
    ]
    with _stop_requests() as stop, contextlib.closing(tracker):
        steps = range(first, config.num_steps)
        due = lambda done: done == first + 1 or any(done % n == 0 for n in every)  # noqa: E731
        engine.run(advance, state, trainer.hyper, draw, steps, due, visit, stop)
    lock.check()  # what is said to be there is there
    print(folder)
    return 0


def dump_line(values: dict[str, Any]) -> str:
    """Return one line of JSON; what is not finite is spelled as a word, as in the records.

    >>> dump_line({"loss": float("nan")})
    '{"loss": "nan"}'
    """
    spelled = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(spelled, allow_nan=False)


def _check_finite(values: list[dict[str, Any]], state: TrainState, done: int, last: Path) -> None:
    """Refuse to go on, and to save what the losses do not show yet: a finite loss whose update overflowed."""
    bad = None
    for step, metrics in enumerate(values, done - len(values) + 1):
        for name in ("disc_loss", "gen_loss"):
            if bad is None and not math.isfinite(metrics[name]):
                bad = f"{name} is {float(metrics[name])} at step {step}"
    if bad is None and not all(
        bool(jax.numpy.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params)
    ):
        bad = f"parameters are not finite after step {done}"
    if bad is not None:
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was saved yet"
        raise FloatingPointError(f"{bad}; {kept}. Lower the learning rates, or pass continue_on_nan=true.")


def _first_state(config: TrainConfig, template: TrainState, last: Path) -> TrainState:
    if last.exists():
        restored = restore_checkpoint(last, template, advice=RECOMPUTE)
    elif config.restore_path:
        path = Path(config.restore_path)
        path = path / LAST if path.is_dir() else path
        restored = restore_checkpoint(path, template)
    else:
        return template
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


def _warn_about_momentum(config: TrainConfig) -> None:
    recipe = engine.regularization(config.grad_regularizes)
    adaptive = any(o.name != "sgd" or o.momentum for o in (config.optimizers.disc, config.optimizers.gen))
    if adaptive and any(map(any, active_terms(recipe.dd_coeffs_multiplier))):
        import warnings

        warnings.warn(
            "drift coefficients are those of gradient descent; with any other optimiser they are a heuristic",
            stacklevel=2,
        )
