import warnings

import numpy as np
from matplotlib.figure import Figure

from eigengame import EigenGame


def test_a_picture_shows_which_components_are_sure():
    X = np.random.default_rng(0).standard_normal((400, 4)) * np.array([5.0, 3.0, 1.0, 1.0])
    model = EigenGame(n_components=3, random_state=0, tol=1e-9, n_epochs=1)
    with warnings.catch_warnings(action="ignore"):
        model.fit(X)
    axes = Figure().subplots()
    assert model.plot(axes) is axes.figure
    shown = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert np.allclose(shown["not converged"], model.explained_variance_)
    model.tol = np.inf
    assert model.plot().axes[0].lines[0].get_label() == "converged"
