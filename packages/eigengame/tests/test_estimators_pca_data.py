import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from eigengame import EigenGame, EigenGameCCA, EigenGameICA
from eigengame.metrics import angles


def test_uint8_does_not_overflow(rng):
    X = rng.integers(0, 256, size=(300, 5), dtype=np.uint8)
    model = EigenGame(2, batch_size=50, random_state=0).fit(X)
    np.testing.assert_allclose(model.mean_, X.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda X: iter([]), "The iterable yielded no batch"),
        (lambda X: iter([X[:, :3], X]), "Batch 1 has 8 features; the earlier ones have 3"),
        (lambda X: np.where(np.arange(1000)[:, None] == 777, np.inf, X), r"Batch \d contains inf"),
    ],
)
def test_bad_data(data, bad, message):
    with pytest.raises(ValueError, match=message):
        EigenGame(2, batch_size=100, random_state=0).fit(bad(data))


def test_a_tiny_first_batch(rng):
    X = rng.standard_normal((5000, 10)) * np.r_[4, 2, np.ones(8)]
    model = EigenGame(2, batch_size=256, random_state=0).partial_fit(X[:2])
    for start in range(2, 5000, 256):
        model.partial_fit(X[start : start + 256])
    assert np.abs(np.diagonal(model.components_)).min() > 0.98


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_the_unit_of_the_data_does_not_matter(data, scale):
    small = EigenGame(4, n_epochs=1, tol=None, random_state=0).fit(data * np.float32(scale))
    plain = EigenGame(4, n_epochs=1, tol=None, random_state=0).fit(data)
    np.testing.assert_allclose(small.components_, plain.components_, atol=1e-3)


def test_shares_of_a_growing_stream_stay_below_one(rng):
    model = EigenGame(5, random_state=0)
    for power in range(5):
        model.partial_fit(10.0**power * rng.standard_normal((500, 84)))
    assert model.explained_variance_ratio_.sum() < 1


@pytest.mark.parametrize("algorithm", ["mu", "alpha", "gha", "oja"])
def test_shares_of_a_short_stream_with_all_components_stay_below_one(algorithm):
    """Averages of vectors that still move would find more variance than there is."""
    for seed in range(4):
        X = np.random.default_rng(seed).standard_normal((700, 10)) * np.r_[9, 7, 5, 3, np.ones(6)]
        model = EigenGame(10, algorithm=algorithm, random_state=seed).partial_fit(X)
        assert model.explained_variance_ratio_.sum() <= 1 + 1e-5


def test_double_precision_is_not_left_in_silence(data):
    import jax

    with jax.enable_x64(True):
        model = EigenGame(2, dtype="float64", random_state=0).fit(data)
    with pytest.raises(ValueError, match="dtype='float64' needs 64-bit JAX"):
        model.partial_fit(data)


def test_an_object_that_only_iterates(data):
    class Loader:
        def __iter__(self):
            return iter(np.array_split(data, 7))

    model = EigenGame(2, random_state=0).fit(Loader())
    assert angles(model.components_, PCA(2).fit(data).components_).max() < 0.02


def test_a_stream_without_rows(data):
    with pytest.raises(ValueError, match="yielded no rows"):
        EigenGame(2).fit(iter([data[:0]]))


def test_batches_with_labels_are_refused(data):
    with pytest.raises(ValueError, match=r"Batch 0 is a tuple; yield the \(n, d\) samples alone"):
        EigenGame(2).fit(iter([(data, data[:, 0])]))


def test_data_frames_of_polars(data):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({f"c{i}": column for i, column in enumerate(data.T)})
    model = EigenGame(2, random_state=0).set_output(transform="polars").fit(frame)
    np.testing.assert_array_equal(model.components_, EigenGame(2, random_state=0).fit(data).components_)
    assert model.transform(frame).columns == ["eigengame0", "eigengame1"]


def top_three(X):
    """Variances, vectors and total of the centred rows by SVD in double precision, on unit size."""
    rows = np.asarray(X, np.float64)
    centred = rows - rows.mean(axis=0)
    unit = np.abs(centred).max()
    _, singular, vectors = np.linalg.svd(centred / unit, full_matrices=False)
    return np.square(singular * unit)[:3] / (len(X) - 1), vectors[:3], singular[:3] * unit


