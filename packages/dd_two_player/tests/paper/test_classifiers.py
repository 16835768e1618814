import numpy as np
import pytest

from dd_two_player.paper.classifiers import accuracy, load_classifier, train_classifier
from dd_two_player.paper.data import load_samples


def test_classifier_of_digits_is_good_and_deterministic():
    train, test = load_samples("digits"), load_samples("digits", "test")
    classifier = train_classifier(train, steps=400)
    assert accuracy(classifier, test) > 0.92
    again = train_classifier(train, steps=400)
    np.testing.assert_array_equal(classifier(test.scaled())[0], again(test.scaled())[0])


def test_classifier_names():
    digits = load_samples("digits")
    with pytest.raises(FileNotFoundError, match="'nowhere' is not a SavedModel folder"):
        load_classifier("nowhere", digits)
    with pytest.raises(FileNotFoundError, match="classifier is auto, PATH or tfgan_inception:PATH"):
        load_classifier("inception", digits)
    with pytest.raises(ValueError, match="mog16 has no classifier; scores need images"):
        load_classifier("auto", load_samples("mog16"))
