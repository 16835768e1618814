"""Scores of examples for schedulers and importance sampling, and their memory."""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdyn_common.errors import unknown
from variance.errors import ConfigError, require_count, require_number
from variance.per_example import quantities
from variance.per_example.capturing import Capture
from variance.state import Stateful

Score = Literal["loss", "norm", "alignment", "positive-alignment", "random", "one"]
Normalisation = Literal["none", "sum", "class", "softmax", "batch"]


def score(
    kind: Score,
    capture: Capture,
    mean_gradient: Float[Tensor, "p"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n"]:
    """Return one score per example of a captured batch.

    Args:
        kind: `loss`; gradient `norm`; `alignment` |g^T m| or `positive-alignment` max(0, g^T m) with the mean
            gradient m; `random` in [0, 1); `one`.
        capture: The batch.
        mean_gradient: m, needed by the alignments.
        generator: Source of `random`.

    Raises:
        ConfigError: Unknown kind, or no mean gradient where one is needed.
    """
    if kind == "loss":
        return capture.losses
    if kind == "norm":
        return quantities.squared_norms(capture).sqrt()
    if kind == "random":
        return torch.rand(len(capture), generator=generator)
    if kind == "one":
        return torch.ones(len(capture))
    if kind not in get_args(Score):
        raise ConfigError(unknown("score", kind, get_args(Score)))
    if mean_gradient is None:
        raise ConfigError(f"score '{kind}' needs mean_gradient; pass that of the population or a batch.")
    inner = quantities.inner_products(capture, mean_gradient.to(capture.losses).unsqueeze(0)).squeeze(1)
    return inner.abs() if kind == "alignment" else inner.clamp_min(0)


class ScoreMemory(Stateful):
    """Exponential memory of per-example scores, with bias correction by the number of visits.

    alpha <- decay alpha + (1 - decay) new; reading divides by 1 - decay^visits.

    Args:
        num_examples: N.
        decay: Memory; 0 keeps the last score only.
        difference: Remember |new - previous score| instead of the score.

    Example:
        >>> memory = ScoreMemory(2, decay=0.9)
        >>> memory.update(torch.tensor([0]), torch.tensor([3.0]))
        >>> memory.read().tolist()
        [3.0, inf]
    """

    STATE = ("_sums", "_last", "_visits")

    def __init__(self, num_examples: int, *, decay: float = 0.0, difference: bool = False) -> None:
        require_count("num_examples", num_examples)
        require_number("decay", decay, 0, below=1)
        self.decay, self.difference = decay, difference
        self._sums, self._last = np.zeros(num_examples), np.zeros(num_examples)
        self._visits = np.zeros(num_examples, dtype=np.int64)

    def update(self, indices: Int[Tensor, "n"], scores: Float[Tensor, "n"]) -> None:
        """Fold in new scores of distinct examples."""
        rows, new = indices.cpu().numpy(), scores.detach().double().cpu().numpy()
        if len(np.unique(rows)) < len(rows):
            raise ConfigError("indices repeat; update once per example.")
        value = np.abs(new - self._last[rows]) if self.difference else new
        self._sums[rows] = self.decay * self._sums[rows] + (1 - self.decay) * value
        self._last[rows] = new
        self._visits[rows] += 1

    def read(
        self, normalisation: Normalisation = "none", classes: Int[Tensor, "n"] | None = None
    ) -> Float[Tensor, "n"]:
        """Return scores; examples never visited count as infinite, so that they are not skipped.

        Args:
            normalisation: `sum`: scores sum to 1; `class`: they do within every class; `softmax`; `batch`:
                their mean is 1.
            classes: Class of every example, for `class`.
        """
        seen = self._visits > 0
        values = np.full(len(self._sums), np.inf)
        values[seen] = self._sums[seen] / (1 - self.decay ** self._visits[seen])
        if normalisation == "softmax":
            shifted = np.exp(values[seen] - values[seen].max(initial=0))
            values[seen] = shifted / shifted.sum()
        elif normalisation == "class":
            if classes is None or len(classes) != len(values):
                raise ConfigError("normalisation 'class' needs classes, one per example.")
            labels = classes.cpu().numpy()
            for label in np.unique(labels[seen]):
                rows = seen & (labels == label)
                values[rows] = _scaled(values[rows], values[rows].sum())
        elif normalisation in ("sum", "batch"):
            total = values[seen].sum() if normalisation == "sum" else values[seen].mean()
            values[seen] = _scaled(values[seen], total)
        elif normalisation != "none":
            raise ConfigError(unknown("normalisation", normalisation, get_args(Normalisation)))
        return torch.from_numpy(values)


def _scaled(values: np.ndarray, total: float) -> np.ndarray:
    return values / total if total > 0 else values
