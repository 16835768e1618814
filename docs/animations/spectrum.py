"""Every curvature of a small network while it trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from animations.frames import MOVING, shown
from chaos.o2grad import LossSurface
from gdyn_reproduce.data.embedded import digits
from gdyn_reproduce.plotting import COLOURS, new_figure

RATE = 0.1
STEPS_PER_FRAME = 50
MEASURED = 256


def draw() -> tuple[Any, Any]:
    """Show the eigenvalues of the Hessian, the largest first, and which of them a step expands."""
    spectra, accuracies = _train()
    ranks = np.arange(1, 1 + len(spectra[0]))
    figure, axis = new_figure(figsize=(7.2, 3.8))
    labels = ("a step contracts", "a step leaves alone", "a step expands")
    drawn = [
        axis.plot([], [], ".", color=colour, markersize=4, label=label)[0]
        for label, colour in zip(labels, (COLOURS[0], "0.7", COLOURS[1]), strict=True)
    ]
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set(
        title=f"Every curvature of a network of {len(ranks)} weights while it trains",
        xlabel="direction, the largest curvature first",
        ylabel="eigenvalue of the Hessian",
        xlim=(0, len(ranks) + 1),
        ylim=(2 * min(map(np.min, spectra)), 2 * max(map(np.max, spectra))),
        yticks=[-1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10],
        yticklabels=["−1", "−0.1", "−0.01", "0", "0.01", "0.1", "1", "10"],
    )
    axis.legend(loc="lower left", markerscale=2)
    now = axis.annotate("", (0.98, 0.95), xycoords="axes fraction", ha="right", va="top")

    def update(frame: int) -> None:
        i = shown(frame, len(spectra)) - 1
        growth = np.abs(1 - RATE * spectra[i])
        for points, chosen in zip(drawn, (growth < 1, growth == 1, growth > 1), strict=True):
            points.set_data(ranks[chosen], spectra[i][chosen])
        now.set_text(f"step {i * STEPS_PER_FRAME}, accuracy {accuracies[i]:.0%}")

    return figure, update


def _train() -> tuple[list[np.ndarray], list[float]]:
    images, labels = digits("train")
    x = torch.from_numpy(images).double().flatten(1) / 16
    y = torch.from_numpy(labels).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).double()
        surface = LossSurface(model, nn.functional.cross_entropy)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        spectra, accuracies = [], []
        for step in range(MOVING * STEPS_PER_FRAME):
            if step % STEPS_PER_FRAME == 0:
                pairs = surface.hessian(None, x[:MEASURED], y[:MEASURED]).eigh()
                spectra.append(pairs.all_values().flip(0).numpy())
                accuracies.append(_accuracy(model, x, y))
            rows = torch.randint(len(x), (8,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return spectra, accuracies


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())
