"""Clustering by a subset: all of it is exact clustering, a part of it finds what is well apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from variance import per_example
from variance.errors import ConfigError
from variance.gradient_clustering import cluster_subset, exact_moves
from variance.sampling import clustering_objective, stratified_variance


def problem(n: int = 60) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)).double()
    return model, torch.randn(n, 5, dtype=torch.float64), torch.randint(3, (n,))


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_population_is_clustered_by_exact_moves(seed: int) -> None:
    """No single move lowers the objective any more, by the dense oracle; below uniform sampling."""
    model, x, y = problem()
    ids = cluster_subset(model, F.cross_entropy, x, y, 5, subset_size=60, sweeps=20, seed=seed)
    g = per_example.gradients(model, F.cross_entropy, x, y)
    moved = exact_moves(g, ids, 1, num_clusters=5)
    assert torch.equal(moved.assignments[-1], ids)
    assert float(clustering_objective(g, ids)) == pytest.approx(float(moved.objectives[0]), rel=1e-9)
    uniform = float((g - g.mean(0)).square().sum(1).mean()) / 5
    assert stratified_variance(g, ids) < 0.8 * uniform  # random clusters: 1; about 0.65 is reached


def test_gradients_that_are_well_apart_are_found_from_a_few() -> None:
    """Four groups of inputs, 10 apart; a subset of 16 has members of each with probability above 0.95."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    x = 10 * torch.eye(4)[labels] + 0.1 * torch.randn(80, 4, generator=generator)
    model = nn.Linear(4, 1, bias=False)
    ids = cluster_subset(model, lambda o, t: (o - t).sum(), x, torch.zeros(80, 1), 4, subset_size=16, chunk=7)
    assert len({(int(a), int(b)) for a, b in zip(ids, labels, strict=True)}) == 4


@pytest.mark.parametrize(("clusters", "size"), [(11, 10), (5, 61)])
def test_sizes_must_fit(clusters: int, size: int) -> None:
    with pytest.raises(ConfigError, match=f"num_clusters {clusters}, subset_size {size} and the 60 examples"):
        cluster_subset(*problem()[:1], F.cross_entropy, *problem()[1:], clusters, subset_size=size)


def test_the_subset_has_a_limit_as_well() -> None:
    with pytest.raises(ConfigError, match=r"N=60 examples needs 14400 bytes.*cluster_subset"):
        cluster_subset(*problem()[:1], F.cross_entropy, *problem()[1:], 5, subset_size=60, max_bytes=100)
