"""Lyapunov analysis of training: tangent matrix of the optimiser's map, local and finite-time exponents.

One step of SGD maps ``theta -> theta - h v``. Its tangent matrix ``Y_T = d theta_T / d theta_0`` along the
same batches obeys, in PyTorch's conventions (momentum mu, dampening d from the second step on, weight
decay c),

    A = H Y + c Y,   G' = mu G + (1 - d) A,   Y' = Y - h G'   (Nesterov: Y' = Y - h (A + mu G')).

Exponents are per step: ``lambda_i(T) = log sigma_i(Y_T) / T``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from chaos.cgd import check_symmetric
from chaos.exponents import Spectrum, resolution, snap_neutral
from chaos.o2grad import Eigenpairs, Hessian
from chaos.o2grad.budget import DEFAULT_BUDGET, check_budget
from chaos.o2grad.frames import InputFrame
from chaos.o2grad.observation import full_precision
from chaos.o2grad.singular import thin_svd
from gdyn_common.errors import require_count

METHODS = ("svd", "qr", "vectors")
RECURRENCES = ("exact", "published")

Product = Callable[[Tensor], Tensor]


class MapOptions(TypedDict, total=False):
    """The fields of :class:`OptimiserMap` besides momentum, as keywords."""

    dampening: float
    weight_decay: float
    nesterov: bool
    recurrence: str
    augmented: bool


@dataclass(frozen=True)
class OptimiserMap:
    """How one step of SGD moves its tangent vectors.

    Attributes:
        momentum, dampening, weight_decay, nesterov: Of the optimiser.
        recurrence: ``"published"`` reproduces the original's momentum recurrence (h G instead of h mu G,
            G_0 = H_0), which contradicts finite differences.
        augmented: Track (theta, v), 2n x 2n, instead of the theta-theta block. Like everything here it begins
            with a new optimiser, whose first velocity is not dampened.

    Raises:
        ValueError: For options out of range, or that do not go together.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    recurrence: str = "exact"
    augmented: bool = False

    def __post_init__(self) -> None:
        _check("recurrence", self.recurrence, RECURRENCES)
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and not negative.")
        if not math.isfinite(self.dampening):
            raise ValueError(f"dampening is {self.dampening}; it must be finite.")
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError("nesterov needs momentum and no dampening, as in torch.optim.SGD.")
        if self.recurrence == "published" and (self.nesterov or self.dampening or self.augmented):
            raise ValueError(
                "recurrence='published' is that of plain momentum; leave out nesterov, dampening and "
                "augmented, or take recurrence='exact'."
            )
        if self.augmented and not self.momentum:
            raise ValueError("augmented tracks a velocity, so it needs momentum; leave it out.")
        if self.momentum >= 1:
            warnings.warn(
                f"momentum is {self.momentum}; the optimiser's own map expands at momentum >= 1.",
                stacklevel=4,
            )

    def advance(
        self, Y: Tensor, G: Tensor | None, A: Tensor, h: float, *, is_first: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the tangents of parameters and velocity after a step, where ``A = H Y + c Y``."""
        if not self.momentum:
            return Y.sub_(A, alpha=h), G
        if self.recurrence == "published":
            previous = A if G is None else G
            return Y - h * (A + previous), self.momentum * previous + A
        if G is None:
            return Y - h * (A + self.momentum * A if self.nesterov else A), A
        G.mul_(self.momentum).add_(A, alpha=1 if is_first else 1 - self.dampening)
        return Y.sub_(A + self.momentum * G if self.nesterov else G, alpha=h), G


class LyapunovTracker:
    """Carries tangent vectors along a training run.

    Args:
        n: Number of parameters.
        h: Learning rate.
        momentum: Of the optimiser.
        method: ``"svd"`` keeps Y itself: exact finite-time exponents, as long as the spread of singular
            values is below 1/eps (1e15 in float64, 1e7 in float32). ``"qr"`` (Benettin) re-orthonormalises
            and sums log|diag R|: stable for any T. ``"vectors"`` is ``"qr"`` for ``num_vectors`` random
            directions: memory n k, any model. Both estimate the exponents of *endless* training: they tend
            to them as 1 / T and say little about few steps. For the leading exponents of T steps of a
            large model use :func:`chaos.finite_time_exponents`.
        num_vectors: k of ``"vectors"``.
        reorthonormalise_every: Steps between factorisations.
        dtype: Type of the tangent vectors.
        initial: Starting columns (n, k); ``None`` takes the identity, or fixed random orthonormal ones.
        memory_budget: Bytes that the tangent vectors may take.
        device: Where the tangent vectors are held: that of the model.
        options: The other fields of :class:`OptimiserMap`, by keyword: ``nesterov=True``.

    Raises:
        ValueError: For options out of range, or tangent vectors over the memory budget.

    Example:
        >>> tracker = LyapunovTracker(2, h=0.5)
        >>> for _ in range(3):
        ...     tracker.update(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))
        >>> tracker.exponents().exp().tolist()
        [0.5, 1.5]

    Source: Sec. 2 of Herrmann et al. 2022; Benettin et al. 1980 for the QR method.
    """

    def __init__(
        self,
        n: int,
        h: float,
        momentum: float = 0.0,
        method: str = "svd",
        num_vectors: int | None = None,
        reorthonormalise_every: int = 20,
        dtype: torch.dtype = torch.float64,
        *,
        initial: Tensor | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        device: torch.device | str = "cpu",
        **options: Unpack[MapOptions],
    ) -> None:
        _check("method", method, METHODS)
        if not 0 < h < math.inf:
            raise ValueError(f"h is {h}; the learning rate must be positive and finite.")
        require_count("n", n)
        require_count("reorthonormalise_every", reorthonormalise_every)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}; tangent vectors are held in torch.float32 or torch.float64.")
        self.map = OptimiserMap(momentum, **options)
        augmented = self.map.augmented
        if augmented and (method == "vectors" or initial is not None):
            raise ValueError(
                "augmented tracks all 2 n directions; it goes with method='svd' or 'qr', without initial."
            )
        if (num_vectors is not None) != (method == "vectors") and (num_vectors or initial is None):
            raise ValueError("num_vectors goes with method='vectors': pass both or neither.")
        if num_vectors is not None:
            require_count("num_vectors", num_vectors, most=n)
        if initial is not None and (initial.ndim != 2 or len(initial) != n):
            raise ValueError(f"initial has shape {tuple(initial.shape)}; pass columns ({n}, k).")
        if initial is not None and num_vectors not in (None, initial.shape[1]):
            raise ValueError(
                f"num_vectors is {num_vectors}, and initial has {initial.shape[1]} columns; leave it out."
            )
        size = (2 * n, 2 * n) if augmented else (n, num_vectors or n)
        instead = "Use method='vectors' with num_vectors=k, which holds n k numbers and takes Hessian-vector "
        instead += "products, or pass a larger memory_budget."
        if initial is None:
            check_budget(*size, dtype, memory_budget, instead)
        self.n, self.h, self.method = n, h, method
        self.reorthonormalise_every = reorthonormalise_every
        if augmented:
            self.Y = torch.eye(n, 2 * n, dtype=dtype, device=device)
            self.G: Tensor | None = torch.eye(2 * n, dtype=dtype, device=device)[n:]
        else:
            self.Y = self._start(initial, num_vectors, dtype).to(device)
            self.G = None
        self.log_growth = self.Y.new_zeros(self.Y.shape[1])
        self.num_steps = 0
        plain = method == "svd" and initial is None and not augmented and not self.map.weight_decay
        #: Frame outside which Y is still the identity; ``None`` once that is unknown.
        self.support: InputFrame | None = None
        self._follow_support = plain

    def _start(self, initial: Tensor | None, k: int | None, dtype: torch.dtype) -> Tensor:
        if initial is not None:
            return initial.to(dtype).clone(memory_format=torch.contiguous_format)
        if k is None:
            return torch.eye(self.n, dtype=dtype, device="cpu")
        generator = torch.Generator("cpu").manual_seed(0)
        random = torch.randn(self.n, k, generator=generator, dtype=dtype, device="cpu")
        Q: Tensor = torch.linalg.qr(random).Q
        return Q

    @torch.no_grad()
    @full_precision()
    def update(
        self,
        H: Hessian | Eigenpairs | Tensor | Product,
        keep: tuple[Eigenpairs, Bool[Tensor, " m"]] | None = None,
        gamma: float = 1.0,
    ) -> None:
        """Advance by one optimiser step, with the Hessian *before* the step.

        Args:
            H: A Hessian, Eigenpairs, (n, n) tensor, or a function from columns (n, k) to ``H`` times
                them (Hessian-vector products).
            keep: For CGD, the pairs and the mask of *discarded* directions (``last_pairs``,
                ``last_discard``): the tangent of a step is I - h P H with P frozen.
            gamma: Share of the projected gradient, as in CGD.

        Raises:
            TypeError: If H is none of these.
            ValueError: If H, or what the function returns, has another size, or a matrix is not symmetric.
            FloatingPointError: If H is not finite; the tangent vectors stay as they were.
        """
        product = self._product(H)
        self._extend_support(H)
        if isinstance(H, Hessian | Eigenpairs) and not self.map.momentum and _same_frame(H, keep):
            self._advance_in_frame(H, keep, gamma)
        else:
            A = product(self.Y)
            if A.shape != self.Y.shape:
                raise ValueError(f"H times columns {tuple(self.Y.shape)} has shape {tuple(A.shape)}.")
            self._check_finite(A)
            if keep is not None:
                A = A - gamma * _discarded_part(keep, A)
            if self.map.weight_decay:
                A = A + self.map.weight_decay * self.Y
            self.Y, self.G = self.map.advance(self.Y, self.G, A, self.h, is_first=not self.num_steps)
        self.num_steps += 1
        if self.method != "svd" and self.num_steps % self.reorthonormalise_every == 0:
            self._reorthonormalise()

    def _extend_support(self, H: Hessian | Eigenpairs | Tensor | Product) -> None:
        if not self._follow_support:
            return
        frame = H.frame if isinstance(H, Hessian | Eigenpairs) else None
        if not isinstance(frame, InputFrame):
            self._follow_support, self.support = False, None
            return
        frame = replace(frame, basis=frame.basis.to(self.Y.dtype))
        self.support = frame if self.support is None else self.support.union(frame)
        if self.support.rank > self.n // 2:
            self._follow_support, self.support = False, None

    @full_precision()
    def _matrix(self) -> Tensor:
        """The matrix to decompose: Y, or ``S' Y S`` where ``Y = I`` outside a frame S."""
        if self.support is None:
            return self._state()
        return self.support.restrict(self.support.restrict(self.Y).T.contiguous()).T

    def _advance_in_frame(
        self, H: Hessian | Eigenpairs, keep: tuple[Eigenpairs, Bool[Tensor, " m"]] | None, gamma: float
    ) -> None:
        """The step of plain SGD in the frame of H: Y is read twice and written once, no copy is made."""
        A = _core_product(H, H.frame.restrict(self.Y))
        self._check_finite(A)
        if keep is not None:
            pairs, discard = keep
            removed = pairs.core_vectors[:, discard].to(A.dtype)
            A -= gamma * (removed @ (removed.T @ A))
        if self.map.weight_decay:
            self.Y.mul_(1 - self.h * self.map.weight_decay)
        H.frame.add_expanded(self.Y, A, -self.h)

    def _check_finite(self, A: Tensor) -> None:
        if not bool(torch.isfinite(A).all()):
            if bool(self.Y.abs().max() < torch.finfo(self.Y.dtype).max ** 0.5):
                raise FloatingPointError(
                    f"The Hessian is not finite at step {self.num_steps}; nothing was changed."
                )
            raise FloatingPointError(f"Growth overflows {self.Y.dtype}; use method='qr', or shorter runs.")

    def _product(self, H: Hessian | Eigenpairs | Tensor | Product) -> Product:
        if isinstance(H, Hessian | Eigenpairs) and H.n != self.n:
            raise ValueError(f"The Hessian has n = {H.n}; the tracker was made for n = {self.n}.")
        if isinstance(H, Hessian | Eigenpairs):
            return lambda V: H.frame.expand(_core_product(H, H.frame.restrict(V)))
        if isinstance(H, Tensor):
            if H.shape != (self.n, self.n):
                raise ValueError(f"The Hessian has shape {tuple(H.shape)}; expected ({self.n}, {self.n}).")
            check_symmetric(H)
            return lambda V: H.to(V.dtype) @ V
        if not callable(H):
            raise TypeError(
                f"H is a {type(H).__name__}; pass a Hessian, Eigenpairs, a tensor ({self.n}, {self.n}), or a "
                "function from columns to H times them."
            )
        return lambda V: H(V.clone())  # which it may write into

    def _reorthonormalise(self) -> None:
        Q, R = torch.linalg.qr(self._joint())
        signs = R.diagonal().sign()
        signs[signs == 0] = 1
        Q, R = Q * signs, R * signs[:, None]
        self.log_growth = self.log_growth + R.diagonal().log()
        self.Y = Q[: self.n].contiguous()
        if self.G is not None:
            self.G = Q[self.n :].contiguous()

    def _joint(self) -> Tensor:
        """Tangent of parameters and velocity, which one triangular factor serves, singular steps included."""
        return self.Y if self.G is None else torch.cat([self.Y, self.G])

    def _state(self) -> Tensor:
        return self._joint() if self.map.augmented else self.Y

    def spectrum(self, t: int | None = None) -> Spectrum:
        """Exponents with how they were obtained; a decomposition, so call it when you log.

        Args:
            t: Number of steps to divide by; ``None`` takes the steps so far.
        """
        steps = max(self.num_steps if t is None else t, 1)
        if self.method == "svd":
            sigma = torch.linalg.svdvals(self._matrix()).flip(0)
            if self.support is not None:  # directions that no batch has reached neither grow nor shrink
                sigma = torch.cat([sigma, sigma.new_ones(self.n - len(sigma))]).sort().values
            logs = self._log_singular_values(sigma)
        else:
            diagonal = torch.linalg.qr(self._state(), mode="r").R.diagonal().abs()
            logs = self._log_growths(diagonal).sort().values
        unresolved = int(torch.isinf(logs).sum())
        return Spectrum(logs / steps, unresolved, self.num_steps, self.method)

    def _log_singular_values(self, sigma: Tensor) -> Tensor:
        """Logarithms of ascending singular values: unresolved ones ``-inf``, neutral ones exactly 0."""
        if not bool(torch.isfinite(sigma).all()):
            raise FloatingPointError(f"Growth overflows {sigma.dtype}; use method='qr', or shorter runs.")
        floor = resolution(sigma.dtype, self.num_steps)
        resolved = sigma > sigma[-1] * floor
        logs = torch.where(resolved, torch.where(resolved, sigma, 1.0).log(), -torch.inf)
        return snap_neutral(logs, self.num_steps, float(sigma[-1]))

    def _log_growths(self, diagonal: Tensor) -> Tensor:
        """The same of a QR method, whose matrices hold the growth since the last factorisation only."""
        return snap_neutral(self.log_growth + diagonal.log(), self.num_steps, float(diagonal.max()))

    def exponents(self, t: int | None = None) -> Float[Tensor, " k"]:
        """Finite-time exponents per step, ascending; see :meth:`spectrum`."""
        return self.spectrum(t).exponents

    def vectors(self, side: str = "right") -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"]]:
        """Exponents (ascending) and their directions as columns.

        Early in a run of a network that sees few inputs, directions that no batch has reached (exponent
        exactly 0) are left out, so there are fewer than n.

        Args:
            side: ``"right"``: directions at time 0 (the eigenvectors of Y'Y, those of the original);
                ``"left"``: directions at time T. Methods ``qr`` and ``vectors`` know the left ones only.

        Raises:
            ValueError: For another side, or right vectors of a QR method.
        """
        _check("side", side, ("right", "left"))
        if self.method == "svd":
            U, sigma, Vt = thin_svd(self._matrix())
            V = (Vt.T if side == "right" else U).flip(1)
            logs = self._log_singular_values(sigma.flip(0))
            V = V if self.support is None else self.support.expand(V)
            return logs / max(self.num_steps, 1), V
        if side == "right":
            raise ValueError(
                f"method={self.method!r} holds directions at time T only; use side='left' or method='svd'."
            )
        Q, R = torch.linalg.qr(self._state())
        logs = self._log_growths(R.diagonal().abs())
        order = logs.argsort()
        return logs[order] / max(self.num_steps, 1), Q[:, order]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue bit for bit."""
        state = {"Y": self.Y, "log_growth": self.log_growth, "num_steps": torch.tensor(self.num_steps)}
        if self.support is not None:
            state |= self.support.state()
        return state if self.G is None else {**state, "G": self.G}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If the tangent matrix has another shape.
        """
        if state["Y"].shape != self.Y.shape:
            raise ValueError(
                f"The state has Y of shape {tuple(state['Y'].shape)}; expected {tuple(self.Y.shape)}."
            )
        self.Y, self.log_growth = state["Y"].to(self.Y, copy=True), state["log_growth"].to(self.Y, copy=True)
        self.G = state["G"].to(self.Y, copy=True) if "G" in state else None
        self.num_steps = int(state["num_steps"])
        self.support = InputFrame.from_state(state) if "frame.basis" in state else None
        self._follow_support = self.support is not None


