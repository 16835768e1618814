"""Images in one folder per class, as ImageNet comes: decoded on demand, never kept in memory."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from variance.errors import ConfigError

SUFFIXES = {".jpeg", ".jpg", ".png"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel statistics of ImageNet."""


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images below `root/<class>/`, classes numbered in alphabetical order.

    The shorter side is scaled to 8/7 of `size` and the centre is cropped, so that an example is the same
    whenever it is fetched (snapshots and clusters need that); augment on top through `DatasetPopulation`.

    Args:
        root: Folder with one folder per class.
        size: Side of the square images.

    Raises:
        FileNotFoundError: No such folder.
        ConfigError: The folder holds no image.
    """

    def __init__(self, root: str | Path, size: int = 224) -> None:
        folder = Path(root)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} not found; it must hold one folder of images per class.")
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not self.files:
            raise ConfigError(f"{folder} holds no .jpeg, .jpg or .png below a folder per class.")
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 size size"], int]:
        path, label = self.files[index]
        return self._decode(path), label

    def _decode(self, path: Path) -> Tensor:
        from PIL import Image  # matplotlib depends on it

        with Image.open(path, formats=["JPEG", "PNG"]) as stored:
            image = stored.convert("RGB")
        scale = (self.size * 8 // 7) / min(image.size)
        image = image.resize(
            (max(self.size, round(image.width * scale)), max(self.size, round(image.height * scale)))
        )
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        pixels = (
            np.asarray(image.crop((left, top, left + self.size, top + self.size)), dtype=np.float32) / 255
        )
        normal = (pixels - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
        return torch.from_numpy(normal).permute(2, 0, 1).contiguous()
