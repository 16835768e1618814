"""Passes over the data to a given accuracy: EigenGame against what else runs in this memory.

A pass is one product C W of the covariance with a block of vectors; X'(X W) and the mean come from one
reading. All methods hold a few more vectors than they are asked for; the randomised SVD also holds n rows of
coordinates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg
from sklearn.decomposition import PCA, IncrementalPCA

from eigengame.estimators.pca import EigenGame
from eigengame.exact import pca
from eigengame.metrics import cosine_similarities, longest_correct_eigenvector_streak, subspace_distance
from eigengame.paper.config import DataOptions, check_positive, on_device, per_seed
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

TARGETS = ("cosines .99", "subspace distance 1e-3", "full streak")
SPECTRA = {"gap5": 1.05 ** -np.arange(200.0), "geometric": np.geomspace(1, 1e-2, 200)}  # variances
LIMIT = 1000  # passes of a method that has not arrived; it is taken to need as many


@dataclass
class PassesConfig(DataOptions):
    """Passes over the data until a target is reached.

    Attributes:
        datasets: gap5 (neighbouring variances differ by 5 %), geometric, or names of the loader.
        num_samples: Samples of the synthetic data.
        seeds: Seeds of data and starting vectors.
    """

    datasets: list[str] = field(default_factory=lambda: ["digits", "gap5", "geometric"])
    num_components: int = 8
    num_samples: int = 4000
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(num_components=self.num_components, num_samples=self.num_samples)


Trials = Iterator[tuple[int, NDArray]]


def _ours(X: NDArray, k: int, seed: int) -> Trials:
    for tol in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        model = EigenGame(k, tol=tol, dtype=X.dtype.name, random_state=seed).fit(X)
        yield model.n_passes_, model.components_


def _oja(X: NDArray, k: int, seed: int) -> Trials:
    for epochs in (1, 2, 3, 4, 6, 8, 16, 32):
        model = EigenGame(
            k, algorithm="oja", n_epochs=epochs, tol=None, dtype=X.dtype.name, random_state=seed
        )
        yield epochs, model.fit(X).components_


def _incremental(X: NDArray, k: int, seed: int) -> Trials:
    model = IncrementalPCA(k, batch_size=256)
    for passes in range(1, 5):
        for rows in np.array_split(X, -(-len(X) // 256)):
            model.partial_fit(rows)
        yield passes, model.components_


def _randomized(X: NDArray, k: int, seed: int) -> Trials:
    for power in range(12):
        model = PCA(k, svd_solver="randomized", iterated_power=power, random_state=seed).fit(X)
        yield power + 2, model.components_  # the first and the last product stand alone


def _covariance(X: NDArray) -> tuple[LinearOperator, list[int]]:
    """Return the covariance as an operator, and a list that grows with every pass."""
    mean, passes = X.mean(axis=0), list[int]()

    def product(W: NDArray) -> NDArray:
        passes.append(1)
        W = W.reshape(len(mean), -1)
        return np.asarray(X.T @ (X @ W) / len(X) - np.outer(mean, mean @ W))

    return LinearOperator((len(mean),) * 2, matvec=product, matmat=product, dtype=np.float64), passes


def _lanczos(X: NDArray, k: int, seed: int) -> Trials:
    start = generator(seed, "passes", "start").standard_normal(X.shape[1])
    for tol in (1e-1, 1e-2, 1e-3, 1e-4):
        operator, passes = _covariance(X)
        vectors = eigsh(operator, k, which="LA", v0=start, tol=tol)[1]
        yield len(passes), vectors[:, ::-1].T


def _lobpcg(X: NDArray, k: int, seed: int) -> Trials:
    # SciPy takes the whole matrix where a block is wider than a fifth of it
    width = max(min(k + max(8, k // 2), X.shape[1] // 5), k)
    start = generator(seed, "passes", "start").standard_normal((X.shape[1], width))
    for steps in (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30):
        operator, passes = _covariance(X)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it stops before tol is what is asked for
            vectors = lobpcg(operator, start, largest=True, maxiter=steps, tol=1e-12)[1]
        yield len(passes), vectors[:, :k].T


METHODS: dict[str, Callable[[NDArray, int, int], Trials]] = {
    "EigenGame": _ours,
    "Oja with QR": _oja,
    "IncrementalPCA": _incremental,
    "randomised SVD": _randomized,
    "lobpcg": _lobpcg,
    "eigsh": _lanczos,
}


@on_device
def compute(config: PassesConfig, run: Run) -> Result:
    """Count the passes of every method to every target."""
    named = [name for name in config.datasets if name not in SPECTRA]
    run.note(data=[config.training_set(name).provenance() for name in named])
    arrays: dict[str, NDArray] = {}
    measurements: dict[str, list[float]] = {}
    for dataset in config.datasets:
        for name, method in METHODS.items():
            counted = partial(_passes, config, dataset, method)
            counts = per_seed(run, f"{dataset}/{name}/", counted, config.seeds)["passes"]
            arrays[f"{dataset}/{name}"] = counts
            measurements[f"{dataset}_{name.replace(' ', '_').lower()}_passes"] = counts[:, 0].tolist()
    return Result(measurements, arrays)


def plot(result: Result) -> Figure:
    """Draw the median passes to every target, a panel per data set; those that beat us stand on top."""
    datasets = list(dict.fromkeys(name.split("/")[0] for name in result.arrays))
    figure, axes = new_figure(
        len(datasets), 1, figsize=(6.4, 2.0 * len(datasets)), squeeze=False, sharex=True
    )
    for axis, dataset in zip(axes[:, 0], datasets, strict=True):
        medians = {name: np.median(result.arrays[f"{dataset}/{name}"], axis=0) for name in METHODS}
        order = sorted(METHODS, key=lambda name: medians[name][0])
        for shift, (colour, target) in enumerate(zip(COLOURS, TARGETS, strict=False)):
            axis.plot(
                [medians[name][shift] for name in order],
                np.arange(len(order)) + 0.18 * (shift - 1),
                "o",
                color=colour,
                label=target,
            )
        title = {"gap5": "variances 5 % apart", "geometric": "geometric spectrum"}.get(dataset, dataset)
        axis.set(xscale="log", title=title.capitalize(), yticks=range(len(order)), yticklabels=order)
        axis.invert_yaxis()
    axes[-1, 0].set_xlabel(f"passes over the data ({LIMIT}: never)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=len(TARGETS))
    return figure


def _passes(
    config: PassesConfig, dataset: str, method: Callable[[NDArray, int, int], Trials], seed: int
) -> dict[str, NDArray]:
    X = _data(config, dataset, seed)
    truth = pca(X, config.num_components).vectors
    passes = np.full(len(TARGETS), float(LIMIT))
    for count, V in method(X, config.num_components, seed):
        reached = (
            cosine_similarities(V, truth).min() >= 0.99,
            subspace_distance(V, truth) <= 1e-3,
            longest_correct_eigenvector_streak(V, truth) == config.num_components,
        )
        passes = np.where(reached, np.minimum(passes, count), passes)
        if all(passes < LIMIT):
            break
    return {"passes": passes}


def _data(config: PassesConfig, dataset: str, seed: int) -> Float[np.ndarray, "n d"]:
    if dataset in SPECTRA:
        draws = generator(seed, "passes", dataset).standard_normal((config.num_samples, 200))
        return np.asarray(draws * np.sqrt(SPECTRA[dataset]), config.dtype)
    x = config.training_set(dataset).x
    return np.asarray(x, config.dtype).reshape(len(x), -1) / (255 if x.dtype == np.uint8 else 1)
