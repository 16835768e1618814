import dataclasses

import numpy as np
import pytest

from gdyn_reproduce.registry import resolve
from gdyn_reproduce.runs import execute
from gdyn_reproduce.testing import check_unread, every_option_counts
from gdyn_reproduce.verdicts import judge
from instability.paper import PAPER


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda f: f.id)
def test_smoke_run_measures_every_claim_and_its_controls_hold(figure, tmp_path):
    config = resolve(figure.config)(**figure.presets["smoke"].overrides, out=str(tmp_path))
    with every_option_counts(figure):
        record = execute(PAPER, figure, config, "smoke")
    check_unread(figure, record, tmp_path / "unread")
    assert record.measurements["controls"] is True
    for claim in PAPER.claims_of(figure.id):
        if not claim.presets:
            assert claim.metric in record.measurements
    assert (record.folder / "figure.png").stat().st_size > 5_000


def test_legacy_times_draw_the_originals_steps(tmp_path):
    figure = PAPER.figure("fig1")
    config = resolve(figure.config)(legacy_times=True, out=str(tmp_path))
    execute(PAPER, figure, config, "quick")
    arrays = np.load(next(tmp_path.rglob("arrays.npz")))
    np.testing.assert_allclose(arrays["stable_times"], [1.2, 2.4, 4.4, 100.4, 200.4, 800.4])
    np.testing.assert_allclose(arrays["unstable_times"], [1.6, 2.4, 4.8])


def test_a_broken_control_fails_its_claim():
    claim = next(c for c in PAPER.claims if c.id == "fig4-right.controls")
    exact = dataclasses.replace(claim, deterministic=True)
    assert judge(exact, {"controls": False}, scale="scaled", preset="quick").outcome == "fails"


def test_fig3_on_noise_and_an_odd_size(tmp_path):
    figure = PAPER.figure("fig3")
    base = resolve(figure.config)(**figure.presets["smoke"].overrides)
    config = dataclasses.replace(
        base,
        image="noise",
        image_size=15,
        weight_decays=[1.0],
        learning_rate=1e-3,
        num_steps=40,
        out=str(tmp_path),
    )
    record = execute(PAPER, figure, config, "smoke")
    assert record.measurements["controls"] is True
