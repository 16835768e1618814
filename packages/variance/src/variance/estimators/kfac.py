"""Kronecker-factored natural gradients: K-FAC and EK-FAC.

For one layer with inputs a (1 appended when it has a bias) and output gradients b, the Fisher block is
approximated by A (x) G. The direction is Q_G [(Q_G^T V Q_A) / (lambda_G lambda_A^T + damping)] Q_A^T with V
the gradient matrix.

Source: Martens and Grosse 2015; Grosse and Martens 2016 (convolutions); George et al. 2018 (EK-FAC);
Eschenhagen et al. 2023 (`expand` and `reduce`).
"""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor
from typing_extensions import override

from variance.data import Population
from variance.errors import ConfigError, require_count, require_number, require_word
from variance.estimators.base import Direction, GradientEstimator
from variance.objective import Batch, Objective, Point
from variance.per_example.capturing import Capture
from variance.per_example.layers import ConvLayer, WeightLayer
from variance.randomness import Seed, number_of

ConvolutionFactors = Literal["mean", "expand", "reduce"]
"""mean: sums of (a/T)(a/T)^T and T b b^T, summed over positions; expand, reduce: Eschenhagen et al. 2023."""
Targets = Literal["sampled", "given"]
"""sampled: labels from the model's softmax (true Fisher); given: the objective's loss (empirical Fisher)."""
EIGENVALUE_FLOOR = 1e-10


def with_one(layer: WeightLayer) -> Tensor:
    """Return inputs per position, (n, t, i), with 1 appended where the layer has a trainable bias."""
    a = layer.positions()[0]
    return torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2) if layer.parameter("bias") else a


