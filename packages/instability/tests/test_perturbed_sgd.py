import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from instability.perturbed_sgd import SLICE, PerturbedSGD, perturb_optimizer
from instability.rounding import Cast

SETTINGS = {
    "nesterov": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
    "heavyball": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
    "plain": {"lr": 0.05, "momentum": 0.0, "weight_decay": 5e-4},
}
DTYPES = {"f32": torch.float32, "f64": torch.float64}


def descend(make, start, gradients):
    """Feed fixed gradients; returns the parameter after each step."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = make([parameter])
    path = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return torch.stack(path)


@pytest.fixture(params=list(DTYPES))
def problem(golden, request):
    dtype = DTYPES[request.param]
    return (
        request.param,
        torch.tensor(golden["opt_p0"]).to(dtype),
        torch.tensor(golden["opt_grads"]).to(dtype),
    )


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("k", [1, 3, 5])
def test_golden_updates(golden, problem, name, k):
    label, start, gradients = problem
    path = descend(lambda p: PerturbedSGD(p, **SETTINGS[name], perturbation=k), start, gradients).numpy()
    expected = golden[f"opt_{name}_{label}_k{k}"]
    tolerance = (
        4 * np.finfo(path.dtype).eps * np.maximum(np.abs(expected), 1)
    )  # the golden note, CPUs without FMA
    assert (np.abs(path - expected) <= tolerance).all()


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_k1_equals_torch_sgd_bit_for_bit(problem, name, dampening):
    _, start, gradients = problem
    settings = SETTINGS[name] | ({} if name == "nesterov" else {"dampening": dampening})
    ours = descend(lambda p: PerturbedSGD(p, **settings), start, gradients)
    theirs = descend(lambda p: torch.optim.SGD(p, **settings, foreach=False), start, gradients)
    assert torch.equal(ours, theirs)


def test_k1_equals_torch_sgd_in_bfloat16(golden):
    start, gradients = (torch.tensor(golden[key]).to(torch.bfloat16) for key in ("opt_p0", "opt_grads"))
    ours = descend(lambda p: PerturbedSGD(p, **SETTINGS["nesterov"]), start, gradients)
    theirs = descend(
        lambda p: torch.optim.SGD(p, **SETTINGS["nesterov"], foreach=False, fused=False), start, gradients
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.cfloat])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_small_tensors_that_are_updated_together_get_the_bits_of_each_alone(dtype, k):
    generator = torch.Generator().manual_seed(0)
    settings = SETTINGS["nesterov"] | {"perturbation": k}
    starts = [
        torch.randn(s, generator=generator).to(dtype) for s in [(3, 3), (17,), (), (0, 3), (300, 301), (5,)]
    ]
    together, alone = ([torch.nn.Parameter(t.clone()) for t in starts] for _ in range(2))
    optimizers = [PerturbedSGD(together, **settings), *(PerturbedSGD([p], **settings) for p in alone)]
    for number in range(4):
        for p, q in zip(together, alone, strict=True):
            if number or p.ndim:  # one of them begins later
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
                p.grad[p.grad.abs() < 0.3] *= 1e-38  # some would be subnormal
                q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(together, alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("k", [1, 3])
def test_a_large_tensor_gets_the_bits_of_its_parts(dtype, momentum, k):
    """It is updated slice by slice; parts of a few thousand entries are not."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(SLICE + 7777, generator=generator, dtype=dtype)
    whole = torch.nn.Parameter(start.clone())
    parts = [torch.nn.Parameter(part.clone()) for part in start.split(6000)]
    settings = {"lr": 0.1, "momentum": momentum, "weight_decay": 5e-4, "perturbation": k}
    optimizers = [PerturbedSGD([whole], **settings), PerturbedSGD(parts, **settings)]
    for _ in range(3):
        whole.grad = torch.randn(start.shape, generator=generator, dtype=dtype)
        whole.grad[:5] *= 1e-38  # these would be subnormal
        for part, gradient in zip(parts, whole.grad.split(6000), strict=True):
            part.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(whole, torch.cat(list(parts)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.cfloat])
@pytest.mark.parametrize("at", ["update", "gradient"])
def test_tensors_that_are_rounded_together_get_the_bits_of_each_alone(dtype, at):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 3), (17,), (), (0, 3), (300, 301), (5,), (SLICE + 77,)]
    starts = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    together, alone = ([torch.nn.Parameter(t.clone()) for t in starts] for _ in range(2))
    optimizers = [
        perturb_optimizer(torch.optim.SGD(params, lr=0.1, momentum=0.9), 3, at=at)
        for params in (together, *([p] for p in alone))
    ]
    for number in range(3):
        for p, q in zip(together, alone, strict=True):
            if number or p.ndim:
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
                p.grad[p.grad.abs() < 0.3] *= 1e-38
                q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(together, alone, strict=True))


