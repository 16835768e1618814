"""CGD: stochastic gradient descent with chosen curvature directions removed from the gradient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from chaos.o2grad import Eigenpairs, Hessian
from chaos.o2grad.memory import check_memory
from chaos.o2grad.observation import full_precision
from chaos.o2grad.parameters import ParameterLayout

PRUNE_SETS = ("chaotic", "pos", "neg")
PRUNE_RULES = ("top_abs", "rand")
GLOBAL_RULES = ("exponents", "published")

#: Relative asymmetry and deviation from orthonormality above which a given curvature is refused.
CURVATURE_TOLERANCE = 1e-5

_OF_STATE = (
    *("gamma", "k", "prune_set", "prune_k", "prune_start", "prune_global", "global_rule"),
    *("noise", "noise_fac", "noise_on_null"),
)

Curvature = Hessian | Eigenpairs | Tensor | tuple[Tensor, Tensor]


class PruningOptions(TypedDict, total=False):
    """The fields of :class:`Pruning`, as keywords."""

    gamma: float
    k: int | None
    prune_set: str
    prune_k: str
    prune_start: int
    prune_global: bool
    global_eigenpairs: Eigenpairs | tuple[Tensor, Tensor] | None
    global_rule: str
    noise: bool
    noise_fac: float | None
    noise_on_null: bool


@dataclass(frozen=True, eq=False)
class Pruning:
    """Which directions a step of CGD removes from the gradient, and what it puts there.

    Attributes:
        gamma: Share of the pruned direction; 0 is SGD, bit for bit.
        k: Prune at most k directions of the set; ``None`` prunes the whole set and, for ``pos`` and
            ``neg``, the null space.
        prune_set: ``"chaotic"``, ``"pos"`` or ``"neg"``.
        prune_k: Which k: ``"top_abs"`` the most extreme, ``"rand"`` a uniform draw without replacement.
        prune_start: First step (counted from 0) that prunes.
        prune_global: Prune fixed directions, ``global_eigenpairs``, at every step.
        global_eigenpairs: Pairs (exponents, right singular vectors) of the tangent matrix.
        global_rule: ``"exponents"``: chaotic = neg = expanding, pos = contracting. ``"published"``: the
            Hessian rule on eigenvalues of Y'Y, as the original code does.
        noise: Replace the removed components by Gaussian noise instead of zero.
        noise_fac: Its standard deviation; ``None`` takes the mean of |g_i| at the step.
        noise_on_null: Include the null space in the noise of ``pos`` and ``neg``.
    """

    gamma: float = 1.0
    k: int | None = None
    prune_set: str = "chaotic"
    prune_k: str = "top_abs"
    prune_start: int = 0
    prune_global: bool = False
    global_eigenpairs: Eigenpairs | tuple[Tensor, Tensor] | None = None
    global_rule: str = "exponents"
    noise: bool = False
    noise_fac: float | None = None
    noise_on_null: bool = False

    def __post_init__(self) -> None:
        _check_choice("prune_set", self.prune_set, PRUNE_SETS)
        _check_choice("prune_k", self.prune_k, PRUNE_RULES)
        _check_choice("global_rule", self.global_rule, GLOBAL_RULES)
        if self.noise_fac is not None and not 0 < self.noise_fac < math.inf:
            raise ValueError(
                f"noise_fac is {self.noise_fac}; it is a standard deviation and must be positive."
            )
        if not math.isfinite(self.gamma):
            raise ValueError(f"gamma is {self.gamma}; it is a share and must be finite.")
        if self.k is not None and (isinstance(self.k, bool) or not (self.k >= 0 and self.k % 1 == 0)):
            raise ValueError(f"k is {self.k}; pass a count of directions >= 0, or None for the whole set.")
        if not (self.prune_start >= 0 and self.prune_start % 1 == 0):
            raise ValueError(f"prune_start is {self.prune_start}; it is a step number >= 0.")
        for name in ("prune_global", "noise", "noise_on_null"):
            if getattr(self, name) not in (False, True):
                raise ValueError(f"{name} is {getattr(self, name)!r}; pass True or False.")
        if self.prune_global and self.global_eigenpairs is None:
            raise ValueError("prune_global needs global_eigenpairs, the stored pairs of a tangent matrix.")


class CGD(torch.optim.SGD):
    """SGD on ``(1 - gamma) g + gamma u`` with ``u = P g (+ V_D xi)`` and ``P = I - V_D V_D'``.

    D is the discard set: directions that one step expands (``chaotic``: w < 0 or w > 2/lr), those of
    positive (``pos``) or negative (``neg``) curvature. Momentum, dampening, Nesterov and weight decay act on
    the projected gradient exactly as in :class:`torch.optim.SGD`; weight decay is not projected.

    Args:
        params: One group of parameters, in the order of the curvature; frozen ones have no part in it.
        lr, momentum, dampening, weight_decay, nesterov, maximize: As in ``torch.optim.SGD``. With
            ``maximize`` the sets refer to the curvature of the minimised function ``-L``.
        generator: Source of randomness for ``rand`` and noise.
        pruning: What is removed, see :class:`Pruning`; its fields can also be given by keyword, as in
            ``CGD(params, lr=0.1, prune_set="neg")``.

    Raises:
        ValueError: For options out of range, more than one group, or both forms of pruning options.

    Attributes:
        last_kept: Number of directions kept at the last pruned step (null space included if kept).
        last_discarded: Number of non-null directions discarded.
        last_pruned_fraction: ``|V_D' g|^2 / |g|^2``.

    The curvature's own change is ignored: the tangent of a step is I - lr P H with P frozen; see
    :func:`chaos.lyapunov.tangent_error`.

    Source: Sec. 3 of Herrmann et al. 2022.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = CGD([w], lr=0.1, prune_set="neg")
        >>> (w[0] ** 2 - w[1] ** 2).backward()
        >>> optimizer.step(torch.diag(torch.tensor([2.0, -2.0])))
        >>> w.tolist()  # the second coordinate, of negative curvature, does not move
        [0.800000011920929, 1.0]
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        generator: torch.Generator | None = None,
        pruning: Pruning | None = None,
        **options: Unpack[PruningOptions],
    ) -> None:
        if not 0 < lr < math.inf:
            raise ValueError(f"lr is {lr}; the learning rate must be positive and finite.")
        if pruning is not None and options:
            raise ValueError(f"Pass pruning= or {', '.join(options)}, not both.")
        pruning = Pruning(**options) if pruning is None else pruning
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize)
        self.generator = generator
        self.gamma, self.k = pruning.gamma, None if pruning.k is None else int(pruning.k)
        self.prune_set, self.prune_k, self.prune_start = (
            pruning.prune_set,
            pruning.prune_k,
            pruning.prune_start,
        )
        self.prune_global, self.global_rule = pruning.prune_global, pruning.global_rule
        self.noise, self.noise_fac, self.noise_on_null = (
            pruning.noise,
            pruning.noise_fac,
            pruning.noise_on_null,
        )
        given = pruning.global_eigenpairs
        self.global_eigenpairs = None if given is None else as_eigenpairs(given, self._n())
        self.num_steps = 0
        self.last_kept = self.last_discarded = 0
        self.last_pruned_fraction = 0.0
        self.last_pairs: Eigenpairs | None = None
        self.last_discard: Tensor | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the one group that there is.

        Raises:
            ValueError: For a second one, or parameters that share memory.
        """
        if self.param_groups:
            raise ValueError("CGD needs one parameter group: the curvature covers all parameters together.")
        super().add_param_group(param_group)
        check_memory({str(i): p for i, p in enumerate(self.param_groups[0]["params"])}, {})

    @property
    def needs_curvature(self) -> bool:
        """Whether the next step must be given curvature."""
        return not self.prune_global and self.num_steps >= self.prune_start

    @torch.no_grad()
    @full_precision()
    def step(  # type: ignore[override]
        self,
        curvature: Curvature | None = None,
        closure: Callable[[], Any] | None = None,
        *,
        hessian: Curvature | None = None,
        w: Tensor | None = None,
        V: Tensor | None = None,
    ) -> Any:
        """Take one step.

        Args:
            curvature: A Hessian, Eigenpairs, symmetric (n, n) tensor or pair (w, V). Not needed before
                ``prune_start`` or with ``prune_global``.
            closure: Re-evaluates the loss and gradient.
            hessian: Same as ``curvature``.
            w: Eigenvalues, with V.
            V: Eigenvectors as columns, with w.

        Raises:
            ValueError: If curvature is missing, of another model, not symmetric or not orthonormal.
            FloatingPointError: If the gradient or curvature is not finite; parameters stay untouched.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if w is not None and V is not None:
            curvature = (w, V)
        curvature = hessian if curvature is None else curvature
        if isinstance(curvature, Hessian | Eigenpairs) and curvature.layout is not None:
            self._check_order(curvature.layout)
        gradient = self._flat_gradient()
        if not torch.isfinite(gradient).all():
            raise FloatingPointError(
                f"The gradient is not finite at step {self.num_steps}; nothing was changed."
            )
        if self.num_steps >= self.prune_start:
            pairs = self._pairs(curvature)
            direction = self._direction(gradient, pairs)
            if self.gamma != 0:
                self._step_along((1 - self.gamma) * gradient + self.gamma * direction)
                self.num_steps += 1
                return loss
        self._sgd_step()
        self.num_steps += 1
        return loss

    def discard_mask(self, values: Tensor) -> Bool[Tensor, " m"]:
        """Which of these non-null eigenvalues (ascending) the next step would discard.

        Random choices advance the generator.
        """
        h = self.param_groups[0]["lr"]
        signed = -values if self.param_groups[0]["maximize"] else values
        if self.prune_global:
            return self._choose(*self._global_set(values))
        if self.prune_set == "neg":
            return self._choose(signed < 0, -signed)
        if self.prune_set == "pos":
            return self._choose(signed > 0, signed)
        return self._choose((signed < 0) | (signed > 2 / h), (1 - h * signed).abs())

    def _global_set(self, exponents: Tensor) -> tuple[Tensor, Tensor]:
        if self.global_rule == "published":
            h = self.param_groups[0]["lr"]
            growth = exponents.exp()
            if self.prune_set == "chaotic":
                return (1 - h * growth).square() > 1, (1 - h * growth).abs()
            return (growth > 0, growth) if self.prune_set == "pos" else (growth < 0, -growth)
        return (exponents < 0, -exponents) if self.prune_set == "pos" else (exponents > 0, exponents)

    def _choose(self, candidates: Tensor, extremity: Tensor) -> Tensor:
        index = candidates.nonzero()[:, 0]
        if self.k is None or self.k >= len(index):
            return candidates
        if self.prune_k == "rand":
            source = index.device if self.generator is None else self.generator.device
            order = torch.randperm(len(index), generator=self.generator, device=source).to(index.device)
            chosen = index[order[: self.k]]
        else:
            chosen = index[extremity[index].argsort(descending=True, stable=True)[: self.k]]
        return torch.zeros_like(candidates).index_fill(0, chosen, True)

    def _pairs(self, curvature: Curvature | None) -> Eigenpairs:
        if self.prune_global:
            assert self.global_eigenpairs is not None
            return self.global_eigenpairs
        if curvature is None:
            raise ValueError(
                f"Step {self.num_steps} prunes (prune_start={self.prune_start}) and needs curvature: "
                "optimizer.step(surface.hessian(None, x, y))."
            )
        pairs = as_eigenpairs(curvature, self._n())
        if self._prunes_null and isinstance(curvature, tuple | list) and len(curvature[0]) < pairs.n:
            warnings.warn(
                f"V has {len(curvature[0])} of {pairs.n} eigenvectors, so prune_set={self.prune_set!r} takes "
                "all other directions for the null space and prunes them. Pass all pairs or the Hessian; if "
                "the others are zero, pass Eigenpairs, which says so; or give k.",
                stacklevel=5,
            )
        if not torch.isfinite(pairs.values).all():
            raise FloatingPointError(
                f"The curvature is not finite at step {self.num_steps}; nothing was changed."
            )
        return pairs

    @property
    def _prunes_null(self) -> bool:
        return self.k is None and self.prune_set != "chaotic" and not self.prune_global

    def _direction(self, gradient: Tensor, pairs: Eigenpairs) -> Tensor:
        values = pairs.values
        discard = self.discard_mask(values)
        with_null = self._prunes_null
        projected = pairs.project(gradient.to(values.dtype), ~discard, keep_null=not with_null)
        self.last_pairs, self.last_discard = pairs, discard
        self.last_discarded = int(discard.sum())
        self.last_kept = len(values) - self.last_discarded + (0 if with_null else pairs.num_zero)
        removed = gradient - projected.to(gradient.dtype)
        norm = float(gradient.square().sum())
        self.last_pruned_fraction = float(removed.square().sum()) / norm if norm > 0 else 0.0
        if self.noise:
            projected = projected + self._noise(gradient.to(values.dtype), pairs, discard, with_null)
        return projected.to(gradient.dtype)

    def _noise(self, gradient: Tensor, pairs: Eigenpairs, discard: Tensor, with_null: bool) -> Tensor:
        level = float(gradient.abs().mean()) if self.noise_fac is None else self.noise_fac
        if with_null and self.noise_on_null:
            xi = self._normal(pairs.n, gradient) * level
            return xi - pairs.project(xi, ~discard)
        xi = self._normal(len(pairs.values), gradient) * level
        return pairs.combine(torch.where(discard, xi, 0.0))

    def _normal(self, size: int, like: Tensor) -> Tensor:
        source = like.device if self.generator is None else self.generator.device
        return torch.randn(size, generator=self.generator, dtype=like.dtype, device=source).to(like.device)

    def _step_along(self, direction: Tensor) -> None:
        parameters = self._trained()
        originals = [p.grad for p in parameters]
        pieces = direction.split([p.numel() for p in parameters])
        try:
            for p, piece in zip(parameters, pieces, strict=True):
                if p.grad is not None or bool(piece.any()):  # SGD passes over what has no gradient
                    p.grad = piece.view_as(p).to(p.dtype)
            self._sgd_step()
        finally:
            for p, original in zip(parameters, originals, strict=True):
                p.grad = original

    def _sgd_step(self) -> None:
        """Step of SGD without its hooks: those of this optimiser run around :meth:`step` already."""
        step: Any = torch.optim.SGD.step
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)

    def _check_order(self, layout: ParameterLayout) -> None:
        own = tuple(p.shape for p in self._trained())
        if layout.n == self._n() and layout.shapes != own:
            raise ValueError(
                f"The Hessian is of parameters of shapes {_shapes(layout.shapes)}, the optimiser has "
                f"{_shapes(own)}; pass it model.parameters() in their order."
            )

    def _trained(self) -> list[Tensor]:
        """What the curvature covers: frozen parameters are left out of it."""
        return [p for p in self.param_groups[0]["params"] if p.requires_grad]

    def _n(self) -> int:
        return sum(p.numel() for p in self._trained())

    def _flat_gradient(self) -> Float[Tensor, " n"]:
        return torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).detach().reshape(-1)
                for p in self._trained()
            ]
        )

    def __getstate__(self) -> dict[str, Any]:
        """What copies take: all that PyTorch's own leaves out, but no scheduler's wrapper of `step`."""
        return {key: value for key, value in vars(self).items() if key[0] != "_" and key != "step"}

    def state_dict(self) -> dict[str, Any]:
        """State of SGD plus the step count, the generator, and what is pruned."""
        state = super().state_dict()
        state["cgd"] = {
            "num_steps": self.num_steps,
            "generator": None if self.generator is None else self.generator.get_state(),
            "pruning": {name: getattr(self, name) for name in _OF_STATE},
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, here or of ``torch.optim.SGD``.

        Raises:
            ValueError: If it prunes otherwise than this one.
        """
        state = dict(state_dict)
        own = state.pop("cgd", None)
        for name, value in (own or {}).get("pruning", {}).items():
            if value != getattr(self, name):
                raise ValueError(
                    f"The state is of a CGD with {name}={value!r}, and this one has {getattr(self, name)!r}; "
                    "make it with the same options."
                )
        super().load_state_dict(state)
        if own is None:  # of plain SGD, which counts no steps
            return
        self.num_steps = own["num_steps"]
        if own["generator"] is not None:
            self.generator = torch.Generator() if self.generator is None else self.generator
            self.generator.set_state(own["generator"])


def as_eigenpairs(curvature: Curvature, n: int) -> Eigenpairs:
    """Bring any accepted form of curvature to eigenpairs.

    Args:
        curvature: A Hessian, Eigenpairs, symmetric (n, n) tensor or pair (w, V) with orthonormal columns.
        n: Number of parameters it must have.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it belongs to another model, is not symmetric, or V is not orthonormal.
        FloatingPointError: If it is not finite.
    """
    if isinstance(curvature, Hessian | Eigenpairs):
        _check_size(curvature.n, n)
        if isinstance(curvature, Eigenpairs):
            return curvature
        if not torch.isfinite(curvature.core).all():
            raise FloatingPointError("The Hessian is not finite; nothing was changed.")
        return curvature.eigh()
    if isinstance(curvature, Tensor):
        if curvature.ndim:
            _check_size(len(curvature), n)
        if curvature.shape != (n, n):
            raise ValueError(f"curvature has shape {tuple(curvature.shape)}; a Hessian is ({n}, {n}).")
        check_symmetric(curvature)
        if not torch.isfinite(curvature).all():
            raise FloatingPointError("The Hessian is not finite; nothing was changed.")
        curvature = curvature.detach().to(torch.promote_types(curvature.dtype, torch.float32))
        return Eigenpairs.of((curvature + curvature.T) / 2)
    is_pair = isinstance(curvature, tuple | list) and len(curvature) == 2
    if not (is_pair and all(isinstance(part, Tensor) for part in curvature)):
        raise TypeError(
            f"curvature is a {type(curvature).__name__}; pass a Hessian, Eigenpairs, a symmetric tensor, "
            "or a pair (eigenvalues, eigenvectors as columns) of tensors."
        )
    w, V = curvature
    _check_size(V.shape[0], n)
    if V.ndim != 2 or w.shape != V.shape[1:]:
        raise ValueError(
            f"w has shape {tuple(w.shape)} and V {tuple(V.shape)}; eigenvectors are columns, one per value."
        )
    deviation = (
        float((V.T @ V - torch.eye(V.shape[1], dtype=V.dtype, device=V.device)).abs().max())
        if len(w)
        else 0.0
    )
    if not deviation <= CURVATURE_TOLERANCE:
        raise ValueError(
            f"The columns of V are not orthonormal (deviation {deviation:.2g}); orthonormalise them."
        )
    return Eigenpairs.from_pairs(w, V)


def check_symmetric(matrix: Float[Tensor, "n n"]) -> None:
    """Refuse a matrix that is no real symmetric one.

    Raises:
        TypeError: If it is sparse or complex.
        ValueError: If it is not symmetric.
    """
    if matrix.layout is not torch.strided or matrix.is_complex():
        kind = "complex" if matrix.is_complex() else "sparse"
        raise TypeError(f"The matrix is {kind}; pass a real dense one.")
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    asymmetry = float((matrix - matrix.T).abs().max())
    if asymmetry > CURVATURE_TOLERANCE * float(matrix.abs().max()):
        raise ValueError(
            f"The matrix is not symmetric (largest |A - A'| is {asymmetry:.2g}); pass (A + A') / 2."
        )


def _shapes(shapes: Iterable[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


def _check_size(given: int, n: int) -> None:
    if given != n:
        raise ValueError(f"The curvature has n = {given}; the optimiser's parameters have n = {n}.")


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"Unknown {name} {given!r}; choose one of {', '.join(allowed)}.")
