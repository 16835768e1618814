"""Squared norms, Gram matrices, moments and inner products of per-example gradients, by layer."""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from variance.errors import ConfigError
from variance.losses import require_finite
from variance.per_example.cost import CHUNK_BYTES, Choice, Shape, Task, choose
from variance.per_example.layers import ConvLayer, WeightLayer
from variance.per_example.recording import Capture


def shape_of(layer: WeightLayer) -> Shape:
    """Return the sizes that the cost model needs."""
    o, i = layer.weight_shape
    itemsize = layer.calls[0].b.element_size()
    return Shape(len(layer), layer.num_positions, o, i, layer.groups, isinstance(layer, ConvLayer), itemsize)


def choice_for(layer: WeightLayer, task: Task, directions: int = 1) -> Choice:
    """Return the formulation the cost model picks for one layer."""
    return choose(task, shape_of(layer), directions)


def kernel_chunks(layer: WeightLayer) -> Iterator[tuple[slice, Float[Tensor, "n o i"]]]:
    """Materialise weight gradients piece by piece, at most `CHUNK_BYTES` at a time."""
    o, i = layer.weight_shape
    size = max(1, CHUNK_BYTES // (o * i * layer.calls[0].b.element_size()))
    for start in range(0, len(layer), size):
        rows = slice(start, min(start + size, len(layer)))
        yield rows, layer.kernels(rows)


def materialised(capture: Capture) -> dict[str, Tensor]:
    """Return all per-example gradients, ``(batch, *shape)`` by name, in `model.parameters()` order."""
    found = dict(capture.rest)
    for layer in capture.layers.values():
        found |= layer.gradients()
    zero = capture.losses.new_zeros(())
    return {
        name: found[name] if name in found else zero.expand(len(capture), *shape)
        for name, shape in capture.shapes.items()
    }


def flat_gradients(capture: Capture) -> Float[Tensor, "n p"]:
    """Return all per-example gradients in one matrix, each written where it belongs.

    Raises:
        NonFiniteGradient: Some entry is NaN or infinite.
    """
    n = len(capture)
    result = capture.losses.new_empty(n, capture.num_parameters)
    columns = dict(
        zip(capture.shapes, result.split([s.numel() for s in capture.shapes.values()], 1), strict=True)
    )
    written, finite = set(), set()
    for name, layer in weight_layers(capture):
        if isinstance(layer, ConvLayer):
            columns[name].copy_(layer.kernels().flatten(1))
        else:
            a, b = layer.positions()
            torch.bmm(b.transpose(1, 2), a, out=columns[name].view(n, *layer.weight_shape))
            if torch.isfinite(a.norm() * b.norm()):  # bounds every entry, without reading them
                finite.add(name)
        written.add(name)
    for name, value in small_gradients(capture):
        columns[name].copy_(value)
        written.add(name)
    for name in capture.shapes.keys() - written:
        columns[name].zero_()
    for name in written - finite:
        require_finite(columns[name], "the gradient")
    return result


def small_gradients(capture: Capture) -> Iterator[tuple[str, Float[Tensor, "n p"]]]:
    """Yield everything but the weights of weight layers: biases, norms, embeddings and the vmap remainder."""
    for name, value in capture.rest.items():
        yield name, value.reshape(len(value), -1)
    for layer in capture.layers.values():
        if isinstance(layer, WeightLayer):
            if bias := layer.parameter("bias"):
                yield bias, layer.bias_gradients()
        else:
            for name, value in layer.gradients().items():
                yield name, value.reshape(len(value), -1)


def weight_layers(capture: Capture) -> Iterator[tuple[str, WeightLayer]]:
    """Yield weight layers by the name of their weight."""
    for layer in capture.layers.values():
        if isinstance(layer, WeightLayer) and (name := layer.parameter("weight")):
            yield name, layer


def weight_squared_norms(layer: WeightLayer) -> Float[Tensor, "n"]:
    """Return ||G_n||_F^2 of one weight layer."""
    formulation = choice_for(layer, "squared_norms").formulation
    if formulation == "kernels":
        return torch.cat([kernels.square().sum((1, 2)) for _, kernels in kernel_chunks(layer)])
    a, b = layer.positions()
    if formulation == "outer":
        return a[:, 0].square().sum(1) * b[:, 0].square().sum(1)
    return (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(b, b.transpose(1, 2))).sum((1, 2))


def weight_gram(layer: WeightLayer) -> Float[Tensor, "n n"]:
    """Return <G_n, G_m> of one weight layer."""
    formulation = choice_for(layer, "gram").formulation
    if formulation == "kernels":
        flat = layer.kernels().flatten(1)
        return flat @ flat.T
    a, b = layer.positions()
    if formulation == "outer":
        return (a[:, 0] @ a[:, 0].T) * (b[:, 0] @ b[:, 0].T)
    n, t = a.shape[:2]
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    return ((a @ a.T) * (b @ b.T)).reshape(n, t, n, t).sum((1, 3))


def weight_second_moments(layer: WeightLayer) -> Float[Tensor, "o i"]:
    """Return the sum over examples of G_n squared, elementwise, of one weight layer."""
    if choice_for(layer, "second_moments").formulation == "outer":
        a, b = layer.positions()
        return b[:, 0].square().T @ a[:, 0].square()
    return reduce(torch.add, (kernels.square().sum(0) for _, kernels in kernel_chunks(layer)))


def weight_inner_products(layer: WeightLayer, directions: Float[Tensor, "k o i"]) -> Float[Tensor, "n k"]:
    """Return <G_n, D_k> of one weight layer."""
    formulation = choice_for(layer, "inner_products", len(directions)).formulation
    if formulation == "kernels":
        flat = directions.flatten(1).T
        return torch.cat([kernels.flatten(1) @ flat for _, kernels in kernel_chunks(layer)])
    a, b = layer.positions()
    return torch.stack([((b @ direction) * a).sum((1, 2)) for direction in directions], 1)


def weight_sum(layer: WeightLayer) -> Float[Tensor, "o i"]:
    """Return sum_n G_n of one weight layer without separating examples."""
    if isinstance(layer, ConvLayer):
        return reduce(torch.add, (kernels.sum(0) for _, kernels in kernel_chunks(layer)))
    a, b = layer.positions()
    return b.flatten(0, 1).T @ a.flatten(0, 1)


def squared_norms(capture: Capture) -> Float[Tensor, "n"]:
    """Return the squared gradient norm of every example."""
    total = torch.zeros_like(capture.losses)
    for _, value in small_gradients(capture):
        total += value.square().sum(1)
    for _, layer in weight_layers(capture):
        total += weight_squared_norms(layer)
    return total


def gram(capture: Capture) -> Float[Tensor, "n n"]:
    """Return the inner products of all pairs of per-example gradients (the empirical tangent kernel)."""
    total = capture.losses.new_zeros(len(capture), len(capture))
    for _, value in small_gradients(capture):
        total += value @ value.T
    for _, layer in weight_layers(capture):
        total += weight_gram(layer)
    return total


def moments(capture: Capture) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the sums over examples of g and of g squared by parameter, sharing materialised pieces."""
    for name, value in small_gradients(capture):
        yield name, value.sum(0), value.square().sum(0)
    for name, layer in weight_layers(capture):
        if choice_for(layer, "second_moments").formulation == "outer":
            yield name, weight_sum(layer), weight_second_moments(layer)
        else:
            pieces = ((kernels.sum(0), kernels.square().sum(0)) for _, kernels in kernel_chunks(layer))
            yield name, *reduce(lambda one, other: (one[0] + other[0], one[1] + other[1]), pieces)


def difference_moments(
    new: Capture, old: Capture, scale: Float[Tensor, "p"]
) -> tuple[Float[Tensor, "p"], Float[Tensor, "p"]]:
    """Return the sums over examples of d and of d squared, d = g_new - scale * g_old, flat and in float64.

    For linear layers d^2 is expanded into three products of factors; float64 keeps its cancellation harmless.
    """
    crosses = [_cross_moments(first, second) for first, second in ((new, new), (new, old), (old, old))]
    sums = [first_moment(capture) for capture in (new, old)]
    s = scale.double()
    return sums[0] - s * sums[1], crosses[0] - 2 * s * crosses[1] + s.square() * crosses[2]


def first_moment(capture: Capture) -> Float[Tensor, "p"]:
    """Return the sum over examples of g, flat and in float64."""
    parts = {name: value.double().sum(0) for name, value in small_gradients(capture)}
    parts |= {name: weight_sum(layer).double() for name, layer in weight_layers(capture)}
    return _flat(capture, parts).double()


def _cross_moments(one: Capture, other: Capture) -> Float[Tensor, "p"]:
    """Return the sum over examples of g_one * g_other elementwise, in float64."""
    pairs = dict(small_gradients(other))
    parts = {name: (value.double() * pairs[name].double()).sum(0) for name, value in small_gradients(one)}
    layers = dict(weight_layers(other))
    for name, layer in weight_layers(one):
        if choice_for(layer, "second_moments").formulation == "outer":
            (a, b), (c, d) = layer.positions(), layers[name].positions()
            parts[name] = (b[:, 0].double() * d[:, 0].double()).T @ (a[:, 0].double() * c[:, 0].double())
        else:
            chunks = ((k, layers[name].kernels(rows)) for rows, k in kernel_chunks(layer))
            products = ((first.double() * second.double()).sum(0) for first, second in chunks)
            parts[name] = reduce(torch.add, products)
    return _flat(one, parts).double()


def weighted_second_moments(capture: Capture, weights: Float[Tensor, "n"]) -> Float[Tensor, "p"]:
    """Return sum_n w_n g_n^2 for non-negative weights, flat."""
    w = weights.to(capture.losses)
    parts = {name: (w.unsqueeze(1) * value.square()).sum(0) for name, value in small_gradients(capture)}
    for name, layer in weight_layers(capture):
        if choice_for(layer, "second_moments").formulation == "outer":
            a, b = layer.positions()
            parts[name] = (w.unsqueeze(1) * b[:, 0].square()).T @ a[:, 0].square()
        else:
            pieces = (torch.einsum("n,noi->oi", w[rows], k.square()) for rows, k in kernel_chunks(layer))
            parts[name] = reduce(torch.add, pieces)
    return _flat(capture, parts)


def trace_of_covariance(capture: Capture) -> Float[Tensor, ""]:
    """Return (1/n) sum ||g||^2 - ||mean g||^2, the total variance of one example's gradient, in float64.

    The mean gradient of a layer with one position is not formed where the sum of its n x n inner products is
    cheaper.
    """
    small = ((g.square().sum(), g.sum(0).square().sum()) for _, g in small_gradients(capture))
    totals = [(0.0, 0.0), *small, *(_norm_totals(layer) for _, layer in weight_layers(capture))]
    n, (norms, of_sum) = len(capture), (sum(map(float, part)) for part in zip(*totals, strict=True))
    variance = norms / n - of_sum / n**2
    if cancels(variance, norms / n, capture.losses.dtype):
        return trace_of_covariance(in_double(capture))
    return torch.tensor(max(variance, 0.0), dtype=torch.float64)


def cancels(variance: float, power: float, dtype: torch.dtype) -> bool:
    """Whether mean square less squared mean, summed in this precision, has lost all but four digits.

    Example:
        >>> cancels(1e-6, 1.0, torch.float32), cancels(1e-6, 1.0, torch.float64)
        (True, False)
    """
    return dtype != torch.float64 and not variance > 1e4 * torch.finfo(dtype).eps * power


def in_double(capture: Capture) -> Capture:
    """Return the same pass with all factors and gradients in float64."""
    layers = {
        name: type(layer)(layer.name, layer.module, [call.in_double() for call in layer.calls], layer.buffers)
        for name, layer in capture.layers.items()
    }
    rest = {name: value.double() for name, value in capture.rest.items()}
    return replace(capture, losses=capture.losses.double(), layers=layers, rest=rest)


def _norm_totals(layer: WeightLayer) -> tuple[Tensor, Tensor]:
    """Return sum ||G_n||^2 and ||sum G_n||^2 of one weight layer."""
    shape = shape_of(layer)
    if choice_for(layer, "squared_norms").formulation == "kernels":
        pieces = [(kernels.square().sum(), kernels.sum(0)) for _, kernels in kernel_chunks(layer)]
        own, total = (reduce(torch.add, part) for part in zip(*pieces, strict=True))
        return own, total.square().sum()
    own = weight_squared_norms(layer).sum()
    if shape.t == 1 and shape.groups == 1 and shape.n * (shape.i + shape.o) < shape.i * shape.o:
        return own, weight_gram(layer).sum()
    return own, weight_sum(layer).square().sum()


def inner_products(capture: Capture, directions: Float[Tensor, "k p"]) -> Float[Tensor, "n k"]:
    """Return the inner products of per-example gradients with flat directions.

    Raises:
        ConfigError: Directions of another shape.
    """
    offsets, position = {}, 0
    for name, shape in capture.shapes.items():
        offsets[name] = slice(position, position := position + shape.numel())
    if directions.ndim != 2 or directions.shape[1] != position:
        raise ConfigError(
            f"directions have shape {tuple(directions.shape)}; pass (k, {position}), one row each."
        )
    total = capture.losses.new_zeros(len(capture), len(directions))
    for name, value in small_gradients(capture):
        total += value @ directions[:, offsets[name]].T
    for name, layer in weight_layers(capture):
        total += weight_inner_products(layer, directions[:, offsets[name]].reshape(-1, *layer.weight_shape))
    return total


def _flat(capture: Capture, parts: dict[str, Tensor]) -> Float[Tensor, "p"]:
    pieces = [
        parts[name].flatten() if name in parts else capture.losses.new_zeros(shape.numel())
        for name, shape in capture.shapes.items()
    ]
    return torch.cat(pieces)
