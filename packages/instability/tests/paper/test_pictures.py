"""Pictures of the library's results; the library itself does without matplotlib."""

import numpy as np
import torch
from matplotlib.figure import Figure

from instability import lyapunov_exponents, numerical_sensitivity


def test_exponents_are_drawn_as_they_settle():
    found = lyapunov_exponents(lambda s, _: {"x": 3 * s["x"]}, torch.ones(1).double(), num_steps=4)
    axes = Figure().subplots()
    assert found.plot(axes) is axes.figure
    assert np.allclose(axes.lines[0].get_ydata(), np.log(3))


def test_copies_are_drawn_by_their_distance():
    x = torch.randn(12, 1, 3, generator=torch.Generator().manual_seed(0))
    report = numerical_sensitivity(
        lambda: torch.nn.Linear(3, 1),
        [(row, torch.ones(1, 1)) for row in x],
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        12,
        loss_fn=torch.nn.functional.mse_loss,
    )
    axes = report.plot().axes[0]
    labels = [line.get_label() for line in axes.lines if line.get_label().startswith("k =")]
    assert labels == [f"k = {outcome.k}" for outcome in report.perturbed]
    assert report._repr_html_().startswith("<pre>")
