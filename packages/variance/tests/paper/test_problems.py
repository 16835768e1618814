"""Synthetic problems have the statistics they promise."""

import pytest
import torch

from variance.paper import problems


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


def test_the_teacher_may_be_evaluated_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = problems.random_features(50, hidden=20, input_dim=8, teacher_width=30, seed=1)
    monkeypatch.setattr(problems, "BLOCK_NUMBERS", 7 * 30)
    blocks = problems.random_features(50, hidden=20, input_dim=8, teacher_width=30, seed=1)
    assert torch.equal(blocks.inputs, whole.inputs)
    assert torch.equal(blocks.targets, whole.targets)


def test_labels_are_balanced_and_rows_have_the_norm_asked_for() -> None:
    """Features |w| relu(z) of z ~ N(0, 1): second moment |w|^2 / 2; torch's default rows have |w|^2 = 1/3."""
    for unit, norm in ((True, 1.0), (False, 1 / 3)):
        found = problems.random_features(4000, hidden=50, input_dim=20, unit_rows=unit, seed=0)
        assert float(found.inputs.square().mean()) == pytest.approx(norm / 2, rel=0.05)
        assert abs(float(found.targets.double().mean()) - 0.5) < 0.1
