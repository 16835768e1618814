"""Statistics of a gradient estimator: reference definitions, unbiased ones, and exact values.

An estimator's direction has P coordinates; a *draw* is one value of it. Three modes:

* `reference`: the definitions behind the published curves, biased by construction (see `noise_floor`);
* `unbiased`: one pooled set of draws, unbiased variances, jackknife standard errors;
* `exact`: no sampling at all, from the per-example gradients of the whole population.

What is unbiased depends on how the draws were made, so `unbiased` asks for it (`Design`). With examples
drawn in epochs the mean of all draws hardly varies, and at the end of an epoch not at all; treating such
draws as independent would subtract noise that is not there.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from scipy.stats import t as student_t
from torch import Tensor

from variance.errors import ConfigError, NonFiniteGradient, require_count, require_word
from variance.randomness import Seed, number_of

Dead = Literal["skip", "zero"]
"""What a coordinate whose second moment is zero contributes: nothing at all, or a ratio of 0."""
PIECE = 2**16
"""Coordinates that are taken at once, so that what lies between costs no memory."""


@dataclass(frozen=True, repr=False)
class ReferenceStatistics:
    """Statistics over two independent sets of m draws, as the original defines them.

    Attributes:
        mean: Mean e of the first set.
        avg_var: sum_s ||g_s - e||^2 / (m P); its expectation is V (1 + 1/m).
        norm_var: Mean over coordinates of sum_s (g_s - e)^2 / (sum_s g_s^2 + 1e-7).
        snr: Mean over coordinates of log sum_s g_s^2 - log sum_s (g_s - e)^2, each + 1e-10 (nats).
        grad_sq: sum_s ||g_s||^2 / (m P).
        bias: Mean over coordinates of |e - e_SG|; None where no SG mean was given.
    """

    mean: Float[Tensor, "p"]
    avg_var: float
    norm_var: float
    snr: float
    grad_sq: float
    bias: float | None = None

    def __repr__(self) -> str:
        return _shown(self)


@dataclass(frozen=True)
class Design:
    """How draws of B examples were made from a population of N.

    Attributes:
        kind: `independent`: every example for itself, with replacement. `batches`: no example twice in a
        batch,
            batches independent of each other. `epochs`: consecutive batches of a stream that visits the whole
            population in random order again and again, from the start of an epoch.
        population: N; needed by `batches` and `epochs`.

    Raises:
        ConfigError: Unknown kind, or no population where one is needed.
    """

    kind: Literal["independent", "batches", "epochs"] = "independent"
    population: int = 0

    def __post_init__(self) -> None:
        require_word("kind", self.kind, ("independent", "batches", "epochs"))
        require_count("population", self.population, 0 if self.kind == "independent" else 2)

    def factors(self, num_draws: int, batch_size: int) -> tuple[float, float]:
        """Return Var(draw) and Var(mean of all draws) in units of one example's variance.

        Two examples of one epoch have the covariance -1/(N - 1), two of different epochs none.

        Example:
            >>> Design("epochs", population=12).factors(num_draws=3, batch_size=4)  # one epoch: no noise
            (0.18181818181818182, 0.0)

        Raises:
            ConfigError: A number that is no whole number of at least 1.
        """
        require_count("num_draws", num_draws)
        require_count("batch_size", batch_size)
        if self.kind == "independent":
            return 1 / batch_size, 1 / (num_draws * batch_size)
        own = batch_mean_factor(self.population, batch_size, replacement=False)
        if self.kind == "batches":
            return own, own / num_draws
        n, total = self.population, num_draws * batch_size
        ends = [range(e * n, min((e + 1) * n, total)) for e in range(-(-total // n))]
        shared = 0.0  # pairs within one batch that belong to one epoch
        for s in range(num_draws):
            start, stop = s * batch_size, (s + 1) * batch_size
            shared += sum(max(0, min(stop, e.stop) - max(start, e.start)) ** 2 for e in ends)
        all_pairs = sum(len(e) ** 2 for e in ends)
        return (
            (total * n - shared) / ((n - 1) * num_draws * batch_size**2),
            (total * n - all_pairs) / ((n - 1) * total**2),
        )


@dataclass(frozen=True, repr=False)
class UnbiasedStatistics:
    """Statistics over one pooled set of n draws.

    Attributes:
        mean: Mean of the draws.
        num_draws: n.
        avg_var: Mean over coordinates of the unbiased variance s^2 of one draw.
        norm_var_coord: Mean over live coordinates of s^2 / mean(g^2).
        norm_var_trace: sum s^2 / sum mean(g^2), scale free.
        grad_sq: Mean over coordinates of mean(g^2).
        grad_norm_sq: Unbiased ||E g||^2, that is ||mean||^2 minus the variance of the mean; may be negative.
        noise_scale: Variance of one example over grad_norm_sq, in examples (NaN where grad_norm_sq <= 0).
        dead_fraction: Fraction of coordinates that are zero in every draw.
        noise_scale_low: Lower end of the 95 % interval of the noise scale.
        noise_scale_high: Upper end; infinite where a gradient of zero cannot be excluded. The interval is
        that of
            the inverse, which is close to normal (the noise scale is not), by Student's t with n - 1 degrees.
        standard_errors: Standard error of each of the above by name: the jackknife over draws. For draws in
            epochs that of `grad_norm_sq` is reduced by the factor of the design, the others are upper bounds.
    """

    mean: Float[Tensor, "p"]
    num_draws: int
    avg_var: float
    norm_var_coord: float
    norm_var_trace: float
    grad_sq: float
    grad_norm_sq: float
    noise_scale: float
    dead_fraction: float
    noise_scale_low: float = math.nan
    noise_scale_high: float = math.nan
    standard_errors: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return _shown(self)


@dataclass(frozen=True, repr=False)
class ExactStatistics:
    """Statistics of a mini-batch mean over a finite population, without sampling error.

    Attributes:
        mean: Population gradient mu.
        trace_cov: (1/N) sum_i ||g_i - mu||^2.
        avg_var: Mean over coordinates of the variance of the mini-batch mean.
        norm_var_coord: Mean over coordinates of variance / second moment.
        norm_var_trace: Total variance / total second moment.
        grad_sq: Mean over coordinates of the second moment.
        grad_norm_sq: ||mu||^2.
        noise_scale: trace_cov / ||mu||^2, the simple gradient noise scale (McCandlish et al. 2018, Eq. 2.9),
            in examples.
        dead_fraction: Fraction of coordinates that are zero for every example.
    """

    mean: Float[Tensor, "p"]
    trace_cov: float
    avg_var: float
    norm_var_coord: float
    norm_var_trace: float
    grad_sq: float
    grad_norm_sq: float
    noise_scale: float
    dead_fraction: float

    def __repr__(self) -> str:
        return _shown(self)


def _shown(found: ReferenceStatistics | UnbiasedStatistics | ExactStatistics) -> str:
    """Return its numbers as text; the mean has one for each parameter of a model."""
    numbers = [f"{k}={v:.4g}" for k, v in vars(found).items() if isinstance(v, float | int)]
    return f"{type(found).__name__}({len(found.mean)} coordinates, {', '.join(numbers)})"


def _require_draws(draws: Tensor, name: str) -> None:
    if draws.ndim != 2 or draws.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(draws.shape)}; draws must be (draws, parameters).")
    if draws.is_complex():
        raise ConfigError(f"{name} is complex; pass real and imaginary parts as coordinates.")
    if len(draws) < 3:
        raise ConfigError(
            f"{name} holds {len(draws)} draws; at least 3 are needed, because the noise floor 1 + 1/(m - 2) "
            "of the normalised variance is undefined below."
        )


def noise_floor(num_draws: int) -> float:
    """Return the expectation of the reference `norm_var` for pure noise with m draws, 1 + 1/(m - 2).

    Example:
        >>> noise_floor(10)  # what the published ImageNet curve saturates at
        1.125

    Raises:
        ConfigError: `num_draws` is below 3.
    """
    require_count("num_draws", num_draws, 3)
    return 1 + 1 / (num_draws - 2)


def reference(
    draws_a: Float[Tensor, "m p"], draws_b: Float[Tensor, "m p"], sg_mean: Float[Tensor, "p"] | None = None
) -> ReferenceStatistics:
    """Evaluate the reference definitions.

    Args:
        draws_a: Draws that give the mean only.
        draws_b: Independent draws that give everything else.
        sg_mean: Mean of plain mini-batch gradients, for `bias`.

    Raises:
        ConfigError: Fewer than three draws.

    Example:
        >>> draws = torch.tensor([[1.0], [3.0], [2.0]])
        >>> round(reference(draws, draws).avg_var, 4)
        0.6667
    """
    draws_a, draws_b = torch.as_tensor(draws_a).detach(), torch.as_tensor(draws_b).detach()
    _require_draws(draws_a, "draws_a")
    _require_draws(draws_b, "draws_b")
    given = (draws_a[0], draws_b[0], *([] if sg_mean is None else [torch.as_tensor(sg_mean)]))
    if len(shapes := {tuple(one.shape) for one in given}) > 1:
        raise ConfigError(f"draws_a, draws_b and sg_mean differ in their coordinates: {sorted(shapes)}.")
    return reference_about(draws_a.mean(0), draws_b, sg_mean)


def reference_about(
    mean: Float[Tensor, "p"], draws: Iterable[Float[Tensor, "p"]], sg_mean: Float[Tensor, "p"] | None = None
) -> ReferenceStatistics:
    """Evaluate the reference definitions about a given mean, visiting each draw once.

    Memory for a few vectors, however many draws there are.

    Args:
        mean: Mean e of an independent set of draws.
        draws: Draws, one after the other.
        sg_mean: Mean of plain mini-batch gradients, for `bias`.

    Raises:
        ConfigError: Fewer than three draws.
    """
    spread, power, deviation = (torch.zeros_like(mean) for _ in range(3))
    m, p = 0, len(mean)
    for draw in draws:
        torch.sub(draw, mean, out=deviation)
        spread.addcmul_(deviation, deviation)
        power.addcmul_(draw, draw)
        m += 1
    noise_floor(m)
    _require_finite("draws", spread, power)
    return ReferenceStatistics(
        mean=mean,
        avg_var=float(spread.sum()) / (m * p),
        norm_var=float((spread / (power + 1e-7)).mean()),
        snr=float(((power + 1e-10).log() - (spread + 1e-10).log()).mean()),
        grad_sq=float(power.sum()) / (m * p),
        bias=None if sg_mean is None else float((mean - torch.as_tensor(sg_mean)).abs().mean()),
    )


def mean_of(draws: Iterable[Float[Tensor, "p"]]) -> Float[Tensor, "p"]:
    """Return the mean of draws that are visited once and not kept.

    Example:
        >>> mean_of(iter([torch.tensor([1.0]), torch.tensor([3.0])]))
        tensor([2.])
    """
    remaining = iter(draws)
    total, count = next(remaining).clone(), 1
    for draw in remaining:
        total += draw
        count += 1
    return total / count


def unbiased(
    draws: Float[Tensor, "n p"],
    batch_size: int = 1,
    *,
    design: Design | None = None,
    dead: Dead = "skip",
    standard_errors: bool = True,
) -> UnbiasedStatistics:
    """Evaluate unbiased variances and their ratios on pooled draws.

    Args:
        draws: Draws.
        batch_size: Examples per draw; `noise_scale` is in examples.
        design: How the draws were made; independently where None.
        dead: Treatment of coordinates that are zero in every draw.
        standard_errors: Also compute jackknife standard errors and the interval of the noise scale.

    Raises:
        ConfigError: Fewer than three draws, or an argument that is not allowed.
        NonFiniteGradient: A draw is NaN or infinite.

    Example:
        >>> draws = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
        >>> found = unbiased(draws)
        >>> found.avg_var, found.dead_fraction
        (0.5, 0.5)
    """
    draws = torch.as_tensor(draws).detach()
    _require_draws(draws, "draws")
    draws = draws if draws.is_floating_point() else draws.double()
    running = RunningDraws(standard_errors=standard_errors)
    for draw in draws:
        running.add(draw)
    return running.result(batch_size, design=design, dead=dead)


class RunningDraws:
    """Statistics of draws that are visited once and not kept.

    Holds a mean and a centred sum of squares (Welford 1962), which are exact, and a sketch of every draw:
    inner products of draws decide the standard errors alone, and 65 536 signed sums of coordinates
    (Charikar et al. 2002) give them to a few percent; where gradients vary in more directions than that,
    they are too large. Half precision is summed in float32.

    Args:
        standard_errors: Keep the sketches.
        seed: Seed of the signs.
    """

    SKETCH = 2**16

    def __init__(self, *, standard_errors: bool = True, seed: Seed = 0) -> None:
        self.count = 0
        self._standard_errors, self._seed = standard_errors, number_of(seed)
        require_count("seed", self._seed, 0, 2**64 - 1)
        self._norms: list[float] = []
        self._sketches: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._signs: Tensor | None = None

    def add(self, *parts: Float[Tensor, "..."]) -> None:
        """Take in one draw: a vector, or its parts in order, such as the gradient of each parameter."""
        if self.count == 0:
            self._begin(parts)
        self.count += 1
        size, norm, stride = self.SKETCH, 0.0, self._stride
        sketch = self.mean.new_zeros(min(size, len(self.mean)))
        columns = self.mean.new_empty(-(-len(self.mean) // stride))
        for start, piece in zip(range(0, len(self.mean), size), _pieces(parts, size), strict=True):
            here, draw = slice(start, start + size), piece.to(self.mean)
            if self._standard_errors:
                norm += squared_norm(draw)
                signs = 1.0 if self._signs is None else self._signs[here].to(draw)
                sketch[: len(draw)] += draw * signs
                of_piece = draw[-start % stride :: stride]
                columns[-(-start // stride) :][: len(of_piece)] = of_piece
            mean = self.mean[here]
            deviation = draw - mean
            mean.add_(deviation, alpha=1 / self.count)
            self.spread[here].addcmul_(deviation, deviation, value=1 - 1 / self.count)
        if self._standard_errors:
            self._norms.append(norm)
            self._sketches.append(sketch)
            self._columns.append(columns)

    def _begin(self, parts: tuple[Tensor, ...]) -> None:
        kind = reduce(torch.promote_types, [part.dtype for part in parts], torch.float32)
        size = sum(part.numel() for part in parts)
        self.mean, self.spread = (parts[0].new_zeros(size, dtype=kind) for _ in range(2))
        self._stride = max(1, size // self.SKETCH)
        if self._standard_errors and size > self.SKETCH:
            generator = torch.Generator().manual_seed(self._seed)
            self._signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
            self._signs = self._signs.mul_(2).sub_(1).to(self.mean.device)

    def result(
        self, batch_size: int = 1, *, design: Design | None = None, dead: Dead = "skip"
    ) -> UnbiasedStatistics:
        """Return the statistics of all draws so far.

        Raises:
            ConfigError: Fewer than three draws, or an argument that is not allowed.
            NonFiniteGradient: A draw is NaN or infinite.
        """
        noise_floor(self.count)
        require_word("dead", dead, get_args(Dead))
        _require_finite("draws", self.spread, self.mean)
        n, mean, spread = self.count, self.mean, self.spread
        own, of_mean = (design or Design()).factors(n, batch_size)
        scale = 1 / (n - n * of_mean / own) if own > of_mean else 0.0  # from centred squares to a variance
        pieces = zip(mean.split(PIECE), spread.split(PIECE), strict=True)
        ratios, live = _all_ratios((s * scale, s / n + m.square()) for m, s in pieces)
        totals = _Totals(_sum(spread), squared_norm(mean), n)
        values: dict[str, Any] = totals.values(len(mean), scale, own, of_mean)
        values["norm_var_coord"] = ratios / max(live if dead == "skip" else len(mean), 1)
        values["dead_fraction"] = 1 - live / len(mean)
        inverse_ratio = values.pop("inverse")
        found = UnbiasedStatistics(mean, n, **values)
        if not self._standard_errors:
            return found
        errors, inverse = self._errors(totals, scale, own, of_mean, dead)
        if n * of_mean < own * (1 - 1e-9):  # draws that repel each other: their mean varies less
            errors["grad_norm_sq"] *= math.sqrt((n - 1) * of_mean / (own - of_mean))
            relative = (
                errors[name] / values[name] if values[name] else 0.0 for name in ("avg_var", "grad_norm_sq")
            )
            inverse = abs(inverse_ratio) * math.hypot(*relative)
            errors["noise_scale"] = values["noise_scale"] ** 2 * inverse
        low, high = inverse_interval(inverse_ratio, inverse, n)
        return replace(found, noise_scale_low=low, noise_scale_high=high, standard_errors=errors)

    def _errors(
        self, totals: "_Totals", scale: float, own: float, of_mean: float, dead: Dead
    ) -> tuple[dict[str, float], float]:
        """Return jackknife standard errors by name, and that of the inverse noise scale."""
        n, p = self.count, len(self.mean)
        columns = torch.stack(self._columns)
        mean, spread = self.mean[:: self._stride], self.spread[:: self._stride]
        sketched_mean = torch.stack(self._sketches).mean(0)
        left_out: dict[str, list[float]] = {}
        of_mean *= n / (n - 1)  # of one draw fewer
        factor = own / (own - of_mean) if own > of_mean else 0.0
        for norm, sketch, column in zip(self._norms, self._sketches, columns, strict=True):
            along = float(sketch.double() @ sketched_mean.double())
            deviation_norm = max(norm - 2 * along + totals.mean_sq, 0.0)
            without = _Totals(
                totals.spread - deviation_norm * n / (n - 1),
                totals.mean_sq - 2 * (along - totals.mean_sq) / (n - 1) + deviation_norm / (n - 1) ** 2,
                n - 1,
            )
            values = without.values(p, factor / (n - 1), own, of_mean)
            deviation = column - mean
            rest = ((spread - deviation.square() * (n / (n - 1))) / (n - 1)).clamp_min(0)
            power = (rest + (mean - deviation / (n - 1)).square()).clamp_min(0)
            ratios, live = _coordinate_ratios(rest * factor, power)
            values["norm_var_coord"] = ratios / max(live if dead == "skip" else len(mean), 1)
            values["dead_fraction"] = 1 - live / len(mean)
            for name, value in values.items():
                left_out.setdefault(name, []).append(value)
        errors = {
            name: math.sqrt((n - 1) * float(torch.tensor(sample, dtype=torch.float64).var(correction=0)))
            for name, sample in left_out.items()
        }
        return errors, errors.pop("inverse")


@dataclass(frozen=True)
class _Totals:
    """Sums over coordinates: centred squares, squared mean, number of draws."""

    spread: float
    mean_sq: float
    n: int

    def values(self, p: int, scale: float, own: float, of_mean: float) -> dict[str, float]:
        variance, power = self.spread * scale, self.spread / self.n + self.mean_sq
        one = variance / own if own > 0 else math.nan  # of one example: no draw of all examples tells it
        grad_norm_sq = self.mean_sq - (one * of_mean if own > 0 else 0.0)
        return {
            "avg_var": variance / p,
            "norm_var_trace": variance / power if power > 0 else 0.0,
            "grad_sq": power / p,
            "grad_norm_sq": grad_norm_sq,
            "noise_scale": one / grad_norm_sq if grad_norm_sq > 0 else math.nan,
            "inverse": grad_norm_sq / one if one > 0 else math.inf if one == 0 < grad_norm_sq else math.nan,
        }


def inverse_interval(inverse: float, standard_error: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of 1 / x from an estimate of x that is close to normal, over `count` draws.

    Example:
        >>> inverse_interval(math.inf, 0.0, 5)  # no noise at all
        (0.0, 0.0)
    """
    if not math.isfinite(inverse):
        return 0.0, 0.0 if inverse > 0 else math.inf
    margin = float(student_t.ppf(0.975, count - 1)) * standard_error
    ends = inverse + margin, inverse - margin
    low, high = (1 / end if end > 0 else math.inf for end in ends)
    return low, high


