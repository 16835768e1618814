"""What happens beside the steps of a training run: pictures of samples, scores, the best checkpoint."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dd_two_player.gans.checkpoints import save_checkpoint
from dd_two_player.gans.mixtures import mixture_scores
from dd_two_player.gans.model import Gan
from dd_two_player.gans.steps import TrainState
from dd_two_player.paper.config import TrainConfig
from dd_two_player.paper.data import MIXTURES, Samples
from gdyn_common.logging import JsonLines
from gdyn_common.storage import RECOMPUTE, atomic_write, read_arrays, write_arrays
from gdyn_reproduce.plotting import house_style, new_figure

__all__ = ["Observer", "draw_samples", "sample_figure"]


def draw_samples(gan: Gan, state: TrainState, count: int, seed: int, batch_size: int = 100) -> np.ndarray:
    """Return ``count`` samples in evaluation mode; the same seed gives the same latents at every step."""
    sample = jax.jit(gan.sample)
    latents = jax.random.normal(jax.random.key(seed), (count, gan.num_latents))
    parts = [
        np.asarray(sample(state.params[1], state.state, latents[i : i + batch_size]))
        for i in range(0, count, batch_size)
    ]
    return np.concatenate(parts)


def draw_points(axes: Any, samples: np.ndarray, data: np.ndarray) -> None:
    """Draw samples over the data, as far as twice the data reach."""
    reach = 2 * float(np.abs(data).max())
    axes.plot(*samples.T, ".", markersize=3, color="C1", label="samples")
    axes.plot(*data.T, ".", markersize=3, color="C0", label="data")
    axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    axes.legend(loc="upper right")


def sample_figure(samples: np.ndarray, title: str, data: np.ndarray) -> Any:
    """Return a grid of images, or points over the data."""
    figure, axes = new_figure(figsize=(4.5, 4.5))
    if samples.ndim == 2:
        draw_points(axes, samples, data)
    else:
        side = int(np.sqrt(len(samples)))
        rows = samples[: side * side].reshape(side, side, *samples.shape[1:])
        grid = np.concatenate(np.concatenate(rows, 1), 1).squeeze()
        axes.imshow((np.clip(grid, -1, 1) + 1) / 2, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    axes.set_title(title)
    return figure


class Observer:
    """Called after every step; acts when one of its intervals is due.

    Args:
        config: Intervals, classifier.
        gan: Networks and losses.
        samples: The training data.
        folder: The run's folder.
        classifier: Of the scores; by default that of the configuration, once it is needed.
    """

    def __init__(
        self, config: TrainConfig, gan: Gan, samples: Samples, folder: Path, classifier: Any = None
    ) -> None:
        self.config, self.gan, self.samples, self.folder = config, gan, samples, folder
        self._classifier = classifier
        self._lines = folder / "scores.jsonl"

    def rewind(self, step: int) -> None:
        """Forget the scores from a step on, before the loop resumes there."""
        if self._lines.exists():
            with contextlib.closing(JsonLines(self._lines)) as lines:
                lines.rewind(step)

    def __call__(self, step: int, state: TrainState, *, final: bool) -> None:
        """Save a picture and a score if they are due."""
        config = self.config
        if config.sample_every and (step % config.sample_every == 0 or final):
            drawn = draw_samples(self.gan, state, 64 if len(self.samples.shape) == 3 else 1000, 1)
            with house_style():
                figure = sample_figure(drawn, f"step {step}", self.samples.scaled(slice(2000)))
                path = self.folder / "samples" / f"step_{step:07d}.png"
                picture = io.BytesIO()
                figure.savefig(picture, format="png")
                atomic_write(path, picture.getvalue())
        if config.eval_every and config.classifier != "none" and step % config.eval_every == 0:
            self._keep_best(step, state)

    def _scores(self, drawn: np.ndarray) -> dict[str, float]:
        """Return scores of samples; the first one decides which checkpoint is the best."""
        if self.samples.name in MIXTURES:
            scores = mixture_scores(self.samples.name, drawn)
            return {"coverage": scores.pop("coverage"), **scores}
        from dd_two_player.evaluation import classifier_score, classify
        from dd_two_player.paper.classifiers import load_classifier

        if self._classifier is None:
            self._classifier = load_classifier(self.config.classifier, self.samples)
        return {"classifier_score": classifier_score(classify(self._classifier, drawn)[0])}

    def _keep_best(self, step: int, state: TrainState) -> None:
        config = self.config
        drawn = draw_samples(self.gan, state, config.eval_samples, 2)
        if not np.isfinite(drawn).all():
            print(f'{{"step": {step}, "scores": "samples are not finite"}}', flush=True)
            return
        scores = self._scores(drawn)
        score = next(iter(scores.values()))
        best = self.folder / "checkpoints" / "best_score.npz"
        line = {**scores, "samples": config.eval_samples}
        print(json.dumps({"step": step, **line}), flush=True)
        with contextlib.closing(JsonLines(self._lines)) as lines:
            lines.log(step, line)
        if not best.exists() or score > float(read_arrays(best, advice=RECOMPUTE)["score"]):
            save_checkpoint(self.folder / "checkpoints" / "best.npz", state)
            write_arrays(best, {"score": np.asarray(score), "step": np.asarray(step)})
