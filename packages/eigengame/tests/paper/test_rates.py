import numpy as np
import pytest

from eigengame.paper.comparison import best_rate


@pytest.mark.parametrize("best", [1e-5, 0.02, 0.3, 30.0])
def test_the_grid_grows_until_the_best_lies_inside(best):
    found = best_rate([0.1, 0.3, 1.0], lambda rate: -abs(np.log(rate / best)), extensions=12)
    assert abs(np.log(found / best)) <= np.log(10 / 3)


def test_a_best_rate_at_the_edge_is_refused():
    with pytest.raises(ValueError, match="sits at the edge of its grid"):
        best_rate([0.1, 1.0], lambda rate: rate, extensions=3)


def test_a_plateau_that_reaches_inside_is_no_edge():
    assert best_rate([0.1, 1.0, 10.0], lambda rate: 1.0) == 1.0
