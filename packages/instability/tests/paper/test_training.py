import numpy as np
import pytest
import torch

from instability.paper import training
from instability.paper.data import load_images
from instability.paper.resnet import ResNet
from instability.paper.training import TrainingPlan, make_copies, test_accuracies, train

PLAN = TrainingPlan(
    num_steps=12,
    batch_size=32,
    learning_rate=0.1,
    milestones=(8,),
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
)
IMAGES = load_images("digits", train_size=96)


def copies():
    torch.manual_seed(0)
    return make_copies(ResNet((1,), (4,), activation="swish", channels_in=1), PLAN, [1, 3, 1, 2])


def measure(copies, train_accuracy):
    return [train_accuracy, copies.divergence()]


class KilledError(Exception):
    pass


class Store:
    """A checkpoint that kills the run after its n-th save."""

    def __init__(self, kill_after):
        self.saved, self.kill_after = None, kill_after

    def load(self):
        return self.saved

    def save(self, **arrays):
        self.saved = {key: np.array(value) for key, value in arrays.items()}
        self.kill_after -= 1
        if self.kill_after == 0:
            raise KilledError


@pytest.mark.parametrize("kill_after", [1, 5, 9])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(monkeypatch, kill_after):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", -1.0)
    whole = copies()
    expected = train(whole, IMAGES, PLAN, seed=3, measure=measure, measure_every=2)
    store = Store(kill_after)
    with pytest.raises(KilledError):
        train(copies(), IMAGES, PLAN, seed=3, measure=measure, measure_every=2, checkpoint=store)
    resumed = copies()
    history = train(resumed, IMAGES, PLAN, seed=3, measure=measure, measure_every=2, checkpoint=store)
    np.testing.assert_array_equal(history, expected)
    for i in range(4):
        np.testing.assert_array_equal(resumed.weights(i), whole.weights(i))


def test_null_controls_are_exact_and_the_perturbed_copy_differs():
    history = train(copies(), IMAGES, PLAN, seed=0, measure=measure, measure_every=1)
    assert history.shape == (12, 2, 4)
    assert (history[:, 1, 2:] == 0).all()
    assert history[-1, 1, 1] > 0


def test_scaled_iteration_samples_after_exactly_n_updates():
    seen = []
    train(
        copies(), IMAGES, PLAN, seed=0, measure=lambda c, a: seen.append(counter(c)) or [a], measure_every=4
    )
    assert seen == [4, 8, 12]


def counter(copies):
    return int(copies.models[0].bn1.num_batches_tracked)


def test_milestones_lower_the_rate():
    made = copies()
    train(made, IMAGES, PLAN, seed=0, measure=measure, measure_every=12)
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_accuracies_lie_on_the_grid_of_the_test_set():
    values = test_accuracies(copies(), IMAGES) * len(IMAGES.test_y)
    np.testing.assert_allclose(values, np.round(values))
    assert (values[0] == values).all()


def test_bad_plans():
    with pytest.raises(ValueError, match="must be at least 1"):
        TrainingPlan(num_steps=0, batch_size=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="measure_every=0"):
        train(copies(), IMAGES, PLAN, seed=0, measure=measure, measure_every=0)


test_accuracies.__test__ = False  # the library's function, not a test
