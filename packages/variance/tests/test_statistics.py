"""Statistics: golden arrays, closed forms, the noise floor, scale invariance and standard errors."""

import math

import numpy as np
import pytest
import torch

from variance import statistics
from variance.errors import ConfigError

RTOL = 1e-9  # float64, section 11 of the specification


def draws_of(golden):  # type: ignore[no-untyped-def]
    g = golden.tensor("per_sample_grads")
    draws = torch.stack([g[torch.from_numpy(rows)].mean(0) for rows in golden["stat_batches"]])
    return g, draws, int(golden["stat_m"])


def test_reference_golden(golden) -> None:  # type: ignore[no-untyped-def]
    _, draws, m = draws_of(golden)
    found = statistics.reference(draws[:m], draws[m:], sg_mean=draws[:m].mean(0))
    torch.testing.assert_close(found.mean, golden.tensor("ref_mean"), rtol=RTOL, atol=1e-15)
    for name, key in {
        "avg_var": "ref_avg_var",
        "norm_var": "ref_nvar",
        "snr": "ref_snr",
        "grad_sq": "ref_gnorm",
    }.items():
        assert getattr(found, name) == pytest.approx(float(golden[key]), rel=RTOL), name
    assert found.bias == 0


def test_unbiased_golden(golden) -> None:  # type: ignore[no-untyped-def]
    _, draws, _ = draws_of(golden)
    found = statistics.unbiased(draws, 6, dead="zero")
    for name, key in {
        "avg_var": "pooled_avg_var",
        "norm_var_coord": "pooled_nvar_coord",
        "norm_var_trace": "pooled_nvar_trace",
    }.items():
        assert getattr(found, name) == pytest.approx(float(golden[key]), rel=RTOL), name


def test_exact_golden(golden) -> None:  # type: ignore[no-untyped-def]
    g, _, _ = draws_of(golden)
    found = statistics.exact(g, 6)
    assert found.trace_cov == pytest.approx(float(golden["trace_cov"]), rel=RTOL)
    assert found.avg_var == pytest.approx(float(golden["avg_var_B_with_replacement"]), rel=RTOL)
    assert found.norm_var_coord == pytest.approx(float(golden["exact_nvar_coord"]), rel=RTOL)
    assert found.norm_var_trace == pytest.approx(float(golden["exact_nvar_trace"]), rel=RTOL)
    assert found.noise_scale == pytest.approx(float(golden["exact_noise_scale"]), rel=RTOL)
    without = statistics.exact(g, 6, replacement=False)
    assert without.avg_var == pytest.approx(float(golden["avg_var_B_without_replacement"]), rel=RTOL)


@pytest.mark.parametrize("m", [10, 50])
def test_noise_floor(m: int) -> None:
    """Pure noise reads 1 + 1/(m-2) in reference mode and 1 in unbiased mode, within 1 %."""
    draws = torch.randn(2 * m, 40_000, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
    reference = statistics.reference(draws[:m], draws[m:])
    assert reference.norm_var == pytest.approx(statistics.noise_floor(m), rel=0.01)
    assert statistics.unbiased(draws, standard_errors=False).norm_var_coord == pytest.approx(1.0, rel=0.01)


def test_unbiased_ratios_do_not_depend_on_the_scale_of_the_loss(golden) -> None:  # type: ignore[no-untyped-def]
    _, draws, _ = draws_of(golden)
    one, small = statistics.unbiased(draws), statistics.unbiased(1e-4 * draws)
    assert small.norm_var_coord == pytest.approx(one.norm_var_coord, rel=1e-12)
    assert small.norm_var_trace == pytest.approx(one.norm_var_trace, rel=1e-12)
    noise = 1e-4 * torch.randn(100, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert statistics.reference(noise[:50], noise[50:]).norm_var == pytest.approx(
        0.85, abs=0.01
    )  # the 1e-7 at work


def test_standard_errors_cover_the_truth() -> None:
    """Intervals of two jackknife standard errors cover at least 85 % of 200 repetitions (nominal 95 %)."""
    generator = torch.Generator().manual_seed(3)
    mean, inside = torch.full((30,), 0.5, dtype=torch.float64), {"avg_var": 0, "grad_norm_sq": 0}
    for _ in range(200):
        found = statistics.unbiased(mean + torch.randn(20, 30, generator=generator, dtype=torch.float64))
        for name, truth in (("avg_var", 1.0), ("grad_norm_sq", 7.5)):
            inside[name] += abs(getattr(found, name) - truth) <= 2 * found.standard_errors[name]
    assert min(inside.values()) >= 170


def test_jackknife_equals_leaving_draws_out(golden) -> None:  # type: ignore[no-untyped-def]
    _, draws, _ = draws_of(golden)
    found = statistics.unbiased(draws, 6)
    n = len(draws)
    left = np.array(
        [
            statistics.unbiased(draws[torch.arange(n) != i], 6, standard_errors=False).norm_var_trace
            for i in range(n)
        ]
    )
    assert found.standard_errors["norm_var_trace"] == pytest.approx(np.sqrt((n - 1) * left.var()), rel=1e-9)


def test_dead_coordinates_are_counted() -> None:
    draws = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    skipped, zeroed = statistics.unbiased(draws), statistics.unbiased(draws, dead="zero")
    assert skipped.dead_fraction == 0.5
    assert zeroed.norm_var_coord == pytest.approx(skipped.norm_var_coord / 2)


@pytest.mark.parametrize("m", [0, 2])
def test_too_few_draws_are_refused(m: int) -> None:
    with pytest.raises(ConfigError, match=f"holds {m} draws; at least 3"):
        statistics.unbiased(torch.zeros(m, 4))


def test_a_batch_beyond_the_population_is_refused_without_replacement() -> None:
    with pytest.raises(ConfigError, match="batch_size 5 exceeds the 4 examples; draw with replacement"):
        statistics.exact(torch.zeros(4, 2), 5, replacement=False)


def test_zero_gradients_give_zero_variance_without_nan() -> None:
    found = statistics.exact(torch.zeros(4, 2), 2)
    assert (found.avg_var, found.norm_var_coord, found.norm_var_trace) == (0, 0, 0)


def test_no_noise_and_no_gradient_are_told_apart() -> None:
    same, none = statistics.unbiased(torch.ones(5, 2)), statistics.unbiased(torch.zeros(5, 2))
    assert (same.noise_scale, same.noise_scale_low, same.noise_scale_high) == (0, 0, 0)
    assert (none.noise_scale_low, none.noise_scale_high) == (0, math.inf)
    assert math.isnan(none.noise_scale)


def test_draws_that_are_visited_once_give_the_same_numbers(golden) -> None:  # type: ignore[no-untyped-def]
    """Summation order only: rtol 1e-12 in float64."""
    g = golden.tensor("per_sample_grads")
    a, b = g[:10], g[10:]
    kept = statistics.reference(a, b, g[0])
    streamed = statistics.reference_about(statistics.mean_of(iter(a)), iter(b), g[0])
    for name in ("avg_var", "norm_var", "snr", "grad_sq", "bias"):
        assert getattr(streamed, name) == pytest.approx(getattr(kept, name), rel=1e-12)
    with pytest.raises(ConfigError, match="num_draws is 2"):
        statistics.reference_about(g[0], iter(g[:2]))
