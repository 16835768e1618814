"""Distances of perturbed models to the unperturbed one along a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chaos.paper.train.config import TrainConfig
from chaos.perturbation import assignment
from gdyn_common.storage import Arrays, write_arrays


class Trajectories:
    """Distances ``|theta_i - theta_0|`` and projections on the initial perturbation, as they are measured.

    Args:
        config: Options; nothing is measured for a single model.
        models: The origin first.
    """

    def __init__(self, config: TrainConfig, models: list[nn.Module]) -> None:
        self.config, self.models = config, models
        self.directions = [self._offset(i) for i in range(1, len(models))]
        self.times: list[int] = [0]
        self.distances = [[float(v.norm()) for v in self.directions]]

    def _offset(self, i: int) -> Tensor:
        flat = [
            nn.utils.parameters_to_vector(m.parameters()).detach() for m in (self.models[i], self.models[0])
        ]
        return flat[0] - flat[1]

    def measure(self, step: int) -> dict[str, float]:
        """Distances after a step, every ``log_freq`` steps."""
        if len(self.models) == 1 or step % self.config.logging.log_freq:
            return {}
        metrics, row = {}, []
        for i, direction in enumerate(self.directions, start=1):
            offset = self._offset(i)
            strategy, size = assignment(i, self.config.perturb_strat, self.config.perturb_eps)
            row.append(float(offset.norm()))
            metrics[f"distances/dist[0][{i}][{size:g}]:strat[{strategy}]"] = row[-1]
            metrics[f"distances/projection[0][{i}]"] = float(offset @ direction / direction.square().sum())
        self.times.append(step)
        self.distances.append(row)
        return metrics

    def finish(self, folder: Path) -> None:
        """Store and draw what the options ask for."""
        if len(self.models) == 1:
            return
        logging = self.config.logging
        if logging.save_trajectories:
            write_arrays(
                folder / "trajectories.npz", {"t": self.times, "distances": np.array(self.distances)}
            )
        if logging.plot_trajectories:
            from gdyn_reproduce.plotting import new_figure, save_figure

            figure, axes = new_figure()
            axes.plot(self.times, np.array(self.distances))
            axes.set(xlabel="step", ylabel="distance to the unperturbed model")
            save_figure(figure, folder / "trajectories")

    def state(self) -> Arrays:
        """What a checkpoint keeps."""
        directions = torch.stack(self.directions).cpu().numpy() if self.directions else np.zeros((0, 0))
        return {
            "trajectory_t": np.array(self.times),
            "trajectory_d": np.array(self.distances),
            "trajectory_v": directions,
        }

    def restore(self, saved: Arrays) -> None:
        """Continue from a checkpoint."""
        self.times, self.distances = saved["trajectory_t"].tolist(), saved["trajectory_d"].tolist()
        # Clones: rows of one array are not aligned as fresh tensors are, and sums round differently.
        self.directions = [row.clone() for row in torch.from_numpy(saved["trajectory_v"])]
