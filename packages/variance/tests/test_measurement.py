"""Measurement: global random states, agreement with exact values, one line in any loop."""

import numpy as np
import pytest
import torch
from torch import nn

from variance.errors import ConfigError
from variance.estimators import SGB
from variance.measurement import Measurement, measure_model, preserved_randomness


def test_preserved_randomness_restores_all_global_states() -> None:
    import random

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is the subject
    expected = (torch.rand(1), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with preserved_randomness():
        _ = torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
        torch.manual_seed(7)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 2}, "num_draws is 2; the noise floor needs at least 3"),
        ({"mode": "fast"}, "mode is 'fast'; allowed are unbiased, reference, exact"),
    ],
)
def test_bad_measurements(options: dict[str, object], message: str, problem) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        Measurement([SGB(problem.objective)], problem.stream(), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="distinct names"):
        Measurement([SGB(problem.objective), SGB(problem.objective)], problem.stream())


def test_measured_variance_agrees_with_the_exact_one(problem) -> None:  # type: ignore[no-untyped-def]
    """Unbiased mode against exact mode within 5 standard errors (batches without replacement)."""
    found = Measurement([SGB(problem.objective)], problem.stream(4), num_draws=300)(0, problem.point)
    from variance.statistics import exact

    truth = exact(problem.gradients(), 4, replacement=False).avg_var
    assert abs(found["SG-B[B=4]/avg_var"] - truth) <= 5 * found["SG-B[B=4]/avg_var_se"]


def test_measure_model_is_a_line_in_any_loop(problem) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))
    before = torch.get_rng_state()
    found = measure_model(model, nn.CrossEntropyLoss(), problem.x.float(), problem.y, batch_size=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert found["noise_scale_se"] > 0


def test_reference_mode_is_the_definition_on_its_draws(problem) -> None:  # type: ignore[no-untyped-def]
    """Two sets of draws about the mean of the first; summation order only (rtol 1e-10)."""
    from variance.statistics import reference

    estimator = SGB(problem.objective)
    measurement = Measurement([estimator], problem.stream(4), num_draws=5, mode="reference")
    found = measurement(3, problem.point)
    a, b, c = (measurement.draws(3, problem.point, estimator, which) for which in ("a", "b", "bias"))
    expected = reference(a, b, c.mean(0))
    for ours, theirs in (("avg_var", "avg_var"), ("norm_var", "norm_var"), ("bias_vs_sg", "bias")):
        assert found[f"SG-B[B=4]/{ours}"] == pytest.approx(getattr(expected, theirs), rel=1e-10)
