import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from gdyn_common.display import axes_for
from gdyn_common.spectral import stochastic_lanczos_density


def test_axes_given_are_drawn_into_and_others_belong_to_a_new_figure():
    mine = Figure().subplots()
    assert axes_for(mine) is mine
    assert axes_for().figure is not mine.figure


def test_a_missing_matplotlib_is_said_in_one_line(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="Drawing needs matplotlib: pip install matplotlib"):
        axes_for()


def test_a_density_is_drawn_where_its_eigenvalues_are():
    density = stochastic_lanczos_density(
        lambda v: np.array([1.0, 1.0, 5.0]) * v,
        3,
        num_probes=2,
        num_steps=3,
        generator=np.random.default_rng(0),
    )
    axes = Figure().subplots()
    assert density.plot(axes) is axes.figure
    x, y = axes.lines[0].get_data()
    assert abs(x[y.argmax()] - 1) < 0.05
