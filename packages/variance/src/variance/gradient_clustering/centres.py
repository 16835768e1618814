"""Cluster centres in factored form, distances to them, and the sums the next centres are made of.

The gradient of a weight layer is G_i = sum_t b_it a_it^T. A centre is C_k = o_k c_k^T with c_k the mean over
members of mean_t a_it and o_k the mean over members of sum_t b_it: a product of means, *not* the best rank-1
approximation of the mean gradient (which `svd` gives). Squared distances add over layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variance.errors import ConfigError, require_count, require_number, require_word
from variance.per_example.capturing import Capture
from variance.per_example.layers import ConvLayer, WeightLayer
from variance.per_example.quantities import (
    cancels,
    choice_for,
    in_double,
    kernel_chunks,
    shape_of,
    weight_squared_norms,
)

CentreForm = Literal["product", "svd", "mean", "conv-mean"]
"""product of mean factors; truncated SVD of the mean; the mean itself; the mean for convolutions only."""
Compare = Literal["gradients", "inputs", "outputs"]
"""What the distance compares: whole gradients, mean layer inputs only, or summed output gradients only."""


@dataclass(frozen=True)
class ClusteringOptions:
    """What is clustered and how centres are represented.

    Attributes:
        include_bias: Append 1 to the inputs, so that biases take part.
        layers: Names of the layers that take part; all weight layers where None.
        form: Representation of a centre.
        rank: Rank of `svd` centres.
        compare: What the distance compares.
        whiten: Scale every factor coordinate to unit second moment over the population (one more pass).
        kahan: Compensated summation of the running sums.
        global_mean: Pseudo-count g of the population: every factor of a centre is (sum over members + g times
            the mean over all) / (N_k + g). Shrinks small clusters to the global mean and revives empty ones.
        size_regularisation: Pseudo-count r of a cluster's size in the sequential weights, w_k = 1 + count +
            r; large values make the clustering unweighted.
        min_size: Clusters smaller than this take a random half of the cluster with the largest distortion, at
            most one per iteration.
        chunk: Examples between two updates of the `sequential` weights.
        shuffle: Visit examples in a new random order each iteration. Index order is safe only where it is
            random already: on data sorted by class, sequential weights spread every class over all clusters.
    """

    include_bias: bool = False
    layers: tuple[str, ...] | None = None
    form: CentreForm = "product"
    rank: int = 1
    compare: Compare = "gradients"
    whiten: bool = False
    kahan: bool = False
    global_mean: float = 0.0
    size_regularisation: float = 0.0
    min_size: int = 0
    chunk: int = 128
    shuffle: bool = True

    def __post_init__(self) -> None:
        require_number("global_mean", self.global_mean, 0)
        require_number("size_regularisation", self.size_regularisation, 0)
        require_count("chunk", self.chunk)
        require_count("min_size", self.min_size, 0)
        require_count("rank", self.rank)
        require_word("form", self.form, get_args(CentreForm))
        require_word("compare", self.compare, get_args(Compare))
        if isinstance(self.layers, str):
            raise ConfigError(f"layers is {self.layers!r}; pass a tuple of names.")
        if self.rank > 1 and self.form != "svd":
            raise ConfigError(f"rank {self.rank} with form '{self.form}': ranks above 1 need form='svd'.")
        if self.include_bias and (self.form != "product" or self.compare != "gradients"):
            raise ConfigError("include_bias needs form='product' and compare='gradients'.")
        if self.compare != "gradients" and self.form != "product":
            raise ConfigError(
                f"compare='{self.compare}' needs form='product'; full-rank centres have no factors."
            )
        if self.whiten and self.form != "product":
            raise ConfigError("whiten needs form='product'; full-rank centres have no factors to scale.")

    def select(self, capture: Capture) -> dict[str, WeightLayer]:
        """Return the layers of a pass that take part in the distance.

        Raises:
            ConfigError: No layer takes part.
        """
        weighted = {name: layer for name, layer in capture.layers.items() if isinstance(layer, WeightLayer)}
        chosen = {
            name: layer
            for name, layer in weighted.items()
            if layer.parameter("weight") and (self.layers is None or name in self.layers)
        }
        if not weighted:
            raise ConfigError(
                "the model has no trainable Linear or Conv layer, so there is nothing to cluster."
            )
        unknown = tuple(
            name
            for name in self.layers or ()
            if name not in weighted and (f"{name}.weight" if name else "weight") not in capture.shapes
        )
        if unknown or not chosen:
            raise ConfigError(
                f"layers {unknown or self.layers} match nothing; weight layers are "
                f"{', '.join(name or '(the model itself)' for name in weighted)}."
            )
        return chosen

    def is_dense(self, layer: WeightLayer) -> bool:
        """Whether this layer's centres are stored as full matrices."""
        return self.form == "mean" or (self.form == "conv-mean" and isinstance(layer, ConvLayer))


