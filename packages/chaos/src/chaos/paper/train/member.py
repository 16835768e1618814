"""One model of a run with its optimiser, its tangent matrix and its measurements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chaos.cgd import CGD
from chaos.eigenthings import Eigenthings
from chaos.lyapunov import LyapunovTracker
from chaos.o2grad import Eigenpairs, Hessian, LossSurface
from chaos.paper.train.config import TrainConfig
from chaos.paper.training import momentum_state, restore_momentum
from chaos.spectra import gradient_metrics, hessian_metrics, lyapunov_metrics, signal_to_noise
from chaos.subspace import random_similarity, subspace_similarity
from gdyn_common.logging import JsonLines
from gdyn_common.seeding import named_seed
from gdyn_common.storage import Arrays


class Member:
    """A model in training.

    Args:
        index: 0 is the unperturbed origin.
        model: Trained in place.
        config: Options.
        pairs: Stored pairs for global pruning.
        num_steps: Length of the run.
        lyapunov_freq: Steps between decompositions.
    """

    def __init__(
        self,
        index: int,
        model: nn.Module,
        config: TrainConfig,
        pairs: Eigenthings | None,
        num_steps: int,
        lyapunov_freq: int,
    ) -> None:
        self.index, self.model, self.config, self.num_steps = index, model, config, num_steps
        self.logging, self.lyapunov_freq = config.logging, lyapunov_freq
        self.loss = nn.CrossEntropyLoss()
        self.surface = LossSurface(model, self.loss)
        self.optimizer = self._optimizer(pairs)
        log = self.logging
        self.tracker = (
            LyapunovTracker(
                self.surface.n,
                config.optim.lr,
                config.optim.momentum,
                dtype=self.surface.dtype,
                recurrence=log.recurrence,
            )
            if log.needs_tangent
            else None
        )
        self.previous: Tensor | None = None
        self.window: list[Tensor] = []
        self.bases: dict[str, Tensor] = {}

    def _optimizer(self, pairs: Eigenthings | None) -> torch.optim.SGD:
        o = self.config.optim
        if o.name == "sgd":
            return torch.optim.SGD(self.model.parameters(), lr=o.lr, momentum=o.momentum)
        assert self.config.seed is not None
        generator = torch.Generator().manual_seed(named_seed(self.config.seed, "cgd", self.index))
        dtype = self.surface.dtype
        return CGD(
            self.model.parameters(),
            lr=o.lr,
            momentum=o.momentum,
            k=o.k,
            prune_set=o.prune_set,
            prune_k=o.prune_k,
            prune_start=o.prune_start,
            prune_global=o.prune_global,
            global_eigenpairs=(pairs.exponents.to(dtype), pairs.vectors.to(dtype))
            if o.prune_global and pairs is not None
            else None,
            noise=o.noise,
            noise_fac=o.noise_fac,
            generator=generator,
        )

    # one step -----------------------------------------------------------------------------------

    def advance(self, step: int, x: Tensor, y: Tensor, folder: Path) -> dict[str, float]:
        """Take step number ``step`` (from 0) and return what is due to be logged."""
        self.model.train()
        self.optimizer.zero_grad()
        output = self.model(x)
        value = self.loss(output, y)
        value.backward()
        g = torch.cat([p.grad.reshape(-1) for p in self.model.parameters() if p.grad is not None])
        metrics = self.first_order(step, value.detach(), output.detach(), g, y)
        pruning = isinstance(self.optimizer, CGD) and self.optimizer.needs_curvature
        H = pairs = None
        if pruning or self.tracker is not None or self._needs_spectrum(step):
            H = self.surface.hessian(None, x, y)
            pairs = self._eigh(H) if pruning or self._needs_spectrum(step) else None
        if H is not None and pairs is not None:
            metrics |= self._spectrum(step, H, pairs, g, folder)
        if isinstance(self.optimizer, CGD):
            self.optimizer.step(pairs if pruning else None)
            if step % self.logging.log_freq == 0 and self.optimizer.last_pairs is not None:
                metrics["cgd:pruned_fraction"] = self.optimizer.last_pruned_fraction
        else:
            self.optimizer.step()
        if self.tracker is not None and H is not None:
            metrics |= self._tangent(H)
        self.previous = g
        return self.named(metrics)

    def first_order(self, step: int, value: Tensor, output: Tensor, g: Tensor, y: Tensor) -> dict[str, float]:
        """Measurements before a step that need no curvature.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"The loss of model {self.index} is not finite at step {step}; lower optim.lr."
            )
        due = step % self.logging.log_freq == 0
        metrics = self._signal(g, due)
        if due:
            metrics["acc"] = float((output.argmax(1) == y).double().mean())
            metrics["loss"] = float(value)
        return metrics

    def named(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics under this model's names; those of the origin have no prefix."""
        return metrics if self.index == 0 else {f"model{self.index}/{key}": v for key, v in metrics.items()}

    def _needs_spectrum(self, step: int) -> bool:
        log = self.logging
        if (log.log_eigenthings or log.log_subsim) and step % log.log_freq == 0:
            return True
        if log.log_subsim and step in self._hessian_times():
            return True
        return any(
            every and step % every == 0
            for every in (log.plot_eigs_every, log.plot_mats_every, log.save_hessian_dist_every)
        )

    def _eigh(self, H: Hessian) -> Eigenpairs:
        shift = self.config.eps_eigh
        if not shift:
            return H.eigh()
        values, vectors = torch.linalg.eigh(H.core + shift * torch.eye(len(H.core), dtype=H.core.dtype))
        return Eigenpairs.from_pairs(values - shift, vectors, H.frame)

    # measurements -------------------------------------------------------------------------------

    def _spectrum(
        self, step: int, H: Hessian, pairs: Eigenpairs, g: Tensor, folder: Path
    ) -> dict[str, float]:
        log = self.logging
        metrics: dict[str, float] = {}
        if log.log_eigenthings and step % log.log_freq == 0:
            metrics |= hessian_metrics(pairs, self.config.optim.lr)
            metrics |= gradient_metrics(H, pairs, g, self.previous)
        if log.log_subsim:
            spaces = {"neg": pairs.vectors[:, pairs.negative()], "pos": pairs.vectors[:, pairs.positive()]}
            metrics |= self._similarities("hessian", step, self._hessian_times(), spaces)
        if log.save_hessian_dist_every and step % log.save_hessian_dist_every == 0:
            line = json.dumps({"step": step, "num_zero": pairs.num_zero, "values": pairs.values.tolist()})
            with self._spectra_file(folder).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if log.plot_eigs_every and step % log.plot_eigs_every == 0:
            _draw_spectrum(pairs, folder / f"plots/eigenvalues-{self.index}-{step:06d}")
        if log.plot_mats_every and step % log.plot_mats_every == 0:
            _draw_matrix(H, folder / f"plots/hessian-{self.index}-{step:06d}")
        return metrics

    def _tangent(self, H: Hessian) -> dict[str, float]:
        assert self.tracker is not None
        o, log = self.optimizer, self.logging
        keep = None
        if isinstance(o, CGD) and o.last_pairs is not None and o.last_discard is not None:
            keep = (o.last_pairs, o.last_discard)
        self.tracker.update(H, keep)
        t = self.tracker.num_steps
        metrics: dict[str, float] = {}
        if log.log_lyapunov and t % self.lyapunov_freq == 0:
            metrics |= lyapunov_metrics(self.tracker.spectrum())
        times = [int(time) for time in log.t_lya_subsim or []]
        if log.log_lyapunov_subsim and (t % self.lyapunov_freq == 0 or t in times):
            exponents, V = self.tracker.vectors()
            spaces = {"chaotic": V[:, exponents > 0], "non_chaotic": V[:, exponents <= 0]}
            metrics |= self._similarities("lyapunov", t, times, spaces)
        return metrics

    def _similarities(
        self, kind: str, step: int, times: list[int], spaces: dict[str, Tensor]
    ) -> dict[str, float]:
        if step in times:
            self.bases |= {f"{kind}/{step}/{name}": basis.clone() for name, basis in spaces.items()}
        metrics = {}
        for key, reference in self.bases.items():
            owner, t, a = key.split("/")
            if owner != kind:
                continue
            for b, basis in spaces.items():
                if reference.shape[1] and basis.shape[1]:
                    label = f"subsim/{kind}-t={t}:"
                    metrics[f"{label}{a}-{b}"] = subspace_similarity(reference, basis)
                    metrics[f"{label}baseline,{a}-{b}"] = random_similarity(
                        reference.shape[1], basis.shape[1], self.surface.n
                    )
        return metrics

    def _hessian_times(self) -> list[int]:
        return [int(t) for t in self.logging.t_hessian_subsim or self.logging.t_lya_subsim or []]

    def _signal(self, g: Tensor, due: bool) -> dict[str, float]:
        size = self.logging.signal_noise_window
        if not size:
            return {}
        self.window = [*self.window, g][-size:]
        if not due or len(self.window) < size:
            return {}
        return {"gradient:signal_noise": signal_to_noise(torch.stack(self.window))}

    # storage ------------------------------------------------------------------------------------

    def save_eigenthings(self, folder: Path, name: str, seed: int) -> Path:
        """Store the pairs of the tangent matrix."""
        assert self.tracker is not None
        exponents, vectors = self.tracker.vectors()
        logs = 2 * self.tracker.num_steps * exponents.double()
        o = self.config.optim
        things = Eigenthings(
            logs.exp(), logs, vectors, 0, self.tracker.num_steps, o.lr, o.momentum, seed, "lyapunov"
        )
        return things.save(folder / f"eigenthings-{name}-{self.index}.npz")

    def _spectra_file(self, folder: Path) -> Path:
        return folder / f"hessian_spectra-{self.index}.jsonl"

    def rewind(self, folder: Path, step: int) -> None:
        """Drop stored spectra from a step on, before the loop resumes there."""
        path = self._spectra_file(folder)
        if path.exists():
            lines = JsonLines(path)
            lines.rewind(step)
            lines.close()

    def state(self) -> Arrays:
        """Everything that a resumed run needs, as arrays."""
        state = {f"model/{k}": v.cpu().numpy() for k, v in self.model.state_dict().items()}
        state |= momentum_state(self.optimizer)
        if isinstance(self.optimizer, CGD) and self.optimizer.generator is not None:
            state["generator"] = self.optimizer.generator.get_state().numpy()
        if self.tracker is not None:
            state |= {f"tracker/{k}": v.cpu().numpy() for k, v in self.tracker.state_dict().items()}
        if self.previous is not None:
            state["previous"] = self.previous.cpu().numpy()
        if self.window:
            state["window"] = torch.stack(self.window).cpu().numpy()
        return state | {f"basis/{k}": v.cpu().numpy() for k, v in self.bases.items()}

    def restore(self, saved: Arrays, step: int) -> None:
        """Continue from :meth:`state`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                k.removeprefix(prefix): torch.from_numpy(np.asarray(v))
                for k, v in saved.items()
                if k.startswith(prefix)
            }

        self.model.load_state_dict(part("model/"))
        restore_momentum(self.optimizer, saved, step)
        if isinstance(self.optimizer, CGD) and self.optimizer.generator is not None:
            self.optimizer.generator.set_state(torch.from_numpy(saved["generator"]))
        if self.tracker is not None:
            self.tracker.load_state_dict(part("tracker/"))
        self.previous = torch.from_numpy(saved["previous"]).clone() if "previous" in saved else None
        self.window = [row.clone() for row in torch.from_numpy(saved["window"])] if "window" in saved else []
        self.bases = part("basis/")


def _draw_spectrum(pairs: Eigenpairs, stem: Path) -> None:
    from gdyn_reproduce.plotting import new_figure, save_figure

    figure, axes = new_figure()
    axes.plot(pairs.values.cpu().numpy(), ".")
    axes.set(xlabel=f"direction ({pairs.num_zero} zeros left out)", ylabel="eigenvalue", yscale="symlog")
    stem.parent.mkdir(exist_ok=True)
    save_figure(figure, stem)


def _draw_matrix(H: Hessian, stem: Path, size: int = 256) -> None:
    from gdyn_reproduce.plotting import new_figure, save_figure

    step = -(-H.n // size)
    sample = H.rows(slice(0, None, step))[:, ::step].abs().cpu().numpy()
    figure, axes = new_figure()
    axes.imshow(np.log10(np.maximum(sample, 1e-12)))
    axes.set(title=f"log10 |H|, every {step}th row and column", xticks=[], yticks=[])
    stem.parent.mkdir(exist_ok=True)
    save_figure(figure, stem)
