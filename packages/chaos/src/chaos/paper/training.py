"""Training one network and measuring it: the plain loop that the figures share.

Order within a step: gradient, Hessian where someone needs it, optimiser, tangent matrix (with the Hessian
from before the step), measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from chaos.cgd import CGD
from chaos.lyapunov import LyapunovTracker
from chaos.o2grad import Eigenpairs, Hessian, LossSurface
from chaos.paper.data import Data
from gdyn_common.seeding import named_seed
from gdyn_common.storage import Arrays, Checkpoint

#: The arm of Figure 1 that removes random directions.
RANDOM = "random"

Control = Literal["", "untrained", "bent up"]
StackedGradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Plan:
    """What one training run does.

    Attributes:
        seed: Of the batches.
        num_steps, batch_size, learning_rate, momentum: Of SGD.
        prune_set: Directions that CGD removes; ``None`` is plain SGD, ``"random"`` a control: random
            directions, as many as there are chaotic ones.
        prune_start: First step that removes them.
        evaluate_every: Steps between evaluations on the test set (and one after the last step).
        checkpoint_every: Steps between checkpoints.
    """

    seed: int
    num_steps: int
    batch_size: int = 8
    learning_rate: float = 1e-3
    momentum: float = 0.0
    prune_set: str | None = None
    prune_start: int = 0
    evaluate_every: int = 100
    checkpoint_every: int = 1000


def flat_parameters(model: nn.Module) -> Float[Tensor, " n"]:
    """Copy of the parameters as one vector."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@torch.no_grad()