OPTIMIZERS = {
    "perturbed_sgd": lambda p, k: PerturbedSGD(
        p, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, perturbation=k
    ),
    "sgd": lambda p, k: perturb_optimizer(torch.optim.SGD(p, lr=0.1, momentum=0.9), k),
    "adam": lambda p, k: perturb_optimizer(torch.optim.AdamW(p, lr=0.01), k, at="gradient"),
}


@pytest.fixture(params=list(OPTIMIZERS))
def make(request):
    return OPTIMIZERS[request.param]


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_powers_of_two_equal_the_plain_optimizer(make, problem, k):
    _, start, gradients = problem
    assert torch.equal(
        descend(lambda p: make(p, k), start, gradients), descend(lambda p: make(p, 1), start, gradients)
    )


@pytest.mark.parametrize("k", [3, 5, 7])
def test_odd_k_differs_by_rounding_only(make, problem, k):
    _, start, gradients = problem
    plain, perturbed = (descend(lambda p, k=k: make(p, k), start, gradients) for k in (1, k))
    assert not torch.equal(plain, perturbed)
    torch.testing.assert_close(
        plain, perturbed, rtol=50 * torch.finfo(start.dtype).eps, atol=50 * torch.finfo(start.dtype).eps
    )


def test_perturbing_the_applied_update_reaches_fewer_entries_than_the_gradient():
    """p_new is a floating-point number: p_old + u (1 + eps) rounds back to it unless |u| is about |p_new|."""
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(4000, generator=generator) for _ in range(2))
    plain = descend(lambda p: torch.optim.SGD(p, lr=0.01), start, [gradient])
    changed = {
        at: (
            descend(
                lambda p, at=at: perturb_optimizer(torch.optim.SGD(p, lr=0.01), 3, at=at), start, [gradient]
            )
            != plain
        )
        for at in ("update", "gradient")
    }
    assert 0 < changed["update"].sum() < changed["gradient"].sum()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copied_run_continues_bit_for_bit(make, problem, k, copier):
    _, start, gradients = problem
    parameter = torch.nn.Parameter(start.clone())
    pair = (parameter, make([parameter], k))
    step(pair, gradients[:3])
    twin = copier(pair)
    step(pair, gradients[3:])
    step(twin, gradients[3:])
    assert twin[0] is not parameter
    assert torch.equal(twin[0], parameter)


@pytest.mark.parametrize("k", [1, 3])
def test_state_dict_round_trip_through_weights_only_load(make, problem, k):
    _, start, gradients = problem
    parameter = torch.nn.Parameter(start.clone())
    first = make([parameter], k)
    step((parameter, first), gradients[:3])
    file = io.BytesIO()
    torch.save({"parameter": parameter.detach(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = torch.nn.Parameter(saved["parameter"].clone())
    second = make([other], k)
    second.load_state_dict(saved["optimizer"])
    step((parameter, first), gradients[3:])
    step((other, second), gradients[3:])
    assert torch.equal(other, parameter)


def step(pair, gradients):
    parameter, optimizer = pair
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def test_groups_have_their_own_perturbation(problem):
    _, start, gradients = problem
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = PerturbedSGD([{"params": [a]}, {"params": [b], "perturbation": 3}], lr=0.1)
    a.grad, b.grad = gradients[0].clone(), gradients[0].clone()
    optimizer.step()
    assert not torch.equal(a, b)


def test_closure_and_missing_gradients(make):
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = make([used, unused], 3)

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss.item()

    assert float(optimizer.step(closure)) == 3.0
    assert torch.equal(unused, torch.ones(3))
    assert not torch.equal(used, torch.ones(3))


def test_schedulers_drive_a_wrapped_optimizer():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = perturb_optimizer(torch.optim.SGD([parameter], lr=1.0), 3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    parameter.grad = torch.zeros(2)
    optimizer.step()
    scheduler.step()
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.5


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = PerturbedSGD(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="does not support sparse gradients"):
        optimizer.step()


def test_any_rounding_perturbation_can_be_used(problem):
    _, start, gradients = problem
    path = descend(
        lambda p: perturb_optimizer(torch.optim.SGD(p, lr=0.1), Cast(torch.bfloat16)), start, gradients
    )
    plain = descend(lambda p: torch.optim.SGD(p, lr=0.1), start, gradients)
    assert 0 < (path - plain).abs().max() < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perturbation": 0}, "pass an int >= 1"),
        ({"perturbation": -1}, "pass an int >= 1"),
        ({"perturbation": True}, "pass an int >= 1"),
        ({"perturbation": 1.5}, "pass an int >= 1"),
        ({"perturbation": 2**140}, "fits 64 bits"),
        ({"lr": -0.1}, "lr=-0.1 is not allowed"),
        ({"lr": float("nan")}, "lr=nan is not allowed"),
        ({"momentum": -1.0}, "momentum=-1.0 is not allowed"),
        ({"weight_decay": float("inf")}, "weight_decay=inf is not allowed"),
        ({"nesterov": True}, "nesterov=True needs momentum > 0 and dampening 0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov=True needs"),
    ],
)
def test_bad_hyperparameters(settings, message):
    with pytest.raises(ValueError, match=message):
        PerturbedSGD([torch.nn.Parameter(torch.ones(1))], **({"lr": 0.1} | settings))


@pytest.mark.parametrize("k", [0, -1, True, 1.5, 2**63])
def test_perturb_optimizer_checks_k(k):
    with pytest.raises(ValueError, match="pass an int >= 1"):
        perturb_optimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), k)


