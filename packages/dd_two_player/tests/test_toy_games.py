import numpy as np
import pytest

from dd_two_player.drift import PlayerTerms
from dd_two_player.toy_games import dirac_gan, dirac_gan_regularizers, linear_game, linear_game_thresholds

pytestmark = pytest.mark.usefixtures("x64")


def test_dirac_gan_conserves_the_norm_along_its_flow():
    game = dirac_gan()
    for at in [(0.4, 1.2), (-1.0, 0.3)]:
        disc, gen = game.gradients(at, None)
        assert float(at[0] * disc + at[1] * gen) == pytest.approx(0, abs=1e-15)


def test_closed_forms_are_antisymmetric_for_the_zero_sum_interaction():
    forms = dirac_gan_regularizers(0.3, -0.8)
    for terms in forms:
        assert terms.other_dot_prod == -terms.other_norm
    swapped = dirac_gan_regularizers(-0.8, 0.3)
    assert forms.disc == PlayerTerms(*swapped.gen)


@pytest.mark.parametrize("damping", [0.0, 1.0, -0.1, float("nan")])
def test_thresholds_refuse_damping_outside_the_rotational_range(damping):
    with pytest.raises(ValueError, match="the thresholds need 0 < damping < 1"):
        linear_game_thresholds(damping)


def test_linear_game_gradient():
    disc, gen = linear_game((0.1, 0.2)).gradients((2.0, 3.0), None)
    np.testing.assert_allclose([disc, gen], [0.1 * 2 - 3, 0.2 * 3 + 2], rtol=1e-12)


def test_damping_of_every_kind_and_slopes_of_every_size():
    assert linear_game([0.1, 0.2]) is linear_game((0.1, 0.2))
    assert linear_game(np.array([0.1, 0.2])) is linear_game((0.1, 0.2))
    with pytest.raises(ValueError, match=r"damping is 0\.1; it must be a pair"):
        linear_game(0.1)
    # at u = phi theta: l' = sigmoid(u), l'' = exp(-|u|) where |u| is large
    assert dirac_gan_regularizers(-30.0, 30.0).disc == pytest.approx((0.0, 0.0, 0.0))
    assert dirac_gan_regularizers(8.0, 8.0).disc.self_norm == pytest.approx(
        8.0**3 * np.exp(-64.0), rel=1e-12, abs=0
    )
