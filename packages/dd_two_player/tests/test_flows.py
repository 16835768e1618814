"""Backward error analysis as tests: orders of convergence, conventions, cancellation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.drift import Coefficients, Drift, PlayerTerms, drift_coefficients
from dd_two_player.flows import (
    discrete_path,
    integrate,
    jacobian,
    modified_field,
    modified_flow,
    runge_kutta_map,
    step_map,
)
from dd_two_player.game import Game
from dd_two_player.regularization import Regularization
from dd_two_player.toy_games import dirac_gan, linear_game, linear_game_thresholds, random_smooth_game

pytestmark = pytest.mark.usefixtures("x64")

OWN = (1.0, 1.0)  # the clocks of the paper, each player's own
RATIOS = (1.0, 0.4)
START = (np.array([0.3, -0.2]), np.array([0.4, 0.1]))
GAME = random_smooth_game(0)
LEAVE = Regularization.leave()
SETTINGS = [
    ("simultaneous", "disc", (1, 1)),
    ("alternating", "disc", (1, 1)),
    ("alternating", "gen", (1, 1)),
    ("alternating", "disc", (2, 1)),
    ("alternating", "gen", (2, 1)),
    ("alternating", "disc", (3, 2)),
    ("alternating", "gen", (3, 2)),
]
ORDER_TOLERANCE = 0.1  # the measured slopes differ from the orders by at most 0.04 at these step sizes


def slope(errors, sizes):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def local_error(convention, scheme, first, num_updates, h):
    """Error of one step against the flow, in the convention's own clocks."""
    game, lrs = GAME, tuple(h * r for r in RATIOS)
    total = tuple(n * r for n, r in zip(num_updates, lrs, strict=True))
    step = step_map(game, lrs, num_updates=num_updates, scheme=scheme, first=first)
    reached = np.concatenate(step(START))
    drift = None if convention is None else drift_coefficients(lrs, num_updates, scheme, first, convention)
    if convention in ("paper", "original"):
        field = modified_field(game, drift, rates=OWN)
        disc = integrate(field, START, [total[0]])[0, :2]
        gen = integrate(field, START, [total[1]])[0, 2:]
        return np.linalg.norm(reached - np.concatenate([disc, gen]))
    flow = integrate(modified_field(game, drift, rates=total), START, [1.0])[0]
    return np.linalg.norm(reached - flow)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize(("convention", "order"), [(None, 2), ("paper", 3), ("joint", 3)])
def test_local_order(setting, convention, order):
    sizes = [0.01, 0.005, 0.0025]
    errors = [local_error(convention, *setting, h) for h in sizes]
    assert slope(errors, sizes) == pytest.approx(order, abs=ORDER_TOLERANCE)


def test_original_convention_loses_the_third_order_with_several_updates():
    sizes = [0.01, 0.005, 0.0025]
    errors = [local_error("original", "alternating", "disc", (2, 1), h) for h in sizes]
    assert slope(errors, sizes) == pytest.approx(2, abs=ORDER_TOLERANCE)


def tracking_error(convention, h, recipe=None):
    """Largest distance of the discrete path from the flow up to joint time 1 (rates h and 0.4 h)."""
    game, lrs, horizon = GAME, tuple(h * r for r in RATIOS), 1.0
    steps = round(horizon / h)
    if recipe is None:
        drift = None if convention is None else drift_coefficients(lrs, convention=convention)
        flow_drift, added = drift, None
    else:
        flow_drift, added = (
            None,
            None
            if convention is None
            else recipe.coefficients(drift_coefficients(lrs, convention=convention)),
        )
    path = discrete_path(step_map(game, lrs, coefficients=added), START, steps)
    flow = integrate(modified_field(game, flow_drift, rates=lrs), START, np.arange(steps + 1.0))
    return np.abs(path - flow).max()


@pytest.mark.parametrize(("convention", "order"), [(None, 1), ("joint", 2), ("paper", 1)])
def test_tracking_order_for_unequal_rates(convention, order):
    sizes = [0.05, 0.025, 0.0125]
    errors = [tracking_error(convention, h) for h in sizes]
    assert slope(errors, sizes) == pytest.approx(order, abs=ORDER_TOLERANCE)


@pytest.mark.parametrize(("convention", "order"), [(None, 1), ("joint", 2), ("paper", 1)])
def test_cancelling_everything_tracks_the_plain_flow_only_in_joint_time(convention, order):
    recipe = Regularization.from_mapping(
        {"dd_coeffs_multiplier": {p: {"self_norm": -1.0, "other_dot_prod": -1.0} for p in ("disc", "gen")}}
    )
    sizes = [0.05, 0.025, 0.0125]
    errors = [tracking_error(convention, h, recipe) for h in sizes]
    assert slope(errors, sizes) == pytest.approx(order, abs=ORDER_TOLERANCE)


