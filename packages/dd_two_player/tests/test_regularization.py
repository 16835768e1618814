import pytest

from dd_two_player.drift import Coefficients, Drift, PlayerTerms, drift_coefficients
from dd_two_player.game import Game
from dd_two_player.regularization import Regularization

DRIFT = drift_coefficients((0.2, 0.1), scheme="alternating")
RECIPES = {
    "leave": (Regularization.leave(), [[0, 0, 0], [0, 0, 0]]),
    "cancel": (Regularization.cancel_interaction(), [[0, 0, -0.1], [0, 0, 0.15]]),
    "strengthen": (Regularization.cancel_and_strengthen(), [[0.1, 0, -0.1], [0.05, 0, 0.15]]),
    "consensus": (Regularization.consensus(0.3), [[0.3, 0.3, 0], [0.3, 0.3, 0]]),
    "sga": (Regularization.sga(0.3), [[0, 0.3, 0], [0, 0.3, 0]]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    recipe, expected = RECIPES[name]
    coefficients = recipe.coefficients(DRIFT)
    for terms, row in zip(coefficients, expected, strict=True):
        assert list(terms) == pytest.approx(row, abs=1e-15)
    assert [[bool(v) for v in row] for row in expected] == [list(m) for m in recipe.mask()]


def test_published_mapping_gives_the_recipe():
    player = {"self_norm": 1.0, "other_norm": 0.0, "other_dot_prod": -1.0}
    mapping = {"dd_coeffs_multiplier": {"disc": player, "gen": player}}
    assert Regularization.from_mapping(mapping) == Regularization.cancel_and_strengthen()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"dd_coeff": {}}, r"Unknown key grad_regularizes\.dd_coeff; allowed: dd_coeffs_multiplier"),
        ({"dd_coeffs_multiplier": {"d": {}}}, r"Unknown player grad_regularizes\.dd_coeffs_multiplier\.d;"),
        ({"dd_coeffs_multiplier": {"gen": {"dot": 1}}}, r"Unknown term .*\.gen\.dot; allowed: self_norm"),
    ],
)
def test_unknown_keys_name_their_path(mapping, message):
    with pytest.raises(ValueError, match=message):
        Regularization.from_mapping(mapping)


def test_coefficients_must_be_finite():
    with pytest.raises(
        ValueError, match=r"explicit_non_dd_coeffs\.gen\.other_norm is inf; it must be a finite number"
    ):
        Regularization(explicit_non_dd_coeffs=Coefficients(gen=PlayerTerms(other_norm=float("inf"))))


@pytest.mark.parametrize("given", [Drift.of((0.1, 0.1)), ((0, 0, 1), (0, 0, 1)), 0.5, Regularization.leave()])
def test_what_are_no_coefficients_is_refused_by_its_type(given):
    message = f"coefficients is a {type(given).__name__}; pass Coefficients"
    game = Game(lambda d, g, b: d * g, lambda d, g, b: -d * g)
    with pytest.raises(ValueError, match=message):
        game.gradients((1.0, 2.0), None, given)
    with pytest.raises(ValueError, match=message):
        Regularization.cancel_interaction().coefficients(given)
    with pytest.raises(ValueError, match=message):
        Regularization(explicit_non_dd_coeffs=given)


@pytest.mark.parametrize("value", ["0.1", 1j, None])
def test_what_is_no_number_is_refused_by_its_key(value):
    with pytest.raises(
        ValueError, match=r"explicit_non_dd_coeffs\.disc\.self_norm is .*; it must be a finite"
    ):
        Regularization.consensus(value)
    with pytest.raises(ValueError, match=r"learning rate of disc is .*; it must be positive and finite"):
        drift_coefficients((value, 0.1))


@pytest.mark.parametrize("rates", [{"disc": 0.1, "gen": 0.2}, {0.1, 0.2}, "ab"])
def test_a_pair_has_an_order(rates):
    with pytest.raises(ValueError, match="it must be a pair: one for disc, one for gen"):
        drift_coefficients(rates)
