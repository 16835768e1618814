"""Image folders: order of classes, normalisation, cropping, and empty folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from variance.data import DatasetPopulation
from variance.errors import ConfigError
from variance.paper.image_folder import DEVIATION, MEAN, ImageFolder


def write(path: Path, width: int, height: int, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8)).save(path)


def test_classes_are_sorted_and_pixels_normalised(tmp_path: Path) -> None:
    write(tmp_path / "b" / "one.png", 30, 20, 255)
    write(tmp_path / "a" / "two.png", 10, 40, 0)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    population = DatasetPopulation(ImageFolder(tmp_path, size=14))
    batch = population.fetch(torch.tensor([0, 1]))
    assert batch.inputs.shape == (2, 3, 14, 14)
    assert batch.targets.tolist() == [0, 1]
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    torch.testing.assert_close(batch.inputs[0, :, 3, 3], -mean / deviation)
    torch.testing.assert_close(batch.inputs[1, :, 3, 3], (1 - mean) / deviation)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no"):
        ImageFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="one folder of images per class"):
        ImageFolder(tmp_path / "absent")