def set_parameters(model: nn.Module, flat: Float[Tensor, " n"]) -> None:
    """Copy a vector into the parameters; copies, not views, so that a resumed run has the same alignment."""
    parameters = list(model.parameters())
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.copy_(piece.view_as(p))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of correct predictions."""
    return float((model(x).argmax(1) == y).double().mean())


def train(model: nn.Module, data: Data, plan: Plan, checkpoint: Checkpoint | None = None) -> Arrays:
    """Train a model in place with SGD or CGD.

    Args:
        model: Starts as given; ends trained.
        data: Training and test set.
        plan: What to do.
        checkpoint: Where to continue from and save to.

    Returns:
        ``step``, ``accuracy`` and ``loss`` on the test set, ``pruned_fraction`` (mean share of the squared
        gradient removed since the last evaluation) and the final ``parameters``.

    Raises:
        FloatingPointError: If the loss stops being finite, with the step.
    """
    loss = nn.CrossEntropyLoss()
    optimizer = _optimizer(model, plan)
    surface = LossSurface(model, loss)
    history: dict[str, list[float]] = {"step": [], "accuracy": [], "loss": [], "pruned_fraction": []}
    start, removed = 0, [0.0, 0.0]
    saved = checkpoint.load() if checkpoint is not None else None
    if saved is not None:
        start = int(saved["num_steps"])
        set_parameters(model, torch.from_numpy(saved["theta"]))
        restore_momentum(optimizer, saved, start)
        history = {key: saved[key].tolist() for key in history}
        removed = saved["removed"].tolist()
    for step, rows in zip(
        range(start, plan.num_steps), data.batches(plan.seed, plan.batch_size, start), strict=False
    ):
        if step % plan.evaluate_every == 0:
            _evaluate(model, data, step, history, removed)
        x, y = data.x_train[rows], data.y_train[rows]
        optimizer.zero_grad()
        value = loss(model(x), y)
        if not torch.isfinite(value):
            raise FloatingPointError(f"The loss is not finite at step {step}; lower the learning rate.")
        value.backward()
        if isinstance(optimizer, CGD):
            curvature: Hessian | Eigenpairs | None = None
            if optimizer.needs_curvature:
                curvature = surface.hessian(None, x, y)
                if plan.prune_set == RANDOM:
                    curvature = _random_directions(curvature.eigh(), optimizer, plan.seed, step)
            optimizer.step(curvature)
            removed = [removed[0] + optimizer.last_pruned_fraction, removed[1] + 1]
        else:
            optimizer.step()
        if checkpoint is not None and (step + 1) % plan.checkpoint_every == 0:
            state = momentum_state(optimizer)
            checkpoint.save(
                num_steps=step + 1,
                theta=flat_parameters(model).numpy(force=True),
                removed=removed,
                **history,
                **state,
            )
    _evaluate(model, data, plan.num_steps, history, removed)
    return {key: np.array(values) for key, values in history.items()} | {
        "parameters": flat_parameters(model).numpy(force=True)
    }


def _optimizer(model: nn.Module, plan: Plan) -> torch.optim.SGD:
    if plan.prune_set is None:
        return torch.optim.SGD(model.parameters(), lr=plan.learning_rate, momentum=plan.momentum)
    return CGD(
        model.parameters(),
        lr=plan.learning_rate,
        momentum=plan.momentum,
        prune_set="chaotic" if plan.prune_set == RANDOM else plan.prune_set,
        prune_start=plan.prune_start,
    )


def _random_directions(pairs: Eigenpairs, optimizer: CGD, seed: int, step: int) -> Eigenpairs:
    """Random orthonormal directions in the place, and in the number, of those that CGD would remove."""
    count = int(optimizer.discard_mask(pairs.values).sum())
    generator = torch.Generator().manual_seed(named_seed(seed, "random directions", step))
    V = torch.randn(pairs.n, count, generator=generator, dtype=pairs.values.dtype)
    return Eigenpairs.from_pairs(-pairs.values.new_ones(count), torch.linalg.qr(V).Q)


def _evaluate(
    model: nn.Module, data: Data, step: int, history: dict[str, list[float]], removed: list[float]
) -> None:
    with torch.no_grad():
        output = model(data.x_test)
    history["step"].append(step)
    history["accuracy"].append(float((output.argmax(1) == data.y_test).double().mean()))
    history["loss"].append(float(nn.functional.cross_entropy(output, data.y_test)))
    history["pruned_fraction"].append(removed[0] / removed[1] if removed[1] else 0.0)
    removed[:] = [0.0, 0.0]


def momentum_state(optimizer: torch.optim.SGD) -> Arrays:
    """The momentum buffers as one array, if there are any yet."""
    buffers = [optimizer.state[p].get("momentum_buffer") for p in optimizer.param_groups[0]["params"]]
    if any(buffer is None for buffer in buffers):
        return {}
    return {"momentum": torch.cat([buffer.reshape(-1) for buffer in buffers]).numpy(force=True)}


def restore_momentum(optimizer: torch.optim.SGD, saved: Arrays, num_steps: int) -> None:
    """Put back what :func:`momentum_state` returned, and the step count of CGD."""
    if isinstance(optimizer, CGD):
        optimizer.num_steps = num_steps
    if "momentum" not in saved:
        return
    parameters = optimizer.param_groups[0]["params"]
    pieces = torch.from_numpy(saved["momentum"]).split([p.numel() for p in parameters])
    for p, piece in zip(parameters, pieces, strict=True):
        optimizer.state[p]["momentum_buffer"] = piece.view_as(p).to(p, copy=True)


def track(
    model: nn.Module,
    data: Data,
    plan: Plan,
    at: list[int],
    checkpoint: Checkpoint | None = None,
    control: Control = "",
) -> tuple[LyapunovTracker, Arrays]:
    """Train with SGD and carry the tangent matrix along.

    Args:
        model: Trained in place.
        data: Training set.
        plan: Steps, batches and rate; its ``prune_set`` is ignored.
        at: Steps after which exponents are computed.
        checkpoint: Where to continue from and save to.
        control: ``"untrained"`` leaves the parameters where they are; ``"bent up"`` makes all curvature
            positive after the first step of `at`.

    Returns:
        The tracker and ``exponents`` (len(at), n), ascending in each row.
    """
    loss = nn.CrossEntropyLoss()
    surface = LossSurface(model, loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=plan.learning_rate, momentum=plan.momentum)
    tracker = LyapunovTracker(
        surface.n, plan.learning_rate, plan.momentum, dtype=surface.dtype, device=surface.device
    )
    rows_out: list[np.ndarray] = []
    saved = checkpoint.load() if checkpoint is not None else None
    if saved is not None:
        set_parameters(model, torch.from_numpy(saved["theta"]))
        state = {k: torch.from_numpy(np.asarray(v)).to(surface.device) for k, v in saved.items()}
        tracker.load_state_dict(state)
        restore_momentum(optimizer, saved, tracker.num_steps)
        rows_out = list(saved["exponents"])
    start = tracker.num_steps
    for step, rows in zip(
        range(start, plan.num_steps), data.batches(plan.seed, plan.batch_size, start), strict=False
    ):
        x, y = data.x_train[rows], data.y_train[rows]
        H = surface.hessian(None, x, y)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        if control != "untrained":
            optimizer.step()
        tracker.update(_bent_up(H.eigh()) if control == "bent up" and step >= at[0] else H)
        if step + 1 in at:
            rows_out.append(tracker.exponents().numpy(force=True))
        if checkpoint is not None and (step + 1) % plan.checkpoint_every == 0:
            kept = {key: value.numpy(force=True) for key, value in tracker.state_dict().items()}
            exponents = np.array(rows_out).reshape(len(rows_out), surface.n)
            checkpoint.save(
                theta=flat_parameters(model).numpy(force=True),
                exponents=exponents,
                **kept,
                **momentum_state(optimizer),
            )
    return tracker, {"exponents": np.array(rows_out)}


def _bent_up(pairs: Eigenpairs) -> Eigenpairs:
    """The same directions with the absolute values of their curvature."""
    return Eigenpairs.from_pairs(pairs.values.abs(), pairs.core_vectors, pairs.frame)


def stacked_gradient(model: nn.Module) -> StackedGradient:
    """Gradient of the cross-entropy of many copies of a model at once.

    Args:
        model: Gives the architecture; it is not changed.

    Returns:
        A function of (parameters (m, n), x, y) returning the gradients (m, n) and the pair of losses (m,)
        and outputs (m, batch, classes).

    Example:
        >>> gradient = stacked_gradient(nn.Linear(2, 2, bias=False))
        >>> g, (loss, output) = gradient(torch.zeros(3, 4), torch.ones(1, 2), torch.tensor([0]))
        >>> g[0].tolist(), loss.shape, output.shape  # softmax minus target, times x
        ([-0.5, -0.5, 0.5, 0.5], torch.Size([3]), torch.Size([3, 1, 2]))
    """
    layout = LossSurface(model, nn.CrossEntropyLoss()).layout

    def loss(flat: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output = torch.func.functional_call(model, layout.unflatten(flat), (x,))
        value = nn.functional.cross_entropy(output, y)
        return value, (value.detach(), output.detach())

    gradient: StackedGradient = torch.func.vmap(torch.func.grad(loss, has_aux=True), in_dims=(0, None, None))
    return gradient


def advance_together(
    model: nn.Module, starts: Float[Tensor, "m n"], data: Data, plan: Plan
) -> Iterator[tuple[int, Float[Tensor, "m n"]]]:
    """Train several copies of a model on the same batches at once; yield (step, parameters) after each.

    Args:
        model: Gives the architecture; it is not changed.
        starts: Initial parameters, one row per copy.
        data: Training set.
        plan: Steps, batches, rate and momentum.
    """
    theta, velocity = starts.clone(), torch.zeros_like(starts)
    gradient = stacked_gradient(model)
    for step, rows in zip(range(plan.num_steps), data.batches(plan.seed, plan.batch_size), strict=False):
        g, _ = gradient(theta, data.x_train[rows], data.y_train[rows])
        velocity = plan.momentum * velocity + g
        theta = theta - plan.learning_rate * velocity
        yield step + 1, theta


def model_seed(seed: int) -> int:
    """Seed of the initial weights of a run."""
    return named_seed(seed, "model")