@pytest.mark.parametrize("algorithm", ["mu", "auto"])
@pytest.mark.parametrize(
    "move",
    [lambda X: X + 1e8, lambda X: X + 1e12, lambda X: X + np.r_[1e8, np.zeros(7)]],
    ids=["1e8", "1e12", "a column"],
)
def test_a_mean_far_above_the_spread(rng, move, algorithm):
    """Rows cast to single precision before the mean is subtracted would lose all their digits."""
    X = move(rng.standard_normal((1000, 8)) * [8, 6, 4.5, 3, 1, 1, 1, 1])
    variances, vectors, _ = top_three(X)
    model = EigenGame(3, algorithm=algorithm, random_state=0).fit(X)
    streamed = EigenGame(3, batch_size=100, random_state=0)
    for rows in np.split(np.tile(X, (5, 1)), 50):
        streamed.partial_fit(rows)
    np.testing.assert_allclose(model.explained_variance_, variances, rtol=1e-4)
    np.testing.assert_allclose(model.mean_, X.mean(axis=0), rtol=1e-14, atol=1e-6)
    assert angles(model.components_, vectors).max() < 0.02
    assert angles(streamed.components_, vectors).max() < 0.1
    centred = X - X.mean(axis=0)
    np.testing.assert_allclose(model.transform(X), centred @ model.components_.T, atol=1e-2)
    assert model.score(X) == pytest.approx(variances.sum() / np.sum(centred**2) * 999, abs=1e-4)


@pytest.mark.parametrize("kind", [np.float64, jnp.asarray], ids=["numpy", "jax"])
def test_scores_next_to_a_mean_far_above_the_spread(rng, kind):
    """With digits of the data as they are given, not of single precision nor of the rounded mean."""
    X = np.asarray(
        kind(rng.standard_normal((1000, 4)) * [8, 4, 2, 1] + (1e12 if kind is np.float64 else 1e5))
    )
    model = EigenGame(4, algorithm="auto", random_state=0).fit(kind(X))
    centred = (X - X[0]).astype(float)
    _, _, V = np.linalg.svd(centred - centred.mean(axis=0))
    scores = np.abs((centred - centred.mean(axis=0)) @ V.T)
    np.testing.assert_allclose(np.abs(model.transform(X)), scores, atol=1e-5)
    # rows on a device are in single precision, the shift of rows in double precision is not
    model = EigenGame(4, random_state=0).partial_fit(X.astype(np.float64)).partial_fit(kind(X))
    np.testing.assert_allclose(
        np.asarray(model._state.mean), (centred - model._frame.shift + X[0]).mean(0), atol=1e-5
    )


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("first", [0.0, 3.3])
def test_rows_that_do_not_vary_at_first(rng, unit, first):
    """They do not show the unit of the data."""
    X = rng.standard_normal((2000, 8)) * [8, 6, 4.5, 3, 1, 1, 1, 1] * unit + first * unit
    model = EigenGame(3, random_state=0).partial_fit(np.full((300, 8), first * unit))
    assert model.unresolved_.size == 3
    for rows in np.split(np.tile(X, (5, 1)), 50):
        model.partial_fit(rows)
    assert angles(model.components_, top_three(X)[1]).max() < 0.1
    seen = np.concatenate([np.full((300, 8), first * unit), np.tile(X, (5, 1))])
    np.testing.assert_allclose(model.mean_, seen.mean(axis=0), rtol=1e-5, atol=1e-6 * unit)
    assert model.unresolved_.size == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("algorithm", ["mu", "auto"])
