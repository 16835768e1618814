import warnings

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import eigsh

from eigengame import EigenGameSpectralEmbedding
from eigengame.metrics import cosine_similarities


def laplacian(edges, weights, n):
    L = np.zeros((n, n))
    for (a, b), w in zip(edges, weights, strict=True):
        L[[a, b], [a, b]] += w
        L[[a, b], [b, a]] -= w
    return L


def stars():
    """Two hubs of degree 60 joined by an edge between leaves."""
    star = np.c_[np.zeros(60, int), np.arange(1, 61)]
    return np.r_[star, star + 61, [[1, 62]]], 122


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("graph", ["path", "stars"])
def test_embeddings_against_numpy(rng, graph, normalized):
    edges, n = (np.c_[np.arange(59), np.arange(1, 60)], 60) if graph == "path" else stars()
    weights = rng.uniform(0.5, 2, len(edges))
    L = laplacian(edges, weights, n)
    D = np.diag(np.diagonal(L)) if normalized else np.eye(n)
    values, vectors = eigh(L, D)
    k = 3 if graph == "path" else 2
    model = EigenGameSpectralEmbedding(k, normalized=normalized, random_state=0)
    model.fit(np.c_[edges, weights])
    np.testing.assert_allclose(model.eigenvalues_, values[:k], atol=1e-7)
    assert cosine_similarities(model.embedding_.T, vectors[:, :k].T).min() > 0.999
    given = EigenGameSpectralEmbedding(k, affinity="precomputed", normalized=normalized, random_state=0)
    np.testing.assert_allclose(
        given.fit(np.diag(np.diagonal(L)) - L).eigenvalues_, model.eigenvalues_, atol=1e-7
    )


@pytest.mark.parametrize("normalized", [False, True])
def test_long_paths_converge(normalized):
    """The second value of a path of n nodes is 2 - 2 cos(pi / n), with degrees 1 - cos(pi / (n - 1))."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = EigenGameSpectralEmbedding(3, normalized=normalized, random_state=0)
        model.fit(np.c_[np.arange(999), np.arange(1, 1000)])
    j = np.arange(3)
    exact = 1 - np.cos(np.pi * j / 999) if normalized else 2 - 2 * np.cos(np.pi * j / 1000)
    np.testing.assert_allclose(model.eigenvalues_, exact, atol=1e-10)


def test_edges_without_weight_are_refused():
    with pytest.raises(ValueError, match="All weights of edges are zero"):
        EigenGameSpectralEmbedding(1).fit([[0, 1, 0.0], [1, 2, 0.0]])


def test_a_graph_of_ten_thousand_nodes_against_eigsh(rng):
    blocks = rng.integers(0, 4, 10_000)
    edges = rng.integers(0, 10_000, (300_000, 2))
    edges = edges[(edges[:, 0] != edges[:, 1]) & (blocks[edges[:, 0]] == blocks[edges[:, 1]])]
    edges = np.r_[edges, np.c_[np.arange(9999), np.arange(1, 10_000)]]
    ends = np.r_[edges, edges[:, ::-1]].T
    adjacency = csr_array((np.ones(ends.shape[1]), tuple(ends)), shape=(10_000, 10_000))
    degrees = adjacency.sum(axis=0)
    top = 2 * degrees.max()
    values, vectors = eigsh(diags_array(top - degrees) + adjacency, 4, which="LA")
    values, vectors = top - values[::-1], vectors[:, ::-1]
    model = EigenGameSpectralEmbedding(4, random_state=0).fit(edges)
    np.testing.assert_allclose(model.eigenvalues_, values, rtol=1e-5, atol=1e-8)
    assert np.linalg.svd(model.embedding_.T @ vectors)[1].min() > 1 - 1e-6


@pytest.mark.parametrize("unit", [1e-200, 1e-8, 1e8, 1e200])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_unit_of_the_weights(rng, unit, normalized):
    edges, n = np.c_[np.arange(29), np.arange(1, 30)], 30
    weights = rng.uniform(0.5, 2, 29)
    L = laplacian(edges, weights, n)
    values, vectors = eigh(L, np.diag(np.diagonal(L)) if normalized else None)
    model = EigenGameSpectralEmbedding(3, normalized=normalized, random_state=0)
    model.fit(np.c_[edges, unit * weights])
    scale = 1 if normalized else unit
    np.testing.assert_allclose(model.eigenvalues_ / scale, values[:3], atol=1e-6)
    length = np.sqrt(unit) if normalized else 1
    np.testing.assert_allclose(np.abs(model.embedding_) * length, np.abs(vectors[:, :3]), atol=1e-3)


def test_a_small_weight_given_one_way_only_is_refused():
    """Next to a large weight an absolute tolerance overlooks it."""
    W = np.zeros((4, 4))
    W[0, 1] = W[1, 0] = 1e9
    W[1, 2] = W[2, 3] = 1
    with pytest.raises(ValueError, match="affinity is not symmetric"):
        EigenGameSpectralEmbedding(2, affinity="precomputed").fit(W)


def test_nodes_beyond_the_count_of_integers_are_refused():
    with pytest.raises(ValueError, match=r"edges names node 1099511627776; number the nodes from 0"):
        EigenGameSpectralEmbedding(2).fit([[0, 1], [1, 2**40]])


def test_a_sparse_matrix_is_no_list_of_edges():
    with pytest.raises(ValueError, match="pass affinity='precomputed'"):
        EigenGameSpectralEmbedding().fit(csr_array(np.ones((3, 3))))


def test_a_loose_tolerance_takes_no_value_between_two_for_the_next():
    """Of this graph a vector of Ritz value 0.12, between 0 and 0.78, passed for one within 0.78 rad."""
    rng = np.random.default_rng(6)
    n = int(rng.integers(30, 200))
    share = rng.uniform(2, 8) / n
    rng = np.random.default_rng(6)
    edges = [(i, j) for i in range(n) for j in range(i) if rng.random() < share]
    edges = np.array(edges + [(i, i + 1) for i in range(n - 1)])
    values, vectors = eigh(laplacian(edges, np.ones(len(edges)), n))
    model = EigenGameSpectralEmbedding(3, tol=1.0, n_iter=1, random_state=6).fit(edges)
    np.testing.assert_allclose(model.eigenvalues_, values[:3], atol=0.02)
    cosines = cosine_similarities(model.embedding_.T, vectors[:, :3].T)
    assert np.all(np.arccos(np.minimum(cosines, 1)) <= model.angle_bounds_ + 1e-6)
