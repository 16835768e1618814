"""Gradient estimators: `direction` has no side effects, state moves in the two snapshot operations."""

from variance.estimators.base import Direction, GradientEstimator
from variance.estimators.clustered import GC, GCOnline
from variance.estimators.kfac import EKFAC, KFAC
from variance.estimators.momentum import IGT, Adam, HeavyBall, Nesterov
from variance.estimators.ntk import NTK
from variance.estimators.sg import SGB
from variance.estimators.snapshot_average import SnapshotAverage
from variance.estimators.svrg import SVRG

__all__ = [
    "EKFAC",
    "GC",
    "IGT",
    "KFAC",
    "NTK",
    "SGB",
    "SVRG",
    "Adam",
    "Direction",
    "GCOnline",
    "GradientEstimator",
    "HeavyBall",
    "Nesterov",
    "SnapshotAverage",
]
