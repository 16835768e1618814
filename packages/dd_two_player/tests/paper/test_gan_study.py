import dataclasses

import numpy as np
import pytest

from dd_two_player.gans.networks import DISCRIMINATORS, GENERATORS
from dd_two_player.paper import PAPER
from dd_two_player.paper.config import NetsConfig
from dd_two_player.paper.data import load_samples
from dd_two_player.paper.experiment_config import GanStudyConfig
from dd_two_player.paper.experiments.gan_study import estimate, plot
from dd_two_player.paper.figures import NETS
from dd_two_player.paper.gan_study import _mean_ratio, arms_of, build_program, measure, train_setting
from dd_two_player.regularization import Regularization
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import configure


@pytest.fixture(scope="module")
def config():
    return configure(PAPER.figure("gan-simultaneous"), "smoke", arms=["cancel"])


@pytest.fixture(scope="module")
def samples(config):
    return load_samples(config.dataset)


def ends(config, samples, rates, seeds):
    """Return the discriminator's parameters after three steps, one program for all calls."""
    import jax

    program = build_program(config, samples, "cancel")
    draw, found = program.draws(seeds), []
    for rate in rates:
        state = program.start(seeds)
        for i in range(3):
            state, _ = program.advance(state, program.hyper(rate), draw(i))
        leaves = jax.tree.leaves(state.params[0])
        found.append(np.concatenate([np.asarray(leaf).reshape(len(seeds), -1) for leaf in leaves], 1))
    return program, found


@pytest.mark.parametrize("arm", arms_of(GanStudyConfig()))
def test_an_option_is_declared_unread_exactly_where_a_method_does_without_it(arm, samples):
    figure = PAPER.figure("gan-simultaneous")
    config = configure(figure, "smoke", arms=[arm])
    unread = {key for rule in figure.unread if not rule.read(config) for key in rule.keys}
    method, hyper = arms_of(config)[arm], build_program(config, samples, arm).hyper
    counts = {
        name: arms_of(dataclasses.replace(config, **{name: 0.7}))[arm] != method
        for name in ("strength", "adam_rate")
    }
    counts["convention"] = "dd_coeffs_multiplier" in method.get("grad_regularizes", {})
    for name, rates in (("disc_rates", (0.3, 0.2)), ("gen_rates", (0.1, 0.4))):
        counts[name] = hyper(rates).learning_rates != hyper((0.1, 0.2)).learning_rates
    assert counts == {name: name not in unread for name in counts}


RECIPES = {
    "plain": Regularization.leave(),
    "cancel": Regularization.cancel_interaction(),
    "strengthen": Regularization.cancel_and_strengthen(),
    "sga": Regularization.sga(0.3),
    "consensus": Regularization.consensus(0.3),
    "alternating_cancel": Regularization.cancel_interaction(),
    "rk4": Regularization.leave(),
}


@pytest.mark.parametrize(("arm", "recipe"), RECIPES.items())
def test_arms_are_trainings_with_the_recipes_of_the_library(config, samples, arm, recipe):
    import dataclasses

    program = build_program(dataclasses.replace(config, strength=0.3), samples, arm)
    hyper, rule = program.hyper((0.1, 0.2)), program.trainer.rule
    assert hyper.learning_rates == (0.1, 0.2)
    assert (hyper.dd_multiplier, hyper.explicit) == (
        recipe.dd_coeffs_multiplier,
        recipe.explicit_non_dd_coeffs,
    )
    assert rule.mask == recipe.mask()
    assert rule.scheme == {"alternating_cancel": "alternating", "rk4": "runge_kutta"}.get(arm, "simultaneous")
    assert program.steps == config.num_steps // (4 if arm == "rk4" else 1)
    adam = build_program(config, samples, "adam")
    assert adam.hyper((0.1, 0.2)).learning_rates == (config.adam_rate, config.adam_rate)


def test_one_program_serves_all_rates(config, samples):
    program, (small, large) = ends(config, samples, [(0.01, 0.02), (0.1, 0.2)], [0, 1])
    assert program.advance._cache_size() == 1
    assert not np.allclose(small, large, atol=1e-4)