def _pieces(parts: Iterable[Tensor], size: int) -> Iterator[Float[Tensor, "s"]]:
    """Yield the coordinates of some tensors in pieces of one size, the last of which may be shorter."""
    held: list[Tensor] = []
    room = size
    for part in parts:
        flat = part.reshape(-1)
        while len(flat):
            held.append(flat[:room])
            flat, room = flat[room:], room - len(held[-1])
            if room == 0:
                yield held[0] if len(held) == 1 else torch.cat(held)
                held, room = [], size
    if held:
        yield torch.cat(held)


def _sum(values: Tensor) -> float:
    """Sum in float64, for which PyTorch copies what it sums."""
    return sum((float(piece.sum(dtype=torch.float64)) for piece in values.split(PIECE)), 0.0)


def told(noise_scale: float, low: float, high: float, source: str) -> str:
    """Return a sentence about a noise scale and its 95 % interval.

    Example:
        >>> told(math.nan, 120.0, math.inf, "30 steps")
        'noise scale above 120 examples (lower end of 95 %; the mean gradient is not seen), from 30 steps'
    """
    if not math.isnan(noise_scale):
        return f"noise scale {noise_scale:.3g} examples (95 %: {low:.3g} to {high:.3g}), from {source}"
    if 0 < low < math.inf:
        known = f"above {low:.3g} examples (lower end of 95 %; the mean gradient is not seen)"
    else:
        known = "unknown, as the mean gradient is not seen in the noise"
    return f"noise scale {known}, from {source}"


