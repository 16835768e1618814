"""Exact exponents against closed forms, other definitions and matrices."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from instability import (
    Copies,
    PerturbedSGD,
    lyapunov_estimate,
    lyapunov_exponents,
    perturb_optimizer,
    training_map,
)
from instability.exponents.tangent import has_tangent
from instability.pde.activations import swish
from instability.pde.reduced_map import ReducedMap


def quadratic(curvatures):
    """A module whose loss is ``sum(h w^2) / 2``."""
    model = nn.Linear(len(curvatures), 1, bias=False).double()
    h = torch.tensor(curvatures, dtype=torch.float64)
    return model, lambda m, _: (h * m.weight.square()).sum() / 2


def test_logistic_map_at_four_has_log_two():
    found = lyapunov_exponents(
        lambda s, _: {"x": 4 * s["x"] * (1 - s["x"])},
        torch.tensor([0.3], dtype=torch.float64),
        num_steps=3000,
        transient=100,
    )
    assert found.exact
    assert found.exponents[0] == pytest.approx(math.log(2), abs=3 * found.error[0])
    assert found.error[0] < 0.02
    assert found.amplifies
    assert "rounding errors grow" in found.summary()


@pytest.mark.parametrize("rate", [0.03, 0.06, 0.07])
def test_reduced_map(rate):
    """The same orbit, its slope once by hand and once by automatic differentiation, to 1e-3."""
    reduced = ReducedMap(32, 256, 20.0)
    share, taps = reduced.positive_share, reduced.num_taps

    def loss(c):
        return F.softplus(-(share * swish(c) + (1 - share) * swish(-c))) + 10.0 * c.square() / taps

    def step(state, _):
        with torch.enable_grad():
            c = state["x"].clone().requires_grad_()
            slope = torch.autograd.grad(loss(c).sum(), c)[0]
        return {"x": state["x"] - rate * taps * slope}

    start = torch.tensor([1.0], dtype=torch.float64)
    found = lyapunov_exponents(step, start, num_steps=400, transient=100)
    exact = reduced.lyapunov_exponent(rate, num_steps=400, transient=100)
    # A chaotic orbit is another one after 60 steps, so there the bars of both decide.
    tolerance = 1e-3 if exact < 0 else 4 * found.error[0]
    assert found.exponents[0] == pytest.approx(exact, abs=tolerance)


def test_all_exponents_of_a_linear_map_add_up_to_the_log_determinant():
    rng = np.random.default_rng(0)
    matrix = torch.from_numpy(rng.normal(size=(4, 4)))
    # Tangents do not depend on the state: it is kept at zero, where nothing overflows.
    found = lyapunov_exponents(
        lambda s, _: {"x": matrix @ s["x"]}, torch.zeros(4, dtype=torch.float64), num_steps=400, k=4
    )
    assert found.exponents.sum() == pytest.approx(torch.linalg.slogdet(matrix).logabsdet.item(), rel=1e-12)
    moduli = np.sort(np.log(np.abs(np.linalg.eigvals(matrix.numpy()))))[::-1]
    np.testing.assert_allclose(found.exponents, moduli, atol=0.01)


def update_matrix(h, rate, momentum, nesterov):
    """Of (w, buffer) in one step of torch's SGD on a quadratic of curvature h."""
    buffer = np.array([h, momentum])
    used = np.array([h, 0.0]) + momentum * buffer if nesterov else buffer
    return np.array([np.array([1.0, 0.0]) - rate * used, buffer])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("rate", "stable"), [(0.1, True), (1.5, False)])
