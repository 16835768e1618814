import pytest

from dd_two_player.paper.config import NetsConfig
from dd_two_player.paper.data import load_samples
from dd_two_player.paper.experiment_config import (
    DalStudyConfig,
    DiracGanConfig,
    GanStudyConfig,
    LinearGameConfig,
    LocalErrorConfig,
    QuadraticConfig,
    TrackingConfig,
)
from dd_two_player.paper.experiments.network_theorem import NetworkTheoremConfig
from dd_two_player.paper.gan_study import build_program


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearGameConfig(learning_rate=0.0), "learning_rate is 0.0; allowed: positive and finite"),
        (lambda: LinearGameConfig(num_steps=0), "num_steps is 0; allowed: integers of at least 1"),
        (lambda: DiracGanConfig(horizon=float("inf")), "horizon is inf; allowed: positive and finite"),
        (lambda: TrackingConfig(learning_rates=[0.1]), "learning_rates is .0.1.; allowed: 2 or more numbers"),
        (
            lambda: TrackingConfig(small_rates=[0.03, 0.1]),
            "small_rates is .*inverses are whole",
        ),
        (
            lambda: NetworkTheoremConfig(learning_rates=[0.0]),
            "learning_rates is .0.0.; allowed: parts of the",
        ),
        (lambda: NetworkTheoremConfig(horizon=0.0), "horizon is 0.0; allowed: positive and finite"),
        (lambda: LocalErrorConfig(ratio=-1.0), "ratio is -1.0; allowed: positive and finite"),
        (lambda: QuadraticConfig(start=[1.0]), "start is .1.0.; allowed: 2 numbers, one per eigenvalue"),
        (lambda: QuadraticConfig(num_steps=[3]), "num_steps is .3.; allowed: two positive numbers"),
        (lambda: DalStudyConfig(cap=0.0), "cap is 0.0; allowed: positive and finite"),
        (lambda: GanStudyConfig(arms=[]), "arms is ..; allowed: one method or more"),
        (lambda: GanStudyConfig(chunk=0), "chunk is 0; allowed: integers of at least 1"),
        (lambda: GanStudyConfig(disc_rates=[-0.1]), "disc_rates is .-0.1.; allowed: 1 or more numbers"),
        (lambda: GanStudyConfig(dataset="mog16"), "dataset is 'mog16'; the scores of a study need images"),
        (
            lambda: GanStudyConfig(disc_rates=[0.1, 0.2]),
            "disc_rates has 2 entries, gen_rates 1; they are paired",
        ),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_generator_of_another_size_is_refused_before_training():
    config = GanStudyConfig(nets=NetsConfig(gen="MnistGenerator"))
    with pytest.raises(ValueError, match=r"samples of shape \(28, 28, 1\); the data set has \(8, 8, 1\)"):
        build_program(config, load_samples("digits"), "plain")
