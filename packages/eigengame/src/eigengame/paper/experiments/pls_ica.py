"""Partial least squares and independent components against exact solvers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning

from eigengame.estimators.ica import EigenGameICA
from eigengame.estimators.two_views import EigenGamePLS
from eigengame.exact import pencil
from eigengame.metrics import cosine_similarities
from eigengame.paper.config import ComputeOptions, on_device, per_seed
from eigengame.paper.experiments.cca import exact_pencil, joint_vectors
from eigengame.paper.synthetic import mixed_sources, two_views
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run


@dataclass
class PlsIcaConfig(ComputeOptions):
    """Partial least squares and independent components, full batch.

    Attributes:
        num_samples: Samples of the two views.
        pls_components: Components compared with the exact ones.
        pls_steps: Steps.
        ica_samples: Samples of the mixed sources.
        ica_steps: Steps.
        seeds: Seeds of data and vectors.
    """

    num_samples: int = 512
    pls_components: int = 6
    pls_steps: int = 6000
    ica_samples: int = 2000
    ica_steps: int = 3000
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@on_device
def compute(config: PlsIcaConfig, run: Run) -> Result:
    """Measure cosines of PLS vectors, and correlations of recovered with true sources."""
    arrays = per_seed(run, "pls/", partial(_pls, config), run.progress(config.seeds, "pls"))
    arrays |= per_seed(run, "ica/", partial(_ica, config), run.progress(config.seeds, "ica"))
    names = {
        "pls_worst_cosine": "cosines",
        "start_pls_worst_cosine": "start_cosines",
        "ica_worst_correlation": "sources",
        "ica_worst_correlation_exact": "sources_exact",
        "ica_worst_correlation_gaussian": "sources_gaussian",
    }
    return Result({metric: arrays[name].min(axis=1).tolist() for metric, name in names.items()}, arrays)


def plot(result: Result) -> Figure:
    """Draw PLS cosines, and source correlations of ours beside the exact pencil's."""
    figure, (left, right) = new_figure(1, 2)
    index = np.arange(1, result.arrays["cosines"].shape[1] + 1)
    for colour, cosines in zip(COLOURS, result.arrays["cosines"], strict=False):
        left.plot(index, np.maximum(1 - cosines, 1e-16), "o-", color=colour)
    left.set(
        title="Partial least squares",
        xlabel="component",
        ylabel="1 - |cosine| with the exact vector",
        yscale="log",
        xticks=index,
    )
    index = np.arange(1, result.arrays["sources"].shape[1] + 1)
    right.plot(index - 0.1, result.arrays["sources_exact"].T, "_", color=COLOURS[0], markersize=14)
    right.plot(index + 0.1, result.arrays["sources"].T, "o", color=COLOURS[1], fillstyle="none")
    right.plot([], [], "_", color=COLOURS[0], label="exact pencil")
    right.plot([], [], "o", color=COLOURS[1], fillstyle="none", label="EigenGame")
    right.set(
        title="Independent components",
        xlabel="source",
        ylabel="|correlation| with the source",
        xticks=index,
    )
    right.legend()
    return figure


def _pls(config: PlsIcaConfig, seed: int) -> dict[str, NDArray]:
    views = two_views(generator(seed, "pls"), config.num_samples)
    model = EigenGamePLS(config.pls_components, refine=False, tol=2.0, dtype=config.dtype, random_state=seed)
    A, B = exact_pencil(views)
    split = views.x.shape[1]
    B[split:, split:] = np.eye(views.y.shape[1])
    truth = pencil(A, B, k=config.pls_components).vectors
    return {
        f"{prefix}cosines": cosine_similarities(
            joint_vectors(model.set_params(n_epochs=steps).fit(*views)), truth
        )
        for prefix, steps in (("start_", 1), ("", config.pls_steps))
    }


def _ica(config: PlsIcaConfig, seed: int) -> dict[str, NDArray]:
    draw = generator(seed, "ica")
    mixed, sources = mixed_sources(draw, config.ica_samples)
    scaled = mixed / mixed.std()
    # all three sources are flatter than a Gaussian: their values are those of -A
    model = EigenGameICA(
        3,
        n_epochs=config.ica_steps,
        maximize=False,
        refine=False,
        tol=2.0,
        dtype=config.dtype,
        random_state=seed,
    )
    found = matched_correlations(model.fit(scaled).transform(scaled), sources)
    gaussian = draw.standard_normal(sources.shape)
    mixture = gaussian @ draw.standard_normal((3, 3))
    centred = scaled - scaled.mean(axis=0)
    C = centred.T @ centred / len(centred)
    weights = np.sum(centred**2, axis=1)
    A = (centred * weights[:, None]).T @ centred / len(centred) - np.trace(C) * C - 2 * C @ C
    exact = centred @ pencil(-A, C).vectors.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Gaussians cannot be told apart: it is a control
        nothing = matched_correlations(model.fit(mixture).transform(mixture), gaussian)
    return {
        "sources": found,
        "sources_gaussian": nothing,
        "sources_exact": matched_correlations(exact, sources),
    }


def matched_correlations(found: NDArray, sources: NDArray) -> NDArray:
    """Return |correlation| of each true source with the recovered one assigned to it."""
    table = np.abs(np.corrcoef(found.T, sources.T)[: found.shape[1], found.shape[1] :])
    rows, columns = linear_sum_assignment(-table)
    return np.asarray(table[rows, columns][np.argsort(columns)])
