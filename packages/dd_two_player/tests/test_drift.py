import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.drift import CONVENTIONS, Coefficients, PlayerTerms, drift_coefficients, opponent
from dd_two_player.regularization import Regularization
from dd_two_player.regularizers import frozen_needed
from dd_two_player.toy_games import linear_game

TABLES = {"original": "reference", "paper": "per_player_time", "joint": "joint_time"}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_golden_tables(golden, convention):
    for row, setting in enumerate(golden["drift/settings"]):
        n_disc, n_gen = int(setting[2]), int(setting[3])
        measured = drift_coefficients(
            (setting[0], setting[1]),
            (n_disc, n_gen),
            "simultaneous" if setting[4] else "alternating",
            ("disc", "gen")[int(setting[5])],
            convention,
        )
        expected = golden[f"drift/{TABLES[convention]}"][row]
        np.testing.assert_allclose(np.array(measured), expected, rtol=1e-13, atol=1e-17)


@pytest.mark.parametrize("scheme", ["simultaneous", "alternating"])
def test_conventions_agree_for_equal_rates_and_single_updates(scheme):
    tables = {drift_coefficients((0.3, 0.3), (1, 1), scheme, "gen", c) for c in CONVENTIONS}
    assert len(tables) == 1


def test_original_equals_paper_for_single_updates():
    setting = ((0.3, 0.1), (1, 1), "alternating", "gen")
    assert drift_coefficients(*setting, "original") == drift_coefficients(*setting, "paper")


@pytest.mark.parametrize(("ratio", "sign"), [(0.4, 1), (0.6, -1)])
def test_second_players_interaction_changes_sign_at_half_the_rate(ratio, sign):
    second = drift_coefficients((ratio, 1.0), scheme="alternating").gen.other_dot_prod
    assert np.sign(second) == sign


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lrs": (0.0, 0.1)}, "learning rate of disc is 0.0; it must be positive and finite."),
        ({"lrs": (0.1, float("nan"))}, "learning rate of gen is nan; it must be positive and finite."),
        ({"num_updates": (2, 1)}, "simultaneous updates take one update per player and step"),
        ({"num_updates": (1, 0), "scheme": "alternating"}, "num_updates of gen is 0; it must be an integer"),
        (
            {"num_updates": (1.0, 1), "scheme": "alternating"},
            "num_updates of disc is 1.0; it must be an integer",
        ),
        ({"scheme": "rk4"}, "scheme is 'rk4'; allowed: simultaneous, alternating."),
        ({"first": "generator"}, "first is 'generator'; allowed: disc, gen."),
        ({"convention": "papers"}, "convention is 'papers'; allowed: paper, joint, original."),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        drift_coefficients(**{"lrs": (0.1, 0.1)} | kwargs)


BAD_RATES = [np.float32(0), np.float64(-1), np.float32("nan"), jnp.array(-1.0), jnp.array([0.1, 0.0]), 0]


@pytest.mark.parametrize("rate", BAD_RATES)
def test_rates_of_every_type_are_checked(rate):
    with pytest.raises(ValueError, match=r"learning rate of gen is .*; it must be positive and finite"):
        drift_coefficients((0.1, rate))


def test_numbers_of_updates_may_be_numpy_integers_and_rates_traced():
    expected = drift_coefficients((0.1, 0.2), (2, 1), "alternating")
    assert drift_coefficients((0.1, 0.2), (np.int64(2), np.int32(1)), "alternating") == expected
    traced = jax.jit(lambda rate: drift_coefficients((rate, 0.2)).gen.other_dot_prod)(0.1)
    assert float(traced) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"num_updates of disc is 1\.0"):
        drift_coefficients((0.1, 0.2), (1.0, 1))


@pytest.mark.parametrize("value", [np.float32("nan"), jnp.array(jnp.inf), float("inf")])
def test_recipes_of_every_type_are_checked(value):
    with pytest.raises(
        ValueError, match=r"explicit_non_dd_coeffs.gen.self_norm is .*; it must be a finite number"
    ):
        Regularization(explicit_non_dd_coeffs=Coefficients(gen=PlayerTerms(self_norm=value)))


@pytest.mark.parametrize("player", ["discriminator", "Disc", 0])
def test_a_player_of_another_name_is_nobody(player):
    game, at = linear_game((0.1, 0.2)), (jnp.array(1.0), jnp.array(2.0))
    on, terms = PlayerTerms(True, False, False), PlayerTerms(self_norm=1.0)
    off = PlayerTerms(False, False, False)
    calls = [
        lambda: game.player_gradient(player, at, None, terms, mask=on),
        lambda: game.player_gradient(player, at, None, terms, mask=off),
        lambda: game.regularizer(player, at, None, terms, mask=on),
        lambda: game.regularizer(player, at, None, terms, mask=off),
        lambda: frozen_needed(player, on),
        lambda: opponent(player),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="allowed: disc, gen"):
            call()