def test_momentum_on_a_quadratic_has_the_eigenvalues_of_its_update(rate, stable, nesterov):
    curvatures, momentum = [3.0, 0.5], 0.9
    model, loss_of = quadratic(curvatures)
    with torch.no_grad():
        model.weight.zero_()  # the tangent is the same everywhere, and at zero nothing overflows
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, nesterov=nesterov)
    found = lyapunov_exponents(*training_map(model, optimizer, loss_of), num_steps=80, k=4, transient=30)
    moduli = [
        abs(value)
        for h in curvatures
        for value in np.linalg.eigvals(update_matrix(h, rate, momentum, nesterov))
    ]
    np.testing.assert_allclose(found.exponents, np.sort(np.log(moduli))[::-1], atol=0.05)
    assert found.exponents.sum() == pytest.approx(np.log(moduli).sum(), rel=1e-9)
    assert found.amplifies is not stable


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "amsgrad-adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "maximize": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "factored": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "wrapped": lambda p: perturb_optimizer(torch.optim.Adam(p, lr=0.01), 3),
    "perturbed": lambda p: PerturbedSGD(p, lr=0.05, momentum=0.9),
}


def network():
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 2
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, lambda m, n: F.cross_entropy(m(x[n % 3 :: 3]), y[n % 3 :: 3])  # another batch in each step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_map_is_the_optimisers_own_step_and_its_tangent_is_exact(name):
    """Ten steps equal torch's."""
    model, loss_of = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    step, state = training_map(model, optimizer, loss_of)
    found = lyapunov_exponents(step, state, num_steps=10)
    assert found.exact is (name != "factored")  # it takes norms as Python numbers
    for number in range(11):  # the map makes one step at the start
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()
    for key, weight in model.named_parameters():
        torch.testing.assert_close(found.state[key], weight.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"wrapped", "foreach", "fused"}))
