import numpy as np
import pytest

from dd_two_player.principal_flow.coefficients import stability_coefficients
from dd_two_player.principal_flow.flow import principal_coefficient


def test_all_directions_give_the_derivative_of_the_loss():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    values = np.array([2.5, 1.8, 0.9, 0.4, 0.1, -0.3])
    hessian, gradient, rate = basis * values @ basis.T, rng.standard_normal(6), 0.9
    table = stability_coefficients(
        gradient, lambda v: hessian @ v, rate, num_directions=6, generator=np.random.default_rng(1)
    )
    np.testing.assert_allclose(table.eigenvalues, values, atol=1e-9)
    field = basis @ (principal_coefficient(rate * values) * (basis.T @ gradient))
    assert table.loss_derivative == pytest.approx(float((gradient @ field).real), rel=1e-8)
    assert (table.coefficients > 0).tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize("rate", [-1.0, 0.0, np.nan, np.inf])
def test_the_rate_is_that_of_descent(rate):
    with pytest.raises(ValueError, match=r"learning_rate is .*; it must be positive and finite"):
        stability_coefficients(
            np.ones(2), lambda v: v, rate, num_directions=1, generator=np.random.default_rng(0)
        )
