"""Pictures of the library's results; the library itself does without matplotlib."""

import numpy as np
import torch
from matplotlib.figure import Figure

from chaos.exponents import AsymptoticExponents
from chaos.o2grad import Eigenpairs


def test_a_spectrum_is_drawn_in_ascending_order():
    pairs = Eigenpairs.of(torch.diag(torch.tensor([0.0, 3.0, -1.0], dtype=torch.float64)))
    axes = Figure().subplots()
    assert pairs.plot(axes) is axes.figure
    assert axes.lines[0].get_ydata().tolist() == [-1, 3]
    assert "1 zeros" in axes.get_title()


def test_exponents_are_drawn_by_window():
    windows = torch.tensor([[1.0, 0.0], [2.0, -1.0]])
    found = AsymptoticExponents(windows.mean(0), windows.std(0), windows, 20, 5)
    axes = found.plot().axes[0]
    drawn = [line.get_ydata() for line in axes.lines if line.get_label().startswith("exponent")]
    assert np.allclose(drawn, windows.T)
