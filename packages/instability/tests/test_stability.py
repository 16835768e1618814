import numpy as np
import pytest

from instability import stability
from instability.pde import linear as linear_pde
from instability.pde.convolution import checkerboard
from instability.pde.nonlinear import initial_kernel

RATE = 1e-3


def im2col(image, k):
    rows, columns = image.shape[0] - k + 1, image.shape[1] - k + 1
    return np.array([image[r : r + k, c : c + k].ravel() for r in range(rows) for c in range(columns)])


def test_paper_thresholds_are_computed(golden):
    thresholds = stability.linear_thresholds(checkerboard(256), 32, 1e-8)
    assert thresholds.alpha_min == pytest.approx(float(golden["linear_lambda_max"]), rel=1e-12)
    assert thresholds.alpha_min == pytest.approx(12_960_000, rel=1e-12)
    assert thresholds.alpha_max == pytest.approx(2.0e8, rel=1e-12)
    assert thresholds.periodic_bound == pytest.approx(0.25 * 65_536**2, rel=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (9, 11), (6, 10)])
@pytest.mark.parametrize("residual", [-0.5, 0.3])
def test_thresholds_equal_dense_eigenvalues(shape, residual):
    image = np.random.default_rng(1).normal(size=shape)
    matrix = im2col(image, 3)
    mu = abs(residual) / 2 * np.linalg.eigvalsh(matrix.T @ matrix)
    ours = stability.linear_thresholds(image, 3, RATE, residual=residual)
    expected = (mu[-1], 2 / RATE + mu[0]) if residual < 0 else (0.0, 2 / RATE - mu[-1])
    assert (ours.alpha_min, ours.alpha_max) == pytest.approx(expected, rel=1e-11)
    mean = stability.linear_thresholds(image, 3, RATE, residual=residual, normalize="mean")
    assert mean.alpha_min == pytest.approx(ours.alpha_min / matrix.shape[0], rel=1e-12)


@pytest.mark.parametrize("kind", ["noise", "smooth", "constant"])
def test_both_ends_of_the_spectrum_equal_dense_ones_where_iteration_restarts(kind):
    """144 taps are more than one Krylov basis; a smooth image crowds the lower end."""
    noise = np.random.default_rng(2).normal(size=(30, 27))
    image = {"noise": noise, "smooth": noise.cumsum(0).cumsum(1), "constant": np.ones((30, 27))}[kind]
    matrix = im2col(image, 12)
    exact = np.linalg.eigvalsh(matrix.T @ matrix)
    smallest, largest = stability.signal_eigenvalues(image, 12)
    assert largest == pytest.approx(exact[-1], rel=1e-11)
    assert smallest == pytest.approx(exact[0], abs=1e-11 * exact[-1])


def test_periodic_bound_is_an_upper_bound():
    for seed in range(5):
        image = np.random.default_rng(seed).normal(size=(12, 12))
        assert stability.exact_bound(image, 4) <= stability.periodic_bound(image)


def test_mean_convention_gives_a_quarter_of_the_taps():
    assert stability.exact_bound(checkerboard(40), 32, normalize="mean") == pytest.approx(256, rel=1e-12)


@pytest.mark.parametrize(("bound", "inside"), [("alpha_min", 1.01), ("alpha_max", 0.99)])
def test_losses_fall_inside_each_bound_and_grow_outside(bound, inside):
    image, kernel = checkerboard(16), initial_kernel(4)
    limit = getattr(stability.linear_thresholds(image, 4, RATE), bound)
    losses = linear_pde.simulate(
        image,
        kernel,
        learning_rates=RATE,
        weight_decays=[inside * limit, (2 - inside) * limit],
        num_steps=1500,
    ).losses
    assert losses[0, -1] < losses[0, 0]
    assert losses[1, -1] > losses[1, 0]


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)]
)
def test_momentum_limits_bracket_divergence_on_a_quadratic(momentum, nesterov):
    limit = stability.max_stable_sharpness(0.1, momentum=momentum, nesterov=nesterov)
    for curvature, grows in ((0.99 * limit, False), (1.01 * limit, True)):
        x, buffer = 1.0, 0.0
        for _ in range(4000):
            gradient = curvature * x
            buffer = momentum * buffer + gradient
            x -= 0.1 * (gradient + momentum * buffer if nesterov else buffer)
        assert (abs(x) > 1) == grows


def test_is_stable_is_two_sided():
    thresholds = stability.linear_thresholds(checkerboard(16), 4, RATE)
    assert [thresholds.is_stable(a) for a in (600, 1000, 2100)] == [False, True, False]


def test_bad_learning_rate():
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        stability.linear_thresholds(checkerboard(8), 2, -1.0)
