"""What is done differently from the papers or their published code."""

from __future__ import annotations

from gdyn_reproduce.registry import Deviation

DEVIATIONS = (
    Deviation(
        "D1",
        "drift coefficients with several updates",
        "rates per update, self term divided by the number of updates",
        "total rates (`paper`); the published values stay available as `original`",
        "none for single updates; third order regained otherwise",
    ),
    Deviation(
        "D2",
        "coefficients over several steps at unequal rates",
        "each player's own clock",
        "`joint` convention one key away; default of the digits studies",
        "second-order tracking instead of first",
    ),
    Deviation(
        "D3",
        "intermediate points of Runge-Kutta",
        "the discriminator's rate for both players",
        "each player's own; `updates.rk_shared_rate=true` restores the published behaviour",
        "none at equal rates",
    ),
    Deviation(
        "D4",
        "batch norm of the generator",
        "averages over a named device axis, fails without one",
        "no device axis; the sharded program computes global statistics",
        "results do not depend on the number of devices",
    ),
    Deviation(
        "D5",
        "MNIST configuration",
        "stale keys, does not start",
        "working configuration under the name `config`",
        "new",
    ),
    Deviation(
        "D6",
        "scores of the quick studies",
        "Inception Score and FID",
        "score and Frechet distance with a classifier trained on the data",
        "not comparable with published IS and FID",
    ),
    Deviation(
        "D7",
        "configuration system",
        "ml_collections files and flags",
        "Hydra overrides with the published key names",
        "same settings, other syntax",
    ),
    Deviation(
        "D8",
        "`run.sh train` without a configuration",
        "trains `sgd_cifar_config`",
        "trains a small GAN on digits; `experiment=sgd_cifar_config` is the published run",
        "starts without data and ends in a minute",
    ),
)
