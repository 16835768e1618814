"""Models that are trained on the same batches at once: stacked parameters, one vectorised gradient."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from chaos.paper.train.config import TrainConfig
from chaos.paper.train.member import Member
from chaos.paper.training import stacked_gradient
from gdyn_common.storage import Arrays


class Ensemble:
    """The models of a run when nothing asks for curvature.

    The members' parameters become views of the rows of one matrix, so everything else sees them as usual.

    Args:
        members: At least one, all of one architecture.
        config: Options of the run.
    """

    def __init__(self, members: list[Member], config: TrainConfig) -> None:
        self.members, self.config = members, config
        rows = [nn.utils.parameters_to_vector(m.model.parameters()).detach() for m in members]
        self.theta: Float[Tensor, "m n"] = torch.stack(rows)
        self.velocity = torch.zeros_like(self.theta)
        for member, row in zip(members, self.theta, strict=True):
            nn.utils.vector_to_parameters(row, member.model.parameters())
        self.gradient = stacked_gradient(members[0].model)

    @staticmethod
    def applies(config: TrainConfig) -> bool:
        """Whether a run is plain SGD of several models without any use of a Hessian."""
        return (
            config.parallel > 1
            and config.optim.name == "sgd"
            and not config.model.batch_norm
            and not config.logging.needs_hessian
        )

    def advance(self, step: int, x: Tensor, y: Tensor) -> dict[str, float]:
        """Take step number ``step`` (from 0) with all models and return what is due to be logged.

        Raises:
            FloatingPointError: If a loss is not finite, with the model and the step.
        """
        g, (losses, outputs) = self.gradient(self.theta, x, y)
        metrics: dict[str, float] = {}
        for member, loss, output, row in zip(self.members, losses, outputs, g, strict=True):
            metrics |= member.named(member.first_order(step, loss, output, row, y))
        self.velocity.mul_(self.config.optim.momentum).add_(g)
        self.theta.add_(self.velocity, alpha=-self.config.optim.lr)
        return metrics

    def state(self) -> Arrays:
        """What a checkpoint keeps besides the members' parameters."""
        return {"velocity": self.velocity.cpu().numpy()}

    def restore(self, saved: Arrays) -> None:
        """Continue from a checkpoint; the members have restored their parameters, which are views."""
        self.velocity.copy_(torch.from_numpy(np.asarray(saved["velocity"])))
