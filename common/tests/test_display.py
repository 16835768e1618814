import sys

import pytest
from matplotlib.figure import Figure

from gdyn_common.display import axes_for


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
