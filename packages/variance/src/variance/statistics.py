"""Statistics of a gradient estimator: reference definitions, unbiased ones, and exact values.

An estimator's direction has P coordinates; a *draw* is one value of it. Three modes:

* `reference`: the definitions behind the published curves, biased by construction (see `noise_floor`);
* `unbiased`: one pooled set of draws, unbiased variances, jackknife standard errors;
* `exact`: no sampling at all, from the per-example gradients of the whole population.

Sections 3.1 to 3.3 of the documentation page `variance` derive the formulas.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from variance.errors import ConfigError

Dead = Literal["skip", "zero"]
"""What a coordinate whose second moment is zero contributes: nothing at all, or a ratio of 0."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class UnbiasedStatistics:
    """Statistics over one pooled set of n draws.

    Attributes:
        mean: Mean of the draws.
        num_draws: n.
        avg_var: Mean over coordinates of the unbiased variance s^2.
        norm_var_coord: Mean over live coordinates of s^2 / mean(g^2).
        norm_var_trace: sum s^2 / sum mean(g^2), scale free.
        grad_sq: Mean over coordinates of mean(g^2).
        grad_norm_sq: Unbiased ||E g||^2, that is ||mean||^2 - sum s^2 / n; may be negative.
        noise_scale: batch_size sum s^2 / grad_norm_sq in examples (NaN where grad_norm_sq <= 0).
        dead_fraction: Fraction of coordinates that are zero in every draw.
        standard_errors: Jackknife standard error of each of the above by name.
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
    standard_errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
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


def _require_draws(draws: Tensor, name: str) -> None:
    if draws.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(draws.shape)}; draws must be (draws, parameters).")
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
    if num_draws < 3:
        raise ConfigError(f"num_draws is {num_draws}; the noise floor needs at least 3.")
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
    draws_a, draws_b = torch.as_tensor(draws_a), torch.as_tensor(draws_b)
    _require_draws(draws_a, "draws_a")
    _require_draws(draws_b, "draws_b")
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
    draws: Float[Tensor, "n p"], batch_size: int = 1, *, dead: Dead = "skip", standard_errors: bool = True
) -> UnbiasedStatistics:
    """Evaluate unbiased variances and their ratios on pooled draws.

    Args:
        draws: Independent draws.
        batch_size: Examples per draw; `noise_scale` is in examples.
        dead: Treatment of coordinates that are zero in every draw.
        standard_errors: Also compute jackknife standard errors (one more pass over the draws).

    Raises:
        ConfigError: Fewer than three draws.

    Example:
        >>> draws = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
        >>> found = unbiased(draws)
        >>> found.avg_var, found.dead_fraction
        (0.5, 0.5)
    """
    draws = torch.as_tensor(draws)
    _require_draws(draws, "draws")
    n = len(draws)
    mean = draws.mean(0)
    spread, power = torch.zeros_like(mean), torch.zeros_like(mean)
    for draw in draws:
        spread += (draw - mean).square()
        power += draw.square()
    values = _ratios(mean, spread / (n - 1), power / n, n, batch_size, dead)
    errors: dict[str, float] = {}
    if standard_errors:
        left_out = []
        for draw in draws:
            deviation = draw - mean
            left_out.append(
                _ratios(
                    mean - deviation / (n - 1),
                    ((spread - deviation.square() * n / (n - 1)) / (n - 2)).clamp_min(0),
                    ((power - draw.square()) / (n - 1)).clamp_min(0),
                    n - 1,
                    batch_size,
                    dead,
                )
            )
        for name in values:
            sample = torch.tensor([entry[name] for entry in left_out], dtype=torch.float64)
            errors[name] = math.sqrt((n - 1) * float(sample.var(correction=0)))
    return UnbiasedStatistics(mean=mean, num_draws=n, **values, standard_errors=errors)


def _ratios(
    mean: Tensor, variance: Tensor, power: Tensor, n: int, batch_size: int, dead: Dead
) -> dict[str, float]:
    total_variance, total_power = float(variance.sum()), float(power.sum())
    live = power > 0
    num_live = int(live.sum())
    ratio = float((variance[live] / power[live]).sum())
    grad_norm_sq = float(mean.square().sum()) - total_variance / n
    return {
        "avg_var": total_variance / len(mean),
        "norm_var_coord": ratio / max(num_live if dead == "skip" else len(mean), 1),
        "norm_var_trace": total_variance / total_power if total_power > 0 else 0.0,
        "grad_sq": total_power / len(mean),
        "grad_norm_sq": grad_norm_sq,
        "noise_scale": batch_size * total_variance / grad_norm_sq if grad_norm_sq > 0 else math.nan,
        "dead_fraction": 1 - num_live / len(mean),
    }


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

    Example:
        >>> exact(torch.tensor([[1.0], [3.0]]), batch_size=2).avg_var
        0.5
        >>> exact(torch.tensor([[1.0], [3.0]]), batch_size=2, replacement=False).avg_var
        0.0
    """
    g = torch.as_tensor(per_example_gradients)
    if g.ndim != 2 or len(g) == 0:
        raise ValueError(
            f"per_example_gradients has shape {tuple(g.shape)}; it must be (examples, parameters), not empty."
        )
    mean = g.mean(0)
    covariance_diagonal = torch.zeros_like(mean)
    for rows in g.split(max(1, 2**24 // max(1, g.shape[1]))):
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
    """Evaluate `exact` from the population mean and variance of each coordinate."""
    shrink = batch_mean_factor(num_examples, batch_size, replacement=replacement)
    variance = covariance_diagonal * shrink
    values = _ratios(mean, variance, variance + mean.square(), 1, batch_size, dead)
    trace_cov, norm_sq = float(covariance_diagonal.sum()), float(mean.square().sum())
    values["grad_norm_sq"] = norm_sq
    values["noise_scale"] = trace_cov / norm_sq if norm_sq > 0 else math.inf
    return ExactStatistics(mean=mean, trace_cov=trace_cov, **values)


def batch_mean_factor(num_examples: int, batch_size: int, *, replacement: bool = True) -> float:
    """Return Var(mean of a batch) / Var(one example): 1/B, times (N - B)/(N - 1) without replacement.

    Example:
        >>> batch_mean_factor(4, 2, replacement=False)
        0.3333333333333333

    Raises:
        ConfigError: The batch does not fit the population.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    if replacement:
        return 1 / batch_size
    if batch_size > num_examples:
        raise ConfigError(
            f"batch_size {batch_size} exceeds the {num_examples} examples; draw with replacement or use a "
            "smaller batch."
        )
    return 0.0 if num_examples == 1 else (num_examples - batch_size) / ((num_examples - 1) * batch_size)
