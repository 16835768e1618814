"""Data sets as NumPy arrays, without a framework and without surprises from the network.

``x, y = load(name, split)`` gives images ``(N, H, W)`` or ``(N, H, W, C)`` (vectors ``(N, dim)`` for
the vector generators) and int64 labels counted from 0. Real images are uint8 in 0..255; USPS and its
stand-in `digits16` are float32 in [-1, 1], -1 the background; `digits` keeps its levels 0..16.

Always there: `digits`, `digits16` and the generators `gaussians`, `teacher`, `textures32`. The others
are files under `root`, or ``$GDYN_DATA_DIR``, or ``~/.cache/gdyn``: an npz of ours or the layout that
torchvision leaves. Nothing is downloaded unless ``download=True``.

>>> x, y = load("digits16", "test")
>>> x.shape, x.dtype.name, y.dtype.name
((360, 16, 16), 'float32', 'int64')
"""

from gdyn_reproduce.data.catalogue import Dataset, is_available, load, load_dataset, names
from gdyn_reproduce.data.embedded import resize_bilinear
from gdyn_reproduce.data.generators import gaussians, teacher, textures32

__all__ = [
    "Dataset",
    "gaussians",
    "is_available",
    "load",
    "load_dataset",
    "names",
    "resize_bilinear",
    "teacher",
    "textures32",
]
