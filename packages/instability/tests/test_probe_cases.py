"""What the probe says of models, data and loops that people bring; the right answer is known in each case."""

import copy
import math
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from instability import (
    Copies,
    PerturbedSGD,
    SensitivityProbe,
    lyapunov_estimate,
    numerical_sensitivity,
    sharpness,
)
from instability.determinism import bit_reproducible, numerical_settings
from instability.exponents.separation import _rescale


def mlp(width=32):
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 4))


def batch(seed=0, size=64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 8, generator=generator), torch.arange(size) % 4


def sgd(rate):
    return lambda p: torch.optim.SGD(p, lr=rate)


# runs that are not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda p: PerturbedSGD(p, lr=10.0), sgd(10.0)], ids=["perturbed", "sgd"])
def test_a_run_that_blows_up_is_said_to_diverge_and_is_no_broken_control(make):
    x, _ = batch()
    y = torch.randn(64, 1, generator=torch.Generator().manual_seed(1))
    report = numerical_sensitivity(
        lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)),
        [(x, y)],
        make,
        steps=60,
        loss_fn=F.mse_loss,
    )
    assert report.controls_hold
    assert 0 < report.nonfinite_at <= 60
    text = report.summary()
    assert f"the unperturbed run is not finite from step {report.nonfinite_at}" in text
    assert "never above" not in text
    assert "NO" not in text


# perturbations that do nothing, or too much -----------------------------------------------------


def test_a_perturbation_that_changes_no_bit_is_said_to_be_none():
    report = numerical_sensitivity(mlp, [batch()], lambda p: torch.optim.Rprop(p, lr=0.01), steps=20)
    assert not report.injected
    assert report.summary().count("nothing was injected") == 2
    assert "never above" not in report.summary()


@pytest.mark.parametrize(
    "make",
    [sgd(0.1), lambda p: PerturbedSGD(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=1e-2)],
    ids=["sgd", "perturbed", "adam"],
)
def test_subnormal_gradients_break_no_control(make):
    """Probabilities of two rare classes underflow; dividing such gradients by two is not exact."""

    def rare():
        model = nn.Linear(8, 4)
        with torch.no_grad():
            model.weight.zero_()
            model.bias.copy_(torch.tensor([0.0, 0.0, -95.0, -95.0]))
        return model

    x, _ = batch(size=32)
    report = numerical_sensitivity(rare, [(x, torch.arange(32) % 2)], make, 5, (1, 1, 2, 4, 3))
    assert report.controls_hold


def test_dividing_subnormal_numbers_is_not_exact():
    """The premise of the test above, and of leaving such entries alone."""
    odd = torch.tensor([3e-45])  # the smallest float32 is 1.4e-45
    assert (odd / 4 * 4).item() != odd.item()
    weight = nn.Parameter(torch.tensor([0.0]))
    weight.grad = odd
    PerturbedSGD([weight], lr=1.0, perturbation=4).step()
    assert weight.item() == -odd.item()