def squared_norm(values: Tensor) -> float:
    """Return the sum of squares in float64, without a copy of all values in it.

    Example:
        >>> squared_norm(torch.tensor([3.0, 4.0]))
        25.0
    """
    pieces = values.reshape(-1).split(PIECE)
    norms = (float(torch.linalg.vector_norm(piece, dtype=torch.float64)) for piece in pieces)
    return sum((norm * norm for norm in norms), 0.0)


def _require_finite(what: str, *sums: Tensor) -> None:
    """Refuse sums that are not finite: what they are sums of is not, or its squares leave the range."""
    if not all(math.isfinite(_sum(values)) for values in sums):
        kind = str(sums[0].dtype).removeprefix("torch.")
        raise NonFiniteGradient(
            f"the {what} hold NaN or infinite values, or some whose squares are beyond {kind}; remove them."
        )


def _coordinate_ratios(variance: Tensor, power: Tensor) -> tuple[float, int]:
    """Return the sum of variance / second moment over live coordinates, and their number."""
    live = power > 0
    return float((variance[live] / power[live]).sum(dtype=torch.float64)), int(live.sum())


def _all_ratios(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, int]:
    ratios, live = zip(*(_coordinate_ratios(*piece) for piece in pieces), strict=True)
    return math.fsum(ratios), sum(live)