def test_data_that_do_not_vary_are_said(dtype, algorithm):
    with pytest.warns(ConvergenceWarning, match="do not vary: all rows are equal") as said:
        model = EigenGame(2, algorithm=algorithm, random_state=0).fit(np.full((500, 5), 3.3, dtype))
    assert len(said) == 1
    np.testing.assert_array_equal(model.explained_variance_, 0)
    np.testing.assert_array_equal(model.mean_, np.full(5, dtype(3.3), float))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: np.ma.array(x, mask=x > 1), "has masked entries"),
        (lambda x: (1e9 * x).astype("datetime64[ns]"), r"holds datetime64\[ns\]: pass numbers"),
        (lambda x: (1e9 * x).astype("timedelta64[ns]"), r"holds timedelta64\[ns\]: pass numbers"),
        (lambda x: x.astype(str), "holds entries of type <U"),
    ],
    ids=["masked", "dates", "durations", "text"],
)
def test_entries_that_are_no_numbers_are_refused(data, bad, message):
    fitted_model = EigenGame(2, random_state=0).fit(data)
    for call in (
        lambda: EigenGame(2).fit(bad(data)),
        lambda: EigenGame(2).fit(lambda: iter([bad(data)])),
        lambda: EigenGame(2).partial_fit(bad(data)),
        lambda: fitted_model.refine(bad(data)),
        lambda: fitted_model.transform(bad(data)),
        lambda: fitted_model.score(bad(data)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("entry", "message"),
    [(2**60 + 1, "double precision rounds"), (np.datetime64("2020-01-01"), "holds dates")],
)
def test_objects_that_turn_into_other_numbers_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        EigenGame(1).fit(np.array([[entry, 0], [entry, 1], [entry, 2]], object))
    plain = EigenGame(1, random_state=0).fit(np.array([[2**60, 0], [0.5, 1], [3, True]], object))
    assert plain.explained_variance_[0] == pytest.approx(np.var([2.0**60, 0.5, 3], ddof=1))


@pytest.mark.parametrize("algorithm", ["mu", "auto"])
@pytest.mark.parametrize("settings", [{}, {"n_components": 5}, {"n_components": -1}])
def test_a_refused_fit_leaves_the_one_before(data, algorithm, settings):
    model = EigenGame(2, algorithm=algorithm, random_state=0).fit(data)
    scores = model.transform(data)
    bad = data[:, :4] * np.nan if not settings else data[:, :4]
    with pytest.raises(ValueError, match=r"NaN|n_components"):
        model.set_params(**settings).fit(bad)
    np.testing.assert_array_equal(model.transform(data), scores)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_bounds_of_a_stream_hold_the_weights_of_its_rows(share):
    """With as many players as columns no residual shows that the last rows count more than the first."""
    ratios = []
    for seed in range(8):
        X = np.random.default_rng(seed).standard_normal((2000, 6)) * [4, 3.4, 2.9, 2, 2, 2]
        model = EigenGame(3, random_state=0)
        start = 0
        if share < 1:
            start = 1000
            model.fit(X[:start])
        for rows in np.split(X[start:], 8):
            model.partial_fit(rows)
        ratios.append(angles(model.components_, top_three(X)[1]) / model.angle_bounds_)
    assert np.max(ratios) < 1


_ROWS = np.random.default_rng(0).standard_normal((2000, 8)) * np.arange(8, 0, -1)
STREAMS = {
    "one step, fewer rows than columns": np.random.default_rng(1).standard_normal((30, 200)),
    "two rows": np.random.default_rng(1).standard_normal((2, 5)),
    "rows that shrink": _ROWS * np.geomspace(1e3, 1e-3, 2000)[:, None],
    "sorted rows": np.sort(_ROWS, axis=0),
    "a heavy tail": np.exp(2 * np.random.default_rng(1).standard_normal((3000, 12))),
    "as many components as columns": _ROWS @ np.diag(np.geomspace(1, 1e-3, 8)),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("algorithm", ["mu", "oja"])
def test_bounds_of_the_variances_of_a_stream(name, algorithm):
    """Estimates, so twice the bound is allowed: rows of these streams are few, differ or have outliers."""
    X = STREAMS[name]
    k = {"two rows": 1, "as many components as columns": 8}.get(name, 3)
    model = EigenGame(k, algorithm=algorithm, random_state=0)
    for start in range(0, len(X), 100):
        model.partial_fit(X[start : start + 100])
    exact = np.square(np.linalg.svd(X - X.mean(axis=0), compute_uv=False))[:k] / (len(X) - 1)
    errors = np.abs(model.explained_variance_ - exact)
    slack = 1 if name == "two rows" else 2  # with n - 1 for n every bound doubles
    assert np.all(errors <= slack * model.variance_errors_ + 1e-4 * exact)


@pytest.mark.parametrize("course", ["turns half way", "turns a little", "turns late", "turns to and fro"])
def test_bounds_of_a_stream_whose_distribution_turns(course):
    """The total variance stays, so that it tells nothing; estimates, which one in twenty may exceed."""
    exceeded = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        first, second = (np.linalg.qr(rng.standard_normal((12, 12)))[0] for _ in range(2))
        if course == "turns a little":
            second = first @ np.linalg.qr(np.eye(12) + 0.05 * rng.standard_normal((12, 12)))[0]
        A, B = (rng.standard_normal((4000, 12)) * np.geomspace(3, 0.3, 12) @ Q for Q in (first, second))
        parts = {
            "turns late": [A, B[:800]],
            "turns to and fro": [A[:1000], B[:1000], A[1000:2000], B[1000:2000]],
        }
        X = np.concatenate(parts.get(course, [A, B]))
        model = EigenGame(3, random_state=0)
        for start in range(0, len(X), 256):
            model.partial_fit(X[start : start + 256])
        values, vectors = np.linalg.eigh(np.cov(X.T))
        exceeded += list(angles(model.components_, vectors[:, ::-1].T[:3]) > model.angle_bounds_)
        exceeded += list(np.abs(model.explained_variance_ - values[::-1][:3]) > model.variance_errors_)
    assert np.mean(exceeded) <= 0.05


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e-22, 1e15, 1e30, 1e150])
@pytest.mark.parametrize("options", [{}, {"algorithm": "auto"}, {"learning_rate": 0.02}], ids=str)
def test_any_unit_of_the_data(rng, scale, options):
    """Squares of the data leave the range of single precision, the answer does not."""
    X = rng.standard_normal((1000, 8)) * [8, 6, 4.5, 3, 1, 1, 1, 1] * scale
    if "learning_rate" in options:
        options = {"learning_rate": options["learning_rate"] / scale**2}
    variances, vectors, singular = top_three(X)
    model = EigenGame(3, whiten=True, random_state=0, **options).fit(X)
    assert model.unresolved_.size == 0
    assert angles(model.components_, vectors).max() < 0.02
    np.testing.assert_allclose(model.explained_variance_, variances, rtol=1e-4)
    np.testing.assert_allclose(model.singular_values_, singular, rtol=1e-4)
    np.testing.assert_allclose(model.transform(X).std(axis=0, ddof=1), 1, rtol=1e-3)
    assert model.score(X) == pytest.approx(model.explained_variance_ratio_.sum(), abs=1e-4)