def _at_least_single(values: Tensor) -> Tensor:
    """Return half precision as float32: eigenvalues need it."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def kronecker_factors(layer: WeightLayer, convolution: ConvolutionFactors = "mean") -> tuple[Tensor, Tensor]:
    """Return the factors A and G of one layer for one batch.

    All settings agree where a layer has a single position.
    """
    a, b = _at_least_single(with_one(layer)), _at_least_single(layer.positions()[1])
    n, t = a.shape[:2]
    if t == 1 or convolution == "reduce":
        a, b = a.mean(1), b.sum(1)
        return a.T @ a / n, b.T @ b / n
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    if convolution == "expand":
        return a.T @ a / (n * t), b.T @ b / n
    return a.T @ a / (n * t**2), b.T @ b * (t / n)


class KFAC(GradientEstimator):
    """K-FAC: `on_frequent` updates the factors, `on_infrequent` their eigenbases.

    Covers Linear and Conv layers without groups; the gradient of any other parameter passes unchanged.

    Args:
        objective: Must be cross-entropy on logits when targets are sampled.
        learning_rate: eta of the clip factor.
        damping: gamma, added to products of eigenvalues (not split by layer).
        decay: rho of the running factors, which start at the identity.
        kl_clip: kappa; the direction is scaled by min(1, sqrt(kappa / (eta^2 sum v g))). None switches it
            off.
        weight_decay: Added to the gradient from step 20 `covariance_every` on.
        covariance_every: Steps between two `on_frequent` calls, for the delay of the weight decay.
        convolution: Setting of the factors of layers with several positions.
        targets: Labels behind the factors.
        seed: Seed of sampled labels where no generator is passed.
    """

    name = "K-FAC"
    STATE = ("inputs", "outputs", "_bases", "_spectra", "_biased", "_labels", "_step")

    def __init__(
        self,
        objective: Objective,
        *,
        learning_rate: float = 0.02,
        damping: float = 0.03,
        decay: float = 0.95,
        kl_clip: float | None = 1e-2,
        weight_decay: float = 0.0,
        covariance_every: int = 10,
        convolution: ConvolutionFactors = "mean",
        targets: Targets = "sampled",
        seed: Seed = 0,
    ) -> None:
        super().__init__(objective)
        require_number("learning_rate", learning_rate, 0)
        require_count("seed", number := number_of(seed), 0, 2**64 - 1)
        require_number("damping", damping, above=0)
        require_number("decay", decay, 0, below=1)
        if kl_clip is not None:
            require_number("kl_clip", kl_clip, above=0)
        require_number("weight_decay", weight_decay, 0)
        require_count("covariance_every", covariance_every)
        require_word("convolution", convolution, get_args(ConvolutionFactors))
        require_word("targets", targets, get_args(Targets))
        self.learning_rate, self.damping, self.decay, self.kl_clip = learning_rate, damping, decay, kl_clip
        self.weight_decay, self.covariance_every = weight_decay, covariance_every
        self.convolution, self.targets = convolution, targets
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._bases: dict[str, tuple[Tensor, Tensor]] = {}
        self._spectra: dict[str, Tensor] = {}
        self._biased: dict[str, bool] = {}
        self._labels = torch.Generator().manual_seed(number)
        self._step = 0

    def update_factors(self, found: Capture) -> None:
        """Fold the factors of a captured batch into the running ones."""
        for name, layer in _layers(found).items():
            a, g = kronecker_factors(layer, self.convolution)
            self._biased[name] = layer.parameter("bias") is not None
            for store, new in ((self.inputs, a), (self.outputs, g)):
                old = store.get(name)
                old = torch.eye(len(new), dtype=new.dtype, device=new.device) if old is None else old
                store[name] = old.lerp(new, 1 - self.decay)

    def update_bases(self) -> None:
        """Recompute eigenbases and eigenvalues; those below 1e-10 count as 0."""
        for name, factor in self.inputs.items():
            (la, qa), (lg, qg) = torch.linalg.eigh(factor), torch.linalg.eigh(self.outputs[name])
            la, lg = (torch.where(values > EIGENVALUE_FLOOR, values, 0.0) for values in (la, lg))
            self._spectra[name] = self._spectrum(name, (qa, qg), torch.outer(lg, la))
            self._bases[name] = (qa, qg)

    def _spectrum(self, name: str, bases: tuple[Tensor, Tensor], kronecker: Tensor) -> Tensor:
        """Return what gradients are divided by in a new basis: products of eigenvalues."""
        return kronecker

    @override
    def on_frequent(
        self, step: int, point: Point, batch: Batch, generator: torch.Generator | None = None
    ) -> None:
        self._step = step
        source = generator or self._labels

        drawn: list[Tensor] = []  # the loss may be evaluated more than once, and must not change

        def sampled(outputs: Tensor, targets: Tensor) -> Tensor:
            if not drawn:
                _require_labels(targets)
                noise = torch.rand(outputs.shape, generator=source, dtype=torch.float64).to(outputs.device)
                # The largest of logits plus Gumbel noise is a draw from the softmax.
                drawn.append((outputs.detach() - (-noise.log()).log()).argmax(1))
            return F.cross_entropy(outputs, drawn[0], reduction="none")

        loss = sampled if self.targets == "sampled" else None  # that of the objective
        self.update_factors(self.objective.capture(point, batch, generator, weights_only=True, loss=loss))
        if not self._bases:
            self.update_bases()

    @override
    def on_infrequent(
        self, step: int, point: Point, population: Population, generator: torch.Generator | None = None
    ) -> None:
        self.update_bases()

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        g, loss = self.objective.gradient(point, batch, generator)
        if self.weight_decay and self._step >= 20 * self.covariance_every:
            g = g + self.weight_decay * point.flat()
        v = self.precondition(point, g)
        scale = self.clip_factor(v, g)
        return Direction(scale * v, loss, {"kfac/clip": scale})

    def precondition(self, point: Point, gradient: Tensor) -> Tensor:
        """Apply the inverse of the factored Fisher to a flat gradient; other parameters are left alone."""
        parts = point.unflatten(gradient)
        for name, (qa, qg) in self._bases.items():
            weight, bias = (f"{name}.{key}" if name else key for key in ("weight", "bias"))
            v = parts[weight].flatten(1)
            if self._biased[name]:
                v = torch.cat([v, parts[bias].unsqueeze(1)], 1)
            v = v.to(qa.dtype)
            v = qg @ ((qg.T @ v @ qa) / (self._spectra[name] + self.damping)) @ qa.T
            if self._biased[name]:
                parts[bias], v = v[:, -1], v[:, :-1]
            parts[weight] = v.reshape(parts[weight].shape)
        return torch.cat([part.flatten().to(gradient.dtype) for part in parts.values()])

    def clip_factor(self, v: Tensor, g: Tensor) -> float:
        """Return nu = min(1, sqrt(kappa / (eta^2 sum v g)))."""
        predicted = self.learning_rate**2 * float(v @ g)
        if self.kl_clip is None or predicted <= 0:
            return 1.0
        return min(1.0, math.sqrt(self.kl_clip / predicted))


class EKFAC(KFAC):
    """EK-FAC: K-FAC's eigenbases, rescaled by the running mean of squared projected per-example gradients.

    The mean starts at K-FAC's spectrum. A new basis keeps it: second moments are carried over as those of
    uncorrelated coordinates, s' = (Q_G'^T Q_G)^2 s ((Q_A'^T Q_A)^2)^T with elementwise squares, which
    preserves their sum.
    """

    name = "EK-FAC"

    @override
    def _spectrum(self, name: str, bases: tuple[Tensor, Tensor], kronecker: Tensor) -> Tensor:
        if name not in self._bases:
            return kronecker
        (qa, qg), (old_a, old_g) = bases, self._bases[name]
        return (qg.T @ old_g).square() @ self._spectra[name] @ (qa.T @ old_a).square().T

    @override
    def update_factors(self, found: Capture) -> None:
        super().update_factors(found)
        for name, layer in _layers(found).items():
            if name not in self._bases:
                continue
            squares = projected_second_moment(layer, *self._bases[name])
            self._spectra[name] = self._spectra[name].lerp(squares, 1 - self.decay)


def projected_second_moment(layer: WeightLayer, qa: Tensor, qg: Tensor) -> Tensor:
    """Return the mean over examples of (Q_G^T G_n Q_A) squared, elementwise, (o, i).

    With one position G_n = b a^T, and its projection is the outer product of the projected factors: no
    gradient of a linear layer is materialised.
    """
    a, b = with_one(layer).to(qa.dtype) @ qa, layer.positions()[1].to(qg.dtype) @ qg
    if a.shape[1] == 1:
        return b[:, 0].square().T @ a[:, 0].square() / len(a)
    return torch.bmm(b.transpose(1, 2), a).square().mean(0)


def _require_labels(targets: Any) -> None:
    """Refuse targets of a regression: their model has no softmax to draw labels from.

    Raises:
        ConfigError: Targets are neither class ids nor rows of probabilities.
    """
    if not (isinstance(targets, Tensor) and targets.is_floating_point()):
        return
    sums = targets.sum(-1) if targets.ndim > 1 else targets.new_zeros(1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        raise ConfigError(
            "targets='sampled' draws labels from the softmax of the outputs, but the targets are no class "
            "ids or probabilities; pass targets='given' for other losses."
        )


def _layers(found: Capture) -> dict[str, WeightLayer]:
    """Return the layers K-FAC covers: weight layers without groups."""
    return {
        name: layer
        for name, layer in found.layers.items()
        if isinstance(layer, WeightLayer)
        and layer.parameter("weight")
        and (not isinstance(layer, ConvLayer) or layer.groups == 1)
    }
