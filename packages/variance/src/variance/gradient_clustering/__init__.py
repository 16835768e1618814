"""Clustering of per-example gradients: rank-1 per layer (batch and online) and exact.

Minimising the variance of a stratified estimate is a *size-weighted* k-means in gradient space:
V = (1/N^2) sum_k N_k sum_{i in k} ||g_i - mu_k||^2.
"""

from variance.gradient_clustering.batch import BatchClustering, Clustering, cluster
from variance.gradient_clustering.centres import Centres, ClusteringOptions
from variance.gradient_clustering.exact import ExactMoves, exact_moves, exact_moves_gram, require_gram_fits
from variance.gradient_clustering.online import OnlineClustering
from variance.gradient_clustering.subset import cluster_subset

__all__ = [
    "BatchClustering",
    "Centres",
    "Clustering",
    "ClusteringOptions",
    "ExactMoves",
    "OnlineClustering",
    "cluster",
    "cluster_subset",
    "exact_moves",
    "exact_moves_gram",
    "require_gram_fits",
]
