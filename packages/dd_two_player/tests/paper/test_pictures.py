"""Pictures of the library's results; the library itself does without matplotlib."""

from matplotlib.figure import Figure

from dd_two_player import Game, measure_drift


def test_drift_by_layer_has_a_bar_pair_for_every_layer():
    game = Game(lambda p, t, _: p["a"] * t["b"], lambda p, t, _: -p["a"] * t["b"])
    axes = Figure().subplots()
    report = measure_drift(game, ({"a": 1.0}, {"b": 2.0}), None, (0.1, 0.1))
    assert report.plot(axes) is axes.figure
    assert [label.get_text() for label in axes.get_yticklabels()] == ["disc ['a']", "gen ['b']"]
    assert len(axes.patches) == 4
    assert len(report.plot().axes[0].patches) == 4
    assert "disc" in report._repr_html_()