@pytest.mark.parametrize("make", [sgd(0.1), lambda p: PerturbedSGD(p, lr=0.1)], ids=["sgd", "perturbed"])
def test_a_subnormal_part_of_a_complex_gradient_breaks_no_control(make):
    """Its size is that of the other part, but each part rounds by itself."""
    start, gradient = torch.zeros(20, dtype=torch.cfloat), 1 + torch.arange(20) * 0.1j
    gradient[0].imag.fill_(3e-45)
    copies = Copies(holding(w=nn.Parameter(start)), make, (1, 1, 2, 4, 3))
    copies.step(lambda m: (m.w * gradient.conj()).real.sum())
    assert all(copies.same_bits(i) for i in copies.controls)
    assert not copies.same_bits(4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_a_level_of_its_own(dtype):
    x, y = batch()
    report = numerical_sensitivity(
        lambda: mlp().to(dtype),
        [(x.to(dtype), y)],
        sgd(0.1),
        10,
        (1, 1, 2, 3),
        loss_fn=lambda a, b: F.cross_entropy(a.float(), b),
    )
    assert report.controls_hold
    assert report.visible >= 4 * torch.finfo(dtype).eps
    assert report.injected


# what is compared -------------------------------------------------------------------------------


def holding(**parts):
    """A model that is nothing but its parts."""
    model = nn.Module()
    for name, part in parts.items():
        setattr(model, name, part)
    return model


def logistic(model, *_):
    """Descent at rate 1 on this loss is the logistic map c -> 4 c (1 - c)."""
    return (model.c**2 / 2 - 2 * model.c**2 + 4 * model.c**3 / 3).sum()


def test_frozen_parameters_do_not_dilute_the_answer():
    c = nn.Parameter(torch.linspace(0.1, 0.8, 8, dtype=torch.float64).float())  # chaotic at this rate
    model = holding(frozen=nn.Linear(300, 300).requires_grad_(False), c=c)
    probe = SensitivityProbe(model, lambda p: PerturbedSGD(p, lr=1.0), (1, 1, 2, 7))
    for _ in range(80):  # the logistic map with 3.9, which stays inside (0, 1)
        probe.step(lambda m: (1.3 * m.c**3 - 1.45 * m.c**2).sum())
    report = probe.report()
    assert report.controls_hold
    assert report.saturation[0] > 0.1
    assert report.visible_at[0] > 0
    assert list(report.by_layer) == ["c"]


def test_a_direction_that_cannot_matter_is_named():
    """A bias before batch norm has no gradient but rounding error; Adam blows it up to its own step size."""

    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3))

    x, y = torch.randn(16, 1, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
    model = made()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    probe = SensitivityProbe(model, optimizer, (1, 1, 2, 3), outputs=lambda m: m(x))
    for _ in range(30):
        probe.step(lambda m: F.cross_entropy(m(x), y))
    report = probe.report()
    (first, level), *others = report.layers()
    assert first == "0.bias"
    assert all(other < 0.05 * level for _, other in others)
    assert np.isfinite(report.outputs).all()
    assert report.effects["0.bias"] < 1e-2 * level  # here it is told apart from those that matter
    assert re.search(r"moved most: 0.bias \S+ \(outputs \S+e-0[78]\)", report.summary())
    assert model[1].num_batches_tracked == 0  # neither training nor evaluating the copies touches the model


@pytest.mark.parametrize(
    # Each entry is computed in the weights' own type, with three roundings.
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 4e-7), (torch.bfloat16, 4e-7)],
)
def test_the_total_is_the_average_over_all_trained_entries(dtype, tolerance):
    from instability.metrics import average_relative_l1

    x, y = batch()
    probe = SensitivityProbe(mlp().to(dtype), sgd(0.5), (1, 3))
    for _ in range(3):
        probe.step(lambda m: F.cross_entropy(m(x.to(dtype)), y))
    with torch.no_grad():
        for model in probe.copies.models:  # zero in both, zero in one, subnormal
            model[0].bias[:3] = torch.tensor([0.0, 0.0, 1e-39])
        probe.copies.models[1][0].bias[1] = 1.0
        probe.copies.models[1][0].bias[2] *= 3
    probe._measure()
    report = probe.report()
    weights = [probe.copies.weights(i).astype(np.float64) for i in (1, 0)]
    assert report.divergence[1, -1] == pytest.approx(average_relative_l1(*weights), rel=tolerance)


def test_a_probe_batch_of_one_example_goes_through_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    probe = SensitivityProbe(
        model, lambda p: torch.optim.Adam(p, lr=0.01), (1, 1, 3), outputs=lambda m: m(x[:1])
    )
    for _ in range(8):
        probe.step(lambda m: F.cross_entropy(m(x), y))
    report = probe.report()
    assert report.effects
    assert all(map(math.isfinite, report.effects.values()))


def test_the_layer_that_leaves_rounding_level_first_is_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.calm = nn.Parameter(torch.full((8,), 0.3))
            self.late = nn.Parameter(torch.full((8,), 0.3))
            self.early = nn.Parameter(torch.full((8,), 0.3))

    def loss_of(model):  # maps w -> r w (1 - w), of exponents 0.18 and 0.49
        maps = ((model.late, 3.6), (model.early, 3.9))
        return sum(((1 - r) * w**2 / 2 + r * w**3 / 3).sum() for w, r in maps) + model.calm.square().sum() / 4

    probe = SensitivityProbe(Model(), lambda p: torch.optim.SGD(p, lr=1.0), (1, 1, 2, 3, 5))
    for _ in range(150):
        probe.step(loss_of)
    report = probe.report()
    (first, early), (second, late) = report.starts()
    assert (first, second) == ("early", "late")
    assert early < late
    curve = report.by_layer["early"].max(axis=0)
    assert curve[: early - 1].max() <= report.visible < curve[early - 1]
    assert f"visible first: early at step {early}, late at step {late}" in report.summary()


def test_a_model_without_trained_parameters_is_refused():
    with pytest.raises(ValueError, match="nothing is trained"):
        SensitivityProbe(mlp().requires_grad_(False), sgd(0.1))


# random layers and streams ----------------------------------------------------------------------


