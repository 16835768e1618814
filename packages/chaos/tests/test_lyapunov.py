"""Tangent matrices and exponents: golden arrays, finite differences, determinants, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import flat, golden, golden_network
from torch import nn

from chaos import CGD, LyapunovTracker, local_exponents, tangent_error
from chaos.o2grad import Eigenpairs, LossSurface

CE = nn.CrossEntropyLoss()
Y_TOL = 1e-10
EXPONENT_TOL = 1e-8


def train(name, steps, tracker=None, theta=None, on_step=None, **options):
    """SGD on the stored batches, optionally tracked; return the final parameters."""
    model, x, y = golden_network(name)
    if theta is not None:
        nn.utils.vector_to_parameters(theta, model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, **options)
    surface = LossSurface(model, CE)
    for t in range(steps):
        rows = golden(f"lyap/{name}/batches")[t]
        if tracker is not None:
            H = surface.hessian(None, x[rows], y[rows])
            tracker.update(H)
            if on_step is not None:
                on_step(H)
        optimizer.zero_grad()
        CE(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return flat(model)


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_sigmoid"])
def test_golden_tangent(name):
    tracker = LyapunovTracker(len(flat(golden_network(name)[0])), 0.3)
    theta = train(name, 12, tracker)
    assert (theta - golden(f"lyap/{name}/mom0/theta_final")).abs().max() < Y_TOL
    assert (tracker.Y - golden(f"lyap/{name}/mom0/Y")).abs().max() < Y_TOL
    assert (tracker.exponents() - golden(f"lyap/{name}/mom0/exponents")).abs().max() < EXPONENT_TOL


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_sigmoid"])
def test_golden_momentum(name):
    tracker = LyapunovTracker(len(flat(golden_network(name)[0])), 0.3, 0.5)
    theta = train(name, 12, tracker, momentum=0.5)
    assert (theta - golden(f"lyap/{name}/momentum/theta_final")).abs().max() < Y_TOL
    assert (tracker.exponents() - golden(f"lyap/{name}/momentum/exponents_exact")).abs().max() < EXPONENT_TOL


def test_published_recurrence():
    tracker = LyapunovTracker(51, 0.3, 0.5, recurrence="published")
    train("mlp_sigmoid", 12, tracker, momentum=0.5)
    assert (tracker.Y - golden("lyap/mlp_sigmoid/momentum/Y_published")).abs().max() < Y_TOL


def test_golden_local_exponents():
    for name in ("mlp_relu", "mlp_sigmoid"):
        model, x, y = golden_network(name)
        rows = golden(f"lyap/{name}/batches")[0]
        pairs = LossSurface(model, CE).hessian(None, x[rows], y[rows]).eigh()
        expected = golden(f"lyap/{name}/mom0/local_exponents_step0")
        assert (local_exponents(pairs, 0.3) - expected).abs().max() < EXPONENT_TOL


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.5},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.3},
        {"momentum": 0.5, "dampening": 1.5},
        {"weight_decay": 0.2},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ],
)
def test_tangent_equals_central_differences(options):
    tracker = LyapunovTracker(51, 0.3, **options)
    train("mlp_sigmoid", 8, tracker, **options)
    start = flat(golden_network("mlp_sigmoid")[0])
    error = tangent_error(lambda v: train("mlp_sigmoid", 8, theta=v, **options), start, tracker.Y, 1e-5)
    assert error < 1e-8  # epsilon^2 times third derivatives, and rounding / epsilon


def test_augmented_tangent_equals_central_differences_of_theta_and_velocity():
    A = torch.tensor([[1.0, 0.3], [0.3, -0.5]], dtype=torch.float64)
    h, mu, steps = 0.1, 0.9, 5
    tracker = LyapunovTracker(2, h, mu, augmented=True)

    def step(state):
        theta, v = state[:2], state[2:]
        for _ in range(steps):
            v = mu * v + A @ theta
            theta = theta - h * v
        return torch.cat([theta, v])

    for _ in range(steps):
        tracker.update(A)
    state = torch.cat([tracker.Y, tracker.G])
    assert tangent_error(step, torch.ones(4, dtype=torch.float64), state) < 1e-9
    assert abs(tracker.exponents().sum() - 2 * math.log(mu)) < 1e-12  # det of heavy ball is mu^n per step


@pytest.mark.parametrize("options", [{"dampening": 0.3}, {"nesterov": True}, {"weight_decay": 0.1}])
def test_the_augmented_tangent_of_a_new_optimiser(options):
    """Its block of the parameters is that of training by PyTorch, whose first velocity is not dampened."""
    A = torch.tensor([[1.0, 0.3], [0.3, -0.5]], dtype=torch.float64)
    tracker = LyapunovTracker(2, 0.1, 0.9, augmented=True, **options)

    def trained(theta):
        theta = theta.clone().requires_grad_()
        sgd = torch.optim.SGD([theta], lr=0.1, momentum=0.9, **options)
        for _ in range(5):
            sgd.zero_grad()
            (theta @ A @ theta / 2).backward()
            sgd.step()
        return theta.detach()

    for _ in range(5):
        tracker.update(A)
    assert tangent_error(trained, torch.ones(2, dtype=torch.float64), tracker.Y[:, :2]) < 1e-9


def test_sum_of_exponents_is_the_log_determinant():
    logs = []
    tracker = LyapunovTracker(53, 0.3)

    def determinant(H):
        core = torch.eye(len(H.core), dtype=torch.float64) - 0.3 * H.core
        logs.append(torch.linalg.slogdet(core).logabsdet)

    train("mlp_relu", 12, tracker, on_step=determinant)
    assert abs(tracker.exponents().sum() - sum(logs) / 12) < 1e-10
    for method in ("qr",):
        other = LyapunovTracker(53, 0.3, method=method, reorthonormalise_every=5)
        train("mlp_relu", 12, other)
        assert abs(other.exponents().sum() - sum(logs) / 12) < 1e-10


def test_quadratic_closed_form():
    w = torch.tensor([-0.5, 0.0, 1.0, 3.0], dtype=torch.float64)
    V = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    H = V * w @ V.T
    svd = LyapunovTracker(4, 0.5)
    qr = LyapunovTracker(4, 0.5, method="qr", reorthonormalise_every=3, initial=V)
    for _ in range(20):
        svd.update(H)
        qr.update(H)
    expected = (1 - 0.5 * w).abs().log().sort().values
    assert (svd.Y - torch.linalg.matrix_power(torch.eye(4) - 0.5 * H, 20)).abs().max() < 1e-11
    assert (svd.exponents() - expected).abs().max() < 1e-9  # spread 1e8: eps * 1e8 / T
    assert (qr.exponents() - expected).abs().max() < 1e-12
    assert (svd.exponents(t=40) - expected / 2).abs().max() < 1e-10
    spectrum = qr.spectrum()
    assert (spectrum.chaotic(), spectrum.contracting(), spectrum.edge()) == (1, 2, 1)
    assert spectrum.method == "qr"


def test_qr_tends_to_svd_like_one_over_t():
    generator = torch.Generator().manual_seed(1)
    V = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    H = V * torch.tensor([-1.0, -0.4, 0.5, 1.5], dtype=torch.float64) @ V.T
    errors = []
    for steps in (50, 100, 200):
        qr = LyapunovTracker(4, 0.3, method="qr", reorthonormalise_every=10)
        for _ in range(steps):
            qr.update(H)
        expected = (1 - 0.3 * torch.tensor([1.5, 0.5, -0.4, -1.0], dtype=torch.float64)).log()
        errors.append(float((qr.exponents() - expected).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_vectors_by_hessian_vector_products():
    """Leading exponents without a Hessian equal those of the full QR method with the same start."""
    model, x, y = golden_network("mlp_sigmoid")
    surface = LossSurface(model, CE)
    start = torch.linalg.qr(
        torch.randn(51, 51, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).Q
    few = LyapunovTracker(51, 0.3, method="vectors", initial=start[:, :4], reorthonormalise_every=5)
    full = LyapunovTracker(51, 0.3, method="qr", initial=start, reorthonormalise_every=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for t in range(12):
        rows = golden("lyap/mlp_sigmoid/batches")[t]
        a, b = x[rows], y[rows]
        few.update(lambda V, a=a, b=b: surface.hvp(None, a, b, V))
        full.update(surface.hessian(None, a, b))
        optimizer.zero_grad()
        CE(model(a), b).backward()
        optimizer.step()
    by_column = full.log_growth + torch.linalg.qr(full.Y).R.diagonal().abs().log()
    assert (few.exponents() - (by_column[:4] / 12).sort().values).abs().max() < 1e-12
    exponents, left = few.vectors(side="left")
    assert left.shape == (51, 4)
    assert torch.equal(exponents, exponents.sort().values)


def test_momentum_survives_reorthonormalisation():
    plain = LyapunovTracker(51, 0.3, 0.9)
    qr = LyapunovTracker(51, 0.3, 0.9, method="qr", reorthonormalise_every=4)
    train("mlp_sigmoid", 12, plain, momentum=0.9)
    train("mlp_sigmoid", 12, qr, momentum=0.9)
    logdet = torch.linalg.slogdet(plain.Y).logabsdet / 12
    assert abs(qr.exponents().sum() - logdet) < 1e-10


def test_right_and_left_vectors():
    tracker = LyapunovTracker(53, 0.3)
    train("mlp_relu", 6, tracker)
    exponents, right = tracker.vectors()
    _, left = tracker.vectors(side="left")
    growth = (exponents * 6).exp()
    assert (tracker.Y @ right - left * growth).abs().max() < 1e-10


def test_support_of_few_inputs_gives_the_same_spectrum():
    """While few inputs were seen, the decomposition works in their frame; the result is that of Y."""
    model = nn.Sequential(nn.Linear(60, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    surface = LossSurface(model, CE)
    tracker, again = (LyapunovTracker(surface.n, 0.5, 0.9) for _ in range(2))
    x = torch.randn(9, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i in range(3):
        tracker.update(surface.hessian(None, x[3 * i : 3 * i + 3], torch.tensor([0, 1, 2])))
    assert tracker.support is not None
    assert tracker.support.q == 9
    sigma = torch.linalg.svdvals(tracker.Y).flip(0)
    assert (tracker.exponents() - sigma.log() / 3).abs().max() < 1e-12
    exponents, right = tracker.vectors()
    growth = (tracker.Y @ right).norm(dim=0)
    assert (growth - (3 * exponents).exp()).abs().max() < 1e-12
    again.load_state_dict(tracker.state_dict())
    assert torch.equal(again.exponents(), tracker.exponents())
    for _ in range(2):
        tracker.update(torch.eye(surface.n, dtype=torch.float64))
    assert tracker.support is None


def test_unresolved_values_are_counted():
    tracker = LyapunovTracker(2, 0.5)
    for _ in range(60):
        tracker.update(torch.diag(torch.tensor([1.9, -1.0], dtype=torch.float64)))
    spectrum = tracker.spectrum()
    assert spectrum.num_unresolved == 1
    assert spectrum.exponents[0] == -math.inf
    assert spectrum.exponents[1] == pytest.approx(math.log(1.5))


@pytest.mark.parametrize("form", ["pairs", "tensor"])
def test_cgd_tangent_with_the_frozen_projector(form):
    """I - h P H, with H in every form."""
    model, x, y = golden_network("mlp_sigmoid")
    optimizer = CGD(model.parameters(), lr=0.3, prune_set="neg")
    H = LossSurface(model, CE).hessian(None, x, y)
    CE(model(x), y).backward()
    optimizer.step(H)
    pairs, discard = optimizer.last_pairs, optimizer.last_discard
    tracker = LyapunovTracker(51, 0.3)
    tracker.update(pairs if form == "pairs" else H.dense(), keep=(pairs, discard))
    kept = pairs.vectors[:, ~discard]
    expected = torch.eye(51, dtype=torch.float64) - 0.3 * kept * pairs.values[~discard] @ kept.T
    assert (tracker.Y - expected).abs().max() < 1e-13


def test_structured_update_equals_dense():
    model, x, y = golden_network("mlp_relu")
    H = LossSurface(model, CE).hessian(None, x, y)
    results = []
    for form in (H, H.eigh(), H.dense(), H.matvec):
        tracker = LyapunovTracker(53, 0.3)
        tracker.update(form)
        tracker.update(form)
        results.append(tracker.Y)
    assert max(float((Y - results[0]).abs().max()) for Y in results) < 1e-14


def test_state_round_trip():
    whole, part = (LyapunovTracker(51, 0.3, 0.9, method="qr", reorthonormalise_every=5) for _ in range(2))
    hessians = []
    train("mlp_sigmoid", 12, whole, on_step=hessians.append, momentum=0.9)
    for H in hessians[:7]:
        part.update(H)
    again = LyapunovTracker(51, 0.3, 0.9, method="qr", reorthonormalise_every=5)
    again.load_state_dict(part.state_dict())
    for H in hessians[7:]:
        again.update(H)
    assert torch.equal(again.Y, whole.Y)
    assert torch.equal(again.exponents(), whole.exponents())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LyapunovTracker(3, 0.1, method="eig"),
            "Unknown method 'eig'; choose one of svd, qr, vectors",
        ),
        (lambda: LyapunovTracker(3, 0.0), "h is 0.0"),
        (lambda: LyapunovTracker(3, 0.1, method="vectors"), "num_vectors goes with method='vectors'"),
        (lambda: LyapunovTracker(3, 0.1, method="vectors", num_vectors=4), "num_vectors is 4"),
        (
            lambda: LyapunovTracker(10**6, 0.1),
            r"1000000 x 1000000 matrix of float64 needs 8,000,000,000,000 bytes.*method='vectors'",
        ),
        (lambda: LyapunovTracker(100, 0.1, memory_budget=79_999), "needs 80,000 bytes"),
        (lambda: LyapunovTracker(3, 0.1, recurrence="old"), "Unknown recurrence 'old'"),
        (lambda: LyapunovTracker(3, 0.1).update(torch.eye(4)), r"shape \(4, 4\); expected \(3, 3\)"),
        (
            lambda: LyapunovTracker(3, 0.1).update(Eigenpairs.of(torch.eye(4))),
            "n = 4; the tracker was made for n = 3",
        ),
        (lambda: LyapunovTracker(3, 0.1, method="qr").vectors(), "directions at time T only"),
        (lambda: LyapunovTracker(3, 0.1).load_state_dict(LyapunovTracker(4, 0.1).state_dict()), "Y of shape"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_momentum_of_one_or_more_warns():
    with pytest.warns(UserWarning, match="momentum is 1.0"):
        LyapunovTracker(3, 0.1, momentum=1.0)


@pytest.mark.parametrize("method", ["svd", "qr"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_curvature_that_is_not_finite_is_refused_and_changes_nothing(method, value):
    tracker = LyapunovTracker(2, 0.5, method=method)
    tracker.update(torch.eye(2, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in tracker.state_dict().items()}
    with pytest.raises(FloatingPointError, match="not finite at step 1; nothing was changed"):
        tracker.update(torch.full((2, 2), value, dtype=torch.float64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tracker.state_dict().items())


def test_overflow_is_named():
    tracker = LyapunovTracker(1, 1.0, dtype=torch.float32)
    for _ in range(38):
        tracker.update(torch.tensor([[-9.0]]))
    with pytest.raises(FloatingPointError, match=r"Growth overflows torch\.float32"):
        tracker.update(torch.tensor([[-9.0]]))


def test_a_singular_step_with_momentum():
    """The tangent of the parameters is 0 after the first step and is not afterwards."""
    tracker = LyapunovTracker(2, 1.0, momentum=0.5, method="qr", reorthonormalise_every=1)
    for _ in range(4):
        tracker.update(torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64)))
    one_step = lambda w: np.array([[1 - w, -0.5], [w, 0.5]])  # noqa: E731  (of parameter and velocity)
    growth = [np.linalg.matrix_power(one_step(w), 4)[0, 0] for w in (1.0, 0.5)]
    assert tracker.exponents().tolist() == pytest.approx(sorted(np.log(np.abs(growth)) / 4))


def test_rounding_does_not_pass_for_a_growth_factor():
    """Factors from 1 to 0.005: after ten steps the smallest are far below what float64 holds."""
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64, generator=generator)).Q
    w = torch.linspace(0, 19.9, 100, dtype=torch.float64)
    H, tracker = (U * w) @ U.T, LyapunovTracker(100, 0.05)
    true = (1 - 0.05 * w).abs().log().sort().values
    for _ in range(40):
        tracker.update((H + H.T) / 2)
        found = tracker.exponents()
        resolved = found.isfinite()
        assert (found - true)[resolved].abs().max() < 1e-3
    assert 40 < resolved.sum() < 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h": math.nan}, "h is nan"),
        ({"h": math.inf}, "h is inf"),
        ({"h": 0.1, "method": "qr", "reorthonormalise_every": 0}, "reorthonormalise_every is 0"),
        ({"h": 0.1, "initial": torch.ones(2, 2)}, r"initial has shape \(2, 2\); pass columns \(3, k\)"),
        ({"h": 0.1, "initial": torch.ones(3)}, r"initial has shape \(3,\); pass columns \(3, k\)"),
        ({"h": 0.1, "n": 0}, "n is 0"),
        ({"h": 0.1, "dtype": torch.int64}, r"dtype is torch\.int64"),
        ({"h": 0.1, "dtype": torch.float16}, r"dtype is torch\.float16"),
        ({"h": 0.1, "method": "vectors", "num_vectors": 2.5}, r"num_vectors is 2\.5"),
        ({"h": 0.1, "method": "qr", "reorthonormalise_every": 1.5}, r"reorthonormalise_every is 1\.5"),
        ({"h": 0.1, "num_vectors": 2, "initial": torch.ones(3, 2)}, "num_vectors goes with"),
        (
            {"h": 0.1, "method": "vectors", "num_vectors": 2, "initial": torch.ones(3, 1)},
            "num_vectors is 2, and initial has 1 columns",
        ),
        ({"h": 0.1, "momentum": -0.5}, r"momentum is -0\.5; it must be finite and not negative"),
        ({"h": 0.1, "weight_decay": -1}, "weight_decay is -1; it must be"),
        ({"h": 0.1, "dampening": math.inf}, "dampening is inf"),
        ({"h": 0.1, "nesterov": True}, "nesterov needs momentum and no dampening"),
        ({"h": 0.1, "nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs momentum and no"),
        *(
            ({"h": 0.1, "momentum": 0.9, "recurrence": "published", **more}, "is that of plain momentum")
            for more in ({"nesterov": True}, {"dampening": 0.1}, {"augmented": True})
        ),
        ({"h": 0.1, "augmented": True}, "augmented tracks a velocity, so it needs momentum"),
        *(
            ({"h": 0.1, "momentum": 0.9, "augmented": True, **more}, "augmented tracks all 2 n directions")
            for more in ({"method": "vectors", "num_vectors": 2}, {"initial": torch.ones(3, 2)})
        ),
    ],
)
def test_options_of_the_tracker_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        LyapunovTracker(**{"n": 3, **options})


def test_what_is_no_hessian_changes_nothing():
    tracker = LyapunovTracker(3, h=0.1)
    for wrong in (np.eye(3), (torch.ones(3), torch.eye(3))):
        with pytest.raises(TypeError, match=f"H is a {type(wrong).__name__}; pass a Hessian"):
            tracker.update(wrong)
    for wrong in (torch.eye(3).to_sparse(), torch.eye(3) + 0j):
        with pytest.raises(TypeError, match=r"The matrix is (sparse|complex); pass a real dense one"):
            tracker.update(wrong)
    with pytest.raises(ValueError, match="The matrix is not symmetric"):
        tracker.update(torch.ones(3, 3).triu())
    with pytest.raises(ValueError, match="H times columns"):
        tracker.update(lambda V: V[:2])
    assert tracker.num_steps == 0
    assert torch.equal(tracker.Y, torch.eye(3, dtype=torch.float64))


def test_a_function_may_write_into_the_columns_that_it_is_given():
    tracker = LyapunovTracker(3, h=0.1)
    tracker.update(lambda V: V.mul_(0.5))
    assert (tracker.Y - 0.95 * torch.eye(3, dtype=torch.float64)).abs().max() < 1e-15
