"""Writing a PCA estimator to a file without pickle, and reading it."""

import os
from typing import Any, Self

import jax
import numpy as np
from sklearn.utils.validation import check_is_fitted

from eigengame import checkpoint
from eigengame.core.solver import init
from eigengame.estimators.frames import Frame
from eigengame.estimators.game import FIXED, Game
from eigengame.estimators.settings import check_unchanged

__all__ = ["Saved"]

_COUNTERS = (
    "n_features_in_",
    "n_samples_seen_",
    "n_iter_",
    "n_passes_",
    "solver_",
    "_seed",
    "_rows",
    "_distinct",
    "_streamed_rows",
    "_wanted",
)


class Saved(Game):
    """`save` and `load`."""

    def save(self, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write the fit so far to a file without pickle; `load` continues from it bit for bit.

        Args:
            path: File name, by convention ending in `.npz`.
            extra: JSON values to keep with it, such as the position in the data.

        Raises:
            ValueError: If a setting cannot be written: an optimizer, mesh, schedule or generator object; or
                if one was changed since the fit began.
        """
        check_is_fitted(self)
        check_unchanged(self, self._begun_with)
        params = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params().items()
        }
        for name, value in params.items():
            if not isinstance(value, int | float | str | None):
                raise ValueError(f"{name}={value!r} cannot be saved; save State with eigengame.checkpoint.")
        counters = {name: getattr(self, name) for name in _COUNTERS if hasattr(self, name)}
        if hasattr(self, "feature_names_in_"):
            counters["feature_names_in_"] = list(self.feature_names_in_)
        meta = {"params": params, "counters": counters, "players": self._state.k, "extra": extra or {}}
        checkpoint.save(
            path, self._state, meta, {"shift": self._frame.shift, "unit": np.array(self._frame.unit)}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[Self, dict[str, Any]]:
        """Return a saved estimator, and the values saved with it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not one that `save` wrote.
        """
        arrays, meta = checkpoint.read(path)
        if not {"params", "counters", "players"} <= set(meta):
            raise ValueError(
                f"{path} holds a State but no estimator; read it with eigengame.checkpoint.load."
            )
        unknown = sorted(set(meta["params"]) - set(cls().get_params()))
        if unknown:
            raise ValueError(f"{path} has settings that this version does not know: {unknown}; fit anew.")
        model = cls(**meta["params"])
        model._check_settings()
        for name, value in meta["counters"].items():
            setattr(model, name, np.array(value, object) if name == "feature_names_in_" else value)
        optimizer = model._config().optimizer
        like = init(
            jax.random.key(0),
            meta["players"],
            model.n_features_in_,
            optimizer,
            moments=True,
            dtype=model.dtype,
        )
        model._state = checkpoint.from_arrays(arrays, like)
        still = np.zeros(model.n_features_in_)  # files of before 2.1 have no frame
        model._frame = Frame(arrays.get("shift", still), float(arrays.get("unit", 1)))
        model._begun_with = {name: getattr(model, name) for name in FIXED}
        return model, meta["extra"]
