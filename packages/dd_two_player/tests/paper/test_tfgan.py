"""TF-GAN as a backend: needs the extra ``tfgan``; the session ``test-tfgan`` has it and skips nothing."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from dd_two_player import evaluation
from dd_two_player.gans import tfgan
from dd_two_player.paper import PAPER
from dd_two_player.paper.classifiers import load_classifier
from dd_two_player.paper.cli import COMMANDS
from dd_two_player.paper.data import load_samples
from gdyn_reproduce.cli import dispatch

AGREEMENT = 1e-5  # relative, between TF-GAN's and our formulas in double precision
SINGLE_PRECISION = 2e-4  # relative: a classifier's float32 activations, in other batches


def needs_tfgan(test):
    """Mark a test that runs TensorFlow; its imports warn at many places that are not ours."""
    missing = importlib.util.find_spec("tensorflow_gan") is None
    skip = pytest.mark.skipif(missing, reason="needs the extra tfgan: tensorflow_gan is not installed")
    return pytest.mark.tfgan(skip(pytest.mark.filterwarnings("ignore")(test)))


def write_classifier(path, shape, classes=5, names=("logits", "pool_3")):
    """Write a linear classifier of pooled images as a SavedModel; features come as ``(n, 1, 1, f)``."""
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(0).standard_normal((shape[-1], classes)), tf.float32)

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, *shape], tf.float32)])
        def __call__(self, images):
            pooled = tf.reduce_mean(images, [1, 2])
            return {names[0]: pooled @ weights, names[1]: pooled[:, None, None, :]}

    tf.saved_model.save(Model(), str(path))
    return weights.numpy()


def test_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        ImportError, match=r"TF-GAN needs the extra: pip install 'gdyn-dd-two-player\[tfgan\]'"
    ):
        tfgan.load_backend()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package that, like TF-GAN, fails on import although its evaluation part would not."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "tensorflow_gan"]:
        monkeypatch.delitem(sys.modules, name)
    inner = tmp_path / "tensorflow_gan" / "python"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("raise AttributeError('tf.estimator')")
    (inner / "__init__.py").write_text("raise AttributeError('tf.estimator')")
    monkeypatch.syspath_prepend(tmp_path)
    yield inner
    for name in [n for n in sys.modules if n.partition(".")[0] == "tensorflow_gan"]:
        del sys.modules[name]


def test_parents_that_fail_are_passed_over(package):
    (package / "eval.py").write_text("answer = 42")
    assert tfgan._import_evaluation().answer == 42


def test_a_failed_import_leaves_nothing_behind(package):
    (package / "eval.py").write_text("raise RuntimeError('broken')")
    with pytest.raises(RuntimeError, match="broken"):
        tfgan._import_evaluation()
    assert not [name for name in sys.modules if name.startswith("tensorflow_gan")]


@needs_tfgan
def test_scores_agree_with_ours():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((300, 10))
    assert tfgan.classifier_score(logits) == pytest.approx(evaluation.classifier_score(logits), rel=AGREEMENT)
    a, b = rng.standard_normal((300, 12)), 1.5 * rng.standard_normal((300, 12)) + 0.2
    ours = evaluation.frechet_distance(evaluation.moments(a), evaluation.moments(b))
    assert tfgan.frechet_classifier_distance(a, b) == pytest.approx(ours, rel=AGREEMENT)


@needs_tfgan
def test_a_saved_model_runs_through_tfgan(tmp_path):
    digits = load_samples("digits")
    weights = write_classifier(tmp_path, (8, 8, 1))
    images = digits.scaled(slice(40))
    logits, features = load_classifier(str(tmp_path), digits)(images)
    pooled = images.mean((1, 2))
    np.testing.assert_allclose(features, pooled, rtol=SINGLE_PRECISION, atol=1e-6)
    np.testing.assert_allclose(logits, pooled @ weights, rtol=SINGLE_PRECISION, atol=1e-5)


@needs_tfgan
def test_a_local_inception_model_gets_images_of_its_size(tmp_path):
    """Grey 8x8 images arrive as 299x299 in three equal channels; bilinear interpolation keeps constants."""
    write_classifier(tmp_path, (299, 299, 3))
    images = np.linspace(-1, 1, 4, dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8, 1), np.float32)
    _, features = load_classifier(f"tfgan_inception:{tmp_path}", load_samples("digits"))(images)
    # float32 means of 89 401 pixels
    np.testing.assert_allclose(features, np.repeat(images[:, 0, 0], 3, 1), atol=2e-3)


@needs_tfgan
def test_outputs_of_other_names_are_refused(tmp_path):
    write_classifier(tmp_path, (8, 8, 1), names=("scores", "pool_3"))
    digits = load_samples("digits")
    with pytest.raises(ValueError, match=r"returns \['pool_3', 'scores'\]; it must return logits and pool_3"):
        load_classifier(str(tmp_path), digits)(digits.scaled(slice(4)))


@needs_tfgan
def test_eval_names_scores_of_inception_only(tmp_path, capsys):
    """The command end to end; a local SavedModel that is not Inception must not give IS and FID."""
    out, small = f"out={tmp_path}", ["nets.hidden=[4]", "num_steps=2", "eval_every=0", "sample_every=0"]
    assert dispatch(PAPER, COMMANDS, ["train", *small, out]) == 0
    sizes = ["num_samples=20", "num_splits=2", "batch_size=20"]
    reports = {}
    for prefix, shape in (("", (8, 8, 1)), ("tfgan_inception:", (299, 299, 3))):
        path = tmp_path / f"model{shape[0]}"
        write_classifier(path, shape)
        capsys.readouterr()
        assert dispatch(PAPER, COMMANDS, ["eval", out, *sizes, f"classifier={prefix}{path}"]) == 0
        reports[prefix] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"IS_mean", "IS_std", "FID_mean", "FID_std"} <= set(reports["tfgan_inception:"])
    assert "classifier_score_mean" in reports[""]
    assert not {"IS_mean", "FID_mean"} & set(reports[""])
