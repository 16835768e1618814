"""TF-GAN as an evaluation backend (extra ``tfgan``); TensorFlow is imported by these functions only."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any

import numpy as np

__all__ = ["classifier_score", "frechet_classifier_distance", "load_backend", "saved_model_classifier"]

INCEPTION_SIZE = 299
OUTPUTS = {"logits": "float32", "pool_3": "float32"}


def load_backend() -> tuple[Any, Any]:
    """Import TensorFlow, with GPUs hidden from it, and TF-GAN's evaluation package.

    Raises:
        ImportError: If the extra is missing, naming it.
    """
    try:
        tensorflow = importlib.import_module("tensorflow")
        tensorflow.config.set_visible_devices([], "GPU")
        return tensorflow, _import_evaluation()
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is missing; TF-GAN needs the extra: pip install 'gdyn-dd-two-player[tfgan]'."
        ) from error


def _import_evaluation() -> Any:
    """Import ``tensorflow_gan.python.eval`` although ``import tensorflow_gan`` needs ``tf.estimator``.

    TensorFlow dropped ``tf.estimator`` in 2.16. The evaluation package does not use it, only its two parent
    packages import modules that do. They are replaced by modules that know where to find sub-packages and
    nothing else; if the import fails all the same, the replacements are taken out again.
    """
    try:
        return importlib.import_module("tensorflow_gan").eval
    except AttributeError:
        pass
    for name in [n for n in sys.modules if n.partition(".")[0] == "tensorflow_gan"]:
        del sys.modules[name]  # left behind by the failed import
    placed = []
    path: Any = None
    for name in ("tensorflow_gan", "tensorflow_gan.python"):
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        path = list(spec.submodule_search_locations)
        module = types.ModuleType(name)
        module.__path__ = path
        module.__spec__ = spec
        sys.modules[name] = module
        placed.append(name)
    try:
        return importlib.import_module("tensorflow_gan.python.eval")
    except BaseException:
        for name in placed:
            sys.modules.pop(name, None)
        raise


def classifier_score(logits: np.ndarray) -> float:
    """Return TF-GAN's ``classifier_score_from_logits``."""
    tensorflow, evaluation = load_backend()
    return float(evaluation.classifier_score_from_logits(tensorflow.constant(np.asarray(logits, np.float64))))


def frechet_classifier_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Return TF-GAN's ``frechet_classifier_distance_from_activations``."""
    tensorflow, evaluation = load_backend()
    activations = (tensorflow.constant(np.asarray(a, np.float64)) for a in (real, generated))
    return float(evaluation.frechet_classifier_distance_from_activations(*activations))


def saved_model_classifier(
    path: str, *, inception: bool = False
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a classifier that runs a SavedModel through TF-GAN's ``run_classifier_fn``.

    Args:
        path: Folder of a SavedModel whose call (or default signature) returns ``logits`` and ``pool_3``.
        inception: Resize to 299x299, repeat a single channel three times, and keep [-1, 1].
    """
    tensorflow, evaluation = load_backend()
    model = tensorflow.saved_model.load(path)
    call = model if callable(model) else model.signatures["serving_default"]
    dtypes = {name: getattr(tensorflow, dtype) for name, dtype in OUTPUTS.items()}

    def outputs(images: Any) -> dict[str, Any]:
        answer = call(images)
        missing = [name for name in OUTPUTS if name not in answer]
        if missing:
            raise ValueError(f"{path} returns {sorted(answer)}; it must return logits and pool_3.")
        return {name: tensorflow.reshape(answer[name], (len(images), -1)) for name in OUTPUTS}

    def classify(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = tensorflow.constant(np.asarray(images, np.float32))
        if inception:
            if batch.shape[-1] == 1:
                batch = tensorflow.repeat(batch, 3, axis=-1)
            batch = tensorflow.image.resize(batch, (INCEPTION_SIZE, INCEPTION_SIZE), method="bilinear")
        found = evaluation.run_classifier_fn(batch, outputs, num_batches=1, dtypes=dtypes)
        return found["logits"].numpy(), found["pool_3"].numpy()

    return classify
