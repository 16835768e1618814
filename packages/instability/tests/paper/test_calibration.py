import pytest

from instability.paper import calibration
from instability.paper.experiments.fig2_divergence import Fig2Config
from instability.paper.experiments.fig4_left_losses import Fig4LeftConfig


def test_cost_is_proportional_to_the_work(monkeypatch):
    monkeypatch.setattr(calibration, "_median_seconds", lambda task: task() and 0.5)
    config = Fig4LeftConfig(image_size=16, kernel_size=4, num_steps=10)
    assert calibration.one_layer_cost(config, 3).seconds == pytest.approx(15)


def test_missing_data_is_replaced_for_the_estimate_only(tmp_path):
    config = Fig2Config(data_root=str(tmp_path), depth=8, batch_size=4)
    assert calibration.steps_per_epoch(config) == 12_500
    assert calibration.training_cost(config, 100).seconds > 0
