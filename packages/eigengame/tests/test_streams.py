import numpy as np
import pytest
from scipy.sparse import csr_array, csr_matrix
from sklearn.decomposition import PCA

from eigengame import EigenGame
from eigengame.estimators import streams


def rows_of(batches):
    return np.concatenate(list(batches))


def test_an_epoch_visits_every_row_once(rng):
    X = rng.standard_normal((23, 3))
    batches = list(streams.array_batches(X, 5, seed=0))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.sort(rows_of(batches), axis=0), np.sort(X, axis=0))


def test_order_depends_on_seed_and_epoch_only(rng):
    X = rng.standard_normal((20, 2))
    order = lambda seed, epoch: rows_of(streams.array_batches(X, 4, seed=seed, epoch=epoch))  # noqa: E731
    np.testing.assert_array_equal(order(1, 2), order(1, 2))
    assert not np.array_equal(order(1, 2), order(1, 3))
    assert not np.array_equal(order(1, 2), order(2, 2))


def test_resuming_inside_an_epoch(rng):
    X = rng.standard_normal((20, 2))
    whole = list(streams.array_batches(X, 4, seed=0))
    rest = list(streams.array_batches(X, 4, seed=0, start=3))
    np.testing.assert_array_equal(rows_of(whole[3:]), rows_of(rest))


def test_sparse_rows_are_densified_by_batch(rng):
    dense = rng.standard_normal((9, 4)) * (rng.random((9, 4)) < 0.3)
    same = list(streams.array_batches(dense, 4, seed=0))
    for ours, theirs in zip(streams.array_batches(csr_array(dense), 4, seed=0), same, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_memmap_is_read_in_blocks(tmp_path, rng):
    np.save(tmp_path / "x.npy", np.arange(20, dtype=np.float32).reshape(10, 2))
    X = np.load(tmp_path / "x.npy", mmap_mode="r")
    batches = list(streams.array_batches(X, 4, seed=0))
    np.testing.assert_array_equal(np.sort(rows_of(batches), axis=0), np.asarray(X))
    for batch in batches:
        assert np.all(np.diff(batch[:, 0]) == 2)


def test_a_stream_is_regrouped(rng):
    parts = [rng.standard_normal((n, 3)).astype(np.float32) for n in (1, 7, 2, 5)]
    batches = list(streams.iterable_batches(iter(parts), 4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    np.testing.assert_array_equal(rows_of(batches), np.concatenate(parts))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "The iterable yielded no batch"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "Batch 1 has 4 features; the earlier ones have 3"),
        ([np.zeros(3)], r"Batch 0 has shape \(3,\)"),
        ([np.zeros((2, 2)), np.full((2, 2), np.nan)], "Batch 1 contains NaN"),
        ([np.full((2, 2), np.inf)], "Batch 0 contains inf"),
    ],
)
def test_bad_streams(parts, message):
    with pytest.raises(ValueError, match=message):
        list(streams.iterable_batches(iter(parts), 2))


def test_what_counts_as_a_stream():
    assert streams.is_stream(iter([np.zeros((1, 1))]))
    assert streams.is_stream(lambda: [])
    assert streams.is_stream([np.zeros((2, 1)), np.zeros((1, 1))])
    assert not streams.is_stream([[1.0, 2.0]])
    assert not streams.is_stream([np.zeros(2), np.zeros(2)])
    assert not streams.is_stream(np.zeros((1, 1)))


@pytest.mark.parametrize("form", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
def test_a_stream_of_sparse_batches_of_any_format(rng, form):
    dense = rng.poisson(0.5, (6, 4)).astype(float)
    for kind in (csr_matrix, csr_array):
        parts = [kind(dense[:4]).asformat(form), kind(dense[4:]).asformat(form)]
        np.testing.assert_array_equal(rows_of(streams.iterable_batches(parts, 4)), dense)


def test_named_columns_in_another_order_are_refused():
    class Frame(list):
        """What a data frame has: rows, and names of its columns."""

        def __init__(self, rows, columns):
            super().__init__(rows)
            self.columns = columns

    frames = [Frame([[1.0, 2.0]], ["a", "b"]), Frame([[3.0, 4.0]], ["b", "a"])]
    with pytest.raises(ValueError, match=r"Batch 1 has columns \['b', 'a'\]; those of the first are"):
        list(streams.iterable_batches(frames, 2))


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_tensors_of_every_type_and_with_gradients(kind):
    torch = pytest.importorskip("torch")
    rows = torch.arange(6.0).reshape(3, 2).to(getattr(torch, kind)).requires_grad_()
    np.testing.assert_array_equal(
        next(streams.iterable_batches(iter([rows]), 3)), np.arange(6.0).reshape(3, 2)
    )


def test_pairs_of_a_loader_are_refused_with_the_way_out():
    """Loaders of torch yield lists; NumPy spoke of inhomogeneous shapes."""
    for part in ([np.ones((3, 2)), np.ones(3)], [np.ones((3, 2))]):
        with pytest.raises(ValueError, match=r"Batch 0 is a list; .* lambda: \(x for x, \*_ in loader\)"):
            next(streams.iterable_batches(iter([part]), 3))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.parametrize(
    "column", [np.arange(3).astype("datetime64[ms]"), np.arange(3).astype("timedelta64[ms]")]
)
def test_a_column_of_times_is_refused_and_not_counted_in_microseconds(kind, column, batched):
    frame = pytest.importorskip(kind).DataFrame({"a": np.arange(3.0), "b": column})
    with pytest.raises(ValueError, match=r"X holds (?i:datetime|timedelta|duration)\S*.*: pass numbers, for"):
        EigenGame(1).fit(iter([frame]) if batched else frame)


@pytest.mark.parametrize("make", [list, tuple])
def test_a_list_of_arrays_holds_batches(rng, make):
    """NumPy spoke of inhomogeneous shapes."""
    X = rng.standard_normal((60, 3)) * [3, 2, 1]
    model = EigenGame(2, random_state=0).fit(make(np.split(X, [10, 25])))
    np.testing.assert_allclose(model.explained_variance_, PCA(2).fit(X).explained_variance_, rtol=1e-5)


def test_extended_precision_is_rounded_to_double(rng):
    """LAPACK has no such type: CCA and ICA ended with a TypeError from NumPy."""
    X = rng.standard_normal((60, 3))
    rounded = streams.real_numbers(X.astype(np.longdouble))
    assert rounded.dtype == np.float64
    np.testing.assert_array_equal(rounded, X)