def test_the_tangent_is_that_of_the_real_optimiser(name):
    """Its state is written, it makes a step, and differences of what comes out follow the direction."""

    def loss_of(m, _):
        return network()[1](m, 0)

    def stepped(values: torch.Tensor, number: int) -> torch.Tensor:
        model, optimizer = begin()
        named = dict(model.named_parameters())
        for _ in range(number + 1):  # for the counters
            update(model, optimizer)
        parts = [
            (named[k], None) if "/" not in k else (named[k.split("/")[0]], k.split("/")[1]) for k in state
        ]
        tensors = [p.data if key is None else optimizer.state[p][key] for p, key in parts]
        for tensor, value in zip(tensors, values.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(value.reshape(tensor.shape))
        update(model, optimizer)
        tensors = [p.data if key is None else optimizer.state[p][key] for p, key in parts]
        return torch.cat([t.reshape(-1) for t in tensors])

    def begin():
        model = network()[0]
        return model, OPTIMIZERS[name](model.parameters())

    def update(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, 0).backward()
        optimizer.step()

    step, state = training_map(*begin(), loss_of)
    now = torch.cat([v.reshape(-1) for v in state.values()])
    direction = torch.randn(len(now), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.linalg.qr(direction)[0][:, 0]
    growth = []
    for number in range(4):
        h = 1e-9  # below every second moment
        direction = (stepped(now + h * direction, number) - stepped(now - h * direction, number)) / (2 * h)
        growth.append(float(direction.norm().log()))
        direction, now = direction / direction.norm(), stepped(now, number)
    found = lyapunov_exponents(step, state, num_steps=4)
    np.testing.assert_allclose(found.growth[:, 0], growth, atol=2e-4)


@pytest.mark.parametrize("kind", ["silu", "attention", "float32 inside"])
def test_what_large_models_are_made_of_has_an_exact_tangent(kind):
    """SiLU and attention have no forward derivative of their gradient; losses compute in float32."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 3, dtype=torch.float64), torch.tensor([0, 1])
    model, rate = nn.Linear(3, 3).double(), 0.5

    def loss_at(weight, bias):
        h = F.linear(x, weight, bias)
        if kind == "attention":
            h = F.scaled_dot_product_attention(h, h, h, is_causal=True)
        logits = F.silu(h).mean(1)
        return F.cross_entropy(logits.float() if kind == "float32 inside" else logits, y)

    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    step, state = training_map(model, optimizer, lambda m, _: loss_at(m.weight, m.bias))
    found = lyapunov_exponents(step, state, num_steps=1, k=12)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        blocks = torch.autograd.functional.hessian(loss_at, tuple(state.values()))
    hessian = torch.cat(
        [
            torch.cat([b.reshape(len(r.flatten()), -1) for b in row], 1)
            for r, row in zip(state.values(), blocks, strict=True)
        ]
    )
    exact = torch.linalg.slogdet(torch.eye(12, dtype=torch.float64) - rate * hessian).logabsdet
    assert found.exact
    assert found.growth.sum() == pytest.approx(exact.item(), rel=1e-5 if kind == "float32 inside" else 1e-9)


def test_a_tangent_that_is_wrong_by_half_a_percent_is_not_called_exact():
    """Adafactor takes norms as Python numbers, which single precision does not hide."""
    torch.manual_seed(0)
    x, model = torch.randn(12, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    step, state = training_map(model, optimizer, lambda m, _: m(x).square().mean())
    assert not lyapunov_exponents(step, state, num_steps=1).exact


def test_kinks_in_single_precision_are_not_taken_for_jumps():
    """No two differences of this step in single precision agree: of kinks, and below them of rounding."""
    torch.manual_seed(0)
    x, y = torch.randn(128, 64), torch.arange(128) % 10
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step, state = training_map(model, optimizer, lambda m, _: F.cross_entropy(m(x), y))
    assert lyapunov_exponents(step, state, num_steps=1).exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_tangent_lost_in_a_small_part_of_the_state_is_seen(dtype, keeps):
    """The second moments are a millionth of the weights, and by differences both shrink by a tenth."""

    def step(s, _):
        v = s["v"] if keeps else s["v"].detach()
        return {"w": 0.9 * s["w"], "v": 0.9 * v}

    state = {"w": torch.ones(50, dtype=dtype), "v": torch.full((50,), 1e-6, dtype=dtype)}
    generator = torch.Generator().manual_seed(0)
    along = {n: torch.randn(50, generator=generator).to(v) * v for n, v in state.items()}
    assert has_tangent(step, state, along, 0) is keeps


def test_a_step_that_rounds_to_half_precision_has_no_tangent():
    """Newton and Schulz's iteration in Muon, and a loss under autocast."""
    model, loss_of = network()
    muon = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.02)
    with pytest.raises(ValueError, match=r"computes in torch\.bfloat16, whose steps have no tangent"):
        training_map(model, muon, loss_of)
    model, x = model.float(), torch.randn(4, 3)

    def coarse(m, _):
        with torch.autocast("cpu", torch.bfloat16):
            return m(x).square().mean()

    with pytest.raises(ValueError, match=r"computes in torch\.bfloat16"):
        training_map(model, torch.optim.SGD(model.parameters(), lr=0.1), coarse)


def test_frozen_layers_may_be_in_half_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4).bfloat16().requires_grad_(False), nn.Linear(4, 1).double())
    x = torch.randn(5, 3, dtype=torch.bfloat16)
    features = model[0](x).double()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    found = lyapunov_exponents(
        *training_map(model, optimizer, lambda m, _: m[1](m[0](x).double()).square().mean()), num_steps=3, k=5
    )
    inputs = torch.cat([features, torch.ones(5, 1, dtype=torch.float64)], dim=1)
    hessian = 2 * inputs.T @ inputs / 5
    exact = 3 * torch.linalg.slogdet(torch.eye(5, dtype=torch.float64) - 0.1 * hessian).logabsdet
    assert found.growth.sum() == pytest.approx(exact.item(), rel=1e-9)


def test_a_map_that_jumps_has_no_tangent():
    def jumps(state, _):  # a staircase as fine as the differences
        return {"x": torch.from_numpy(np.floor(state["x"].detach().numpy() * 1e9) / 1e9)}

    with pytest.raises(ValueError, match=r"differences of the step do not settle"):
        lyapunov_exponents(jumps, torch.tensor([0.3, 0.7], dtype=torch.float64), num_steps=3)


