import numpy as np
import pytest
import scipy.linalg

from dd_two_player.evaluation import Moments, classifier_score, evaluate_samples, frechet_distance, moments


def test_score_against_the_definition():
    logits = np.random.default_rng(0).standard_normal((50, 4)) * 3
    p = scipy.special.softmax(logits, 1)
    kl = scipy.special.rel_entr(p, p.mean(0)).sum(1)
    assert classifier_score(logits) == pytest.approx(np.exp(kl.mean()), rel=1e-12)


def test_score_bounds_and_overflow():
    assert classifier_score(np.full((4, 3), 1e4)) == pytest.approx(1)
    assert classifier_score(1e4 * np.eye(3)) == pytest.approx(3)


def test_frechet_against_scipy():
    rng = np.random.default_rng(1)
    a, b = (
        rng.standard_normal((200, 6)) @ rng.standard_normal((6, 6)),
        2 * rng.standard_normal((150, 6)) + 0.3,
    )
    ours = frechet_distance(moments(a), moments(b))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    theirs = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_frechet_of_singular_covariances_is_zero_to_rounding():
    direction = np.outer([1.0, 2.0, 0.0], [1.0, 2.0, 0.0])
    same = Moments(np.zeros(3), direction)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-7)


def test_too_few_samples_warn():
    with pytest.warns(UserWarning, match="3 samples for 5 features: the covariance is singular"):
        moments(np.random.default_rng(0).standard_normal((3, 5)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: classifier_score(np.zeros(3)),
            r"logits have shape \(3,\); a classifier must return \(n, classes\)",
        ),
        (lambda: moments(np.zeros((1, 2))), "need .n, features. with n of at least 2"),
        (
            lambda: frechet_distance(Moments(np.zeros(2), np.eye(2)), Moments(np.zeros(3), np.eye(3))),
            "features have 2 and 3 dimensions; use the same classifier",
        ),
        (
            lambda: evaluate_samples(
                lambda s, n: np.zeros((n, 2)),
                Moments(np.zeros(2), np.eye(2)),
                lambda x: (x[:, 0], x),
                num_samples=4,
                num_splits=1,
            ),
            r"the classifier's logits have shape \(4,\) for 4 samples",
        ),
    ],
)
def test_bad_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_identical_data_scores_near_zero_and_noise_far():
    rng = np.random.default_rng(0)
    real = Moments(np.zeros(3), np.eye(3))
    scores = evaluate_samples(
        lambda split, n: rng.standard_normal((n, 3)) + split,
        real,
        lambda x: (x, x),
        num_samples=4000,
        num_splits=2,
    )
    near, far = scores["frechet_classifier_distance"]
    assert near < 0.02
    assert far == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(("count", "dim"), [(40, 200), (200, 40), (2, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.filterwarnings("ignore:.*the covariance is singular")
def test_frechet_keeps_its_digits_with_few_samples(count, dim, scale):
    """Samples stretched about their mean: the distance is ``(s - 1)^2 tr S`` plus the shift."""
    rng = np.random.default_rng(0)
    x = scale * rng.standard_normal((count, dim))
    found = moments(x)
    assert 0 <= frechet_distance(found, found) < 1e-24 * scale**2 * dim
    from_covariance = Moments(found.mean, found.covariance)
    assert 0 <= frechet_distance(from_covariance, found) < 1e-12 * scale**2 * dim
    trace = ((x - x.mean(0)) ** 2).sum() / (count - 1)
    for stretch, shift in ((1 + 1e-4, 0.0), (3.0, 0.0), (1.0, 1e-3), (0.0, 0.0)):
        other = moments(x.mean(0) + stretch * (x - x.mean(0)) + shift)
        expected = (stretch - 1) ** 2 * trace + dim * shift**2
        for pair in ((found, other), (other, found)):
            assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-6)


def test_what_is_not_finite_has_no_score():
    bad = np.ones((4, 3))
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 4 rows of the features are not finite"):
        moments(bad)
    with pytest.raises(ValueError, match="1 of 4 rows of the logits are not finite"):
        classifier_score(bad)
    with pytest.raises(ValueError, match=r"logits have shape \(0, 3\)"):
        classifier_score(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="the covariance has the eigenvalue -1"):
        frechet_distance(Moments(np.zeros(2), np.diag([-1.0, 2.0])), Moments(np.zeros(2), np.eye(2)))


def test_moments_of_files_are_read_in_double_precision():
    """Differences of small integers wrap and their squares in half precision overflow."""
    eye = np.eye(2)
    for dtype, far in ((np.int8, 100), (np.uint8, 200), (np.float16, 500.0)):
        at, zero = np.array([far, 0], dtype), np.zeros(2, dtype)
        assert frechet_distance(Moments(at, eye.astype(dtype)), Moments(zero, eye)) == float(far) ** 2
        assert frechet_distance(Moments(zero, eye), Moments(at, eye)) == float(far) ** 2
    assert frechet_distance(Moments([3.0, 4.0], eye.tolist()), Moments([0.0, 0.0], eye.tolist())) == 25.0


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (Moments(np.array([np.nan, 0]), np.eye(2)), "of the mean are not finite"),
        (Moments(np.zeros(2), np.eye(3)), r"covariance has shape \(3, 3\) for a mean of 2 features"),
        (Moments(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"),
        (Moments(np.zeros(2) + 1j, np.eye(2)), "the mean are complex"),
    ],
)
def test_what_are_no_moments_have_no_distance(of, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(of, of)


def test_a_score_of_logits_at_the_ends_of_the_range():
    assert classifier_score(np.array([[1e308, -1e308], [-1e308, 1e308]])) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sample": lambda split, n: np.ones((n - 2, 2))}, ValueError, "5 samples came for split 0; 7 were"),
        ({"num_splits": 0}, ValueError, "num_splits 0 and batch_size"),
        ({"reference": np.ones((7, 2))}, TypeError, "reference is a ndarray; pass moments"),
    ],
)
def test_scores_are_of_as_many_samples_as_were_asked_for(change, error, message):
    rng = np.random.default_rng(0)
    given = {
        "sample": lambda split, n: rng.standard_normal((n, 2)),
        "reference": moments(rng.standard_normal((9, 2))),
        "classifier": lambda x: (x, x),
        "num_samples": 7,
        "num_splits": 1,
    }
    with pytest.raises(error, match=message):
        evaluate_samples(**given | change)


def test_moments_print_as_a_line():
    found = Moments(np.array([3.0, 4.0]), np.diag([1.0, 2.5]))
    assert repr(found) == "moments of 2 features: |mean| = 5, total variance = 3.5"
