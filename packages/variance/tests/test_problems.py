"""Synthetic problems have the statistics they promise."""

import pytest
import torch

from variance import problems


def test_random_features_have_unit_or_default_rows_and_duplicates() -> None:
    plain = problems.random_features(50, hidden=40, input_dim=10)
    assert plain.inputs.shape == (50, 40)
    assert 0.2 < plain.targets.float().mean() < 0.8
    scaled = problems.random_features(50, hidden=40, input_dim=10, unit_rows=False)
    assert 0.4 < float(scaled.inputs.norm() / plain.inputs.norm()) < 0.75
    copied = problems.random_features(50, hidden=40, input_dim=10, duplicates=(5, 0.9))
    assert len(torch.unique(copied.inputs, dim=0)) <= 10


def test_linear_regression_has_the_stated_noise() -> None:
    population = problems.linear_regression(4000, 3, signal_to_noise=10.0)
    solution = torch.linalg.lstsq(population.inputs, population.targets).solution
    residual = (population.inputs @ solution - population.targets).std()
    assert float(residual) == pytest.approx(0.1, rel=0.05)
    assert float(solution.norm()) == pytest.approx(1.0, rel=0.02)