@pytest.mark.parametrize("name", ["momentum", "adam", "factored"])
def test_equal_to_the_separation_of_copies(name):
    model, batches = network()

    def loss_of(m, _):
        return sum(batches(m, n) for n in range(3)) / 3

    make = OPTIMIZERS[name]
    step, state = training_map(model, make(model.parameters()), loss_of)
    # Both start in a direction of their own; what is left of that after the transient falls like 1 / steps.
    found = lyapunov_exponents(step, state, num_steps=200, transient=200)
    growth = lyapunov_estimate(Copies(model, make, (1, 1)), [lambda m: loss_of(m, 0)] * 400, separation=1e-7)
    assert growth[200:].mean() == pytest.approx(found.exponents[0], abs=max(4 * found.error[0], 2e-3))


def test_dropout_draws_the_same_mask_for_state_and_tangent_and_anew_in_each_step():
    masks = []

    class Noted(nn.Module):
        def forward(self, x):
            mask = F.dropout(torch.ones_like(x.detach()), 0.5)
            masks.append(mask)
            return x * mask

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20), Noted(), nn.Linear(20, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(5, 3, dtype=torch.float64)
    step, state = training_map(model, optimizer, lambda m, _: m(x).square().mean())
    masks.clear()
    found = lyapunov_exponents(step, state, num_steps=3, k=2)
    assert found.exact
    assert len(masks) == 6
    assert all(torch.equal(masks[i], masks[i + 1]) for i in (0, 2, 4))
    assert not torch.equal(masks[0], masks[2])


def test_accumulated_and_clipped_steps():
    model, loss_of = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step, state = training_map(
        model,
        optimizer,
        lambda m, n: loss_of(m, n) + 0.5 * loss_of(m, n),
        before_step=lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.01, foreach=False),
    )
    found = lyapunov_exponents(step, state, num_steps=5)
    assert found.exact
    for number in range(6):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        (0.5 * loss_of(model, number)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
    torch.testing.assert_close(found.state["0.weight"], model[0].weight.detach(), rtol=1e-10, atol=1e-12)


class Careless(torch.optim.Optimizer):
    """Gradient descent that writes past the graph, as old code does."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad.data, alpha=-group["lr"])


class Lion(torch.optim.Optimizer):
    """As lion-pytorch's: it keeps attributes beside its defaults."""

    def __init__(self, params, lr, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})
        self.update_fn = lambda p, grad, m, lr, b1: p.add_(torch.sign(b1 * m + (1 - b1) * grad), alpha=-lr)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                self.update_fn(p, p.grad, m, group["lr"], group["betas"][0])
                m.mul_(group["betas"][1]).add_(p.grad, alpha=1 - group["betas"][1])


def test_an_optimiser_keeps_the_attributes_that_its_defaults_do_not_name():
    """The step follows the sign alone, so the weights have exponent 0, and the averages log 0.99.

    Each by itself settles over hundreds of steps; their sum, the log of the determinant, is exact in each.
    """
    model, loss_of = quadratic([5.0, 2.0])
    found = lyapunov_exponents(
        *training_map(model, Lion(model.parameters(), 1e-3), loss_of), num_steps=20, k=4
    )
    assert found.exact
    np.testing.assert_allclose(found.growth.sum(axis=1), 2 * math.log(0.99), rtol=1e-9)
    for optimizer in (Lion(model.parameters(), 1e-3), perturb_optimizer(Lion(model.parameters(), 1e-3), 3)):
        Copies(model, optimizer, (1, 1, 2)).step(lambda m: loss_of(m, 0))