def exact(
    per_example_gradients: Float[Tensor, "n p"],
    batch_size: int,
    *,
    replacement: bool = True,
    dead: Dead = "zero",
) -> ExactStatistics:
    """Evaluate the statistics of a mini-batch mean exactly, from all per-example gradients.

    Args:
        per_example_gradients: Gradient of every example.
        batch_size: Examples per mini-batch.
        replacement: Whether mini-batches are drawn with replacement.
        dead: Treatment of coordinates that are zero for every example.

    Raises:
        ValueError: Empty population.
        ConfigError: `batch_size` below 1, or above N without replacement.
        NonFiniteGradient: A gradient is NaN or infinite.

    Example:
        >>> exact(torch.tensor([[1.0], [3.0]]), batch_size=2).avg_var
        0.5
        >>> exact(torch.tensor([[1.0], [3.0]]), batch_size=2, replacement=False).avg_var
        0.0
    """
    g = torch.as_tensor(per_example_gradients).detach()
    if g.ndim != 2 or g.numel() == 0 or g.is_complex():
        raise ValueError(
            f"per_example_gradients has shape {tuple(g.shape)} and dtype {g.dtype}; it must be (examples, "
            "parameters), real and not empty."
        )
    mean = g.mean(0, dtype=torch.float64)
    covariance_diagonal = torch.zeros_like(mean)
    for rows in g.split(max(1, 2**23 // max(1, g.shape[1]))):
        covariance_diagonal += (rows - mean).square().sum(0)
    return from_moments(
        mean, covariance_diagonal / len(g), len(g), batch_size, replacement=replacement, dead=dead
    )


def from_moments(
    mean: Float[Tensor, "p"],
    covariance_diagonal: Float[Tensor, "p"],
    num_examples: int,
    batch_size: int,
    *,
    replacement: bool = True,
    dead: Dead = "zero",
) -> ExactStatistics:
    """Evaluate `exact` from the population mean and variance of each coordinate.

    Raises:
        ConfigError: A variance is negative, or an argument is not allowed.
        NonFiniteGradient: A moment is NaN or infinite.
    """
    require_word("dead", dead, get_args(Dead))
    _require_finite("gradients", mean, covariance_diagonal)
    if float(covariance_diagonal.min()) < 0:
        raise ConfigError("covariance_diagonal holds negative numbers; pass variances.")
    shrink = batch_mean_factor(num_examples, batch_size, replacement=replacement)
    trace_cov, norm_sq = _sum(covariance_diagonal), squared_norm(mean)
    pieces = zip(mean.split(PIECE), covariance_diagonal.split(PIECE), strict=True)
    ratios, live = _all_ratios((c * shrink, c * shrink + m.square()) for m, c in pieces)
    total, power = trace_cov * shrink, trace_cov * shrink + norm_sq
    return ExactStatistics(
        mean=mean,
        trace_cov=trace_cov,
        avg_var=total / len(mean),
        norm_var_coord=ratios / max(live if dead == "skip" else len(mean), 1),
        norm_var_trace=total / power if power > 0 else 0.0,
        grad_sq=power / len(mean),
        grad_norm_sq=norm_sq,
        noise_scale=trace_cov / norm_sq if norm_sq > 0 else math.inf,
        dead_fraction=1 - live / len(mean),
    )


def batch_mean_factor(num_examples: int, batch_size: int, *, replacement: bool = True) -> float:
    """Return Var(mean of a batch) / Var(one example): 1/B, times (N - B)/(N - 1) without replacement.

    Example:
        >>> batch_mean_factor(4, 2, replacement=False)
        0.3333333333333333

    Raises:
        ConfigError: The batch does not fit the population.
    """
    require_count("num_examples", num_examples)
    require_count("batch_size", batch_size)
    if replacement:
        return 1 / batch_size
    if batch_size > num_examples:
        raise ConfigError(
            f"batch_size {batch_size} exceeds the {num_examples} examples; draw with replacement or use a "
            "smaller batch."
        )
    return 0.0 if num_examples == 1 else (num_examples - batch_size) / ((num_examples - 1) * batch_size)
