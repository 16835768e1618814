"""CGD against the published update rule, and its properties."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from networks import GOLDEN, flat, golden, golden_network
from torch import nn

from chaos import CGD, Pruning
from chaos.o2grad import Eigenpairs, LossSurface

CE = nn.CrossEntropyLoss()
UPDATE_TOL = 1e-10
TRAJECTORY_TOL = 1e-9
NETS = ["mlp_relu", "mlp_sigmoid"]


def backward(model, x, y):
    model.zero_grad()
    CE(model(x), y).backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def one_step(name="mlp_relu", form="hessian", **options):
    """Run one step; return (gradient, direction taken, Hessian, optimiser)."""
    model, x, y = golden_network(name)
    options.setdefault("lr", float(golden(f"cgd/{name}/lr")))
    optimizer = CGD(model.parameters(), **options)
    H = LossSurface(model, CE).hessian(None, x, y)
    gradient, before = backward(model, x, y), flat(model)
    pairs = H.eigh()
    forms = {"hessian": H, "pairs": pairs, "dense": H.dense(), "wV": pairs.dense()}
    optimizer.step(forms[form])
    return gradient, (before - flat(model)) / options["lr"], H, optimizer


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("prune_set", ["chaotic", "pos", "neg"])
@pytest.mark.parametrize("k", [None, 0, 1, 3, "n"])
def test_golden_updates(name, prune_set, k):
    n = {"mlp_relu": 53, "mlp_sigmoid": 51}[name]
    k = n if k == "n" else k
    _, direction, _, optimizer = one_step(name, prune_set=prune_set, k=k)
    key = f"cgd/{name}/{prune_set}/k{k}"
    assert (direction - golden(f"{key}/update")).abs().max() < UPDATE_TOL
    assert optimizer.last_discarded == int(golden(f"{key}/pruned_nonzero"))


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("cgd_traj")])
def test_golden_trajectories(key):
    _, name, prune_set, variant = key.split("/")
    k, momentum, start = variant.split("_")
    model, x, y = golden_network(name)
    surface = LossSurface(model, CE)
    optimizer = CGD(
        model.parameters(),
        lr=float(golden(f"cgd/{name}/lr")) / 2,
        momentum=float(momentum.removeprefix("mom")),
        k=None if k == "kNone" else int(k[1:]),
        prune_set=prune_set,
        prune_start=int(start.removeprefix("start")),
    )
    for expected in golden(key):
        backward(model, x, y)
        optimizer.step(surface.hessian(None, x, y) if optimizer.needs_curvature else None)
        assert (flat(model) - expected).abs().max() < TRAJECTORY_TOL


@pytest.mark.parametrize("form", ["hessian", "pairs", "dense", "wV"])
def test_all_forms_of_curvature_agree(form):
    reference = one_step()[1]
    assert (one_step(form=form)[1] - reference).abs().max() < 1e-13


@pytest.mark.parametrize("prune_set", ["chaotic", "pos", "neg"])
def test_projection_properties(prune_set):
    gradient, direction, _, optimizer = one_step(prune_set=prune_set)
    pairs, discard = optimizer.last_pairs, optimizer.last_discard
    assert pairs.coefficients(direction)[discard].abs().max() < 1e-12
    removed = (gradient - direction).square().sum() / gradient.square().sum()
    assert abs(optimizer.last_pruned_fraction - removed) < 1e-12
    null = 0 if prune_set in ("pos", "neg") else pairs.num_zero
    assert optimizer.last_kept + optimizer.last_discarded == len(pairs.values) + null


def test_rotation_within_an_eigenspace_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    V = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    w = torch.tensor([-1.0, -1.0, -1.0, 2.0, 2.0, 3.0], dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    turned = V.clone()
    turned[:, :3] = V[:, :3] @ rotation
    results = []
    for vectors in (V, turned):
        p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
        p.grad = torch.arange(6, dtype=torch.float64)
        CGD([p], lr=0.1, prune_set="neg").step(w=w, V=vectors)
        results.append(p.detach())
    assert (results[0] - results[1]).abs().max() < 1e-15


def test_gamma_zero_is_sgd_bit_for_bit():
    for options in ({}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"maximize": True}):
        ours, x, y = golden_network("mlp_relu")
        theirs, _, _ = golden_network("mlp_relu")
        a = CGD(ours.parameters(), lr=0.1, gamma=0.0, **options)
        b = torch.optim.SGD(theirs.parameters(), lr=0.1, **options)
        for _ in range(3):
            backward(ours, x, y)
            backward(theirs, x, y)
            a.step(LossSurface(ours, CE).hessian(None, x, y))
            b.step()
        assert torch.equal(flat(ours), flat(theirs))


def test_gamma_interpolates():
    gradient, direction, *_ = one_step(prune_set="pos")
    half = one_step(prune_set="pos", gamma=0.5)[1]
    assert (half - (gradient + direction) / 2).abs().max() < 1e-13


def test_weight_decay_is_not_projected():
    model, *_ = golden_network("mlp_relu")
    plain, decayed = one_step(prune_set="pos")[1], one_step(prune_set="pos", weight_decay=0.3)[1]
    assert (decayed - plain - 0.3 * flat(model)).abs().max() < 1e-13


def test_maximize_refers_to_the_minimised_function():
    _, _, _, up = one_step(prune_set="pos", maximize=True)
    _, _, _, down = one_step(prune_set="neg")
    assert torch.equal(up.last_discard, down.last_discard)


def test_rand_draws_distinct_directions_uniformly():
    """600 draws of 2 of 5: each direction 240 times; failure probability of the band below 1e-6."""
    p = nn.Parameter(torch.zeros(8))
    values = torch.tensor([-5.0, -4, -3, -2, -1, 1, 2, 3])
    optimizer = CGD([p], prune_set="neg", k=2, prune_k="rand", generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(8)
    for _ in range(600):
        mask = optimizer.discard_mask(values)
        assert int(mask.sum()) == 2
        counts += mask
    assert counts[5:].sum() == 0
    assert (counts[:5] - 240).abs().max() < 5 * (600 * 0.4 * 0.6) ** 0.5
    optimizer.k = 50
    assert int(optimizer.discard_mask(values).sum()) == 5


def test_noise_lives_in_the_discarded_directions():
    _, direction, _, optimizer = one_step(
        prune_set="neg", noise=True, noise_fac=0.1, generator=torch.Generator().manual_seed(0)
    )
    plain = one_step(prune_set="neg")[1]
    xi = direction - plain
    pairs, discard = optimizer.last_pairs, optimizer.last_discard
    assert xi.norm() > 0
    assert pairs.coefficients(xi)[~discard].abs().max() < 1e-14
    assert (pairs.project(xi, torch.ones_like(discard)) - xi).abs().max() < 1e-14
    everywhere = one_step(
        prune_set="neg", noise=True, noise_on_null=True, generator=torch.Generator().manual_seed(0)
    )[1]
    xi = everywhere - plain
    outside = xi - pairs.project(xi, torch.ones_like(discard))
    assert outside.norm() > 0
    assert pairs.coefficients(xi)[~discard].abs().max() < 1e-14


def test_noise_level_defaults_to_the_mean_gradient():
    """Variance of 30 x |D| draws within five standard errors."""
    gradient, plain, *_ = one_step(prune_set="pos")
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(30):
        _, direction, _, optimizer = one_step(prune_set="pos", noise=True, generator=generator)
        draws.append(optimizer.last_pairs.coefficients(direction - plain)[optimizer.last_discard])
    draws = torch.cat(draws)
    ratio = draws.square().mean() / gradient.abs().mean() ** 2
    assert abs(ratio - 1) < 5 * (2 / len(draws)) ** 0.5


def test_global_rules():
    exponents = torch.tensor([-0.2, -0.1, 0.1, 0.3], dtype=torch.float64)
    pairs = (exponents, torch.eye(4, dtype=torch.float64))
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    cases = {
        ("chaotic", "exponents"): [0, 0, 1, 1],
        ("neg", "exponents"): [0, 0, 1, 1],
        ("pos", "exponents"): [1, 1, 0, 0],
        ("chaotic", "published"): [0, 0, 0, 0],
        ("pos", "published"): [1, 1, 1, 1],
    }
    for (prune_set, rule), expected in cases.items():
        optimizer = CGD(
            [p], prune_set=prune_set, prune_global=True, global_eigenpairs=pairs, global_rule=rule
        )
        p.grad = torch.ones(4, dtype=torch.float64)
        optimizer.step()
        assert optimizer.last_discard.int().tolist() == expected
        assert not optimizer.needs_curvature


def test_state_round_trip_continues_bit_for_bit():
    def make(model):
        return CGD(
            model.parameters(),
            lr=0.1,
            momentum=0.9,
            prune_set="neg",
            prune_start=1,
            k=3,
            prune_k="rand",
            noise=True,
            generator=torch.Generator().manual_seed(3),
        )

    def run(model, optimizer, steps):
        for _ in range(steps):
            backward(model, x, y)
            optimizer.step(LossSurface(model, CE).hessian(None, x, y))

    whole, x, y = golden_network("mlp_relu")
    run(whole, make(whole), 6)
    first, _, _ = golden_network("mlp_relu")
    optimizer = make(first)
    run(first, optimizer, 3)
    second, _, _ = golden_network("mlp_relu")
    second.load_state_dict(first.state_dict())
    again = make(second)
    again.load_state_dict(optimizer.state_dict())
    assert again.num_steps == 3
    run(second, again, 3)
    assert torch.equal(flat(second), flat(whole))


def test_non_finite_leaves_parameters_untouched():
    model, x, y = golden_network("mlp_relu")
    optimizer = CGD(model.parameters())
    before = flat(model)
    gradient = backward(model, x, y)
    with pytest.raises(FloatingPointError, match="not finite"):
        optimizer.step(torch.full((53, 53), torch.nan, dtype=torch.float64))
    next(iter(model.parameters())).grad[0] = torch.inf
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 0"):
        optimizer.step(torch.eye(53, dtype=torch.float64))
    assert torch.equal(flat(model), before)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_set": "negative"}, "Unknown prune_set 'negative'; choose one of chaotic, pos, neg"),
        ({"prune_k": "top"}, "Unknown prune_k 'top'"),
        ({"lr": 0.0}, "lr is 0.0; the learning rate must be positive"),
        ({"noise_fac": 0.0}, "noise_fac is 0.0"),
        ({"k": -1}, "k is -1"),
        ({"prune_start": -2}, "prune_start is -2"),
        ({"prune_start": 1.5}, "prune_start is 1.5"),
        ({"k": True}, "k is True"),
        ({"noise": "yes"}, "noise is 'yes'; pass True or False"),
        ({"prune_global": "yes"}, "prune_global is 'yes'; pass True or False"),
        ({"prune_global": True}, "prune_global needs global_eigenpairs"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CGD([nn.Parameter(torch.zeros(3))], **options)


EYE = torch.eye(3)


@pytest.mark.parametrize(
    ("curvature", "message"),
    [
        (None, "Step 0 prunes .* and needs curvature"),
        (torch.eye(5), "curvature has n = 5; the optimiser's parameters have n = 3"),
        (torch.tensor(1.0), r"shape \(\); a Hessian is \(3, 3\)"),
        (torch.ones(3, 2), r"shape \(3, 2\); a Hessian is \(3, 3\)"),
        (torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]]), "not symmetric"),
        ((torch.ones(3), 2 * EYE), "not orthonormal"),
        ((torch.ones(2), EYE), "eigenvectors are columns, one per value"),
        (Eigenpairs.of(torch.eye(4)), "curvature has n = 4"),
    ],
)
def test_bad_curvature(curvature, message):
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=message):
        CGD([p]).step(curvature)
    assert torch.equal(p, torch.zeros(3))


def test_two_groups_are_refused():
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))]}]
    with pytest.raises(ValueError, match="one parameter group"):
        CGD(groups)


def frozen_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    model[0].requires_grad_(False)
    x = torch.randn(6, 4, dtype=torch.float64)
    return model, x, torch.tensor([0, 1, 0, 1, 1, 0])


@pytest.mark.parametrize("freeze_late", [False, True])
def test_frozen_parameters_have_no_part_in_the_curvature(freeze_late):
    model, x, y = frozen_network()
    model[0].requires_grad_(freeze_late)
    optimizer = CGD(model.parameters(), lr=0.1, prune_set="pos", prune_start=0)
    model[0].requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    loss = nn.CrossEntropyLoss()
    loss(model(x), y).backward()
    flat = lambda w: loss(torch.tanh(model[0](x)) @ w[:6].view(2, 3).T + w[6:], y)  # noqa: E731
    start = torch.cat([p.detach().reshape(-1) for p in model[2].parameters()])
    values, V = torch.linalg.eigh(torch.autograd.functional.hessian(flat, start))
    kept = V[:, values < -1e-12]
    gradient = torch.cat([p.grad.reshape(-1) for p in model[2].parameters()])
    optimizer.step(LossSurface(model, loss).hessian(None, x, y))
    after = [p.detach() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after[:2], before[:2], strict=True))
    moved = torch.cat([(a - b).reshape(-1) for a, b in zip(after[2:], before[2:], strict=True)])
    assert (moved + 0.1 * kept @ (kept.T @ gradient)).abs().max() < 1e-12


def test_parameters_without_a_gradient_are_passed_over_as_by_sgd():
    used, unused = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = CGD([used, unused], lr=0.1, weight_decay=0.5, prune_set="neg")
    used.square().sum().backward()
    H = torch.diag(torch.tensor([2.0, 2.0, 0.0, 0.0], dtype=torch.float64))
    optimizer.step(H)
    assert unused.tolist() == [1.0, 1.0]
    assert used.tolist() == pytest.approx([1 - 0.1 * 2.5] * 2)


def test_options_of_pruning_in_both_forms():
    w = nn.Parameter(torch.ones(2))
    for optimizer in (
        CGD([w], lr=0.1, prune_set="pos", k=3),
        CGD([w], lr=0.1, pruning=Pruning(prune_set="pos", k=3)),
    ):
        assert (optimizer.prune_set, optimizer.k, optimizer.gamma) == ("pos", 3, 1.0)
    with pytest.raises(ValueError, match=r"Pass pruning= or k, not both\."):
        CGD([w], pruning=Pruning(), k=3)
    with pytest.raises(TypeError, match="prune_sett"):
        CGD([w], prune_sett="pos")


def problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3
    loss = torch.nn.CrossEntropyLoss()
    loss(model(x), y).backward()
    return model, LossSurface(model, loss).hessian(None, x, y)


@pytest.mark.parametrize("options", [{}, {"prune_k": "rand", "k": 2}])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_step_as_the_original(how, options):
    model, H = problem()
    generator = torch.Generator().manual_seed(1)
    optimizer = CGD(model.parameters(), lr=0.5, momentum=0.9, prune_set="neg", generator=generator, **options)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # which wraps step
    optimizer.step(H)
    copied = how(optimizer)
    pairs = list(zip(*(each.param_groups[0]["params"] for each in (optimizer, copied)), strict=True))
    for a, b in pairs:
        b.grad = a.grad.clone()
    for each in (optimizer, copied):
        each.step(H)
    assert copied.num_steps == optimizer.num_steps == 2
    assert all(a is not b and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", ["Hessian", "eigenpairs"])
def test_parameters_in_another_order_than_the_hessian_are_refused(form):
    model, H = problem()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = CGD(list(model.parameters())[::-1], lr=0.5, prune_set="neg")
    with pytest.raises(ValueError, match=r"the optimiser has .*in their order"):
        optimizer.step(H if form == "Hessian" else H.eigh())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_second_group_is_refused_later_too():
    model, _ = problem()
    optimizer = CGD(model.parameters(), lr=0.5)
    with pytest.raises(ValueError, match="needs one parameter group"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))]})


def test_hooks_on_steps_run_once_whatever_other_optimisers_exist():
    model, H = problem()
    torch.optim.SGD(model.parameters(), lr=0.1)  # from now on SGD.step runs hooks by itself
    optimizer, calls = CGD(model.parameters(), lr=0.5, prune_set="neg"), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(H)
    assert calls == ["before", "after"]


def test_the_state_of_plain_sgd_goes_on():
    model, H = problem()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plain.step()
    optimizer = CGD(model.parameters(), lr=0.1, momentum=0.9, prune_set="neg")
    optimizer.load_state_dict(plain.state_dict())
    for p in model.parameters():
        assert torch.equal(optimizer.state[p]["momentum_buffer"], plain.state[p]["momentum_buffer"])
    optimizer.step(H)
    assert optimizer.num_steps == 1


def test_a_step_within_autocast_or_with_half_precision_curvature():
    model, H = problem()
    dense, lr = H.dense(), 0.5
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    w, V = torch.linalg.eigh(dense)
    kept = V[:, w > 1e-4 * w.max()]
    expected = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - lr * kept @ (
        kept.T @ gradient
    )
    model.float()
    for p in model.parameters():
        p.grad = p.grad.float()
    optimizer = CGD(model.parameters(), lr=lr, prune_set="neg")
    with torch.autocast("cpu", torch.bfloat16):
        optimizer.step((w.float().where(w.abs() > 1e-4 * w.max(), 0.0), V.float()))
    found = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    assert (found - expected).abs().max() < 1e-6
    optimizer.step(torch.eye(len(w), dtype=torch.bfloat16))
    assert optimizer.last_discarded == 0


@pytest.mark.parametrize(
    "options",
    [
        {"lr": math.nan},
        {"lr": math.inf},
        {"gamma": math.nan},
        {"k": 1.5},
        {"noise_fac": math.nan},
        {"prune_start": math.nan},
    ],
)
def test_options_that_are_no_numbers_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is {next(iter(options.values()))}"):
        CGD([torch.nn.Parameter(torch.zeros(2))], **{"lr": 0.1, **options})


@pytest.mark.parametrize("curvature", [np.eye(2), 3.0, (np.ones(2), np.eye(2))])
def test_what_is_no_curvature_is_refused(curvature):
    w = torch.nn.Parameter(torch.zeros(2))
    w.grad = torch.ones(2)
    with pytest.raises(TypeError, match="pass a Hessian, Eigenpairs, a symmetric tensor, or a pair"):
        CGD([w], lr=0.1).step(curvature)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_eigenvalues_that_are_not_finite_change_nothing(value):
    w = torch.nn.Parameter(torch.zeros(2))
    w.grad = torch.ones(2)
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        CGD([w], lr=0.1).step((torch.tensor([1.0, value]), torch.eye(2)))
    assert not w.any()


def test_pairs_of_some_directions_say_that_the_others_are_pruned():
    model, x, y = golden_network("mlp_relu")
    pairs = LossSurface(model, CE).hessian(None, x, y).eigh()
    backward(model, x, y)
    some = pairs.values[-2:], pairs.vectors[:, -2:]
    with pytest.warns(UserWarning, match=f"V has 2 of {pairs.n} eigenvectors"):
        CGD(model.parameters(), lr=0.1, prune_set="pos").step(some)
    for options in ({"prune_set": "pos", "k": 1}, {"prune_set": "chaotic"}):  # which leave the others alone
        CGD(model.parameters(), lr=0.1, **options).step(some)


@pytest.mark.parametrize("curvature", [torch.eye(2).to_sparse(), torch.eye(2) + 0j])
def test_a_matrix_that_is_not_real_and_dense_is_refused(curvature):
    w = torch.nn.Parameter(torch.zeros(2))
    w.grad = torch.ones(2)
    with pytest.raises(TypeError, match=r"The matrix is (sparse|complex); pass a real dense one"):
        CGD([w], lr=0.1).step(curvature)
    assert not w.any()


def test_a_state_of_another_pruning_is_refused():
    w = torch.nn.Parameter(torch.zeros(2))
    state = CGD([w], lr=0.2, prune_set="neg").state_dict()
    other = CGD([w], lr=0.1)
    with pytest.raises(ValueError, match="is of a CGD with prune_set='neg', and this one has 'chaotic'"):
        other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.1
    same = CGD([w], lr=0.1, prune_set="neg")
    same.load_state_dict(state)
    assert same.param_groups[0]["lr"] == 0.2