class Delegating(torch.optim.Optimizer):
    """As accelerate's AcceleratedOptimizer: it never calls the constructor of its class."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        self.optimizer.step(closure)


def test_an_optimiser_that_only_delegates_is_refused():
    model, loss_of = quadratic([5.0])
    optimizer = Delegating(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="Delegating, which only wraps another; pass the torch optimiser ins"):
        training_map(model, optimizer, loss_of)
    with pytest.raises(TypeError, match="Delegating, which only wraps another"):
        Copies(model, optimizer)


def test_a_step_that_loses_its_tangent_falls_back_to_differences():
    model, loss_of = quadratic([5.0])
    step, state = training_map(model, Careless(model.parameters(), 0.1), loss_of)
    found = lyapunov_exponents(step, state, num_steps=5)
    assert not found.exact
    assert np.exp(found.exponents[0]) == pytest.approx(0.5, rel=1e-6)
    assert "central differences" in found.summary()


def test_the_model_and_its_optimiser_are_left_alone():
    model, loss_of = network()
    optimizer = torch.optim.Adam(model.parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lyapunov_exponents(*training_map(model, optimizer, loss_of), num_steps=2)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not optimizer.state


def test_frozen_parameters_have_no_part():
    model, loss_of = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, state = training_map(model, optimizer, loss_of)
    assert set(state) == {"2.weight", "2.bias"}


def test_a_run_that_blows_up_names_the_step():
    with pytest.raises(FloatingPointError, match="step 4"):
        lyapunov_exponents(
            lambda s, _: {"x": s["x"] ** 3}, torch.tensor([1e10], dtype=torch.float64), num_steps=50
        )


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 2}, {"num_steps": 5.0}, {"transient": -1}])
def test_bad_arguments(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; pass a whole number"):
        lyapunov_exponents(lambda s, _: s, torch.zeros(1), **{"num_steps": 1} | settings)


def test_lbfgs_is_refused():
    model, loss_of = network()
    with pytest.raises(TypeError, match="use SensitivityProbe"):
        training_map(model, torch.optim.LBFGS(model.parameters()), loss_of)


def test_what_an_optimiser_keeps_in_another_shape_is_part_of_the_state():
    model, loss_of = network()
    _, state = training_map(model, torch.optim.Adafactor(model.parameters()), loss_of)
    assert {key.partition("/")[2] for key in state if key.startswith("0.weight")} == {
        "",
        "row_var",
        "col_var",
    }


def test_any_name_of_a_parameter():
    model = nn.ParameterDict({"a/b": nn.Parameter(torch.ones(2, dtype=torch.float64))})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    step, state = training_map(model, optimizer, lambda m, _: 2.5 * m["a/b"].square().sum())
    found = lyapunov_exponents(step, state, num_steps=40, k=4)
    moduli = np.abs(np.linalg.eigvals(update_matrix(5.0, 0.1, 0.5, False)))
    assert found.exponents.sum() == pytest.approx(2 * np.log(moduli).sum(), rel=1e-9)


class Counted(Careless):
    """It keeps a count in its group, where no state shows it."""

    def step(self, closure=None):
        group = self.param_groups[0]
        group["count"] = group.get("count", 0) + 1
        group["lr"] = 0.1 / group["count"]
        super().step()


class Scaled(Careless):
    """Its rate depends on the gradients seen so far, and is one number."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            total = self.state[p].get("total", torch.zeros((), dtype=p.dtype)) + p.grad.square().sum()
            self.state[p]["total"] = total
            p.data.add_(p.grad, alpha=-0.1 / (1 + float(total.detach())))


@pytest.mark.parametrize(("kind", "message"), [(Counted, "does not follow"), (Scaled, "total depends on")])
def test_what_is_kept_elsewhere_is_refused(kind, message):
    model, loss_of = network()
    with pytest.raises(ValueError, match=message):
        training_map(model, kind(model.parameters(), 0.1), loss_of)


def test_a_power_iteration_that_goes_on_from_step_to_step_is_refused():
    """It has converged before the first step, and its vectors are no part of the state."""
    torch.manual_seed(0)
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    model = nn.Sequential(linear, nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    with pytest.raises(ValueError, match="does not follow"):
        training_map(model, optimizer, lambda m, _: nn.functional.cross_entropy(m(x), y))


def test_parameters_of_no_model_are_refused():
    model, loss_of = network()
    outside = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="not the model's"):
        training_map(model, torch.optim.SGD([*model.parameters(), outside], lr=0.1), loss_of)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(ValueError, match=r"too coarse for a tangent; call model.double\(\)"):
        lyapunov_exponents(lambda s, _: s, torch.ones(2, dtype=dtype), num_steps=1)


def test_a_direction_that_is_annihilated_is_forgotten():
    found = lyapunov_exponents(lambda s, _: {"x": 0 * s["x"]}, torch.ones(1).double(), num_steps=20)
    assert found.exponents[0] == -math.inf
    assert found.amplifies is False
