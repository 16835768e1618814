import mpmath
import numpy as np
import pytest

from instability.pde.nonlinear import initial_kernel
from instability.pde.reduced_map import ReducedMap, signal_coefficient, split_kernel

PAPER = ReducedMap(kernel_size=32, image_size=256, weight_decay=20.0)
START = signal_coefficient(initial_kernel(32))
REGULAR = {0.01, 0.03, 0.1, 0.11, 0.13}  # the golden rates whose orbits do not amplify rounding in 30 steps
FIXED_POINT = 3.8652166217699


def test_orbits_and_sharpness_match_golden(golden):
    path = PAPER.trajectory(START, golden["nonlinear_lrs"], 29).T
    assert path.shape == (len(golden["nonlinear_lrs"]), 30)
    for lr, c, exact, sharpness in zip(
        golden["nonlinear_lrs"], path, golden["nonlinear_c"], golden["nonlinear_sharpness"], strict=True
    ):
        steps = 30 if round(float(lr), 2) in REGULAR else 12
        np.testing.assert_allclose(c[:steps], exact[:steps], rtol=1e-9)
        np.testing.assert_allclose(PAPER.sharpness(c[:steps]), sharpness[:steps], rtol=1e-8)


@pytest.mark.parametrize("c", [-4.0, -0.3, 0.0, 2.5])
@pytest.mark.parametrize("label", [0, 1])
def test_step_and_sharpness_are_derivatives_of_the_loss(c, label):
    reduced = ReducedMap(kernel_size=4, image_size=9, weight_decay=0.7, label=label, beta=1.5)
    loss = lambda x: mp_loss(reduced, x)  # noqa: E731  # mpmath wants a callable
    first, second = mpmath.diff(loss, c), mpmath.diff(loss, c, 2)
    # The curvature along s / |s| is K times the second derivative in c.
    assert reduced.step(c, 1.0) == pytest.approx(float(c - reduced.num_taps * first), abs=1e-12)
    assert reduced.sharpness(c) == pytest.approx(float(reduced.num_taps * second), rel=1e-12)


def mp_loss(reduced, c):
    swish = lambda z: z / (1 + mpmath.exp(-reduced.beta * z))  # noqa: E731
    p = reduced.positive_share * swish(c) + (1 - reduced.positive_share) * swish(-c)
    sign = -1 if reduced.label == 1 else 1
    return mpmath.log(1 + mpmath.exp(sign * p)) + reduced.weight_decay * c**2 / (2 * reduced.num_taps)


def test_fixed_points():
    """The golden orbit at lr 0.01 ends at the positive one; the spec quotes the size of the negative one."""
    assert -PAPER.fixed_point(sign=-1) == pytest.approx(FIXED_POINT, abs=1e-12)
    assert PAPER.trajectory(START, 0.01, 200)[-1] == pytest.approx(PAPER.fixed_point(), abs=1e-12)
    assert PAPER.sharpness(PAPER.fixed_point(sign=-1)) == pytest.approx(61.998, abs=5e-4)
    assert 2 / PAPER.sharpness(PAPER.fixed_point()) == pytest.approx(0.032259, abs=1e-6)


def test_curvature_landmarks():
    assert PAPER.sharpness(0.0) == pytest.approx(-236.0, abs=1e-6)
    assert PAPER.sharpness(np.linspace(-10, 10, 20_001)).max() == pytest.approx(92.59, abs=5e-3)


def test_lyapunov_exponents_match_golden(golden):
    ours = PAPER.lyapunov_exponent(golden["nonlinear_lrs"], start=START)
    for lr, exponent, expected in zip(
        golden["nonlinear_lrs"], ours, golden["nonlinear_lyapunov"], strict=True
    ):
        tolerance = 0.05 if round(float(lr), 2) == 0.1 else 0.02
        assert exponent == pytest.approx(expected, abs=tolerance, nan_ok=True), f"lr {lr}"


def test_regimes_have_the_tabulated_signs():
    rates = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.105])
    signs = np.sign(PAPER.lyapunov_exponent(rates, start=START, num_steps=5000))
    np.testing.assert_array_equal(signs, [-1, -1, -1, -1, 1, -1, 1, 1, 1, np.nan])


def test_split_is_orthogonal():
    kernel = np.random.default_rng(0).normal(size=(5, 5))
    c, rest = split_kernel(kernel)
    assert c**2 / 25 + rest == pytest.approx(np.sum(kernel**2))


def test_strong_decay_leaves_no_fixed_point():
    with pytest.raises(ValueError, match="Pass less than 256"):
        ReducedMap(kernel_size=32, image_size=256, weight_decay=300.0).fixed_point()