def test_linear_game_numbers():
    game, h = linear_game((0.09, 0.09)), 0.2
    at = (0.3, 0.4)
    trace = lambda coefficients: np.trace(jacobian(modified_field(game, coefficients, rates=OWN), at))  # noqa: E731
    assert trace(None) == pytest.approx(-0.18, abs=1e-12)
    assert trace(drift_coefficients((h, h))) == pytest.approx(0.01838, abs=1e-12)
    assert trace(drift_coefficients((h, h), scheme="alternating")) == pytest.approx(-0.18162, abs=1e-12)
    radius = {
        scheme: np.abs(np.linalg.eigvals(jacobian(step_map(game, (h, h), scheme=scheme), at))).max()
        for scheme in ("simultaneous", "alternating")
    }
    assert radius["simultaneous"] == pytest.approx(1.00216, abs=5e-6)
    assert radius["alternating"] == pytest.approx(0.98200, abs=5e-6)


def test_linear_game_thresholds_are_where_the_signs_change():
    game = linear_game((0.09, 0.09))
    modified, discrete = linear_game_thresholds(0.09)
    for h, stable in ((0.999, True), (1.001, False)):
        drift = drift_coefficients((h * modified, h * modified))
        assert (np.trace(jacobian(modified_field(game, drift, rates=OWN), (0.0, 0.0))) < 0) == stable
        moved = jacobian(step_map(game, (h * discrete, h * discrete)), (0.0, 0.0))
        assert (np.abs(np.linalg.eigvals(moved)).max() < 1) == stable
    gentle = linear_game((0.2, 0.2))
    for scheme in ("simultaneous", "alternating"):
        assert (
            np.trace(
                jacobian(
                    modified_field(gentle, drift_coefficients((0.2, 0.2), scheme=scheme), rates=OWN),
                    (0.0, 0.0),
                )
            )
            < 0
        )


def test_modified_jacobian_of_the_linear_game():
    e1, e2, h = 0.1, 0.3, 0.2
    matrix = jacobian(
        modified_field(linear_game((e1, e2)), drift_coefficients((h, h)), rates=OWN), (0.0, 0.0)
    )
    off_diagonal = 1 + h / 2 * (e1 + e2)
    assert matrix[0, 1] == pytest.approx(off_diagonal, abs=1e-14)
    assert matrix[1, 0] == pytest.approx(-off_diagonal, abs=1e-14)


def test_dirac_gan_numbers():
    game, h, start = dirac_gan(), 0.1, (jnp.asarray(1.0), jnp.asarray(1.0))
    norm = lambda x: np.linalg.norm(x[-1])  # noqa: E731
    assert norm(integrate(modified_field(game), start, [10.0])) == pytest.approx(1.41421, abs=1e-5)
    assert norm(
        integrate(modified_field(game, drift_coefficients((h, h)), rates=OWN), start, [10.0])
    ) == pytest.approx(1.58529, abs=1e-5)
    assert norm(discrete_path(step_map(game, (h, h)), start, 100)) == pytest.approx(1.58697, abs=1e-5)

    def after_1000(recipe=LEAVE, scheme="simultaneous", first="disc"):
        coefficients = recipe.coefficients(drift_coefficients((h, h), (1, 1), scheme, first))
        return norm(
            discrete_path(
                step_map(game, (h, h), scheme=scheme, first=first, coefficients=coefficients), start, 1000
            )
        )

    assert after_1000() == pytest.approx(2.756, abs=5e-4)
    assert after_1000(scheme="alternating", first="gen") == pytest.approx(1.432, abs=5e-4)
    assert after_1000(scheme="alternating") == pytest.approx(1.382, abs=5e-4)
    assert after_1000(Regularization.cancel_interaction()) == pytest.approx(1.412, abs=5e-4)
    assert after_1000(Regularization.consensus(0.3)) < 0.01
    assert after_1000(Regularization.sga(0.3)) < 0.01


def test_dirac_gan_tracking_numbers():
    game, start, horizon = dirac_gan(), (jnp.asarray(1.0), jnp.asarray(1.0)), 4.0
    expected = {0.2: (0.130, 0.00970), 0.1: (0.0630, 0.00240), 0.05: (0.0310, 0.000595)}
    for h, (plain, corrected) in expected.items():
        steps = round(horizon / h)
        end = discrete_path(step_map(game, (h, h)), start, steps)[-1]
        for coefficients, error in ((None, plain), (drift_coefficients((h, h)), corrected)):
            flow = integrate(modified_field(game, coefficients, rates=OWN), start, [horizon])[-1]
            assert np.linalg.norm(end - flow) == pytest.approx(error, rel=1e-2)


