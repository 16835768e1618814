"""Data sets as tensors: images (N, 1, H, W), scaled with the training set's own numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from chaos.paper.config import DATASETS, NORMALIZATIONS, ImagesConfig
from gdyn_common.seeding import generator, named_seed
from gdyn_reproduce import data as datasets

#: Largest grey value of each set as the loader gives it, and its smallest.
_RANGES = {"usps": (-1.0, 1.0), "digits16": (-1.0, 1.0), "digits": (0.0, 16.0), "fmnist": (0.0, 255.0)}
_SYNTHETIC_SIZES = {"train": 400, "test": 200}


@dataclass(frozen=True)
class Data:
    """Training and test set.

    Attributes:
        x_train, y_train, x_test, y_test: Images (N, 1, H, W) and labels.
        source: Where the arrays came from, for the record.
    """

    x_train: Float[Tensor, "n 1 h w"]
    y_train: Int[Tensor, " n"]
    x_test: Float[Tensor, "m 1 h w"]
    y_test: Int[Tensor, " m"]
    source: str

    @property
    def num_inputs(self) -> int:
        """Pixels per image."""
        return self.x_train[0].numel()

    def batches(self, seed: int, batch_size: int, start: int = 0) -> Iterator[Int[Tensor, " b"]]:
        """Row indices of the batches for ever, from step ``start`` on: a fresh shuffle every epoch.

        The last batch of an epoch is smaller where the sizes do not divide.
        """
        per_epoch = self.steps_per_epoch(batch_size)
        epoch, offset = divmod(start, per_epoch)
        while True:
            order = generator(seed, "batches", epoch).permutation(len(self.y_train))
            for i in range(offset, per_epoch):
                yield torch.from_numpy(order[i * batch_size : (i + 1) * batch_size])
            epoch, offset = epoch + 1, 0

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.y_train) // batch_size)


def configured(config: ImagesConfig) -> Data:
    """The images that a configuration names, in its type and on its device.

    Raises:
        ValueError: If the device is not there.
    """
    device, dtype = device_of(config), getattr(torch, config.dtype)
    data = load_data(config.dataset, config.normalize, config.data_root, dtype, download=config.download)
    return Data(
        data.x_train.to(device),
        data.y_train.to(device),
        data.x_test.to(device),
        data.y_test.to(device),
        data.source,
    )


def device_of(config: ImagesConfig) -> torch.device:
    """The device that a configuration names.

    Raises:
        ValueError: If it is not there.
    """
    if config.device != "cpu":
        try:
            torch.empty(0, device=config.device)
        except (RuntimeError, AssertionError):  # a build without CUDA raises the latter
            raise ValueError(
                f"device={config.device} was asked for, but no such device is there; pass device=cpu."
            ) from None
    return torch.device(config.device)


def load_data(
    name: str,
    normalize: str = "standard",
    root: str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    download: bool = False,
) -> Data:
    """Load and scale a data set.

    Args:
        name: usps, fmnist (resized to 16 x 16), digits (8 x 8), digits16, or synthetic (16 x 16).
        normalize: All scale to [0, 1] first. ``standard`` then subtracts the scalar mean of the training
            set and divides by its scalar standard deviation; ``center`` subtracts the mean only; ``unit``
            does neither.
        root: Folder of data; ``None`` takes GDYN_DATA_DIR.
        dtype: Type of the images.
        download: Fetch what is missing.

    Raises:
        ValueError: For an unknown name or scaling.
        FileNotFoundError: If the files are absent; the message names them.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset={name} is unknown. Allowed: {', '.join(DATASETS)}.")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize} is unknown. Allowed: {', '.join(NORMALIZATIONS)}.")
    (x_train, y_train), (x_test, y_test) = (_load(name, split, root, download) for split in ("train", "test"))
    mean = x_train.mean() if normalize != "unit" else 0.0
    std = x_train.std(ddof=1) if normalize == "standard" else 1.0
    images = [torch.from_numpy((x - mean) / std).to(dtype)[:, None] for x in (x_train, x_test)]
    labels = [torch.from_numpy(y) for y in (y_train, y_test)]
    return Data(images[0], labels[0], images[1], labels[1], f"{name}, normalize={normalize}")


def _load(name: str, split: str, root: str | None, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1] as float64 (N, H, W)."""
    if name == "synthetic":
        return _synthetic(split)
    x, y = datasets.load({"fmnist": "fashion_mnist"}.get(name, name), split, root=root, download=download)
    low, high = _RANGES[name]
    x = (x.astype(np.float64) - low) / (high - low)
    if name == "fmnist":
        small = torch.nn.functional.interpolate(
            torch.from_numpy(x)[:, None], (16, 16), mode="bilinear", antialias=True
        )
        x = small[:, 0].numpy()
    return x, y


def _synthetic(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Ten blurred random patterns with noise, for tests without files."""
    patterns = np.random.default_rng(named_seed(0, "patterns")).random((10, 16, 16))
    rng = np.random.default_rng(named_seed(0, "synthetic", split))
    y = rng.integers(0, 10, _SYNTHETIC_SIZES[split])
    x = np.clip(patterns[y] + 0.3 * rng.standard_normal((len(y), 16, 16)), 0, 1)
    return x, y.astype(np.int64)
