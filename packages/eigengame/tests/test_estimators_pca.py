import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from eigengame import EigenGame


@parametrize_with_checks([EigenGame(n_components=2, batch_size=64, random_state=0)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)
