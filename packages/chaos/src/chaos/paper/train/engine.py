"""``train``: one run of the paper's kind, with everything the option table can switch on.

Order within a step: gradient; Hessian where CGD, the tangent matrix or a measurement needs it; optimiser;
tangent matrix, with the Hessian from before the step; measurements. Steps are counted per model.
"""

from __future__ import annotations

import dataclasses
import secrets
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from chaos.eigenthings import Eigenthings, load_eigenthings, load_values_and_vectors
from chaos.models import cnn, mlp, seeded
from chaos.paper.calibration import announce, train_estimate
from chaos.paper.data import Data, configured, device_of
from chaos.paper.train.config import LoggingConfig, TrainConfig
from chaos.paper.train.ensemble import Ensemble
from chaos.paper.train.member import Member
from chaos.paper.train.trajectories import Trajectories
from chaos.paper.train.unread import check_read
from chaos.paper.training import model_seed
from chaos.perturbation import STRATEGIES, assignment, perturb
from gdyn_common.logging import MultiTracker
from gdyn_common.seeding import named_seed
from gdyn_common.storage import Arrays
from gdyn_reproduce import provenance
from gdyn_reproduce.records import Header, dump_json
from gdyn_reproduce.runs import Run, folder_of, settings, start_anew

_DECOMPOSITIONS = 50
_DEBUG_BATCHES = (3, 2)
_CALIBRATED_ABOVE = 200


def train(config: TrainConfig) -> int:
    """Run the command; prints the run folder first and last."""
    run_training(config)
    return 0


def run_training(config: TrainConfig) -> Path:
    """Train as configured and return the run folder.

    A finished run is not computed again; an unfinished one continues.

    Raises:
        ValueError: For combinations that cannot run, or options that are given and not read.
        FileNotFoundError: For missing data or eigenpairs.
    """
    check_read(config)
    return _run(config)


def _run(config: TrainConfig) -> Path:
    if config.seed is None:
        config = dataclasses.replace(config, seed=secrets.randbelow(2**31))
        print(f"seed={config.seed} was drawn; pass it to repeat this run")
    device = device_of(config)
    config, pairs = _with_directions(config)
    data = _data(config)
    folder = folder_of("chaos", config, "train")
    if config.dry_run:
        print(f"train would write {folder}")
        model = build_model(config, data, _drawn(config)).to(device)
        announce(train_estimate(config, data, model, pairs, *_length(config, data)))
        return folder
    if config.overwrite:
        start_anew(folder)
    if (folder / "summary.json").exists():
        print(f"{folder} is finished; overwrite=true computes it anew")
        return folder
    print(f"train -> {folder}", flush=True)
    header = Header(
        "chaos",
        provenance.package_version("chaos"),
        "",
        "train",
        "Sec. 3",
        "One training run.",
        "chaos.paper.train.engine",
        "",
        "scaled down",
    )
    with Run(folder, settings(config), header) as run:
        services = [] if config.logging.logger_type == "jsonl" else [config.logging.logger_type]
        tracker = MultiTracker(
            run.tracker, services, project=config.logging.project, offline=config.logging.offline
        )
        summary = Engine(config, data, run, tracker, pairs, device).run()
        tracker.close()
        run.save("summary.json", dump_json(summary | {"tags": list(config.logging.tags)}))
    print(f"finished: {folder}")
    return folder


