"""Pictures of the library's results; the library itself does without matplotlib."""

import numpy as np
from matplotlib.figure import Figure

from dd_two_player import DriftMicroscope, Game, measure_drift


def test_drift_by_layer_has_a_dot_of_each_term_for_every_layer():
    """``L_D = a b = -L_G``: no self term; the interaction is ``h / 2`` times own over other parameter."""
    game = Game(lambda p, t, _: p["a"] * t["b"], lambda p, t, _: -p["a"] * t["b"])
    axes = Figure().subplots()
    report = measure_drift(game, ({"a": 1.0}, {"b": 2.0}), None, (0.1, 0.1))
    assert report.plot(axes) is axes.figure
    assert [label.get_text() for label in axes.get_yticklabels()] == ["disc ['a']", "gen ['b']"]
    found = {line.get_label(): line.get_xdata() for line in report.plot().axes[0].lines}
    np.testing.assert_allclose(found["interaction"], [0.05 / 2, 0.05 * 2], rtol=1e-6)
    np.testing.assert_array_equal(found["self term"], [0, 0])
    assert "disc" in report._repr_html_()


def test_the_callback_draws_both_terms_of_each_player():
    """``L_D = phi theta = -L_G``: no self term, an interaction of ``h**2 / 2`` times the own parameter."""
    game = Game(lambda p, t, _: p * t, lambda p, t, _: -p * t)
    seen = DriftMicroscope(game, (0.1, 0.1), every=2)
    for step in range(5):
        seen(step, (1.0 + step, 2.0), None)
    lines = {line.get_label(): line.get_xydata() for line in seen.plot().axes[0].lines}
    assert set(lines) == {"disc self term", "disc interaction", "gen self term", "gen interaction"}
    at = np.array([0.0, 2.0, 4.0])
    np.testing.assert_allclose(lines["disc interaction"], np.c_[at, 0.05 * (1 + at) / 2], rtol=1e-6)
    np.testing.assert_allclose(lines["gen interaction"], np.c_[at, 0.05 * 2 / (1 + at)], rtol=1e-6)
