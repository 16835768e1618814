"""Label 0 means the same in every command: the residual is the prediction 1/2 minus the label."""

import numpy as np
import pytest
import scipy.linalg

from instability.paper.images import make_image
from instability.paper.linear_runs import LinearConfig, predicted_growth, simulate, thresholds
from instability.pde.reduced_map import ReducedMap


def dense_spectrum(image, k):
    """Eigenvalues of M'M from the matrix of all patches, written out."""
    h, w = image.shape
    patches = [image[i : i + k, j : j + k].ravel() for i in range(h - k + 1) for j in range(w - k + 1)]
    M = np.array(patches)
    return scipy.linalg.eigvalsh(M.T @ M)


@pytest.mark.parametrize("label", [0, 1])
def test_thresholds_and_growth_follow_the_label(label):
    config = LinearConfig(
        image="noise",
        image_size=8,
        kernel_size=3,
        learning_rate=1e-2,
        weight_decays=[0.5, 5.0],
        label=label,
        num_steps=400,
    )
    mu = dense_spectrum(make_image("noise", 8, config.only_seed()), 3)
    half = (0.5 - label) / 2  # the update is w - lr (a / 2 M'M w + alpha w)
    growth = [np.abs(1 - 1e-2 * (alpha + half * mu)).max() for alpha in config.weight_decays]
    assert predicted_growth(config) == pytest.approx(growth, rel=1e-9)
    found = thresholds(config)
    assert found.alpha_min == pytest.approx(max(0.0, float((-half * mu).max())), abs=1e-9)
    assert found.alpha_max == pytest.approx(2 / 1e-2 - float((half * mu).max()), rel=1e-9)
    measured = simulate(config, 5.0)
    assert measured["controls"]


def test_label_0_says_why_there_is_no_fixed_point():
    with pytest.raises(ValueError, match="label 0 pulls the prediction down"):
        ReducedMap(4, 16, 1.25, 0).fixed_point()
