"""Perturbations of a model along chaotic, converging or random directions, all of exactly the same norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chaos.eigenthings import Eigenthings

#: In the order in which ``all`` gives them to models 1 to 5.
STRATEGIES = ("max_chaos", "randn_chaos", "max_convergence", "randn_convergence", "randn")

#: Relative error of the distance, by rounding to the parameters' type, above which it is refused.
ROUNDING_TOLERANCE = 0.05

Pairs = Eigenthings | tuple[Tensor, Tensor]


def assignment(i: int, strategy: str | None, sizes: Sequence[float]) -> tuple[str, float]:
    """Strategy and size of perturbed model i, counted from 1.

    Args:
        i: Number of the model.
        strategy: One of :data:`STRATEGIES`, or ``"all"`` for each in turn.
        sizes: For ``"all"`` one per round of the strategies, else one per model; the last one repeats.

    Raises:
        ValueError: Without a strategy.

    Example:
        >>> assignment(5, "all", [0.1, 0.2]), assignment(6, "all", [0.1, 0.2])
        (('randn', 0.1), ('max_chaos', 0.2))
    """
    if strategy is None:
        raise ValueError(f"Model {i} has no perturbation; pass perturb_strat=all or one of {STRATEGIES}.")
    if strategy == "all":
        round_, turn = divmod(i - 1, len(STRATEGIES))
        return STRATEGIES[turn], sizes[min(round_, len(sizes) - 1)]
    return strategy, sizes[min(i - 1, len(sizes) - 1)]


def perturb(
    model: nn.Module,
    distance: float,
    strategy: str,
    lyapunov: Pairs | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    """Move a model's parameters, in place, by a vector of exactly the given norm.

    Args:
        model: The model; its trainable parameters move.
        distance: Euclidean norm of the whole flat perturbation.
        strategy: One of :data:`STRATEGIES`.
        lyapunov: Stored pairs, or (exponents, right singular vectors as columns); not needed for ``randn``.
        generator: Source of randomness of the ``randn`` strategies.

    Returns:
        The perturbation.

    Raises:
        TypeError: As :func:`perturbation_vector`.
        ValueError: As there, or where the parameters' type rounds the perturbation away; nothing moves then.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> perturb(model, 0.5, "randn").norm().round(decimals=6).item()
        0.5
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    n = sum(p.numel() for p in parameters)
    v = perturbation_vector(n, distance, strategy, lyapunov, generator)
    pieces = v.split([p.numel() for p in parameters])
    with torch.no_grad():
        moved = [p + piece.view_as(p).to(p) for p, piece in zip(parameters, pieces, strict=True)]
        steps = [float((new.double() - p.double()).norm()) for new, p in zip(moved, parameters, strict=True)]
        if not abs(math.hypot(*steps) / distance - 1) <= ROUNDING_TOLERANCE:
            raise ValueError(
                f"distance is {distance:g}, but the parameters would move by {math.hypot(*steps):g}, rounded "
                "to their type; perturb a model of float64, or by more."
            )
        for p, new in zip(parameters, moved, strict=True):
            p.copy_(new)
    return v


def perturbation_vector(
    n: int,
    distance: float,
    strategy: str,
    lyapunov: Pairs | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    """The flat perturbation of a strategy.

    ``max_chaos`` and ``max_convergence`` are the directions of the largest and smallest exponent (first
    entry of largest magnitude positive), ``randn_chaos`` and ``randn_convergence`` Gaussian combinations of
    all directions with exponent above and below zero, ``randn`` is isotropic.

    Args:
        n: Number of parameters.
        distance: Euclidean norm of the result.
        strategy: One of :data:`STRATEGIES`.
        lyapunov: As in :func:`perturb`.
        generator: As in :func:`perturb`.

    Raises:
        TypeError: For pairs of another kind.
        ValueError: For an unknown strategy, missing or foreign pairs, or an empty set of directions.

    Source: Sec. 5 of Herrmann et al. 2022.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}.")
    if not 0 < distance < math.inf:
        raise ValueError(f"distance is {distance}; the size of a perturbation must be positive and finite.")
    if n == 0:
        raise ValueError("The model has no parameter that requires a gradient; there is nothing to perturb.")
    if strategy == "randn":
        return _scaled(_normal(n, generator), distance)
    if lyapunov is None:
        raise ValueError(
            f"Strategy {strategy!r} needs eigenpairs of a tangent matrix; only 'randn' works without. "
            "Make them with `train save_eigenthings=True`."
        )
    if isinstance(lyapunov, Eigenthings):
        lyapunov = lyapunov.exponents, lyapunov.vectors
    if not isinstance(lyapunov, tuple | list):
        raise TypeError(
            f"lyapunov is a {type(lyapunov).__name__}; pass stored pairs, or (exponents, vectors as columns)."
        )
    exponents, vectors = lyapunov
    if vectors.shape[0] != n:
        raise ValueError(f"The eigenpairs have n = {vectors.shape[0]}; the model has n = {n} parameters.")
    if exponents.shape != vectors.shape[1:] or bool(exponents.isnan().any()) or not len(exponents):
        raise ValueError(
            f"There are {len(exponents)} exponents and vectors of shape {tuple(vectors.shape)}; pass one "
            "column for each exponent, at least one, and no NaN."
        )
    v = _direction(strategy, exponents, vectors.double(), generator)
    return _scaled(v, distance)


def _scaled(v: Tensor, norm: float) -> Tensor:
    length = float(v.norm())
    if not 0 < length < math.inf:
        raise ValueError(f"The direction has length {length:g}; its vectors must be finite and not zero.")
    return v * (norm / length)


def _direction(
    strategy: str, exponents: Tensor, vectors: Tensor, generator: torch.Generator | None
) -> Tensor:
    if strategy.startswith("max"):
        index = exponents.argmax() if strategy == "max_chaos" else exponents.argmin()
        v = vectors[:, index]
        return v * float(v[v.abs().argmax()].sign())
    chosen = exponents > 0 if strategy == "randn_chaos" else exponents < 0
    if not bool(chosen.any()):
        raise ValueError(
            f"Strategy {strategy!r} has no direction to combine: of {len(exponents)} exponents "
            f"{int((exponents > 0).sum())} are positive and {int((exponents < 0).sum())} negative."
        )
    return vectors[:, chosen] @ _normal(int(chosen.sum()), generator).to(vectors.device)


def _normal(size: int, generator: torch.Generator | None) -> Tensor:
    source = "cpu" if generator is None else generator.device
    return torch.randn(size, generator=generator, dtype=torch.float64, device=source)
