"""Reader of LIBSVM text files (rcv1, covtype): sparse rows, made dense batch by batch."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from variance.errors import ConfigError
from variance.objective import Batch

_OPEN: dict[str, Callable[..., IO[bytes]]] = {
    ".gz": cast("Callable[..., IO[bytes]]", gzip.open),
    ".bz2": cast("Callable[..., IO[bytes]]", bz2.open),
}


class LibsvmPopulation:
    """Examples of a LIBSVM file, `label index:value ...` per line with indices from 1.

    Kept sparse in memory; a fetched batch is dense. Labels are renumbered 0, 1, ... in increasing order.

    Args:
        path: Text file, `.gz` and `.bz2` included.
        num_features: Columns of a batch; the largest index of the file where None. Give it for a test file,
            so that it matches the training file.

    Raises:
        FileNotFoundError: No such file.
        ConfigError: A line is not in the format, an index exceeds `num_features`, or the file is empty.
    """

    def __init__(self, path: str | Path, *, num_features: int | None = None) -> None:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} not found; give a LIBSVM text file (.gz and .bz2 are read as well)."
            )
        with _OPEN.get(file.suffix, open)(file, "rb") as lines:
            labels, starts, columns, values = _parse(file, lines)
        if not labels:
            raise ConfigError(f"{file} holds no example.")
        widest = int(columns.max(initial=0))
        if num_features is not None and widest > num_features:
            raise ConfigError(f"{file} has feature {widest}, num_features is {num_features}; raise it.")
        self.num_features = num_features or widest
        self.classes, targets = np.unique(labels, return_inverse=True)
        self.targets = torch.from_numpy(targets)
        self._starts = torch.from_numpy(starts)
        self._columns, self._values = torch.from_numpy(columns - 1), torch.from_numpy(values)

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, indices: Int[Tensor, "n"], generator: np.random.Generator | None = None) -> Batch:
        """Return dense examples with unit weights."""
        first, counts = self._starts[indices], self._starts[indices + 1] - self._starts[indices]
        rows = torch.repeat_interleave(torch.arange(len(indices)), counts)
        before = torch.cumsum(counts, 0) - counts
        entries = first[rows] + torch.arange(len(rows)) - before[rows]
        dense = torch.zeros(len(indices), self.num_features)
        dense[rows, self._columns[entries]] = self._values[entries]
        return Batch(dense, self.targets[indices], indices, torch.ones(len(indices)))


def _parse(file: Path, lines: IO[bytes]) -> tuple[list[float], np.ndarray, np.ndarray, np.ndarray]:
    labels: list[float] = []
    starts, columns, values = [0], [], []
    for number, line in enumerate(lines, 1):
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        try:
            labels.append(float(words[0]))
            pairs = [word.split(b":") for word in words[1:]]
            columns.append(np.array([int(column) for column, _ in pairs], dtype=np.int64))
            values.append(np.array([float(value) for _, value in pairs], dtype=np.float32))
        except ValueError:
            raise ConfigError(
                f"{file}, line {number}: expected `label index:value ...`, got {line[:60]!r}."
            ) from None
        if len(columns[-1]) and columns[-1].min() < 1:
            raise ConfigError(f"{file}, line {number}: indices start at 1, got {columns[-1].min()}.")
        starts.append(starts[-1] + len(columns[-1]))
    empty = np.empty(0, dtype=np.int64)
    return (
        labels,
        np.array(starts),
        np.concatenate(columns or [empty]),
        np.concatenate(values or [empty.astype(np.float32)]),
    )
