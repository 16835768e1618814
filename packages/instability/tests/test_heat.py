import numpy as np
import pytest

from instability.pde import heat

ABSOLUTE = 1e-13  # of the golden profiles, which are of order one
RELATIVE = 1e-12  # of the largest value of an unstable profile


def test_stable_profiles_match_golden(golden):
    solution = heat.solve_heat(0.4, 31, 2001)
    steps = golden["heat_steps_dt0.4"]
    np.testing.assert_allclose(solution[0, steps], golden["heat_u_dt0.4"], rtol=0, atol=ABSOLUTE)


def test_unstable_profiles_match_golden(golden):
    solution = heat.solve_heat(0.8, 31, 6, allow_unstable=True)
    expected = golden["heat_u_dt0.8"]
    np.testing.assert_allclose(
        solution[0, golden["heat_steps_dt0.8"]], expected, rtol=0, atol=RELATIVE * np.abs(expected).max()
    )


@pytest.mark.parametrize(("cfl_number", "step"), [(0.4, 2001), (0.5, 1000), (0.8, 6)])
def test_stepping_agrees_with_the_sine_series(cfl_number, step):
    stepped = heat.solve_heat(cfl_number, 31, step, allow_unstable=True)[0, step]
    np.testing.assert_allclose(stepped, heat.solve_exactly(cfl_number, 31, [step])[0], rtol=0, atol=1e-12)


def test_finite_limit_separates_decay_from_growth():
    limit = heat.finite_limit(31)
    assert limit == pytest.approx(0.501373, abs=5e-7)
    late = heat.solve_heat([0.999 * limit, 1.001 * limit], 31, 60_000, allow_unstable=True)[:, -1]
    energy = (late**2).sum(axis=1)
    assert energy[0] < 1e-6
    assert energy[1] > 1e6


@pytest.mark.parametrize(("cfl_number", "falls"), [(0.3, True), (0.5, True), (0.55, False)])
def test_energy_falls_iff_stable(cfl_number, falls):
    energy = (heat.solve_heat(cfl_number, 31, 400, allow_unstable=True)[0] ** 2).sum(axis=1)
    assert bool((np.diff(energy) <= 0).all()) == falls


def test_a_single_mode_is_multiplied_by_its_amplification_factor():
    x = np.arange(31)
    mode = np.sin(np.pi * 29 * x / 30)
    stepped = mode.copy()
    stepped[1:-1] += 0.8 * (mode[2:] - 2 * mode[1:-1] + mode[:-2])
    np.testing.assert_allclose(stepped, heat.amplification_factor(np.pi * 29 / 30, 0.8) * mode, atol=1e-13)


def test_time_steps_are_independent_rows():
    together = heat.solve_heat([0.1, 0.4, 0.5], 31, 50)
    for row, time_step in enumerate([0.1, 0.4, 0.5]):
        np.testing.assert_array_equal(together[row], heat.solve_heat(time_step, 31, 50)[0])


def test_non_finite_rows_are_nan_and_reported():
    solution = heat.solve_heat([0.4, 5.0], 31, 800, allow_unstable=True)
    stop = solution.stopped_at[1]
    assert solution.stopped_at[0] == -1
    assert np.isfinite(solution[1, stop - 1]).all()
    assert np.isnan(solution[1, stop:]).all()


@pytest.mark.parametrize(
    ("time", "time_step", "step"),
    [(0.8, 0.4, 3), (2.4, 0.4, 6), (4, 0.4, 11), (40, 0.4, 101), (1, 0.8, 2), (2, 0.8, 3), (4, 0.8, 6)],
)
def test_legacy_step_is_what_the_original_draws(time, time_step, step):
    assert heat.legacy_step(time, time_step) == step


@pytest.mark.parametrize(
    ("time_steps", "points", "message"),
    [
        (0.8, 31, r"time_step 0.8 exceeds the stability bound dx\*\*2/2 = 0.5.*allow_unstable=True"),
        (-0.1, 31, "must be positive and finite"),
        ([], 31, "non-empty list"),
        (0.4, 2, "at least 3"),
    ],
)
def test_bad_input(time_steps, points, message):
    with pytest.raises(ValueError, match=message):
        heat.solve_heat(time_steps, points, 1)