class Engine:
    """A run in progress: the models, what is measured on them, and how it continues after a kill.

    Args:
        config: Options, with a seed.
        data: Training and validation set.
        run: Open run folder.
        tracker: Receives the metrics.
        pairs: Stored pairs for perturbations or global pruning.
        device: Where the models live.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        run: Run,
        tracker: MultiTracker,
        pairs: Eigenthings | None,
        device: torch.device,
    ) -> None:
        self.config, self.data, self.run_folder, self.seed = config, data, run, _drawn(config)
        self.tracker = tracker
        self.per_epoch = data.steps_per_epoch(config.batch_size)
        self.num_steps, every = _length(config, data)
        self._warn(every)
        if self.num_steps > _CALIBRATED_ABOVE:
            model = self._model(0, pairs).to(device)
            announce(train_estimate(config, data, model, pairs, self.num_steps, every))
        self.members = [
            Member(i, self._model(i, pairs).to(device), config, pairs, self.num_steps, every)
            for i in range(config.parallel)
        ]
        self.ensemble = Ensemble(self.members, config) if Ensemble.applies(config) else None
        self.trajectories = Trajectories(config, [member.model for member in self.members])
        self.step = 0

    def _model(self, i: int, pairs: Eigenthings | None) -> nn.Module:
        model = build_model(self.config, self.data, self.seed)
        if i > 0:
            strategy, size = assignment(i, self.config.perturb_strat, self.config.perturb_eps)
            generator = torch.Generator().manual_seed(named_seed(self.seed, "perturbation", i))
            perturb(model, size, strategy, pairs, generator)
        return model

    def _warn(self, every: int) -> None:
        config, logging = self.config, self.config.logging
        if config.perturb_strat == "all" and config.parallel < 6:
            missing = ", ".join(STRATEGIES[config.parallel - 1 :])
            print(
                f"note: parallel={config.parallel} runs the origin and {config.parallel - 1} perturbed; "
                f"{missing} is missing. parallel=6 runs all five.",
                file=sys.stderr,
            )
        if config.parallel > 1 and (logging.log_eigenthings or logging.log_lyapunov):
            print(f"note: Hessian logging costs {config.parallel} times as much here", file=sys.stderr)
        if logging.log_lyapunov and not logging.lyapunov_freq:
            print(
                f"note: the tangent matrix is decomposed every {every} steps (logging.lyapunov_freq)",
                file=sys.stderr,
            )
        times = [*(logging.t_lya_subsim or []), *(logging.t_hessian_subsim or [])]
        late = [t for t in times if t > self.num_steps]
        if config.optim.name == "cgd" and config.optim.prune_start >= self.num_steps:
            print(
                f"note: optim.prune_start={config.optim.prune_start} lies beyond the run's "
                f"{self.num_steps} steps, so nothing is pruned",
                file=sys.stderr,
            )
        at, epochs = logging.save_lyapunov_at, self.num_steps // self.per_epoch
        if at is not None and not 0 <= at < epochs:
            raise ValueError(
                f"logging.save_lyapunov_at={at} is no epoch of this run, which has {epochs}, counted from 0."
            )
        if late:
            print(f"note: subspace times {late} lie beyond the run's {self.num_steps} steps", file=sys.stderr)

    def run(self) -> dict[str, object]:
        """Train to the end; return the last validation metrics."""
        checkpoint = self.run_folder.checkpoint("train")
        saved = checkpoint.load()
        if saved is not None:
            self._restore(saved)
        self.tracker.rewind(self.step + 1)
        for member in self.members:
            member.rewind(self.run_folder.folder, self.step)
        batches = self.data.batches(self.seed, self.config.batch_size, self.step)
        summary: dict[str, object] = {}
        for step in self.run_folder.progress(range(self.step, self.num_steps), "training"):
            rows = next(batches)
            x, y = self.data.x_train[rows], self.data.y_train[rows]
            metrics: dict[str, float] = {}
            if self.ensemble is not None:
                metrics |= self.ensemble.advance(step, x, y)
            else:
                for member in self.members:
                    metrics |= member.advance(step, x, y, self.run_folder.folder)
            self.step = step + 1
            metrics |= self.trajectories.measure(self.step)
            if self.step % self.per_epoch == 0 or self.step == self.num_steps:
                summary = self._validate()
                metrics |= summary  # type: ignore[arg-type]
                self._end_of_epoch((self.step - 1) // self.per_epoch)
            if metrics:
                self.tracker.log(self.step, metrics)
            if self.step % self.config.checkpoint_every == 0:
                checkpoint.save(**self._state())
        self._finish()
        return {"num_steps": self.num_steps, "seed": self.seed, **(summary or self._validate())}

    @torch.no_grad()
    def _validate(self) -> dict[str, object]:
        out: dict[str, object] = {}
        for member in self.members:
            output = member.model(self.data.x_test)
            hits = output.argmax(1) == self.data.y_test
            out[f"val_acc{member.index}"] = float(hits.double().mean())
            out[f"val_loss{member.index}"] = float(nn.functional.cross_entropy(output, self.data.y_test))
        return out

    def _end_of_epoch(self, epoch: int) -> None:
        if epoch == self.config.logging.save_lyapunov_at and self.step % self.per_epoch == 0:
            for member in self.members:
                member.save_eigenthings(self.run_folder.folder, f"epoch{epoch}", self.seed)

    def _finish(self) -> None:
        if self.config.logging.save_eigenthings:
            for member in self.members:
                print(f"stored {member.save_eigenthings(self.run_folder.folder, 'final', self.seed)}")
        self.trajectories.finish(self.run_folder.folder)

    def _state(self) -> Arrays:
        state: Arrays = {"step": np.array(self.step)} | self.trajectories.state()
        for member in self.members:
            state |= {f"{member.index}/{key}": value for key, value in member.state().items()}
        return state if self.ensemble is None else state | self.ensemble.state()

    def _restore(self, saved: Arrays) -> None:
        self.step = int(saved["step"])
        self.trajectories.restore(saved)
        for member in self.members:
            prefix = f"{member.index}/"
            member.restore(
                {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}, self.step
            )
        if self.ensemble is not None:
            self.ensemble.restore(saved)


def build_model(config: TrainConfig, data: Data, seed: int) -> nn.Module:
    """The configured network at the initialisation of a seed.

    Raises:
        ValueError: If a cnn is asked for images that are not 16 x 16.
    """
    m = config.model
    if m.name == "mlp":
        build = lambda: mlp(data.num_inputs, m.inter_dim, 10, m.activation, m.batch_norm)  # noqa: E731
    else:
        if data.x_train.shape[-1] != 16:
            raise ValueError(f"model.name=cnn needs 16 x 16 images; dataset={config.dataset} has others.")
        build = lambda: cnn(m.base_channels, m.block_cnt, 10, m.activation, m.batch_norm)  # noqa: E731
    return seeded(build, model_seed(seed), getattr(torch, config.dtype))


def _drawn(config: TrainConfig) -> int:
    assert config.seed is not None
    return config.seed


def _length(config: TrainConfig, data: Data) -> tuple[int, int]:
    """Return the number of steps of a run and the steps between decompositions of the tangent matrix."""
    per_epoch = data.steps_per_epoch(config.batch_size)
    num_steps = config.max_epochs * per_epoch if config.num_steps is None else config.num_steps
    return num_steps, config.logging.lyapunov_freq or max(1, num_steps // _DECOMPOSITIONS)


def _data(config: TrainConfig) -> Data:
    data = configured(dataclasses.replace(config, dataset="digits16") if config.debug else config)
    a, b = (count * config.batch_size if config.debug else None for count in _DEBUG_BATCHES)
    return Data(data.x_train[:a], data.y_train[:a], data.x_test[:b], data.y_test[:b], data.source)


def _with_directions(config: TrainConfig) -> tuple[TrainConfig, Eigenthings | None]:
    """Load the stored pairs that the options name, or make them in a first run."""
    logging, optim = config.logging, config.optim
    if optim.prune_global:
        path = optim.prune_global_checkpoint or config.eigenthings_path
        if path is None:
            print("note: prune_global trains normally first, to make its directions", file=sys.stderr)
            first = dataclasses.replace(
                config,
                parallel=1,
                perturb_strat=None,
                optim=dataclasses.replace(optim, name="sgd", prune_global=False),
                logging=LoggingConfig(
                    log_eigenthings=False,
                    save_eigenthings=True,
                    log_freq=logging.log_freq,
                    logger_type="jsonl",
                ),
            )
            path = str(_run(first) / "eigenthings-final-0.npz")
        return config, load_eigenthings(path)
    if config.perturb_strat is None:
        return config, None
    if logging.lyapunov_perturb_vecs is not None and logging.lyapunov_perturb_vals is not None:
        return config, load_values_and_vectors(logging.lyapunov_perturb_vals, logging.lyapunov_perturb_vecs)
    path = logging.lyapunov_perturb_eigs or config.eigenthings_path
    return config, None if path is None else load_eigenthings(path)
