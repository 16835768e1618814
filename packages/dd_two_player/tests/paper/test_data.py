import numpy as np
import pytest

from dd_two_player.gans.mixtures import mixture_modes
from dd_two_player.paper.config import EvalConfig, TrainConfig
from dd_two_player.paper.data import BatchStream, load_samples
from dd_two_player.paper.experiment_config import GanStudyConfig
from dd_two_player.paper.training import run_folder


@pytest.mark.parametrize(
    ("name", "shape"), [("digits", (8, 8, 1)), ("digits16", (16, 16, 1)), ("textures32", (32, 32, 3))]
)
def test_images_are_scaled_to_the_unit_range(name, shape):
    samples = load_samples(name)
    values = samples.scaled(slice(500))
    assert samples.shape == shape
    assert values.dtype == np.float32
    assert -1 <= values.min() < -0.8
    assert 0.5 < values.max() <= 1


def test_mixture_has_the_stated_modes_and_width():
    samples = load_samples("mog16")
    modes = mixture_modes("mog16")
    residual = samples.raw - modes[samples.labels]
    # 40 000 numbers: the standard deviation is within 2 % with probability above 1 - 1e-7
    assert residual.std() == pytest.approx(0.02, rel=0.02)
    assert set(np.unique(modes)) == {-1.5, -0.5, 0.5, 1.5}


def test_an_epoch_uses_every_sample_at_most_once_and_epochs_differ():
    stream = BatchStream(load_samples("digits"), 64, seed=1)
    per_epoch = len(stream.samples) // 64
    epochs = [np.concatenate([stream.indices(e * per_epoch + i) for i in range(per_epoch)]) for e in (0, 1)]
    for epoch in epochs:
        assert len(np.unique(epoch)) == per_epoch * 64
    assert not np.array_equal(*epochs)


def test_step_takes_consecutive_batches():
    stream = BatchStream(load_samples("digits"), 8, 0)
    np.testing.assert_array_equal(stream.step(3, 2)[1], stream.samples.scaled(stream.indices(7)))


def test_bad_input():
    with pytest.raises(ValueError, match=r"Unknown dataset 'digit'.*Did you mean 'digits'"):
        load_samples("digit")
    with pytest.raises(ValueError, match="batch_size is 5000; digits has"):
        BatchStream(load_samples("digits"), 5000, 0)


def test_an_epoch_is_shuffled_once(monkeypatch):
    from dd_two_player.paper import data

    calls = []
    draw = data.generator
    monkeypatch.setattr(data, "generator", lambda *of: calls.append(of) or draw(*of))
    stream = BatchStream(load_samples("digits"), 100, seed=987654)
    found = [stream.indices(i) for i in range(28)]  # 14 batches an epoch
    assert calls == [(987654, "epoch", 0), (987654, "epoch", 1)]
    order = draw(987654, "epoch", 1).permutation(1437)
    np.testing.assert_array_equal(np.concatenate(found[14:]), order[:1400])


def test_own_data_must_be_finite(tmp_path, monkeypatch):
    (tmp_path / "holes.py").write_text("def points():\n    return [[1.0, float('nan')]] * 8\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="dataset holes:points holds values that are not finite"):
        load_samples("holes:points")


@pytest.mark.parametrize(
    ("function", "given"),
    [
        ("os:getcwd", r"returns <U\d+ of shape \(\)"),
        ("builtins:complex", r"returns complex128 of shape \(\)"),
        ("builtins:list", r"returns float64 of shape \(0,\)"),
        ("builtins:dict", "returns no array"),
        ("numpy.random:rand", r"returns float64 of shape \(\)"),
    ],
)
def test_a_function_that_returns_no_samples_is_refused(function, given):
    with pytest.raises(ValueError, match=f"{function} {given}; it must return real samples of shape"):
        load_samples(function)


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    from gdyn_reproduce.data import catalogue

    asked = []
    monkeypatch.setattr(catalogue, "fetch", lambda name, *_: asked.append(name))
    for download in (False, True):
        with pytest.raises(FileNotFoundError, match="Run gdyn-data fetch mnist"):
            load_samples("mnist", root=str(tmp_path), download=download)
    assert asked == ["mnist"]


@pytest.mark.parametrize("config", [TrainConfig, EvalConfig, GanStudyConfig])
def test_what_reads_a_data_folder_may_be_told_to_download(config):
    assert config(download=True).download


def test_where_data_come_from_makes_no_other_training():
    assert run_folder(TrainConfig(download=True)) == run_folder(TrainConfig())
