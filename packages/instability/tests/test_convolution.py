import numpy as np
import pytest
import torch

from instability.pde.convolution import ValidCorrelation, checkerboard

AGREEMENT = 1e-12  # relative: both methods round to about 1e-15 times the size of the result


def im2col(image, k):
    rows, columns = image.shape[0] - k + 1, image.shape[1] - k + 1
    return np.array([image[r : r + k, c : c + k].ravel() for r in range(rows) for c in range(columns)])


@pytest.fixture(params=[(9, 9, 3), (8, 13, 4), (11, 6, 6), (7, 7, 1)], ids=str)
def case(request):
    height, width, k = request.param
    rng = np.random.default_rng(0)
    image = rng.normal(size=(height, width))
    return image, k, im2col(image, k), rng


@pytest.mark.parametrize("method", ["fft", "direct"])
def test_apply_and_transpose_equal_the_matrix(case, method):
    image, k, matrix, rng = case
    correlation = ValidCorrelation(image, k, method=method)
    kernel, response = rng.normal(size=(k, k)), rng.normal(size=correlation.output_shape)
    np.testing.assert_allclose(
        correlation.apply(torch.tensor(kernel)).numpy().ravel(), matrix @ kernel.ravel(), atol=AGREEMENT
    )
    np.testing.assert_allclose(
        correlation.transpose(torch.tensor(response)).numpy().ravel(),
        matrix.T @ response.ravel(),
        atol=AGREEMENT,
    )


def test_gram_and_windowed_mean_equal_the_matrix(case):
    image, k, matrix, _ = case
    correlation = ValidCorrelation(image, k)
    np.testing.assert_allclose(correlation.gram(), matrix.T @ matrix, atol=1e-11)
    np.testing.assert_allclose(
        correlation.windowed_mean().numpy().ravel(), matrix.mean(axis=0), atol=AGREEMENT
    )


def test_fft_and_direct_agree_at_paper_scale_values():
    image = checkerboard(64)
    kernel = torch.tensor(np.random.default_rng(1).normal(size=(8, 8)))
    responses = [ValidCorrelation(image, 8, method=m).apply(kernel) for m in ("fft", "direct")]
    torch.testing.assert_close(*responses, rtol=AGREEMENT, atol=AGREEMENT)


def test_checkerboard_gram_is_rank_one_and_exact():
    gram = ValidCorrelation(checkerboard(20), 4).gram()
    s = checkerboard(4).ravel()
    np.testing.assert_array_equal(gram, 17**2 * np.outer(s, s))


@pytest.mark.parametrize(
    ("image", "kernel_size", "message"),
    [
        (np.zeros((4, 4)), 5, "kernel_size 5 is larger than the image"),
        (np.zeros((4, 4)), 0, "at least 1"),
        (np.zeros((2, 4, 4)), 2, "one channel as a matrix"),
        (np.full((4, 4), np.nan), 2, "NaN or infinite"),
    ],
)
def test_bad_images(image, kernel_size, message):
    with pytest.raises(ValueError, match=message):
        ValidCorrelation(image, kernel_size)


def test_unknown_method():
    with pytest.raises(ValueError, match="Allowed: 'fft', 'direct'"):
        ValidCorrelation(np.zeros((4, 4)), 2, method="winograd")