def test_dropout_draws_a_new_mask_in_every_step_and_the_same_in_every_copy():
    class Recorded(nn.Dropout):
        masks = []  # noqa: RUF012

        def forward(self, x):
            out = super().forward(x)
            Recorded.masks.append(tuple((out[0] == 0).tolist()))
            return out

    numerical_sensitivity(
        lambda: nn.Sequential(nn.Linear(8, 32), nn.Tanh(), Recorded(0.5), nn.Linear(32, 4)),
        [batch()],
        sgd(0.1),
        steps=10,
        perturbations=(1, 1, 2, 3),
    )
    by_step = [Recorded.masks[i : i + 4] for i in range(0, 40, 4)]
    assert all(len(set(masks)) == 1 for masks in by_step)
    assert len({masks[0] for masks in by_step}) == 10


def test_numpy_and_python_randomness_inside_the_loss_is_replayed():
    def noisy(model):
        x, y = batch()
        scale = 1 + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002
        return scale * F.cross_entropy(model(x), y)

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    probe = SensitivityProbe(mlp(), sgd(0.1), (1, 1, 2, 3))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for _ in range(5):
        probe.step(noisy)
    assert probe.report().controls_hold
    # Python's own stream is put back too, but the type checks of these tests draw from it.
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# a real loop ------------------------------------------------------------------------------------


def whole_step(model, optimizer):
    """Accumulation over two halves, clipping, and the step."""
    x, y = batch()
    optimizer.zero_grad()
    for half in (slice(32), slice(32, 64)):
        (F.cross_entropy(model(x[half]), y[half]) / 2).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam", "lbfgs"])
def test_the_baseline_shadow_is_the_users_model_bit_for_bit(kind):
    """Attached in mid-run, with a schedule, clipping and accumulation."""
    torch.manual_seed(0)
    model = mlp()
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.AdamW(p, lr=1e-2),
        "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4),
    }
    optimizer = makers[kind](model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

    def loss_of(m):
        return F.cross_entropy(m(batch()[0]), batch()[1])

    def mine():
        if kind == "lbfgs":

            def closure():
                optimizer.zero_grad()
                loss = loss_of(model)
                loss.backward()
                return loss

            optimizer.step(closure)
        else:
            whole_step(model, optimizer)
        schedule.step()

    for _ in range(5):
        mine()
    probe = SensitivityProbe(model, optimizer, (1, 1, 2, 3))
    for _ in range(8):
        if kind == "lbfgs":
            probe.step(loss_of)
        else:
            probe.advance(whole_step)
        mine()
    shadow = probe.copies.models[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), shadow.parameters(), strict=True))
    assert probe.report().controls_hold


# exponents --------------------------------------------------------------------------------------


STIFFNESS = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)


def adam_step(state, t, lr=0.05, b1=0.9, b2=0.999, eps=1e-8):
    p, m, v = state.split(3)
    g = STIFFNESS * torch.sin(p)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return torch.cat([p - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps), m, v])


def test_the_exponent_of_adam_is_that_of_its_whole_state():
    """Oracle: the tangent of Adam's update map, written out, by forward-mode differentiation."""
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    state = torch.cat([start, torch.zeros(6, dtype=torch.float64)])
    direction = torch.zeros(9, dtype=torch.float64)
    direction[:3] = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logs = []
    for t in range(1, 401):
        state, direction = torch.func.jvp(lambda s, t=t: adam_step(s, t), (state,), (direction,))
        logs.append(math.log(direction.norm()))
        direction /= direction.norm()
    exact = np.mean(logs[100:])
    frozen = nn.Parameter(torch.ones(4, dtype=torch.float64), requires_grad=False)
    model = holding(p=nn.Parameter(start.clone()), frozen=frozen)
    copies = Copies(model, lambda p: torch.optim.Adam(p, lr=0.05), (1, 1))
    growth = lyapunov_estimate(copies, [lambda m: (STIFFNESS * (1 - torch.cos(m.p))).sum()] * 400)
    assert abs(exact) < 0.01
    assert np.mean(growth[100:]) == pytest.approx(exact, abs=0.01)


def test_the_exponent_of_the_logistic_map_is_the_logarithm_of_two():
    model = holding(c=nn.Parameter(torch.tensor(0.3, dtype=torch.float64)))
    copies = Copies(model, sgd(1.0), (1, 1))
    growth = lyapunov_estimate(copies, [logistic] * 4000, separation=1e-9)
    assert np.mean(growth) == pytest.approx(math.log(2), abs=0.02)


def test_frozen_parameters_have_no_part_in_the_exponent():
    w, frozen = (nn.Parameter(torch.ones(1, dtype=torch.float64), trained) for trained in (True, False))
    copies = Copies(holding(w=w, frozen=frozen), sgd(0.1), (1, 1))
    growth = lyapunov_estimate(copies, [lambda m: 2.5 * m.w.square().sum()] * 20)
    assert np.exp(growth) == pytest.approx(np.full(20, 0.5), rel=1e-6)


