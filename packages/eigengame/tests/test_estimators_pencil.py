import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from eigengame import EigenGameCCA, EigenGameGEVP, EigenGameICA, EigenGamePLS, EigenGameSpectralEmbedding

@parametrize_with_checks(
    [
        EigenGameCCA(n_components=1, n_epochs=2, batch_size=8, random_state=0),
        EigenGameICA(n_components=1, n_epochs=20, random_state=0),
        EigenGameGEVP(n_components=1, n_iter=20, random_state=0),
        EigenGameSpectralEmbedding(n_components=1, affinity="precomputed", n_iter=20, random_state=0),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.slow  # differs from EigenGameCCA in one function of `pencils` only
def test_scikit_learn_contract_of_pls():
    check_estimator(EigenGamePLS(n_components=1, n_epochs=20, random_state=0))
