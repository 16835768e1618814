import numpy as np
import pytest

from dd_two_player.gans.mixtures import mixture_modes, mixture_scores
from dd_two_player.paper.data import load_samples


@pytest.mark.parametrize(("name", "modes"), [("mog16", 16), ("ring8", 8)])
def test_the_data_cover_their_modes(name, modes):
    scores = mixture_scores(name, load_samples(name).raw)
    assert scores["modes_covered"] == modes
    # 1 - exp(-9 / 2) of a Gaussian in the plane lies within three standard deviations; 20 000 samples give
    # that share to 4e-3 with probability above 1 - 1e-6
    assert scores["high_quality_share"] == pytest.approx(1 - np.exp(-4.5), abs=4e-3)


def test_samples_at_two_modes_and_broken_ones():
    modes = mixture_modes("mog16")
    samples = np.stack([modes[3], modes[3] + [0.05, 0], modes[7], [np.nan, 0], [np.inf, 0], [0, 0]])
    scores = mixture_scores("mog16", samples)
    assert scores == {"modes_covered": 2.0, "high_quality_share": 0.5, "coverage": 0.5 * 2 / 16}


def test_nothing_near_a_mode():
    assert mixture_scores("ring8", np.zeros((4, 2)))["modes_covered"] == 0


@pytest.mark.parametrize("samples", [np.zeros((4, 3)), np.zeros((0, 2)), np.zeros(2)])
def test_bad_shapes(samples):
    with pytest.raises(ValueError, match=r"ring8 needs \(n, 2\) with n of at least 1"):
        mixture_scores("ring8", samples)