def test_integrate_reports_a_blow_up_as_nan():
    field = lambda x: (x[0] ** 2, x[1] * 0)  # noqa: E731
    path = integrate(field, (jnp.asarray(1.0), jnp.asarray(0.0)), [0.5, 2.0])
    assert path[0, 0] == pytest.approx(2.0, rel=1e-8)
    assert np.isnan(path[1]).all()


def test_times_must_increase():
    with pytest.raises(ValueError, match="times must be finite, increasing"):
        integrate(lambda x: x, (1.0, 1.0), [1.0, 0.5])


def test_the_flow_of_a_drift_cannot_be_read_on_another_clock():
    """Unequal rates: second order globally, by the drift alone; bare coefficients are refused."""
    lrs, game = (0.1, 0.04), random_smooth_game(1)

    def error(scale):
        rates = (lrs[0] * scale, lrs[1] * scale)
        steps = round(10 / scale)
        end = discrete_path(step_map(game, rates), START, steps)[-1]
        return np.linalg.norm(end - integrate(modified_flow(game, Drift.of(rates)), START, [steps])[-1])

    assert np.log2(error(0.5) / error(0.25)) == pytest.approx(2, abs=0.15)
    with pytest.raises(ValueError, match="do not say to which clock they belong"):
        modified_field(game, drift_coefficients(lrs, convention="joint"))
    with pytest.raises(ValueError, match=r"its own clock, here 0\.1 and 0\.04"):
        modified_flow(game, Drift.of(lrs, convention="paper"))
    with pytest.raises(TypeError, match="modified_flow takes a Drift"):
        modified_flow(game, drift_coefficients(lrs))
    with pytest.raises(TypeError, match="use modified_flow"):
        modified_field(game, Drift.of(lrs))


def test_a_drift_with_all_its_terms_cancelled_is_the_plain_flow():
    drift, everything = Drift.of((0.1, 0.04)), PlayerTerms(-1.0, 0.0, -1.0)
    recipe = Regularization(Coefficients(everything, everything))
    left = drift.added(recipe.coefficients(drift.coefficients))
    assert left.coefficients == Coefficients()
    for a, b in zip(
        modified_flow(GAME, left)(START), modified_field(GAME, rates=(0.1, 0.04))(START), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_field_that_no_budget_can_follow_is_refused_and_not_waited_for():
    def spin(x):
        return (1e9 * x[1], -1e9 * x[0])

    with pytest.raises(FloatingPointError, match=r"500 evaluations reached time .* of 1; lower"):
        integrate(spin, (1.0, 0.0), [1.0], max_evaluations=500)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (3.0, r"params is a float; a game takes a pair \(disc_params, gen_params\)"),
        ((np.ones(2),), "params is a tuple of 1"),
        (
            (np.ones(2), np.ones(3)),
            r"the game fails at parameters of shapes \(2,\) and \(3,\): mul got incompat",
        ),
        (("x", np.ones(2)), "the parameters of disc hold str at their root"),
        ((np.ones(2), np.ones(2, int)), "the parameters of gen hold int"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(params, message):
    game = Game(lambda p, t, _: (p * t).sum(), lambda p, t, _: -(p * t).sum())
    tools = (
        modified_flow(game, Drift.of((0.1, 0.1))),
        step_map(game, (0.1, 0.1)),
        runge_kutta_map(game, (1, 1)),
    )
    for tool in tools:
        with pytest.raises(TypeError, match=message) as caught:
            tool(params)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda game: step_map(game, 0.1), "learning_rates is 0.1; it must be a pair"),
        (lambda game: Drift.of((0.1, 0.1, 0.1)), "learning_rates is .*; it must be a pair"),
        (lambda game: Drift.of((0.1, 0.1), 2), "num_updates is 2; it must be a pair"),
        (lambda game: modified_field(game, rates=(0.1,)), "rates is .*; it must be a pair"),
        (
            lambda game: step_map(game, (0.1, 0.1), coefficients=PlayerTerms(1.0)),
            "coefficients is a PlayerTerms",
        ),
        (lambda game: game.gradients((1.0, 1.0), None, PlayerTerms(1.0)), "coefficients is a PlayerTerms"),
    ],
)
def test_what_is_no_pair_is_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call(Game(lambda p, t, _: p * t, lambda p, t, _: -p * t))


