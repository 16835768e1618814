"""Estimates: counts in closed form, proportionality, and one for every figure that takes long."""

import pytest

from gdyn_reproduce.registry import resolve
from gdyn_reproduce.runs import configure
from variance.paper import PAPER, calibration
from variance.paper.calibration import occurrences, seconds_of
from variance.paper.training import Timing


def test_occurrences_equal_a_walk_through_the_run() -> None:
    timing = Timing(infrequent_every=2000, first_infrequent=10, measure_every=500, first_measure=10)
    assert occurrences(timing, 50_000) == (99, 25)  # 500, 1000, ...; 10, 2000, 4000, ...


def test_the_shortest_of_all_calls_counts() -> None:
    calls: list[int] = []
    assert seconds_of(lambda: calls.append(1), repeats=4) >= 0
    assert len(calls) == 5


@pytest.mark.parametrize("figure", ["F1", "F2", "F3", "F4", "F5", "F6", "F7", "F9", "F10"])
def test_estimates_are_positive(figure: str) -> None:
    entry = PAPER.figure(figure)
    found = resolve(entry.module).estimate(configure(entry, "smoke"))
    assert 0 < found.seconds < 600
    assert found.memory_bytes > 0


def test_estimates_grow_with_the_number_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "seconds_of", lambda job, repeats=3: 1.0)
    entry = PAPER.figure("F1")
    one, three = (
        calibration.estimate_images(configure(entry, "smoke", seeds=list(range(n)))) for n in (1, 3)
    )
    assert three.seconds == pytest.approx(3 * one.seconds)
    exact = configure(entry, "smoke", seeds=[0], estimators=["SG-B"], num_steps=40)
    # 40 gradients and four measurements of one pass over 240 examples in batches of 64
    assert calibration.estimate_images(exact).seconds == pytest.approx(40 + 3 * 240 / 64)
