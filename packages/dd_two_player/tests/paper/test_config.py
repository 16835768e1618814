import pytest

from dd_two_player.paper.config import (
    EvalConfig,
    GradRegularizesConfig,
    OptimizerConfig,
    PlayersConfig,
    TermsConfig,
    TrainConfig,
    UpdatesConfig,
)

CANCEL = GradRegularizesConfig(dd_coeffs_multiplier=PlayersConfig(disc=TermsConfig(other_dot_prod=-1.0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(lr=0.0), "lr is 0.0; allowed: positive and finite"),
        (lambda: OptimizerConfig(num_updates=0), "num_updates is 0; allowed: integers of at least 1"),
        (lambda: TrainConfig(batch_size=0), "batch_size is 0; allowed"),
        (lambda: TrainConfig(batch_size=63), "batch_size is 63; estimator unbiased.* needs an even one"),
        (
            lambda: TrainConfig(batch_size=64, device_count=3),
            "batch_size 64 is not divisible by device_count 3",
        ),
        (
            lambda: TrainConfig(updates=UpdatesConfig(scheme="runge_kutta"), grad_regularizes=CANCEL),
            "dd_coeffs_multiplier needs the drift of gradient descent",
        ),
        (lambda: EvalConfig(which="first"), "Unknown which 'first'"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