def tangent_error(
    step: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]],
    point: Float[Tensor, " n"],
    tangent: Float[Tensor, "n n"],
    epsilon: float = 1e-6,
) -> float:
    """Largest difference between a tangent matrix and central differences of the map it should describe.

    Args:
        step: The map theta_0 -> theta_T.
        point: theta_0, float64.
        tangent: Claimed d theta_T / d theta_0.
        epsilon: Step of the differences.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
        >>> tangent_error(lambda v: A @ v, torch.ones(2, dtype=torch.float64), A) < 1e-9
        True
    """
    columns = []
    for j in range(len(point)):
        offset = torch.zeros_like(point)
        offset[j] = epsilon
        columns.append((step(point + offset) - step(point - offset)) / (2 * epsilon))
    return float((torch.stack(columns, 1) - tangent).abs().max())


def _core_product(H: Hessian | Eigenpairs, core: Tensor) -> Tensor:
    """H times columns, both in the coordinates of H's frame."""
    if isinstance(H, Hessian):
        return H.core.to(core.dtype) @ core
    W = H.core_vectors.to(core.dtype)
    return (W * H.values.to(core.dtype)) @ (W.T @ core)


def _same_frame(H: Hessian | Eigenpairs, keep: tuple[Eigenpairs, Tensor] | None) -> bool:
    return keep is None or keep[0].frame is H.frame


def _discarded_part(keep: tuple[Eigenpairs, Tensor], A: Tensor) -> Tensor:
    pairs, discard = keep
    removed = pairs.core_vectors[:, discard].to(A.dtype)
    return pairs.frame.expand(removed @ (removed.T @ pairs.frame.restrict(A)))


def _check(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"Unknown {name} {given!r}; choose one of {', '.join(allowed)}.")