@pytest.mark.parametrize("algorithm", ["mu", "auto"])
def test_variances_that_single_precision_cannot_see_are_said(data, x64, algorithm):
    """One row a million times larger than the others hides their variances."""
    X = np.r_[data.astype(float), np.full((1, 8), 1e6)]
    with pytest.warns(ConvergenceWarning, match=r"Components \[1, 2\] have no variance .* dtype='float64'"):
        EigenGame(3, algorithm=algorithm, random_state=0).fit(X)
    model = EigenGame(3, algorithm=algorithm, dtype="float64", random_state=0).fit(X)
    assert angles(model.components_, top_three(X)[1]).max() < 0.02


def test_a_stream_that_is_shorter_when_read_again_is_refused(data):
    lengths = iter([len(data)] + 60 * [50])
    with pytest.raises(ValueError, match=f"X had {len(data)} rows and now has 50"):
        EigenGame(2, random_state=0).fit(lambda: iter([data[: next(lengths)]]))


def test_complex_rows_on_the_device_are_refused(data):
    model = EigenGame(2, random_state=0).partial_fit(data[:256])
    with pytest.raises(ValueError, match="Complex data not supported"):
        model.partial_fit(jnp.asarray(data[:256] + 1j))


@pytest.mark.parametrize("unit", [1e-120, 1e-40, 1e40, 1e120])
def test_scores_of_data_of_an_extreme_size(data, unit):
    X = data.astype(np.float64) * unit
    model = EigenGame(2, algorithm="auto", random_state=0).fit(X)
    expected = (X - X.mean(axis=0)) @ model.components_.T.astype(np.float64)
    np.testing.assert_allclose(model.transform(X) / unit, expected / unit, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        model.explained_variance_ / unit**2, PCA(2).fit(data).explained_variance_, 1e-4
    )


@pytest.mark.parametrize("unit", [1e-300, 1e300])
def test_variances_beyond_double_precision_are_refused(data, unit):
    with pytest.raises(ValueError, match=r"of size .*; 1e-152 to 1e152 is allowed\. Scale them\."):
        EigenGame(2, random_state=0).fit(data.astype(np.float64) * unit)


