"""Examples in groups of like gradients while a network learns to tell two arcs apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from animations.frames import MOVING, shown
from gdyn_reproduce.plotting import COLOURS, new_figure
from variance import cluster, per_example
from variance.sampling import stratified_variance

CLUSTERS = 4
STEPS_PER_FRAME = 12
FLIPPED = 10


def draw() -> tuple[Any, Any]:
    """Show the groups, and what sampling from them leaves of the variance of a batch."""
    x, y, groups, left = _train()
    figure, (plane, curve) = new_figure(1, 2, figsize=(7.2, 3.8), width_ratios=(3, 2))
    drawn = [
        plane.plot([], [], "o^"[label], color=COLOURS[k], markersize=4)[0]
        for k in range(CLUSTERS)
        for label in (0, 1)
    ]
    plane.plot(*x[:FLIPPED].T, "o", fillstyle="none", color="black", markersize=9, markeredgewidth=0.8)
    plane.set(
        title="Colour: group of like gradients",
        xlabel="circle or triangle: label; ringed: label is wrong",
        xlim=(x[:, 0].min() - 0.2, x[:, 0].max() + 0.2),
        ylim=(x[:, 1].min() - 0.2, x[:, 1].max() + 0.2),
    )
    plane.set(xticks=[], yticks=[])
    steps = STEPS_PER_FRAME * np.arange(len(left))
    (line,) = curve.plot([], [], color=COLOURS[1])
    curve.set(title="Variance left", xlabel="step", ylabel="grouped / uniform batches")
    curve.set(xlim=(0, steps[-1]), ylim=(0, 1))

    def update(frame: int) -> None:
        i = shown(frame, len(left)) - 1
        for place, points in enumerate(drawn):
            chosen = (groups[i] == place // 2) & (y == place % 2)
            points.set_data(*x[chosen].T)
        line.set_data(steps[: i + 1], left[: i + 1])

    return figure, update


def _train() -> tuple[np.ndarray, np.ndarray, list[np.ndarray], list[float]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y = _arcs(100)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        groups: list[np.ndarray] = []
        left, centres = [], "kmeans++"
        for step in range(MOVING * STEPS_PER_FRAME):
            if step % STEPS_PER_FRAME == 0:
                found = cluster(model, nn.functional.cross_entropy, x, y, CLUSTERS, init=centres)
                gradients = per_example.gradients(model, nn.functional.cross_entropy, x, y)
                uniform = float(gradients.var(0, correction=0).sum()) / CLUSTERS
                groups.append(found.assignment.numpy())
                left.append(float(stratified_variance(gradients, found.assignment)) / uniform)
                centres = found.centres
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return x.numpy(), y.numpy(), groups, left


def _arcs(count: int) -> tuple[Tensor, Tensor]:
    """Draw two half circles that reach into each other; the first labels are flipped."""
    angle = torch.pi * torch.rand(2, count)
    upper = torch.stack([angle[0].cos(), angle[0].sin()], 1)
    lower = torch.stack([1 - angle[1].cos(), 0.5 - angle[1].sin()], 1)
    x = torch.cat([upper, lower]) + 0.15 * torch.randn(2 * count, 2)
    y = torch.arange(2).repeat_interleave(count)
    order = torch.randperm(2 * count)
    x, y = x[order], y[order]
    y[:FLIPPED] = 1 - y[:FLIPPED]
    return x, y