def test_a_program_ends_with_its_game():
    """Also for losses that compare by value and therefore have no hash."""
    import gc
    import weakref

    class Loss:
        def __init__(self):
            self.data = np.ones(3)

        def __eq__(self, other):
            return bool((self.data == other.data).all())

        def __call__(self, p, t, _):
            return p * t * self.data.sum()

    loss = Loss()
    alive = weakref.ref(loss)
    assert [float(v) for v in modified_field(Game(loss, loss))((1.0, 2.0))] == [-6.0, -3.0]
    del loss
    gc.collect()
    assert alive() is None


def test_single_precision_is_integrated_to_its_rounding():
    """The circle of ``L_D = phi theta = -L_G``, on which the tolerance of double precision finds no step."""
    game = Game(lambda p, t, _: p * t, lambda p, t, _: -p * t)
    path = integrate(
        modified_field(game), (jnp.float32(1.0), jnp.float32(0.0)), [50.0], max_evaluations=20_000
    )
    np.testing.assert_allclose(path[0], [np.cos(50.0), np.sin(50.0)], atol=1e-4)
    exact = integrate(lambda x: x * np.array([-1.0, -0.1]), np.array([1.0, 3.0]), [3.0])
    np.testing.assert_allclose(exact[0], [np.exp(-3.0), 3 * np.exp(-0.3)], rtol=1e-9)  # NumPy's own double


@pytest.mark.parametrize(
    ("field", "start", "times", "error", "message"),
    [
        (lambda x: x, [1.0], [np.nan], ValueError, "times must be finite"),
        (lambda x: x, [1.0], [np.inf], ValueError, "times must be finite"),
        (lambda x: 1j * x, [1.0], [1.0], TypeError, "the field is complex and the start is real"),
        (lambda x: 1.0, [1.0, 2.0], [1.0], ValueError, "the field has 1 numbers and the start 2"),
        (lambda x: x / 0, [1.0], [1.0], ValueError, "not finite; there is no flow"),
        (lambda x: x, [np.nan], [1.0], ValueError, "not finite; there is no flow"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_has_no_flow_is_refused(field, start, times, error, message):
    with pytest.raises(error, match=message):
        integrate(field, np.array(start), times)


def test_nothing_stays_nothing():
    assert integrate(lambda x: x, ((), ()), [1.0, 2.0]).shape == (2, 0)


def test_rates_of_runge_kutta_are_checked():
    with pytest.raises(ValueError, match=r"learning rate of disc is -0\.1"):
        runge_kutta_map(Game(lambda p, t, _: p * t, lambda p, t, _: -p * t), (-0.1, 0.1))


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, jnp.float32])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [32, 64])
def test_rates_of_any_type_leave_the_type_of_the_parameters(kind, dtype, width):
    """The first step would raise it, and all others would go another way."""
    with jax.enable_x64(width == 64):
        game = Game(lambda p, t, b: (p * t).sum(), lambda p, t, b: -(p * t).sum())
        at, rates = (jnp.full(2, 0.5, dtype), jnp.full(2, 0.25, dtype)), (kind(0.5), kind(0.25))
        for move, expected in (
            (step_map(game, rates), (0.375, 0.375)),
            (runge_kutta_map(game, rates, order=1), (0.375, 0.375)),
            (modified_field(game, rates=rates), (-0.125, 0.125)),
        ):
            for side, value in zip(move(at), expected, strict=True):
                assert side.dtype == dtype
                assert side.tolist() == [value, value]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (np.array([0.1, 0.2]), r"an array of shape \(2,\)"),
        ([0.1], r"an array of shape \(1,\)"),
        (0.1j, "0.1j"),
        (None, "None"),
        (np.nan, "nan"),
    ],
)
def test_rates_and_coefficients_are_single_real_numbers(wrong, told):
    """An array would be multiplied entry by entry where it happens to fit."""
    game = Game(lambda p, t, b: (p * t).sum(), lambda p, t, b: -(p * t).sum())
    at = (jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=f"rates of disc is {told}; it must be one real number"):
        modified_field(game, rates=(wrong, 0.1))
    with pytest.raises(ValueError, match=f"a coefficient is {told}; it must be one real number"):
        game.gradients(at, None, Coefficients(disc=PlayerTerms(other_dot_prod=wrong)))
    with pytest.raises(ValueError, match="learning rate of gen is"):
        step_map(game, (0.1, wrong))
    if isinstance(wrong, np.ndarray):
        with pytest.raises(ValueError, match="learning rate of gen is an array of shape"):
            jax.jit(lambda rate: step_map(game, (0.1, rate))(at))(wrong)