def large_integers(rows, kind):
    """Differences of some of these integers are not those of the doubles nearest to them."""
    values = (100 * np.asarray(rows, np.float64)).astype(np.int64) + 2**60
    frame = pytest.importorskip("pandas").DataFrame(values).rename(columns=str)
    return {
        "int64": values,
        "uint64": values.astype(np.uint64) + 2**63,
        "list": values.tolist(),
        "sparse": csr_array(values),
        "one column": frame.assign(**{"0": 0.5}),
        "nullable": frame.astype("Int64"),
    }[kind]


@pytest.mark.parametrize("kind", ["int64", "uint64", "list", "sparse", "one column", "nullable"])
def test_integers_that_doubles_round_are_refused(data, kind):
    """Such as identifiers, or times in nanoseconds: their variances were off by per cents."""
    X = large_integers(data, kind)
    fitted_model = EigenGame(2, random_state=0).fit(data)
    calls = [EigenGame(2).fit, EigenGame(2).partial_fit, fitted_model.transform, fitted_model.score]
    if kind != "sparse":
        calls += [EigenGameICA(2).fit, lambda X: EigenGameCCA(1).fit(data, X)]
    for call in calls:
        with pytest.raises(ValueError, match="holds integers that double precision rounds"):
            call(X)


def test_large_integers_that_doubles_hold(data):
    X = (data * 100).astype(np.int64) * 2**20 + 2**60
    variances, vectors, _ = top_three(X - 2**60)
    model = EigenGame(3, random_state=0).fit(X)
    assert angles(model.components_, vectors).max() < 0.02
    np.testing.assert_allclose(model.explained_variance_, variances, rtol=1e-5)


@pytest.mark.parametrize("largest", [1e-38, 3e38])
@pytest.mark.parametrize("kind", [np.float32, jnp.float32], ids=["numpy", "jax"])
@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce")  # of scikit-learn's check
def test_single_precision_at_both_ends_of_its_range(data, largest, kind):
    """Powers of two of this size are no numbers of single precision, or JAX takes them for zero."""
    X = (data - 10).astype(np.float64)
    X = (X * (largest / np.abs(X).max())).astype(np.float32)
    variances, vectors, _ = top_three(X)
    whole = EigenGame(3, random_state=0).fit(X)
    stream = EigenGame(3, batch_size=250, random_state=0)
    for rows in np.split(np.tile(X, (5, 1)), 20):
        stream.partial_fit(kind(rows))
    np.testing.assert_allclose(whole.explained_variance_, variances, rtol=1e-4)
    assert angles(whole.components_, vectors).max() < 0.02
    assert angles(stream.components_, vectors).max() < 0.1


def test_sums_of_many_batches_keep_their_digits(rng):
    """In single precision alone a sum of 40 000 batches loses one digit in a hundred thousand."""
    from eigengame.estimators.frames import Frame
    from eigengame.estimators.passes import one_pass

    X = (rng.standard_normal((80_000, 3)) * [3, 2, 1]).astype(np.float32)
    wide = X.astype(np.float64)
    found = one_pass(
        iter([X]),
        np.eye(3),
        frame=Frame(np.zeros(3), 1.0),
        shift=None,
        batch_size=2,
        multiple=3,
        dtype="float32",
    )
    np.testing.assert_allclose(found.products, wide.T @ wide / len(X), rtol=1e-6, atol=1e-6)
    assert found.total == pytest.approx(np.square(wide).sum() / len(X), rel=1e-6)


def test_data_that_change_between_readings_are_refused():
    """A loader that augments at random is no fixed data set, and no bound would hold."""
    draws = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"The variance of X is .* times that of the reading before"):
        EigenGame(2, random_state=0).fit(lambda: iter(draws.standard_normal((10, 100, 8))))


def noisy(rows, draws):
    return rows + 1e-3 * draws.standard_normal(rows.shape)


def flipped(rows, draws):
    return np.where(draws.random((len(rows), 1)) < 0.5, rows, rows[:, ::-1])


def without_the_last(rows, draws):
    return draws.permutation(rows)[:-20]


def rotated(rows, draws):
    return (rows - rows.mean(axis=0)) @ np.linalg.qr(draws.standard_normal((40, 40)))[0]


