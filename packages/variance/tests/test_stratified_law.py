"""The exact variance of clustered estimators is that of the batches their sampler draws, for any K and B."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from variance.estimators.clustered import stratified_statistics
from variance.sampling import StratifiedSampler

SIZES = {"even": [4, 4, 4], "uneven": [1, 3, 8], "gap": [5, 0, 7], "many": [2, 3, 1, 2, 2, 2]}


def assignment(sizes: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


@pytest.mark.parametrize("options", [{}, {"allocation": "proportional"}, {"allocation": "neyman"}], ids=str)
@pytest.mark.parametrize("count", [1, 5, 17])
@pytest.mark.parametrize("kind", SIZES)
def test_the_exact_variance_is_that_of_the_draws(
    kind: str, count: int, options: dict[str, str], make_problem
) -> None:  # type: ignore[no-untyped-def]
    """600 fresh samplers: mean and variance within 5 standard errors of the repetition."""
    problem = make_problem(n=12)
    g, ids = problem.gradients(), assignment(SIZES[kind])
    extra = (
        {"spreads": torch.arange(1.0, len(SIZES[kind]) + 1)} if options.get("allocation") == "neyman" else {}
    )
    sampler = StratifiedSampler(ids, 0, **options, **extra)  # type: ignore[arg-type]
    found = stratified_statistics(problem.objective, problem.point, problem.population, sampler, count)
    torch.testing.assert_close(found.mean, g.mean(0), rtol=1e-9, atol=1e-12)
    estimates = []
    for _ in range(600):
        sampler.set_assignment(ids, extra.get("spreads"))
        draw = sampler.draw(count)
        estimates.append((draw.weights.unsqueeze(1) * g[draw.indices]).mean(0))
    squares = (torch.stack(estimates) - g.mean(0)).square().sum(1)
    error = float(squares.std()) / np.sqrt(len(squares))
    assert abs(found.avg_var * g.shape[1] - float(squares.mean())) <= 5 * error + 1e-12


@pytest.mark.parametrize("options", [{}, {"allocation": "proportional"}], ids=str)
@pytest.mark.parametrize("count", [2, 5, 7])
@pytest.mark.parametrize("kind", SIZES)
def test_later_batches_have_the_law_of_the_first(
    kind: str, count: int, options: dict[str, str], make_problem
) -> None:  # type: ignore[no-untyped-def]
    """One sampler, 800 batches in a row, which neither its rounds nor its clusters are multiples of."""
    problem = make_problem(n=12)
    g, ids = problem.gradients(), assignment(SIZES[kind])
    sampler = StratifiedSampler(ids, 0, **options)  # type: ignore[arg-type]
    found = stratified_statistics(problem.objective, problem.point, problem.population, sampler, count)
    draws = [sampler.draw(count) for _ in range(800)]
    estimates = torch.stack([(draw.weights.unsqueeze(1) * g[draw.indices]).mean(0) for draw in draws])
    squares = (estimates - g.mean(0)).square().sum(1)
    error = float(squares.std()) / np.sqrt(len(squares))
    assert abs(found.avg_var * g.shape[1] - float(squares.mean())) <= 4.5 * error + 1e-12


def test_every_possible_batch_of_a_small_population(make_problem) -> None:  # type: ignore[no-untyped-def]
    """Two clusters, three draws: one cluster is drawn twice, by fair choice; all outcomes in a list."""
    problem = make_problem(n=5)
    g, clusters = problem.gradients(), [[0, 1], [2, 3, 4]]
    outcomes: Counter[tuple[int, ...]] = Counter()
    for twice in (0, 1):
        pairs = list(itertools.permutations(clusters[twice], 2))
        for pair, single in itertools.product(pairs, clusters[1 - twice]):
            outcomes[(*pair, single)] += 0.5 / len(pairs) / len(clusters[1 - twice])  # type: ignore[assignment]
    weights = torch.tensor([2 * 2 / 5] * 2 + [2 * 3 / 5] * 3, dtype=torch.float64)
    variance = sum(
        chance * float(((weights[list(rows), None] * g[list(rows)]).mean(0) - g.mean(0)).square().sum())
        for rows, chance in outcomes.items()
    )
    sampler = StratifiedSampler(assignment([2, 3]))
    found = stratified_statistics(problem.objective, problem.point, problem.population, sampler, 3)
    assert sum(outcomes.values()) == pytest.approx(1)
    assert found.avg_var * g.shape[1] == pytest.approx(variance, rel=1e-10)
