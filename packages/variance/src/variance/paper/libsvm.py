"""Reader of LIBSVM text files (rcv1, covtype): sparse rows, made dense batch by batch."""

import bz2
import gzip
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import csr_array
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
            labels, counts, columns, values = _parse(file, lines)
        if not labels:
            raise ConfigError(f"{file} holds no example.")
        widest = max(columns, default=0)
        if num_features is not None and widest > num_features:
            raise ConfigError(f"{file} has feature {widest}, num_features is {num_features}; raise it.")
        self.num_features = num_features or widest
        self.classes, targets = np.unique(labels, return_inverse=True)
        self.targets = torch.from_numpy(targets)
        starts = np.cumsum([0, *counts])
        entries = np.array(values, np.float32), np.array(columns, np.int64) - 1, starts
        self._rows = csr_array(entries, shape=(len(labels), self.num_features))

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, indices: Int[Tensor, "n"], generator: np.random.Generator | None = None) -> Batch:
        """Return dense examples with unit weights."""
        dense = torch.from_numpy(self._rows[indices.numpy()].toarray())
        return Batch(dense, self.targets[indices], indices, torch.ones(len(indices)))


def _parse(file: Path, lines: IO[bytes]) -> tuple[list[float], list[int], "array[int]", "array[float]"]:
    """Return labels and numbers of entries by line, and the columns and values of all entries."""
    labels: list[float] = []
    counts: list[int] = []
    columns, values = array("q"), array("f")
    for number, line in enumerate(lines, 1):
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        try:
            labels.append(float(words[0]))
            pairs = [word.split(b":") for word in words[1:]]
            indices = [int(column) for column, _ in pairs]
            values.extend(float(value) for _, value in pairs)
        except ValueError:
            raise ConfigError(
                f"{file}, line {number}: expected `label index:value ...`, got {line[:60]!r}."
            ) from None
        if min(indices, default=1) < 1:
            raise ConfigError(f"{file}, line {number}: indices start at 1, got {min(indices)}.")
        columns.extend(indices)
        counts.append(len(indices))
    return labels, counts, columns, values