def test_seeds_together_equal_seeds_alone(config, samples):
    """The arithmetic of vmap may sum in another order: float32 rounding over three steps."""
    import dataclasses

    together = ends(config, samples, [(0.1, 0.1)], [0, 1])[1][0]
    alone = dataclasses.replace(config, vmapped=False)
    one = ends(alone, samples, [(0.1, 0.1)], [1])[1][0]
    np.testing.assert_allclose(together[1], one[0], rtol=1e-4, atol=1e-6)


def test_estimate_counts_all_runs(config):
    found = estimate(config)
    assert 0 < found.seconds < 60
    assert found.memory_bytes > 1e7


def test_ratios_keep_how_far_a_failed_run_is():
    """No cap: twice as far is twice as far, also beyond the untrained distance."""
    plain, worse = np.array([[1.0], [4.0]]), np.array([[90.0], [360.0]])
    assert _mean_ratio(worse, plain) == pytest.approx(90.0)
    assert np.isnan(_mean_ratio(np.array([[np.inf]]), np.array([[np.inf]]))).all()


class OneRun:
    """The two things that a study needs of a run folder, with pieces given in advance."""

    def __init__(self, pieces):
        self.pieces = pieces

    def note(self, **facts):
        pass

    def piece(self, name, compute):
        return self.pieces[name.partition("@")[0]]


def test_a_run_that_is_not_finite_counts_as_infinitely_far_and_is_named_in_the_picture():
    study = configure(PAPER.figure("gan-simultaneous"), "smoke", arms=["plain", "cancel"], seeds=[0, 1])
    rng = np.random.default_rng(0)
    piece = {
        "untrained_features": rng.standard_normal((2, 80, 64)),
        "features": rng.standard_normal((2, 80, 64)),
        "logits": rng.standard_normal((2, 80, 10)),
        "pictures": np.zeros((2, 36, 8, 8, 1)),
        "disc_loss": np.ones((2, 3)),
    }
    pieces = {
        "plain": piece | {"finite": np.array([True, True])},
        "cancel": piece | {"finite": np.array([True, False])},
    }
    measured, arrays = measure(study, OneRun(pieces))
    assert measured["cancel_distance_ratio"] == [pytest.approx(1.0), np.inf]
    assert measured["cancel_diverged_share"] >= 0.5
    titles = [ax.get_title() for ax in plot(Result(measured, arrays)).axes]
    assert sum("1 of 2 not finite" in title for title in titles) == 1


class Kept:
    """The checkpoint of a run folder, in memory; stops the run when it is first saved."""

    def __init__(self):
        self.arrays, self.stops = None, True

    def checkpoint(self, name):
        return self

    def load(self):
        return None if self.arrays is None else dict(self.arrays)

    def save(self, **arrays):
        self.arrays = arrays
        if self.stops:
            raise KeyboardInterrupt

    def clear(self):
        self.arrays = None


def test_a_resumed_study_is_the_uninterrupted_one_bit_for_bit(config, samples):
    def classifier(images):
        return images.reshape(len(images), -1)[:, :3], images.reshape(len(images), -1)

    def trained(run):
        program = build_program(config, samples, "cancel")
        return train_setting(
            config, run, samples, classifier, program, program.hyper((0.1, 0.1)), [0, 1], "x"
        )

    whole, resumed = Kept(), Kept()
    whole.stops = False
    expected = trained(whole)
    with pytest.raises(KeyboardInterrupt):
        trained(resumed)
    assert resumed.arrays["done"] == config.chunk
    resumed.stops = False
    for name, array in trained(resumed).items():
        np.testing.assert_array_equal(array, expected[name])


def test_every_network_of_the_package_reads_one_of_its_two_options():
    read_by = {rule.keys[0]: rule.read for rule in NETS}
    for kind, networks in (("disc", DISCRIMINATORS), ("gen", GENERATORS)):
        for name in networks:
            config = GanStudyConfig(nets=NetsConfig(**{"disc": "own:Net", "gen": "own:Net", kind: name}))
            assert bool(read_by["nets.hidden"](config)) == name.endswith("MLP"), name
            assert bool(read_by["nets.convolution"](config)) != name.endswith("MLP"), name
