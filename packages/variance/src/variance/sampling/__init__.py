"""Which examples are drawn, how often and with which weight."""

from variance.sampling.index_samplers import Draw, ImportanceSampler, IndexSampler, UniformSampler
from variance.sampling.rounds import RoundSampler
from variance.sampling.schedulers import ExponentialSnooze, LinearRank, MinimumVariance, Scheduler
from variance.sampling.scores import ScoreMemory, score
from variance.sampling.stratified import (
    StratifiedSampler,
    check_assignment,
    cluster_sizes,
    cluster_variances,
    clustering_objective,
    neyman_fractions,
    neyman_variance,
    stratified_variance,
    stratified_weights,
)

__all__ = [
    "Draw",
    "ExponentialSnooze",
    "ImportanceSampler",
    "IndexSampler",
    "LinearRank",
    "MinimumVariance",
    "RoundSampler",
    "Scheduler",
    "ScoreMemory",
    "StratifiedSampler",
    "UniformSampler",
    "check_assignment",
    "cluster_sizes",
    "cluster_variances",
    "clustering_objective",
    "neyman_fractions",
    "neyman_variance",
    "score",
    "stratified_variance",
    "stratified_weights",
]
