import numpy as np
import pytest
import torch

from instability.paper.data import crop_and_flip, load_images


def test_batches_are_a_function_of_seed_and_step():
    images = load_images("digits", train_size=100)
    x, y = images.batch(1, 5, 32)
    again, _ = images.batch(1, 5, 32)
    other, _ = images.batch(2, 5, 32)
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert y.dtype == torch.int64


def test_an_epoch_visits_every_image_once():
    images = load_images("digits", train_size=100)
    labels = torch.cat([images.batch(0, step, 32)[1] for step in range(images.steps_per_epoch(32))])
    assert len(labels) == 100
    np.testing.assert_array_equal(
        np.bincount(labels, minlength=10), np.bincount(images.train_y, minlength=10)
    )


def test_training_images_are_standardised():
    images = load_images("digits", train_size=1200)
    x = torch.cat([images.batch(0, step, 400)[0] for step in range(3)])
    assert abs(float(x.mean())) < 1e-5
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_crop_and_flip_moves_whole_images():
    image = np.zeros((400, 1, 8, 8), np.uint8)
    image[:, 0, 4, 3] = 1
    moved = crop_and_flip(image, np.random.default_rng(0))
    rows, columns = np.nonzero(moved.sum(axis=(0, 1)))
    # A pixel at (4, 3), or mirrored at (4, 4), shifted by -4 to 4 and cut off at the border.
    assert set(rows) == set(range(8))
    assert set(columns) == set(range(8))
    assert set(np.unique(moved.sum(axis=(1, 2, 3)))) <= {0, 1}


def test_crop_and_flip_can_leave_an_image_alone_and_can_mirror_it():
    image = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    seen = {crop_and_flip(image, np.random.default_rng(seed)).tobytes() for seed in range(800)}
    assert image.tobytes() in seen
    assert np.ascontiguousarray(image[..., ::-1]).tobytes() in seen


def test_random_labels_replace_about_their_share():
    clean, noisy = (load_images("digits", train_size=1200, random_labels=r).train_y for r in (0.0, 0.5))
    changed = np.mean(clean != noisy)  # 0.45 expected, standard error 0.014
    assert 0.38 < changed < 0.52


def test_missing_data_says_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar10 not found in .*Nothing was downloaded"):
        load_images("cifar10", root=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"), [({"random_labels": 2.0}, "must lie in"), ({"train_size": 99999}, "does not fit")]
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        load_images("digits16" if "train_size" in options else "digits", **options)


@pytest.mark.data("fashion_mnist")
def test_fashion_mnist_is_the_real_one():
    images = load_images("fashion_mnist")
    assert images.train_x.shape == (60000, 1, 28, 28)
    assert not images.augment


@pytest.mark.data("cifar10_small")
def test_cifar_is_augmented_and_normalised_as_published():
    images = load_images("cifar10_small")
    assert images.augment
    assert images.batch(0, 0, 16)[0].shape == (16, 3, 32, 32)
    np.testing.assert_array_equal(images.mean, (0.507, 0.487, 0.441))
