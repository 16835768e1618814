"""TF-GAN as a backend: needs the extra ``tfgan``."""

import sys

import numpy as np
import pytest

from dd_two_player import evaluation

needs_tfgan = pytest.mark.tfgan
AGREEMENT = 1e-5  # relative, between TF-GAN's and our formulas in double precision


def test_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    from dd_two_player import tfgan

    with pytest.raises(
        ImportError, match=r"TF-GAN needs the extra: pip install 'gdyn-dd-two-player\[tfgan\]'"
    ):
        tfgan.load_backend()


@needs_tfgan
@pytest.mark.filterwarnings("ignore")
def test_scores_agree_with_ours():
    tfgan = pytest.importorskip("dd_two_player.tfgan")
    pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((300, 10))
    assert tfgan.classifier_score(logits) == pytest.approx(evaluation.classifier_score(logits), rel=AGREEMENT)
    a, b = rng.standard_normal((300, 12)), 1.5 * rng.standard_normal((300, 12)) + 0.2
    ours = evaluation.frechet_distance(evaluation.moments(a), evaluation.moments(b))
    assert tfgan.frechet_classifier_distance(a, b) == pytest.approx(ours, rel=AGREEMENT)


@needs_tfgan
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inception", [False, True])
def test_saved_model_runs_through_tfgan(tmp_path, inception):
    tf = pytest.importorskip("tensorflow")
    from dd_two_player.classifiers import load_classifier
    from dd_two_player.data import load_samples

    shape = [None, 299, 299, 3] if inception else [None, 8, 8, 1]
    weights = tf.constant(np.random.default_rng(0).standard_normal((shape[-1], 5)), tf.float32)

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
        def __call__(self, images):
            pooled = tf.reduce_mean(images, [1, 2])
            return {"logits": pooled @ weights, "pool_3": tf.reshape(pooled, [-1, 1, 1, shape[-1]])}

    tf.saved_model.save(Model(), str(tmp_path))
    digits = load_samples("digits")
    name = f"tfgan_inception={tmp_path}" if inception else str(tmp_path)
    logits, features = load_classifier(name, digits)(digits.scaled(slice(4)))
    assert logits.shape == (4, 5)
    assert features.shape == (4, shape[-1])
    if not inception:
        np.testing.assert_allclose(features[:, 0], digits.scaled(slice(4)).mean((1, 2, 3)), atol=1e-5)
