"""The plain loop: torch's own SGD, resumption, many copies at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from chaos.models import mlp, seeded
from chaos.paper.data import load_data
from chaos.paper.training import (
    Plan,
    accuracy,
    advance_together,
    flat_parameters,
    set_parameters,
    track,
    train,
)
from gdyn_common.storage import Checkpoint

DATA = load_data("digits", dtype=torch.float64)
PLAN = Plan(seed=0, num_steps=30, learning_rate=0.05, evaluate_every=10, checkpoint_every=8)


def network(seed=0):
    return seeded(lambda: mlp(64, 4), seed, torch.float64)


def sgd(model, plan):
    """The loop that everybody writes."""
    optimizer = torch.optim.SGD(model.parameters(), plan.learning_rate, plan.momentum)
    batches = DATA.batches(plan.seed, plan.batch_size)
    for _ in range(plan.num_steps):
        rows = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(DATA.x_train[rows]), DATA.y_train[rows]).backward()
        optimizer.step()
    return flat_parameters(model)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_train_is_sgd_bit_for_bit(momentum):
    plan = dataclasses.replace(PLAN, momentum=momentum)
    history = train(network(), DATA, plan)
    assert np.array_equal(history["parameters"], sgd(network(), plan).numpy())
    assert history["step"].tolist() == [0, 10, 20, 30]
    model = network()
    assert history["accuracy"][0] == accuracy(model, DATA.x_test, DATA.y_test)
    assert (history["pruned_fraction"] == 0).all()


def test_pruning_that_never_starts_is_sgd():
    late = dataclasses.replace(PLAN, prune_set="chaotic", prune_start=1000)
    assert np.array_equal(train(network(), DATA, late)["parameters"], sgd(network(), PLAN).numpy())


def test_without_chaotic_and_without_negative_directions_agree():
    """No eigenvalue exceeds 2/h here, so the sets differ by the null space, which holds no gradient."""
    a, b = (train(network(), DATA, dataclasses.replace(PLAN, prune_set=name)) for name in ("chaotic", "neg"))
    assert np.abs(a["parameters"] - b["parameters"]).max() < 1e-12
    assert 0 < a["pruned_fraction"][-1] < 1


@pytest.mark.parametrize("prune_set", [None, "pos"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, prune_set, momentum):
    plan = dataclasses.replace(PLAN, prune_set=prune_set, momentum=momentum)
    whole = train(network(), DATA, plan)
    checkpoint = Checkpoint(tmp_path / "c.npz")
    train(network(), DATA, dataclasses.replace(plan, num_steps=19), checkpoint)
    resumed = train(network(), DATA, plan, checkpoint)
    assert all(np.array_equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_killed_tracker_ends_with_the_same_bits(tmp_path, momentum):
    plan = dataclasses.replace(PLAN, momentum=momentum, num_steps=20)
    _, whole = track(network(), DATA, plan, [5, 20])
    checkpoint = Checkpoint(tmp_path / "c.npz")
    track(network(), DATA, dataclasses.replace(plan, num_steps=11), [5, 20], checkpoint)
    _, resumed = track(network(), DATA, plan, [5, 20], checkpoint)
    assert np.array_equal(whole["exponents"], resumed["exponents"])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_copies_advanced_together_equal_single_runs(momentum):
    plan = dataclasses.replace(PLAN, momentum=momentum)
    starts = torch.stack([flat_parameters(network(seed)) for seed in range(3)])
    *_, (step, together) = advance_together(network(), starts, DATA, plan)
    assert step == 30
    for seed in range(3):
        assert (together[seed] - sgd(network(seed), plan)).abs().max() < 1e-12  # batched products round


def test_parameters_round_trip():
    model, flat = network(0), flat_parameters(network(1))
    set_parameters(model, flat)
    assert torch.equal(flat_parameters(model), flat)
    flat.zero_()
    assert flat_parameters(model).abs().max() > 0  # a copy


def test_divergence_names_the_step():
    plan = dataclasses.replace(PLAN, learning_rate=1e300, num_steps=40)
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+; lower the learning rate"):
        train(network(), DATA, plan)
