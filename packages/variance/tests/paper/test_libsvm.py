"""LIBSVM files: known contents, compressed files, and every malformed line."""

import gzip
from pathlib import Path

import pytest
import torch

from variance.errors import ConfigError
from variance.paper.libsvm import LibsvmPopulation

TEXT = "+1 1:0.5 3:2\n-1 2:-1 # a comment\n\n+1\n"


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_dense_and_labels_renumbered(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("data.gz" if packed else "data.txt")
    path.write_bytes(gzip.compress(TEXT.encode()) if packed else TEXT.encode())
    population = LibsvmPopulation(path)
    assert len(population) == 3
    assert population.num_features == 3
    batch = population.fetch(torch.tensor([2, 0, 1, 0]))
    assert batch.inputs.tolist() == [[0, 0, 0], [0.5, 0, 2], [0, -1, 0], [0.5, 0, 2]]
    assert batch.targets.tolist() == [1, 1, 0, 1]
    assert LibsvmPopulation(path, num_features=7).fetch(torch.tensor([0])).inputs.shape == (1, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("+1 1:x\n", r"line 1: expected `label index:value"),
        ("+1 5\n", r"line 1: expected"),
        ("+1 0:2\n", "indices start at 1"),
        ("", "holds no example"),
    ],
)
def test_malformed_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text(text)
    with pytest.raises(ConfigError, match=message):
        LibsvmPopulation(tmp_path / "bad")


def test_missing_files_and_too_few_features(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a LIBSVM text file"):
        LibsvmPopulation(tmp_path / "absent")
    (tmp_path / "data").write_text(TEXT)
    with pytest.raises(ConfigError, match="has feature 3, num_features is 2"):
        LibsvmPopulation(tmp_path / "data", num_features=2)