@dataclass(repr=False)
class Centres:
    """K centres.

    Attributes:
        inputs: c_k by layer, (K, i), or (K, rank, i) for `svd` centres; one more column with `include_bias`.
        outputs: o_k by layer, (K, o), or (K, rank, o).
        dense: Full matrices by layer, (K, o, i), where a layer is not factored.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter([*self.inputs.values(), *self.dense.values()])))

    def __repr__(self) -> str:
        layers = ", ".join(name or "(the model itself)" for name in [*self.inputs, *self.dense])
        return f"Centres({len(self)} clusters; layers {layers})"

    def factors(self, name: str) -> tuple[Float[Tensor, "k r i"], Float[Tensor, "k r o"]]:
        """Return the factors of one layer with an explicit rank axis."""
        c, o = self.inputs[name], self.outputs[name]
        return (c, o) if c.ndim == 3 else (c.unsqueeze(1), o.unsqueeze(1))

    def squared_norms(self, name: str) -> Float[Tensor, "k"]:
        """Return ||C_k||_F^2 of one layer."""
        if name in self.dense:
            return self.dense[name].square().sum((1, 2))
        c, o = self.factors(name)
        return (torch.bmm(c, c.transpose(1, 2)) * torch.bmm(o, o.transpose(1, 2))).sum((1, 2))

    def matrices(self, name: str) -> Float[Tensor, "k o i"]:
        """Return full centres of one layer."""
        if name in self.dense:
            return self.dense[name]
        c, o = self.factors(name)
        return torch.bmm(o.transpose(1, 2), c)

    def double(self) -> "Centres":
        """Return a copy in float64."""
        parts = (self.inputs, self.outputs, self.dense)
        return Centres(*({name: value.double() for name, value in part.items()} for part in parts))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return plain dictionaries of tensors."""
        return {"inputs": self.inputs, "outputs": self.outputs, "dense": self.dense}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, dict[str, Tensor]]) -> "Centres":
        """Rebuild what `state_dict` returned."""
        return cls(dict(state["inputs"]), dict(state["outputs"]), dict(state["dense"]))


