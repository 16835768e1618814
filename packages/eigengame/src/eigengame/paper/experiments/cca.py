"""Canonical correlations: full batch, two independent minibatches, and halves of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eigengame.estimators.two_views import EigenGameCCA, EigenGamePLS
from eigengame.exact import pencil
from eigengame.metrics import cosine_similarities
from eigengame.paper.config import DataOptions, on_device, per_seed
from eigengame.paper.synthetic import TwoViews, two_views
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run


@dataclass
class CCAConfig(DataOptions):
    """Canonical correlations of two views.

    Attributes:
        dataset: Images whose left and right halves are the real pair of views.
        num_samples: Samples of the synthetic views.
        num_components: Components of the synthetic views (their number of latents).
        image_components: Components of the image halves.
        full_steps: Full-batch steps.
        batch_size: Rows of each of the two independent minibatches.
        batch_steps: Minibatch steps.
        epsilon: Ridge added to B for the image halves (blank pixels), in units of the mean variance.
        seeds: Seeds of data and vectors.
    """

    dataset: str = "digits"
    num_samples: int = 2048
    num_components: int = 4
    image_components: int = 4
    full_steps: int = 2000
    batch_size: int = 64
    batch_steps: int = 5000
    epsilon: float = 0.1
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@on_device
def compute(config: CCAConfig, run: Run) -> Result:
    """Compare with SciPy's generalised eigensolver."""
    run.note(data=config.training_set(config.dataset).provenance())
    arrays: dict[str, NDArray] = {}
    for name, compared in (("full", _full), ("minibatch", _minibatch), ("images", _images)):
        seeds = run.progress(config.seeds, name)
        arrays |= per_seed(run, f"{name}/", partial(compared, config), seeds)
    measurements: dict[str, list[float]] = {}
    for prefix in ("", "start_"):
        image = arrays[f"{prefix}image_found"].sum(axis=1) / arrays["image_exact"].sum(axis=1)
        measurements |= {
            f"{prefix}full_batch_worst_cosine": arrays[f"{prefix}cosines"].min(axis=1).tolist(),
            f"{prefix}minibatch_captured": arrays[f"{prefix}captured"].tolist(),
            f"{prefix}image_captured": image.tolist(),
        }
    return Result(measurements, arrays)


def plot(result: Result) -> Figure:
    """Draw cosines of the synthetic views and correlations of the image halves."""
    figure, (left, right) = new_figure(1, 2)
    for row, cosines in enumerate(result.arrays["cosines"]):
        error = np.maximum(1 - cosines, 1e-16)
        left.plot(np.arange(1, cosines.size + 1), error, "o-", color=COLOURS[row % 8], label=f"seed {row}")
    left.set(
        title="Two synthetic views",
        xlabel="component",
        ylabel="1 - |cosine| with the exact vector",
        yscale="log",
    )
    left.legend()
    index = np.arange(1, result.arrays["image_exact"].shape[1] + 1)
    right.plot(index, result.arrays["image_exact"][0], color=COLOURS[0], label="exact")
    right.plot(index, result.arrays["image_found"].T, "o", color=COLOURS[1])
    right.plot([], [], "o", color=COLOURS[1], label="EigenGame, full batch")
    right.set(title="Left and right halves of images", xlabel="component", ylabel="canonical correlation")
    right.legend()
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def exact_pencil(views: TwoViews, epsilon: float = 0.0) -> tuple[NDArray, NDArray]:
    """Return A and B of canonical correlation analysis, epsilon I added to B."""
    x, y = views
    C = np.cov(np.concatenate([x, y], axis=1).T, ddof=0)
    B = np.zeros_like(C)
    split = x.shape[1]
    B[:split, :split], B[split:, split:] = C[:split, :split], C[split:, split:]
    return C - B, B + epsilon * np.eye(len(C))


def joint_vectors(model: EigenGameCCA | EigenGamePLS) -> NDArray:
    """Return the fitted pairs as vectors of the pencil."""
    return np.concatenate(model._vectors(), axis=1)


def captured_correlation(model: EigenGameCCA, views: TwoViews) -> NDArray:
    """Return the canonical correlations between the fitted subspaces of both views."""
    scores = TwoViews(*(score.astype(np.float64) for score in model.transform(*views)))
    return pencil(*exact_pencil(scores), k=scores.x.shape[1]).values


def _views(config: CCAConfig, seed: int) -> TwoViews:
    return two_views(generator(seed, "cca"), config.num_samples, latents=config.num_components)


def _full(config: CCAConfig, seed: int) -> dict[str, NDArray]:
    views = _views(config, seed)
    truth = pencil(*exact_pencil(views), k=config.num_components).vectors
    model = EigenGameCCA(config.num_components, refine=False, tol=2.0, dtype=config.dtype, random_state=seed)
    return {
        f"{prefix}cosines": cosine_similarities(
            joint_vectors(model.set_params(n_epochs=steps).fit(*views)), truth
        )
        for prefix, steps in (("start_", 1), ("", config.full_steps))
    }


def _minibatch(config: CCAConfig, seed: int) -> dict[str, NDArray]:
    views = _views(config, seed)
    steps_per_epoch = -(-len(views.x) // (2 * config.batch_size))
    truth = pencil(*exact_pencil(views), k=config.num_components).values
    model = EigenGameCCA(
        config.num_components,
        batch_size=config.batch_size,
        refine=False,
        tol=2.0,
        dtype=config.dtype,
        random_state=seed,
    )
    return {
        f"{prefix}captured": np.array(
            captured_correlation(model.set_params(n_epochs=epochs).fit(*views), views).sum() / truth.sum()
        )
        for prefix, epochs in (("start_", 1), ("", -(-config.batch_steps // steps_per_epoch)))
    }


def _images(config: CCAConfig, seed: int) -> dict[str, NDArray]:
    images = np.asarray(config.training_set(config.dataset).x, np.float64)
    images /= np.abs(images).max()
    middle = images.shape[2] // 2
    left, right = (half.reshape(len(images), -1) for half in (images[:, :, :middle], images[:, :, middle:]))
    views = TwoViews(left - left.mean(axis=0), right - right.mean(axis=0))
    variance = np.concatenate(views, axis=1).var(axis=0).mean()
    epsilon = config.epsilon * variance
    model = EigenGameCCA(
        config.image_components, epsilon=epsilon, refine=False, tol=2.0, dtype=config.dtype, random_state=seed
    )
    A, B = exact_pencil(views, epsilon)
    found = {"image_exact": pencil(A, B, k=config.image_components).values}
    for prefix, steps in (("start_", 1), ("", 2 * config.full_steps)):
        V = joint_vectors(model.set_params(n_epochs=steps).fit(*views))
        found[f"{prefix}image_found"] = np.sum(V @ A * V, axis=1) / np.sum(V @ B * V, axis=1)
    return found
