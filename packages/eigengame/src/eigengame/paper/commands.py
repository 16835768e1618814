"""The package's own commands; each takes its configuration, prints, and returns nothing on success."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eigengame.estimators.pca import EigenGame
from eigengame.estimators.spectral import EigenGameSpectralEmbedding
from eigengame.estimators.streams import array_batches
from eigengame.exact import pca
from eigengame.metrics import angles, captured_value_ratio, streak_of_angles, subspace_distance
from eigengame.paper.config import ComputeOptions, check_positive
from eigengame.paper.data_file import fingerprint, watched
from gdyn_common.storage import (
    FolderLock,
    read_array,
    read_arrays,
    read_text,
    reading,
    write_array,
    write_arrays,
)
from gdyn_reproduce.runs import RunOptions, hold

__all__ = ["embed", "evaluate", "fit"]


@dataclass
class FitConfig(ComputeOptions):
    """Top components of a file, streamed; resumes after an interruption.

    Attributes:
        dataset: Samples on rows in a .npy file (read as a memory map), or in the only array of a .npz.
        batch_size: Rows per step.
        num_epochs: Passes of the game over the file.
        algorithm: mu, alpha, gha or oja.
        learning_rate: A number, or 0 for automatic.
        momentum: Nesterov momentum.
        center: Subtract the running mean.
        refine: Take exact passes over the file after the epochs until the components are within 0.02 rad.
        seed: Seed of starting vectors and of the order of the rows.
        checkpoint_every: Steps between checkpoints.
        out: Folder that receives components.npz and the checkpoint.
    """

    dataset: str = ""
    num_components: int = 8
    batch_size: int = 256
    num_epochs: int = 1
    algorithm: str = "mu"
    learning_rate: float = 0.0
    momentum: float = 0.9
    center: bool = True
    refine: bool = True
    seed: int = 0
    checkpoint_every: int = 500
    out: str = "eigengame-fit"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            num_components=self.num_components,
            batch_size=self.batch_size,
            num_epochs=self.num_epochs,
            checkpoint_every=self.checkpoint_every,
        )
        if self.algorithm not in ("mu", "alpha", "gha", "oja"):
            raise ValueError(f"algorithm={self.algorithm!r}; allowed are mu, alpha, gha, oja.")


@dataclass
class EvalConfig(RunOptions):
    """Fitted components against an exact solver or a file.

    Attributes:
        components: components.npz written by fit.
        dataset: The data file, for the exact solver.
        against: exact, or a .npy file with the true vectors on rows.
    """

    components: str = ""
    dataset: str = ""
    against: str = "exact"


@dataclass
class EmbedConfig(ComputeOptions):
    """Spectral embedding of a graph.

    Attributes:
        edges: Endpoints, two integers per row: .npy, or text with blanks or commas.
        num_components: Number of vectors.
        num_steps: Steps of the game; exact products follow.
        batch_size: Edges per step; null uses all.
        learning_rate: Step size times lambda_star.
        seed: Seed of starting vectors and minibatches.
        out: File that receives the embedding (.npy).
    """

    edges: str = ""
    num_components: int = 8
    num_steps: int = 100
    batch_size: int | None = None
    learning_rate: float = 1.0
    seed: int = 0
    out: str = "embedding.npy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            num_components=self.num_components, num_steps=self.num_steps, learning_rate=self.learning_rate
        )


def read_samples(name: str) -> NDArray:
    """Return samples on rows: a memory map of a .npy file, or the only array of a .npz.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For another format, several arrays, or an array that is not two-dimensional.
    """
    path = Path(name)
    if not name or not path.is_file():
        raise FileNotFoundError(f"No data file {name!r}; pass a .npy or .npz file with samples on rows.")
    if path.suffix == ".npy":
        rows = read_array(path, mapped="r")
    elif path.suffix == ".npz":
        arrays = read_arrays(path)
        if len(arrays) != 1:
            raise ValueError(f"{path} holds {sorted(arrays)}; save the samples alone in a .npy file.")
        rows = next(iter(arrays.values()))
    else:
        raise ValueError(f"{path} is neither .npy nor .npz; convert it with numpy.save.")
    if rows.ndim > 2:
        rows = rows.reshape(rows.shape[0], -1)  # images; a view, the file is not read
    if rows.ndim != 2 or not rows.shape[0]:
        raise ValueError(f"{path} has shape {rows.shape}; samples must be on rows, shape (n, d).")
    return np.asanyarray(rows)


def fit(config: FitConfig) -> None:
    """Fit, with a checkpoint every so many steps; the same command continues an interrupted fit."""
    rows = watched(read_samples(config.dataset), Path(config.dataset))
    with hold(Path(config.out)) as lock, config.computing():
        _fit(config, rows, lock)


def _fit(config: FitConfig, rows: NDArray, lock: FolderLock) -> None:
    folder = lock.folder
    checkpoint = folder / "checkpoint.npz"
    model = EigenGame(
        config.num_components,
        algorithm=config.algorithm,  # type: ignore[arg-type]  # checked by FitConfig
        learning_rate=config.learning_rate or "auto",
        batch_size=min(config.batch_size, rows.shape[0]),
        momentum=config.momentum,
        center="running" if config.center else None,
        random_state=config.seed,
        dtype=config.dtype,
    )
    content = fingerprint(Path(config.dataset))
    identity = {"content": content, "shape": list(rows.shape), "epochs": config.num_epochs}
    epoch, start, refined = 0, 0, False
    if checkpoint.exists() and not config.overwrite:
        held, position = EigenGame.load(checkpoint)
        if (
            held.get_params() != model.get_params()
            or {key: position.get(key) for key in identity} != identity
        ):
            raise ValueError(
                f"{checkpoint} belongs to other settings or other data. Pass another out=, or overwrite=true "
                "to begin anew in its place."
            )
        model, epoch, start = held, position["epoch"], position["start"]
        refined = position.get("refined", False)
    for now in range(epoch, config.num_epochs):
        first = start if now == epoch else 0
        batches = array_batches(rows, model.batch_size, seed=config.seed, epoch=now, start=first)
        for index, batch in enumerate(batches, first):
            model.partial_fit(batch)
            if model.n_iter_ % config.checkpoint_every == 0:
                lock.check()
                model.save(checkpoint, identity | {"epoch": now, "start": index + 1})
                print(json.dumps({"step": model.n_iter_, "epoch": now, **_summary(model)}), flush=True)
    if config.refine and not refined:
        model.refine(rows)
    lock.check()
    model.save(checkpoint, identity | {"epoch": config.num_epochs, "start": 0, "refined": config.refine})
    write_arrays(
        folder / "components.npz",
        {
            "components": model.components_,
            "mean": model.mean_,
            "explained_variance": model.explained_variance_,
        },
    )
    lock.check()  # what is said to be there is there
    print(json.dumps({"step": model.n_iter_, **_summary(model), "saved": str(folder / "components.npz")}))


def _summary(model: EigenGame) -> dict[str, Any]:
    return {
        "samples": model.n_samples_seen_,
        "explained_variance_ratio": round(float(model.explained_variance_ratio_.sum()), 6),
        "angle_bound": round(float(model.angle_bounds_.max()), 6),
        "converged": model.converged_,
        "unresolved": model.unresolved_.tolist(),
    }


def evaluate(config: EvalConfig) -> None:
    """Print angles, streak, subspace distance and captured variance as one JSON line."""
    if not config.components or not Path(config.components).is_file():
        raise FileNotFoundError(f"No file {config.components!r}; pass components.npz as written by fit.")
    fitted = read_arrays(Path(config.components))
    if "components" not in fitted:
        raise ValueError(f"{config.components} has no array 'components'; pass components.npz of fit.")
    V = fitted["components"]
    report: dict[str, Any] = {}
    if config.against == "exact":
        exact = pca(read_samples(config.dataset), len(V), center=bool(np.any(fitted["mean"])), ddof=1)
        truth = exact.vectors
        report["captured_value_ratio"] = captured_value_ratio(fitted["explained_variance"], exact.values)
    else:
        truth = read_samples(config.against)
    theta = angles(V, truth)
    report |= {
        "streak": streak_of_angles(theta),
        "subspace_distance": subspace_distance(V, truth),
        "angles": [round(float(angle), 6) for angle in theta],
    }
    print(json.dumps(report))


def embed(config: EmbedConfig) -> None:
    """Embed the nodes of a graph and save one row per node."""
    model = EigenGameSpectralEmbedding(
        config.num_components,
        n_iter=config.num_steps,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        random_state=config.seed,
    )
    with config.computing():
        model.fit(read_edges(config.edges))
    target = Path(config.out)
    write_array(target, model.embedding_)
    values = [round(float(value), 6) for value in model.eigenvalues_]
    print(json.dumps({"nodes": len(model.embedding_), "eigenvalues": values, "saved": str(target)}))


def read_edges(name: str) -> NDArray:
    """Return an edge list from .npy or from text with two integers per line."""
    path = Path(name)
    if not name or not path.is_file():
        raise FileNotFoundError(f"No edge file {name!r}; pass .npy or text with two integers per line.")
    if path.suffix == ".npy":
        return read_array(path)
    text = read_text(path, limit=None)
    with reading(path, "write two integers per line"):
        lines = text.replace(",", " ").splitlines()
        return np.array([line.split() for line in lines if line.strip() and line[0] != "#"], dtype=np.int64)