def test_unknown_place():
    with pytest.raises(ValueError, match="Allowed: 'update', 'gradient'"):
        perturb_optimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), 3, at="loss")


def test_perturb_optimizer_needs_an_optimizer():
    with pytest.raises(TypeError, match=r"pass a torch\.optim\.Optimizer"):
        perturb_optimizer("sgd", 3)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
    ("start", "rate", "gradient"), [(1.0, 1.0, math.inf), (3e38, 2.0, 3e38)], ids=["infinite", "overflow"]
)
def test_updates_beyond_the_largest_number_are_the_plain_optimisers(k, start, rate, gradient):
    """As for an infinite gradient, or a step from one end of float32 to the other."""
    found = []
    for wrap in (lambda o: o, lambda o: perturb_optimizer(o, k, at="update")):
        weight = torch.nn.Parameter(torch.tensor([start, 1.0]))
        optimizer = wrap(torch.optim.SGD([weight], lr=rate))
        weight.grad = torch.tensor([gradient, 0.5])
        optimizer.step()
        found.append(weight.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("at", ["update", "gradient"])
def test_a_perturbation_that_makes_infinity_is_refused(at):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = perturb_optimizer(torch.optim.SGD([weight], lr=1.0), Cast(torch.float16), at=at)
    weight.grad = torch.tensor([1e5])  # beyond float16
    with pytest.raises(FloatingPointError, match=r"Cast\(torch.float16\) made a finite number infinite"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["gradient", "weight", "both"])
def test_powers_of_two_change_no_bit_whatever_the_layout(dtype, layout):
    """Torch multiplies and adds at once where strides are equal, and rounds in between where they differ."""
    generator = torch.Generator().manual_seed(0)

    def draw(is_turned):
        values = torch.randn(8, 16, 3, 3, generator=generator).to(dtype)
        return values.to(memory_format=torch.channels_last) if is_turned else values

    start = [draw(layout != "gradient") for _ in range(3)]
    gradients = [[draw(layout != "weight") for _ in start] for _ in range(10)]

    def trained(k):
        weights = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = PerturbedSGD(weights, lr=0.1, perturbation=k, weight_decay=5e-4)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        return weights

    plain = trained(1)
    for k in (2, 4):
        assert all(torch.equal(a, b) for a, b in zip(plain, trained(k), strict=True))


class InPlace:
    """A perturbation of one's own that writes into what it is given."""

    def __call__(self, direction, rate):
        return direction.mul_(1.5), rate


@pytest.mark.parametrize("at", ["update", "gradient"])
def test_a_perturbation_of_ones_own_may_work_in_place(at):
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, 2.0, 4.0])
    perturb_optimizer(torch.optim.SGD([p], lr=1.0), InPlace(), at=at).step()
    assert p.tolist() == [-1.5, -3.0, -6.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: PerturbedSGD(p, lr=1e-3, momentum=0.9, perturbation=3),
        lambda p: perturb_optimizer(torch.optim.SGD(p, lr=1e-3), 3, at="gradient"),
        lambda p: perturb_optimizer(torch.optim.SGD(p, lr=1e-3), 3, at="update"),
    ],
)
def test_no_memory_is_piled_up_where_other_parameters_are_trained_in_each_step(make):
    """Stochastic depth: as many sets of parameters as there are steps."""
    parameters = [nn.Parameter(torch.randn(20 + i, 20)) for i in range(24)]
    optimizer = make(parameters)

    def step():
        for p in parameters:
            p.grad = torch.randn_like(p) if torch.rand(()) < 0.5 else None
        optimizer.step()
        return sum(t.untyped_storage().nbytes() for t in optimizer._rooms._kept.values())

    whole = sum(p.nbytes for p in parameters)
    assert max(step() for _ in range(400)) <= 3 * whole
    assert len(optimizer._rooms._joined) <= 256
