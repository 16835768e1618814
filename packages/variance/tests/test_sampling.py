"""Stratified and importance sampling: golden values, exact enumeration, unbiasedness, predicted variance."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from variance import statistics
from variance.errors import ConfigError
from variance.sampling import (
    ExponentialSnooze,
    ImportanceSampler,
    StratifiedSampler,
    UniformSampler,
    check_assignment,
    cluster_variances,
    clustering_objective,
    neyman_fractions,
    neyman_variance,
    stratified_variance,
    stratified_weights,
)

RTOL = 1e-9
RUNS = {"gc_w": "gc_w_assign", "gc_seq": "gc_seq_assign", "exact": "exact_assign"}


@pytest.mark.parametrize("run", RUNS)
def test_golden(golden, run: str) -> None:  # type: ignore[no-untyped-def]
    g, ids = golden.tensor("per_sample_grads"), golden.tensor(RUNS[run])[-1]
    expected = {
        key: golden[f"strat_{run}_{key}"]
        for key in (
            "objective",
            "weights",
            "trace_var_one_per_cluster",
            "neyman_fraction",
            "neyman_trace_var_times_B",
        )
    }
    np.testing.assert_allclose(stratified_weights(ids), expected["weights"], rtol=RTOL)
    np.testing.assert_allclose(clustering_objective(g, ids), expected["objective"], rtol=RTOL)
    np.testing.assert_allclose(stratified_variance(g, ids), expected["trace_var_one_per_cluster"], rtol=RTOL)
    np.testing.assert_allclose(neyman_fractions(g, ids), expected["neyman_fraction"], rtol=1e-6)
    np.testing.assert_allclose(neyman_variance(g, ids), expected["neyman_trace_var_times_B"], rtol=RTOL)
    assert stratified_variance(g, ids) == pytest.approx(clustering_objective(g, ids) / len(g) ** 2, rel=1e-12)


def test_special_cases() -> None:
    g = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trace = float((g - g.mean(0)).square().sum(1).mean())
    assert stratified_variance(g, torch.zeros(12, dtype=torch.long)) == pytest.approx(trace, rel=1e-12)
    assert stratified_variance(g, torch.arange(12)) == 0
    assert neyman_fractions(g, torch.arange(12)).tolist() == pytest.approx([1 / 12] * 12)
    assert stratified_variance(
        g, torch.arange(12) // 3, draws_per_cluster=3, replacement=False
    ) == pytest.approx(0, abs=1e-15)


def test_enumerating_all_choices_gives_mean_and_variance_exactly() -> None:
    g = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([0, 2, 2, 3, 0, 2, 3])
    weights, clusters = (
        stratified_weights(ids),
        [torch.nonzero(ids == k).flatten().tolist() for k in (0, 2, 3)],
    )
    estimates = torch.stack(
        [(weights[list(choice), None] * g[list(choice)]).mean(0) for choice in itertools.product(*clusters)]
    )
    torch.testing.assert_close(estimates.mean(0), g.mean(0), rtol=0, atol=1e-12)
    spread = float((estimates - g.mean(0)).square().sum(1).mean())
    assert spread == pytest.approx(stratified_variance(g, ids), rel=1e-12)


def make_samplers(g: Tensor, ids: Tensor) -> dict[str, object]:
    spreads = cluster_variances(g, ids).sqrt()
    return {
        "uniform": UniformSampler(len(g), 1),
        "with replacement": UniformSampler(len(g), 2, replacement=True),
        "equal": StratifiedSampler(ids, 3),
        "proportional": StratifiedSampler(ids, 4, allocation="proportional"),
        "neyman": StratifiedSampler(ids, 5, allocation="neyman", spreads=spreads),
        "importance": ImportanceSampler(g.norm(dim=1) + 0.1, 6),
    }


@pytest.mark.parametrize(
    "name", ["uniform", "with replacement", "equal", "proportional", "neyman", "importance"]
)
@pytest.mark.parametrize("count", [3, 7])
def test_draws_are_unbiased(name: str, count: int) -> None:
    """4 000 draws, 20 projections within 5 standard errors: failure probability below 20 * 6e-7 per case."""
    generator = torch.Generator().manual_seed(7)
    g = torch.randn(41, 20, dtype=torch.float64, generator=generator) * torch.rand(41, 1, generator=generator)
    ids = torch.tensor([0] * 20 + [2] * 12 + [3] * 7 + [5] * 2)
    sampler = make_samplers(g, ids)[name]
    estimates = []
    for _ in range(4000):
        draw = sampler.draw(count)  # type: ignore[attr-defined]
        estimates.append((draw.weights[:, None] * g[draw.indices]).mean(0))
    projections = (torch.stack(estimates) - g.mean(0)) @ torch.randn(
        20, 20, dtype=torch.float64, generator=generator
    )
    errors = projections.std(0) / np.sqrt(len(projections))
    assert bool((projections.mean(0).abs() <= 5 * errors).all())


def test_the_predicted_variance_is_that_of_many_draws() -> None:
    """Within 5 %, five standard deviations or more, with independent members and with the sampler itself."""
    generator = torch.Generator().manual_seed(8)
    g, ids = torch.randn(60, 10, dtype=torch.float64, generator=generator), torch.arange(60) % 4
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(ids.numpy() == k) for k in range(4)]
    picks = np.stack([m[rng.integers(len(m), size=10_000)] for m in members], 1)
    estimates = (stratified_weights(ids)[picks][..., None] * g[picks]).mean(1)
    found = float((estimates - g.mean(0)).square().sum(1).mean())
    assert found == pytest.approx(stratified_variance(g, ids), rel=0.05)
    sampler = StratifiedSampler(ids, 1)
    drawn = torch.stack(
        [(d.weights[:, None] * g[d.indices]).mean(0) for d in (sampler.draw(4) for _ in range(2500))]
    )
    assert float((drawn - g.mean(0)).square().sum(1).mean()) == pytest.approx(
        stratified_variance(g, ids), rel=0.05
    )


def test_equal_allocation_permutes_clusters_and_exhausts_members() -> None:
    ids = torch.tensor([0] * 6 + [1] * 3 + [4] * 2)
    sampler = StratifiedSampler(ids, 0)
    drawn = torch.cat([sampler.draw(3).indices for _ in range(6)]).reshape(6, 3)
    assert all(sorted(ids[row].tolist()) == [0, 1, 4] for row in drawn)
    flat = drawn.flatten()
    assert sorted(flat[ids[flat] == 0].tolist()) == [0, 1, 2, 3, 4, 5]
    ones = flat[ids[flat] == 1]
    assert sorted(ones[:3].tolist()) == sorted(ones[3:].tolist()) == [6, 7, 8]


@pytest.mark.parametrize("name", ["uniform", "equal", "proportional", "neyman", "importance"])
def test_a_restored_sampler_continues_the_sequence(name: str) -> None:
    g = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(30) % 7
    sampler, other = make_samplers(g, ids)[name], make_samplers(g, ids)[name]
    sampler.draw(11)  # type: ignore[attr-defined]
    state = sampler.state_dict()  # type: ignore[attr-defined]
    expected = [sampler.draw(5).indices.tolist() for _ in range(20)]  # type: ignore[attr-defined]
    other.load_state_dict(state)  # type: ignore[attr-defined]
    assert [other.draw(5).indices.tolist() for _ in range(20)] == expected  # type: ignore[attr-defined]


def test_a_sampler_restored_over_other_clusters_has_the_law_of_the_stored_ones() -> None:
    ids = torch.tensor([0, 0, 3, 3, 3, 1, 5])
    sampler, other = StratifiedSampler(ids, 0), StratifiedSampler(torch.zeros(7, dtype=torch.long), 1)
    sampler.draw(3)
    other.load_state_dict(sampler.state_dict())
    assert other.assignment.tolist() == ids.tolist()
    for own, restored in zip(sampler.law(6), other.law(6), strict=True):
        torch.testing.assert_close(restored, own)
    assert other.draw(6).indices.tolist() == sampler.draw(6).indices.tolist()


def test_within_cluster_and_robust_weights() -> None:
    ids = torch.tensor([0, 0, 0, 1])
    diagnosis = StratifiedSampler(ids, 0, within_cluster=0).draw(6)
    assert sorted(set(diagnosis.indices.tolist())) == [0, 1, 2]
    assert diagnosis.weights.tolist() == [1.0] * 6
    robust = StratifiedSampler(
        ids, 0, robust=(0.0, 1.0)
    ).weights  # N/M = 2; factor 1 from there on, 1/2 at N_k = 1
    torch.testing.assert_close(robust, torch.tensor([1.5, 0.25], dtype=torch.float64))
    assert StratifiedSampler(ids, 0, imbalance=True).weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_assignment(torch.tensor([0, -1])), "ids from -1 to 0; allowed are 0 or more"),
        (lambda: check_assignment(torch.tensor([0, 4]), 4), "ids from 0 to 4; allowed are 0 to 3"),
        (lambda: check_assignment(torch.tensor([0, 1]), 4, 3), "2 entries for 3 examples; cluster again"),
        (lambda: check_assignment(torch.tensor([0.5])), "pass one integer per example"),
        (lambda: StratifiedSampler(torch.tensor([0, 2]), within_cluster=1), "within_cluster 1 is empty"),
        (lambda: StratifiedSampler(torch.tensor([0]), allocation="neyman"), "needs spreads"),
        (
            lambda: StratifiedSampler(torch.tensor([0]), allocation="best"),
            "allowed are equal, proportional, neyman",
        ),  # type: ignore[arg-type]
        (lambda: ImportanceSampler(torch.tensor([1.0, 0.0])), "1 of 2 are not"),
        (lambda: UniformSampler(0), "num_examples is 0; pass a whole number"),
    ],
)
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ConfigError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spreads": [1.0, math.nan]}, "must be finite, not negative"),
        ({"spreads": [1.0, -1.0]}, "must be finite, not negative"),
        ({"spreads": [1.0]}, "one for each of the cluster ids 0 to 1"),
        ({"spreads": [1.0, 0.0], "floor": 0.0}, "undrawn, which biases"),
    ],
)
def test_spreads_that_would_bias_are_refused(options: dict[str, Any], message: str) -> None:
    spreads = torch.tensor(options.pop("spreads"))
    with pytest.raises(ConfigError, match=message):
        StratifiedSampler(torch.tensor([0, 0, 1, 1]), allocation="neyman", spreads=spreads, **options)


def test_scores_may_come_from_a_graph() -> None:
    """As losses do, of which nothing is differentiated."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    assignment = torch.tensor([0, 0, 1, 1])
    assert ImportanceSampler(values).probabilities.tolist() == [0.1, 0.2, 0.3, 0.4]
    StratifiedSampler(assignment, allocation="neyman", spreads=values[:2])
    assert stratified_variance(values.unsqueeze(1), assignment) == 0.125
    assert ExponentialSnooze(4, threshold="constant", value=2.5).next_round(values).tolist() == [2, 3]
    statistics.reference(values.unsqueeze(1), values.unsqueeze(1))