def squared_distances(
    capture: Capture,
    centres: Centres,
    options: ClusteringOptions,
    scales: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Float[Tensor, "n k"]:
    """Return squared distances of per-example gradients to all centres, summed over layers.

    Distances that are small next to the norms are computed in float64. Rounding may leave one slightly below
    zero; it is then zero.
    """
    total, power = capture.losses.new_zeros(len(capture), len(centres)), 0.0
    for name, layer in options.select(capture).items():
        if options.compare != "gradients" or options.whiten:
            total += _factor_distances(layer, centres, name, options, scales)
            continue
        inner, norms = _inner_products_and_norms(layer, centres, name)
        if options.include_bias and layer.parameter("bias"):
            bias = layer.bias_gradients()
            inner = inner + (bias @ centres.outputs[name].T) * centres.inputs[name][:, -1]
            norms = norms + bias.square().sum(1)
        total += centres.squared_norms(name) - 2 * inner + norms.unsqueeze(1)
        power += float(norms.sum())
    if power and cancels(float(total.min(1).values.sum()), power, total.dtype):
        return squared_distances(in_double(capture), centres.double(), options, scales)
    return total.clamp_min_(0)


def _inner_products_and_norms(
    layer: WeightLayer, centres: Centres, name: str
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n"]]:
    width = layer.weight_shape[1]
    if layer.num_positions == 1 and layer.groups == 1:
        a, b = (part[:, 0] for part in layer.positions())
        norms = a.square().sum(1) * b.square().sum(1)
        if name in centres.dense:
            return torch.stack([((b @ matrix) * a).sum(1) for matrix in centres.dense[name]], 1), norms
        c, o = centres.factors(name)
        if c.shape[1] == 1:
            return (a @ c[:, 0, :width].T) * (b @ o[:, 0].T), norms
        return (torch.einsum("ni,kri->nkr", a, c[..., :width]) * torch.einsum("no,kro->nkr", b, o)).sum(
            2
        ), norms
    if (
        choice_for(layer, "inner_products", len(centres)).formulation == "positions"
        and name not in centres.dense
    ):
        a, b = layer.positions()
        c, o = centres.factors(name)
        inner = (torch.einsum("nti,kri->ntkr", a, c[..., :width]) * torch.einsum("nto,kro->ntkr", b, o)).sum(
            (1, 3)
        )
        return inner, weight_squared_norms(layer)
    flat = centres.matrices(name)[..., :width].flatten(1).T
    pieces = [
        (kernels.flatten(1) @ flat, kernels.square().sum((1, 2))) for _, kernels in kernel_chunks(layer)
    ]
    return torch.cat([inner for inner, _ in pieces]), torch.cat([norms for _, norms in pieces])


def _factor_distances(
    layer: WeightLayer,
    centres: Centres,
    name: str,
    options: ClusteringOptions,
    scales: Mapping[str, tuple[Tensor, Tensor]] | None,
) -> Float[Tensor, "n k"]:
    """Distances between factors: activations only, output gradients only, or whitened rank-1 gradients."""
    a, b = layer.input_means(), layer.bias_gradients()
    c, o = centres.inputs[name], centres.outputs[name]
    if scales is not None:
        (u, v) = scales[name]
        a, c, b, o = a / u, c / u, b / v, o / v
    if options.compare == "inputs":
        return torch.cdist(a, c).square()
    if options.compare == "outputs":
        return torch.cdist(b, o).square()
    norms = a.square().sum(1) * b.square().sum(1)
    return c.square().sum(1) * o.square().sum(1) - 2 * (a @ c.T) * (b @ o.T) + norms.unsqueeze(1)


def factor_power(capture: Capture, options: ClusteringOptions) -> dict[str, tuple[Tensor, Tensor]]:
    """Return sums of squared factors by layer, from which `whiten` takes its scales."""
    return {
        name: (layer.input_means().square().sum(0), layer.bias_gradients().square().sum(0))
        for name, layer in options.select(capture).items()
    }


class RunningSums:
    """Sums over members of the quantities that make the next centres; a mini-batch is final once assigned."""

    def __init__(self, num_clusters: int, options: ClusteringOptions) -> None:
        self.num_clusters = num_clusters
        self.options = options
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._lost: dict[tuple[str, str], Tensor] = {}

    def add(self, capture: Capture, ids: Int[Tensor, "n"], sign: float = 1.0) -> None:
        """Add the examples of a pass to their clusters (or take them away with sign -1)."""
        for name, layer in self.options.select(capture).items():
            if self.options.form == "svd" or self.options.is_dense(layer):
                self._add(name, "dense", sign * dense_sums(layer, ids, self.num_clusters))
                continue
            a = layer.input_means()
            if self.options.include_bias and layer.parameter("bias"):
                a = torch.cat([a, a.new_ones(len(a), 1)], 1)
            for part, values in (("inputs", a), ("outputs", layer.bias_gradients())):
                self._add(name, part, sums_by_cluster(values, ids, self.num_clusters, sign))

    def _add(self, name: str, part: str, value: Tensor) -> None:
        key = (name, part)
        if key not in self._sums:
            self._sums[key] = value
            self._lost[key] = torch.zeros_like(value) if self.options.kahan else value.new_zeros(())
        elif self.options.kahan:
            corrected = value - self._lost[key]
            total = self._sums[key] + corrected
            self._lost[key] = (total - self._sums[key]) - corrected
            self._sums[key] = total
        else:
            self._sums[key] += value

    def _mean(self, total: Tensor, sizes: Tensor) -> Tensor:
        prior = self.options.global_mean
        if prior > 0:
            return (total + prior * total.sum(0) / sizes.sum()) / (sizes + prior)
        return torch.where(sizes > 0, total / sizes.clamp_min(1), 0.0)

    def means(self, sizes: Int[Tensor, "k"]) -> Centres:
        """Return centres; an empty cluster gets zero."""
        centres = Centres()
        target = {"inputs": centres.inputs, "outputs": centres.outputs, "dense": centres.dense}
        for (name, part), value in self._sums.items():
            mean = self._mean(value, sizes.to(value.dtype).reshape((-1,) + (1,) * (value.ndim - 1)))
            if part == "dense" and self.options.form == "svd":
                centres.inputs[name], centres.outputs[name] = truncated_svd(mean, self.options.rank)
            else:
                target[part][name] = mean
        return centres


def truncated_svd(
    matrices: Float[Tensor, "k o i"], rank: int
) -> tuple[Float[Tensor, "k r i"], Float[Tensor, "k r o"]]:
    """Return factors of the best rank-r approximation, singular values carried by the output factor."""
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    r = min(rank, s.shape[-1])
    return vh[:, :r], (u[..., :r] * s[:, None, :r]).transpose(1, 2)


def sums_by_cluster(
    values: Float[Tensor, "n *shape"], ids: Int[Tensor, "n"], num_clusters: int, sign: float = 1.0
) -> Float[Tensor, "k *shape"]:
    """Return the sums over the members of each cluster.

    Example:
        >>> sums_by_cluster(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1]), 3)
        tensor([2., 5., 0.])
    """
    return values.new_zeros(num_clusters, *values.shape[1:]).index_add_(0, ids, values, alpha=sign)


def dense_sums(layer: WeightLayer, ids: Int[Tensor, "n"], num_clusters: int) -> Float[Tensor, "k o i"]:
    """Return the sums of G_n of one layer over clusters; linear layers are never materialised."""
    if shape_of(layer).t == 1 and layer.groups == 1:
        a, b = (part[:, 0] for part in layer.positions())
        total = a.new_zeros(num_clusters, b.shape[1], a.shape[1])
        for k in ids.unique().tolist():
            rows = (ids == k).nonzero().flatten()
            total[k] = b[rows].T @ a[rows]
        return total
    pieces = (sums_by_cluster(g, ids[rows], num_clusters) for rows, g in kernel_chunks(layer))
    return reduce(torch.add, pieces)
