import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from eigengame import EigenGame
from eigengame.estimators.frames import Frame
from eigengame.estimators.passes import one_pass


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("guess", [0.0, 4.0, None])
def test_a_pass_adds_up_what_numpy_does(rng, guess, stream):
    X, W = rng.standard_normal((300, 6)) + 5, rng.standard_normal((3, 6))
    data = (lambda: iter(np.split(X, [7, 100]))) if stream else X
    shift = None if guess is None else np.full(6, guess)
    found = one_pass(
        data, W, frame=Frame(np.zeros(6), 1.0), shift=shift, batch_size=64, multiple=4, dtype="float32"
    )
    mean = np.zeros(6) if guess is None else X.mean(axis=0)
    C = (X - mean).T @ (X - mean) / 300
    np.testing.assert_allclose(found.products, W @ C, atol=2e-5 * np.abs(W @ C).max())
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    assert found.total == pytest.approx(np.trace(C), rel=1e-5)
    assert found.num_rows == 300


def test_a_component_without_variance_has_no_whitened_score(rng):
    """Rounding error divided by rounding error would be a score of unit size."""
    X = rng.standard_normal((200, 2)) @ rng.standard_normal((2, 7))
    with pytest.warns(ConvergenceWarning, match=r"Components \[2\] have no variance"):
        scores = EigenGame(3, whiten=True, random_state=0).fit_transform(X)
    np.testing.assert_allclose(scores[:, :2].std(axis=0, ddof=1), 1, rtol=1e-3)
    np.testing.assert_array_equal(scores[:, 2], 0)
