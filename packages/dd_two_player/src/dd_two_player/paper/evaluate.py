"""The ``eval`` command: scores of a stored checkpoint as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dd_two_player.evaluation import Moments, classify, evaluate_samples, moments
from dd_two_player.gans.checkpoints import restore_checkpoint
from dd_two_player.gans.mixtures import mixture_scores
from dd_two_player.paper import engine
from dd_two_player.paper.classifiers import INCEPTION, accuracy, load_classifier
from dd_two_player.paper.config import EvalConfig, TrainConfig, load_config
from dd_two_player.paper.data import MIXTURES, Samples, load_samples
from dd_two_player.paper.device import computing
from dd_two_player.paper.monitoring import draw_samples
from dd_two_player.paper.unread import check_read
from gdyn_common.storage import atomic_write, open_regular, read_arrays, reading, write_arrays
from gdyn_reproduce.records import dump_json

__all__ = ["evaluate"]


def evaluate(config: EvalConfig) -> int:
    """Restore a checkpoint, draw samples, print and store their scores.

    Raises:
        FileNotFoundError: If there is no checkpoint, or no such classifier or reference.
        ValueError: If the checkpoint belongs to another configuration, or an option has no effect.
    """
    check_read(config)
    checkpoint = find_checkpoint(config)
    trained = load_config(checkpoint.parent.parent / "config.json")
    with computing(config.device, trained.dtype):
        report = _report(config, checkpoint, trained)
    print(json.dumps(report))
    atomic_write(checkpoint.parent.parent / f"eval_{checkpoint.stem}.json", dump_json(report))
    return 0


def _report(config: EvalConfig, checkpoint: Path, trained: TrainConfig) -> dict[str, Any]:
    root = config.data_root or trained.data_root
    samples = load_samples(trained.dataset, "train", root, download=config.download)
    trainer = engine.build(trained, samples.shape)
    state = restore_checkpoint(checkpoint, trainer.start(0))

    def draw(split: int, count: int) -> np.ndarray:
        return draw_samples(trainer.gan, state, count, config.seed + split, config.batch_size)

    if config.save_samples:
        write_arrays(Path(config.save_samples), {"samples": draw(0, config.num_samples)})
    mixture = trained.dataset in MIXTURES
    accuracies: dict[str, float] = {}
    if mixture:
        values = _mixture_values(config, trained.dataset, draw)
    else:
        classifier = load_classifier(config.classifier, samples)
        if config.classifier == "auto" and ":" not in trained.dataset:  # own data have no labels
            test = load_samples(trained.dataset, "test", root, download=config.download)
            accuracies["classifier_accuracy"] = accuracy(classifier, test)
        values = evaluate_samples(
            draw,
            _reference(config, samples, classifier),
            classifier,
            num_samples=config.num_samples,
            num_splits=config.num_splits,
            batch_size=config.batch_size,
        )
    inception = config.classifier.startswith(INCEPTION)
    names = {"classifier_score": "IS", "frechet_classifier_distance": "FID"} if inception else {}
    report: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "step": int(state.step),
        "classifier": "modes" if mixture else config.classifier,
        "reference": config.reference or f"{trained.dataset} train",
        "num_samples": config.num_samples,
        "num_splits": config.num_splits,
        **accuracies,
    }
    for name, per_split in values.items():
        report[f"{names.get(name, name)}_mean"] = float(np.mean(per_split))
        report[f"{names.get(name, name)}_std"] = float(np.std(per_split))
    return report


def _mixture_values(
    config: EvalConfig, name: str, draw: Callable[[int, int], np.ndarray]
) -> dict[str, list[float]]:
    if config.classifier != "auto" or config.reference:
        raise ValueError(f"{name} is scored by its modes; leave out classifier= and reference=.")
    rows = [mixture_scores(name, draw(split, config.num_samples)) for split in range(config.num_splits)]
    return {key: [row[key] for row in rows] for key in rows[0]}


def find_checkpoint(config: EvalConfig) -> Path:
    """Return the checkpoint file that a configuration means."""
    if config.restore_path:
        path = Path(config.restore_path)
        if path.is_dir():
            path = path / "checkpoints" / f"{config.which}.npz"
        if not path.is_file():
            raise FileNotFoundError(
                f"checkpoint {path} does not exist; give restore_path=<run folder or file>."
            )
        return path
    folder = Path(config.out) / "dd_two_player" / "train" / config.experiment
    found = sorted(folder.glob(f"*/checkpoints/{config.which}.npz"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"no {config.which} checkpoint below {folder}; run `train` first or give restore_path=FILE."
        )
    return found[-1]


def _reference(config: EvalConfig, samples: Samples, classifier: Any) -> Any:
    """Return moments of a stored reference, or a function that draws the same number of real samples."""
    if config.reference is None:
        if config.num_samples > len(samples):
            raise ValueError(
                f"num_samples is {config.num_samples}; {samples.name} has {len(samples)} training samples."
            )

        def draw(split: int, count: int) -> np.ndarray:
            order = np.random.default_rng([config.seed, split]).permutation(len(samples))
            return samples.scaled(order[:count])

        return draw
    path = Path(config.reference)
    if path.is_dir():
        return moments(classify(classifier, _read_images(path, samples.shape), config.batch_size)[1])
    if not path.is_file():
        raise FileNotFoundError(f"reference {path} is neither a folder of images nor an npz file.")
    arrays = read_arrays(path)
    for mean, covariance in (("mean", "covariance"), ("mu", "sigma")):
        if {mean, covariance} <= set(arrays):
            return Moments(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
    raise ValueError(
        f"{path} holds {sorted(arrays)}; a reference needs mean and covariance, or mu and sigma."
    )


def _read_images(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".png")
    if not files:
        raise FileNotFoundError(f"{folder} holds no .png images.")
    images = []
    for file in files:
        with reading(file), open_regular(file) as stream, Image.open(stream, formats=["PNG"]) as image:
            if (image.height, image.width) != shape[:2]:
                raise ValueError(f"{image.height} x {image.width} pixels; samples have {shape[:2]}")
            pixels = np.asarray(image.convert("L" if shape[-1] == 1 else "RGB"), np.float32) / 255
            images.append(2 * pixels.reshape(shape) - 1)
    return np.stack(images)