@pytest.mark.parametrize("change", [noisy, flipped, without_the_last, rotated])
def test_changes_that_leave_the_variance_are_refused_too(change):
    """Of a shuffled loader that drops rows, of mirrored images, of noise that moves a variance by 1e-6."""
    draws = np.random.default_rng(0)
    X = draws.standard_normal((4000, 40)) * np.geomspace(1, 0.8, 40)
    with pytest.raises(ValueError, match="X holds other rows than at the reading before"):
        EigenGame(3, tol=1e-4, random_state=0).fit(lambda: iter([change(X, draws)]))


@pytest.mark.parametrize(("center", "move"), [("running", 0), ("running", 1e4), (None, 3)])
def test_equal_rows_in_another_order_and_other_batches_are_the_same(center, move):
    draws = np.random.default_rng(0)
    X = draws.standard_t(2, (4000, 40)) * np.geomspace(1, 0.3, 40) + move
    X = X.astype(np.float32)
    model = EigenGame(3, tol=1e-4, center=center, random_state=0)
    model.fit(lambda: iter(np.array_split(draws.permutation(X), draws.integers(2, 40))))
    assert model.n_passes_ > 3
    wide = X.astype(np.float64) - (X.mean(axis=0, dtype=np.float64) if center else 0)
    exact = np.linalg.svd(wide, full_matrices=False)[2][:3]
    assert angles(model.components_, exact).max() < 1e-3


@pytest.mark.parametrize("form", [csr_array, pytest.param("frame", id="frame")])
def test_scores_of_any_form_go_back(data, form):
    model = EigenGame(2, random_state=0).fit(data)
    scores = model.transform(data).astype(float)
    given = pytest.importorskip("pandas").DataFrame(scores) if form == "frame" else form(scores)
    np.testing.assert_allclose(model.inverse_transform(given), model.inverse_transform(scores))
    for bad in (scores + 1j, np.ma.array(scores, mask=scores > 0), scores.astype(str)):
        with pytest.raises(ValueError, match="X"):
            model.inverse_transform(bad)


@pytest.mark.parametrize("algorithm", ["mu", "auto"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [200, 20_000])
def test_nothing_is_known_of_the_angle_of_a_tied_or_unresolved_vector(rng, dtype, algorithm, rows):
    """Any rotation of tied vectors is as good; a small bound would say that they are the ones."""
    Q = np.linalg.qr(rng.standard_normal((rows, 8)) - 0.5)[0]
    Q = np.linalg.qr(Q - Q.mean(axis=0))[0] * np.sqrt(rows)
    X = (Q * [5, 5, 3, 2, 0, 0, 0, 0] @ np.linalg.qr(rng.standard_normal((8, 8)))[0]).astype(dtype)
    with pytest.warns(ConvergenceWarning) as said:
        model = EigenGame(6, algorithm=algorithm, random_state=0).fit(X)
    messages = sorted(str(warning.message)[:40] for warning in said)
    assert messages == [
        "Components [0, 1] share their value with",
        "Components [4, 5] have no variance above",
    ]
    np.testing.assert_array_equal(model.angle_bounds_ == np.pi / 2, [1, 1, 0, 0, 1, 1])
    assert model.angle_bounds_[2:4].max() < 0.02
    np.testing.assert_allclose(model.explained_variance_[:4] / [25, 25, 9, 4], rows / (rows - 1), rtol=1e-4)
    assert np.all(model.variance_errors_ < 1e-3)


@pytest.mark.parametrize("kind", ["one large row", "sparse"])
def test_bounds_of_variances_hold_the_rounding_of_long_sums(rng, kind):
    """Terms of equal rows are rounded the same way again and again, by 1e-5 of the sum in 6000 rows."""
    X = rng.standard_normal((6000, 12)) * np.sqrt(np.r_[1e5, 1e2, 1, np.linspace(0.5, 0.1, 9)])
    if kind == "one large row":
        X[:, 0] = 0
        X[77, 0] = np.sqrt(6000 * 3e5)
    else:
        X *= rng.random(X.shape) < 0.02
    model = EigenGame(1, random_state=0).fit(X)
    error = np.abs(model.explained_variance_ - top_three(X)[0][:1])
    assert error <= 2 * model.variance_errors_
    assert model.variance_errors_ < 3e-6 * model.explained_variance_
