import numpy as np
import pytest

from instability.paper.images import make_image


def test_noise_depends_on_the_seed_only():
    np.testing.assert_array_equal(make_image("noise", 8, 1), make_image("noise", 8, 1))
    assert (make_image("noise", 8, 1) != make_image("noise", 8, 2)).any()


def test_file_keeps_its_size(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.uint8).reshape(3, 4))
    image = make_image(str(tmp_path / "a.npy"), 99)
    assert image.shape == (3, 4)
    assert image.dtype == np.float64


@pytest.mark.parametrize(
    ("content", "message"),
    [(np.zeros((2, 2, 2)), "one matrix"), (np.array([["a"]]), "one matrix"), (None, "numpy.save")],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "bad.npy"
    path.write_bytes(b"text") if content is None else np.save(path, content)
    with pytest.raises(ValueError, match=message):
        make_image(str(path), 8)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match="Allowed: checkerboard, noise"):
        make_image("chessboard", 8)