def test_an_exponent_beyond_a_blow_up_is_refused():
    copies = Copies(mlp().double(), sgd(1e9), (1, 1))
    with pytest.raises(FloatingPointError, match=r"step \d+: a copy is not finite"):
        lyapunov_estimate(copies, [lambda m: (m(batch()[0].double()) ** 4).sum()] * 50)


@pytest.mark.parametrize("separation", [0.0, -1.0, math.nan, math.inf])
def test_a_separation_that_is_none_is_refused(separation):
    copies = Copies(mlp(), sgd(0.1), (1, 1))
    with pytest.raises(ValueError, match=r"separation=\S+ must be positive and finite"):
        lyapunov_estimate(copies, [], separation=separation)


# nothing of the user's moves --------------------------------------------------------------------


def test_sharpness_leaves_buffers_and_streams_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 4))
    before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x, y = batch()
    sharpness(model, lambda m: F.cross_entropy(m(x), y), tol=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(stream, torch.get_rng_state())
    assert model.training


def test_flags_are_restored_with_their_shade():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with bit_reproducible():
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_settings_can_be_read_after_the_newer_interface_was_used():
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has one interface only")
    code = (
        "import torch\n"
        "from instability.determinism import bit_reproducible, numerical_settings\n"
        "m = torch.backends.cuda.matmul\n"
        "m.fp32_precision = 'tf32'\n"
        "assert numerical_settings(torch.float32)['tf32'] is True\n"
        "with bit_reproducible():\n"
        "    assert numerical_settings(torch.float32)['tf32'] is False\n"
        "assert m.fp32_precision == 'tf32'\n"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert numerical_settings(torch.float32)["tf32"] in (True, False)


def test_scoring_in_mid_run_changes_nothing_of_the_copies():
    model = nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 4))
    probe = SensitivityProbe(model, sgd(0.1), (1, 1, 3))
    probe.step(lambda m: F.cross_entropy(m(batch()[0]), batch()[1]))
    stream = torch.get_rng_state()
    probe.report(lambda m: m.eval()(torch.rand(2, 8)).sum().item())
    assert torch.equal(stream, torch.get_rng_state())
    assert all(twin.training and twin[1].training for twin in probe.copies.models)


def test_numpy_integers_are_perturbations():
    from instability import perturb_optimizer

    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = perturb_optimizer(torch.optim.SGD([weight], lr=0.1), np.int64(3), at="gradient")
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    assert weight.item() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((math.nan,), "learning_rate=nan"), ((-0.1,), "learning_rate=-0.1"), ((0.0,), "learning_rate=0.0")],
)
def test_rates_that_are_none_are_refused(arguments, message):
    from instability import max_stable_sharpness

    with pytest.raises(ValueError, match=message):
        max_stable_sharpness(*arguments)


# kinds of tensors ---------------------------------------------------------------------------------


def test_sparse_gradients_are_perturbed_and_their_controls_hold():
    """Rows that occur twice in a batch stay two entries of the gradient, in every copy alike."""
    x, y = torch.tensor([[0, 3, 3], [5, 0, 1]]), torch.tensor([0, 1])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 64, sparse=True), nn.Flatten(), nn.Linear(192, 2))
    probe = SensitivityProbe(model, sgd(2.0))
    for _ in range(10):
        probe.step(lambda m: F.cross_entropy(m(x), y))
    report = probe.report()
    assert report.controls_hold
    assert report.injected
    assert report.by_layer["0.weight"][3:, -1].max() > 0


@pytest.mark.filterwarnings("error")
def test_the_imaginary_part_counts():
    model = holding(w=nn.Parameter(torch.tensor([1.0 + 2.0j, 0.5 - 1.0j])))
    probe = SensitivityProbe(model, sgd(0.1), (1, 1, 2))
    with torch.no_grad():
        probe.copies.models[1].w += 1.0j
    probe.advance(lambda model, optimizer: None)
    assert probe.report().divergence[1, 0] > 0.1


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_second_moments_of_a_separated_copy_are_never_negative(make):
    """The copy's is half the baseline's; scaled up to the separation the difference would cross zero."""
    model = nn.Linear(6, 1, bias=False).double()
    copies = Copies(model, lambda p: make(p, lr=1e-6), (1, 1))
    copies.step(lambda m: m.weight.square().sum() * 1e-6)
    moments = []
    for optimizer, value in zip(copies.optimizers, (1e-12, 5e-13), strict=True):
        (kept,) = optimizer.state.values()
        moments += [kept[name].fill_(value) for name in ("exp_avg_sq", "square_avg", "sum") if name in kept]
    _rescale(copies, separation=1e-3)
    assert all((v >= 0).all() for v in moments)
    assert (copies.models[0].weight == copies.models[1].weight).all()
