"""How far the weights of two models are apart, layer by layer, without new memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from instability.rounding import Rooms

__all__ = ["layer_divergence"]


@torch.no_grad()
def layer_divergence(
    baseline: Mapping[str, Tensor], other: Mapping[str, Tensor], rooms: Rooms
) -> dict[str, tuple[float, int]]:
    """Return, for each named parameter, the sum of relative L1 distances of its entries, and their number.

    Summed over parameters and divided by the number of entries it is ``average_relative_l1`` of the weights;
    each entry is computed in the weights' own type, in float32 at least. NaN where a weight is not finite.

    >>> layer_divergence({"weight": torch.ones(2)}, {"weight": -torch.ones(2)}, Rooms())
    {'weight': (4.0, 2)}
    """
    found = {}
    for name, a in baseline.items():
        x, y = (torch.view_as_real(t) if t.is_complex() else t for t in (a.detach(), other[name].detach()))
        found[name] = (2 * _ratios(x, y, rooms), x.numel())
    return found


def _ratios(a: Tensor, b: Tensor, rooms: Rooms) -> float:
    """Return the sum of ``|a - b| / (|a| + |b|)``, where ``0 / 0`` counts as 0."""
    if torch.equal(a, b):
        return 0.0 if math.isfinite(a.sum()) or bool(a.isfinite().all()) else math.nan
    if a.element_size() < 4:
        a, b = a.float(), b.float()
    info = torch.finfo(a.dtype)
    difference = torch.sub(a, b, out=rooms.like(a, "difference")).abs_()
    size = torch.abs(a, out=rooms.like(a, "size")).add_(torch.abs(b, out=rooms.like(b, "other")))
    if math.isinf(size.amax()):  # the sum may overflow where the weights do not
        return _ratios(a / 4, b / 4, rooms) if a.isfinite().all() and b.isfinite().all() else math.nan
    smallest = info.tiny * info.eps  # so that 0 / 0 is 0, and nothing else is changed
    return float(difference.div_(size.clamp_min_(smallest)).sum())
