import numpy as np
import pytest

from instability import heat, linear_pde, nonlinear_pde, reference
from instability.convolution import checkerboard

IMAGE, KERNEL = checkerboard(12), nonlinear_pde.initial_kernel(3)


@pytest.mark.parametrize(
    ("module", "step"), [(nonlinear_pde, reference.nonlinear_step), (linear_pde, reference.linear_step)]
)
def test_naive_steps_equal_the_simulations(module, step):
    kernel = KERNEL
    losses = []
    for _ in range(5):
        loss, kernel = step(IMAGE, kernel, 1e-3, 0.7)
        losses.append(loss)
    result = module.simulate(IMAGE, KERNEL, learning_rates=1e-3, weight_decays=0.7, num_steps=5)
    np.testing.assert_allclose(result.losses[0], losses, rtol=1e-12)
    np.testing.assert_allclose(result.kernels[0], kernel, rtol=1e-12, atol=1e-14)


def test_naive_heat_equals_the_solver():
    expected = heat.solve_heat(0.4, 31, 50)[0, -1]
    np.testing.assert_allclose(reference.heat_profile(0.4, 31, 50), expected, atol=1e-15)
