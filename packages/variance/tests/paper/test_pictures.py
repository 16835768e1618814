"""Pictures of the library's results; the library itself does without matplotlib."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from variance.errors import ConfigError
from variance.noise_scale import ExampleMeter
from variance.noise_scale.monitor import GradientMonitor


def test_a_monitor_draws_what_it_measured() -> None:
    torch.manual_seed(3)
    x, y, model = torch.randn(40, 5), torch.randint(3, (40,)), nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = GradientMonitor(model, F.cross_entropy, x, y, batch_size=8, every=5, num_draws=4)
    with monitor.attached(optimizer):
        for _ in range(11):
            optimizer.zero_grad()
            F.cross_entropy(model(x[:8]), y[:8]).backward()
            optimizer.step()
    (drawn,) = monitor.plot().axes[0].lines
    assert drawn.get_xdata().tolist() == monitor.steps == [0, 5, 10]
    assert drawn.get_ydata().tolist() == [found["noise_scale"] for found in monitor.history]
    assert monitor.history[-1].summary() in repr(monitor)


def test_a_meter_draws_the_result_of_each_window() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(96, 6), torch.randint(3, (96,))
    found = []
    with ExampleMeter(model, every=2) as meter:
        for step in range(26):
            model.zero_grad()
            F.cross_entropy(model(x[step : step + 32]), y[step : step + 32]).backward()
            meter.step()
            if step == 18:  # the tenth that was measured
                found.append(meter.result())
        found.append(meter.result(3))
        axes = meter.plot(window=10).axes[0]
        with pytest.raises(ConfigError, match="window is 2"):
            meter.plot(window=2)
    (drawn,), (bars,) = axes.lines, axes.collections
    assert drawn.get_xdata().tolist() == [10, 13]
    assert drawn.get_ydata() == pytest.approx([each.noise_scale for each in found], rel=1e-12)
    bottom, top = axes.get_ylim()
    ends = [(max(each.low, bottom), min(each.high, top)) for each in found]
    assert bars.get_segments()[0][:, 1] == pytest.approx(ends[0], rel=1e-12)
    assert bars.get_segments()[1][:, 1] == pytest.approx(ends[1], rel=1e-12)
