"""Estimators: golden SVRG and K-FAC, one contract for all, closed forms, exact variances against draws."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from variance.data import TensorPopulation
from variance.errors import ConfigError, CoupledExamples, NotReady
from variance.estimators import (
    EKFAC,
    GC,
    IGT,
    KFAC,
    NTK,
    SGB,
    SVRG,
    Adam,
    GCOnline,
    GradientEstimator,
    HeavyBall,
    Nesterov,
    SnapshotAverage,
)
from variance.estimators.kfac import kronecker_factors, projected_second_moment
from variance.estimators.ntk import inverse_row_sums
from variance.gradient_clustering import BatchClustering, ClusteringOptions, OnlineClustering
from variance.losses import cross_entropy, half_squared_error
from variance.objective import Batch, Objective, Point
from variance.per_example.capturing import capture
from variance.sampling import stratified_variance
from variance.statistics import exact

RTOL, KFAC_RTOL = 1e-9, 1e-7  # section 11 of the specification


def make(objective: Objective) -> dict[str, GradientEstimator]:
    return {
        "SG-B": SGB(objective),
        "SG-2B": SGB(objective, batch_factor=2),
        "SVRG": SVRG(objective),
        "SVRG-partial": SVRG(objective, snapshot_fraction=0.5),
        "SVRG-clipped": SVRG(objective, clip="mean", clip_threshold=1e-3),
        "SVRG-alpha": SVRG(objective, alpha=0.8, alpha_decay_steps=10),
        "GC": GC(objective, BatchClustering(4, options=ClusteringOptions(chunk=8))),
        "GC-averaged": GC(
            objective, BatchClustering(4, options=ClusteringOptions(chunk=8)), average_points=2, clamp=0.01
        ),
        "GC-online": GCOnline(objective, OnlineClustering(4)),
        "snapshot-average": SnapshotAverage(objective, count=2),
        "heavy-ball": HeavyBall(objective),
        "Nesterov": Nesterov(objective, learning_rate=0.1),
        "Adam": Adam(objective),
        "IGT": IGT(objective),
        "K-FAC": KFAC(objective),
        "EK-FAC": EKFAC(objective),
        "NTK": NTK(objective),
    }


NAMES = list(make(Objective(nn.Linear(1, 1), cross_entropy)))


def prepare(estimator: GradientEstimator, problem, steps: int = 3) -> None:  # type: ignore[no-untyped-def]
    for step in range(steps):
        point = problem.point.moved(0.01 * step * torch.ones(len(problem.point.flat())).double())
        estimator.on_frequent(
            step,
            point,
            problem.population.fetch(torch.arange(6) + 6 * step),
            torch.Generator().manual_seed(step),
        )
        estimator.on_infrequent(step, point, problem.population, torch.Generator().manual_seed(step))


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, problem) -> None:  # type: ignore[no-untyped-def]
    """Directions repeat, change nothing, survive a round trip, and have the parameters' shape."""
    estimator, twin = make(problem.objective)[name], make(problem.objective)[name]
    prepare(estimator, problem)
    batch = problem.population.fetch(torch.tensor([1, 5, 7, 30]))
    before = problem.point.copy()
    first = estimator.direction(problem.point, batch, torch.Generator().manual_seed(9))
    again = estimator.direction(problem.point, batch, torch.Generator().manual_seed(9))
    assert torch.equal(first.values, again.values)
    assert first.values.shape == problem.point.flat().shape
    assert torch.equal(problem.point.flat(), before.flat())
    assert all(p.grad is None for p in problem.model.parameters())
    twin.load_state_dict(estimator.state_dict())
    for step in (3, 4):
        prepare_batch = problem.population.fetch(torch.arange(6) + step)
        for one in (estimator, twin):
            one.on_frequent(step, problem.point, prepare_batch, torch.Generator().manual_seed(step))
        results = [
            one.direction(problem.point, batch, torch.Generator().manual_seed(9)).values
            for one in (estimator, twin)
        ]
        assert torch.equal(*results)


@pytest.mark.parametrize("name", ["SVRG", "GC", "GC-online"])
def test_directions_before_the_first_snapshot_are_refused(name: str, problem) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotReady, match="on_infrequent"):
        make(problem.objective)[name].direction(problem.point, problem.population.fetch(torch.arange(3)))


def test_svrg_golden(golden) -> None:  # type: ignore[no-untyped-def]
    model = golden.model()
    objective, point = Objective(model, cross_entropy), Point.of(model).copy()
    x, y = golden.data
    now = Point(golden.group("svrg_param_now"), {})
    from variance.data import TensorPopulation

    population = TensorPopulation(x, y)
    svrg = SVRG(objective)
    svrg.on_infrequent(0, point, population)
    torch.testing.assert_close(svrg.snapshot_mean, golden.tensor("mean_grad"), rtol=RTOL, atol=1e-14)
    found = svrg.direction(now, population.fetch(golden.tensor("svrg_batch")))
    torch.testing.assert_close(found.values, golden.tensor("svrg_direction"), rtol=RTOL, atol=1e-13)
    assert svrg.exact(now, population, 1).trace_cov == pytest.approx(
        float(golden["svrg_trace_var_per_sample"]), rel=RTOL
    )
    plain = SGB(objective).exact(now, population, 1).trace_cov
    assert plain == pytest.approx(float(golden["svrg_sgd_trace_var_per_sample"]), rel=RTOL)


def test_kfac_golden(golden) -> None:  # type: ignore[no-untyped-def]
    damping, decay, kl_clip, learning_rate = golden["kfac_hparams"].tolist()
    model = golden.model()
    x, _ = golden.data
    objective, point = Objective(model, cross_entropy), Point.of(model)
    kfac = KFAC(
        objective, learning_rate=learning_rate, damping=damping, decay=decay, kl_clip=kl_clip, targets="given"
    )
    labels = golden.tensor("kfac_sampled_y")
    kfac.on_frequent(0, point, Batch(x, labels, torch.arange(len(x)), torch.ones(len(x))))
    for name, value in golden.group("kfac_A").items():
        torch.testing.assert_close(kfac.inputs[name], value, rtol=RTOL, atol=1e-14)
        torch.testing.assert_close(kfac.outputs[name], golden.group("kfac_G")[name], rtol=RTOL, atol=1e-14)
    gradient = golden.tensor("kfac_grad")
    direction = kfac.precondition(point, gradient)
    torch.testing.assert_close(direction, golden.tensor("kfac_direction"), rtol=KFAC_RTOL, atol=1e-12)
    assert kfac.clip_factor(direction, gradient) == pytest.approx(float(golden["kfac_kl_nu"]))
    kfac.kl_clip = 1e-6
    assert kfac.clip_factor(direction, gradient) == pytest.approx(
        float(golden["kfac_kl_nu_at_1e-6"]), rel=KFAC_RTOL
    )


def test_kfac_settings_agree_on_layers_with_one_position(golden_mlp) -> None:  # type: ignore[no-untyped-def]
    x, y = golden_mlp.data
    objective = Objective(golden_mlp.model(), cross_entropy)
    found = objective.capture(Point.of(golden_mlp.model()), Batch(x, y, torch.arange(24), torch.ones(24)))
    for layer in found.layers.values():
        mean, expand, reduce = (kronecker_factors(layer, c) for c in ("mean", "expand", "reduce"))  # type: ignore[arg-type]
        for one, two, three in zip(mean, expand, reduce, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)


def test_sampled_labels_follow_the_softmax(problem) -> None:  # type: ignore[no-untyped-def]
    """The sampled factor approaches E[b b^T] = diag(p) - p p^T; 20 000 draws, 5 sigma."""
    model = nn.Linear(1, 3).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    objective, x = Objective(model, cross_entropy), torch.zeros(20_000, 1).double()
    kfac = KFAC(objective, decay=0.0)
    kfac.on_frequent(
        0, Point.of(model), Batch(x, torch.zeros(20_000).long(), torch.arange(20_000), torch.ones(20_000))
    )
    p = torch.softmax(model.bias.detach(), 0)
    torch.testing.assert_close(kfac.outputs[""], torch.diag(p) - torch.outer(p, p), rtol=0, atol=0.02)


def test_ekfac_equals_the_projected_second_moment(problem) -> None:  # type: ignore[no-untyped-def]
    """With decay 0 the spectrum is the mean of squared projections of per-example gradients."""
    ekfac = EKFAC(problem.objective, decay=0.0, targets="given")
    batch = problem.population.fetch(torch.arange(20))
    ekfac.on_frequent(0, problem.point, batch)
    ekfac.on_frequent(1, problem.point, batch)
    qa, qg = ekfac._bases["2"]
    g = problem.gradients()[:20]
    matrices = torch.cat([g[:, 48:72].reshape(20, 3, 8), g[:, 72:].unsqueeze(2)], 2)
    torch.testing.assert_close(ekfac._spectra["2"], (qg.T @ matrices @ qa).square().mean(0))


@pytest.mark.parametrize("positions", [1, 4])
def test_projected_second_moments_equal_materialised_ones(positions: int) -> None:
    """Mean of (Q_G^T G Q_A)^2 over examples, from per-example gradients of weight and bias by a loop."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    x, y = torch.randn(5, positions, 3).double(), torch.randn(5, positions, 2).double()
    layer = capture(module, lambda o, t: (o - t).square().flatten(1).sum(1), x, y).layers[""]
    qa, qg = (torch.linalg.qr(torch.randn(k, k).double())[0] for k in (4, 2))
    rows = []
    for n in range(5):
        loss = (module(x[n]) - y[n]).square().sum()
        weight, bias = torch.autograd.grad(loss, list(module.parameters()))
        rows.append(qg.T @ torch.cat([weight, bias.unsqueeze(1)], 1) @ qa)
    expected = torch.stack(rows).square().mean(0)
    found = projected_second_moment(layer, qa, qg)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_ntk_solves_the_damped_system(problem) -> None:  # type: ignore[no-untyped-def]
    batch = problem.population.fetch(torch.arange(7))
    g = problem.gradients()[:7]
    weights = torch.linalg.solve(g @ g.T + 1e-3 * torch.eye(7).double(), torch.ones(7).double())
    found = NTK(problem.objective, damping=1e-3).direction(problem.point, batch).values
    torch.testing.assert_close(found, weights @ g / 7, rtol=1e-6, atol=1e-9)
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert bool(torch.isfinite(inverse_row_sums(indefinite, 1e-3)).all())


def test_momentum_methods_follow_their_published_recursions(problem) -> None:  # type: ignore[no-untyped-def]
    ball, ahead, adam = (
        HeavyBall(problem.objective, momentum=0.8),
        Nesterov(problem.objective, learning_rate=0.1, momentum=0.8),
        Adam(problem.objective),
    )
    parameter = nn.Parameter(problem.point.flat().clone())
    torch_adam = torch.optim.Adam([parameter], lr=1.0)
    v = w = torch.zeros_like(problem.point.flat())
    for step in range(4):
        batch = problem.population.fetch(torch.arange(6) + step)
        g, _ = problem.objective.gradient(problem.point, batch)
        v = 0.8 * v + 0.2 * g
        w = 0.8 * w + 0.2 * problem.objective.gradient(problem.point.moved(-0.1 * 0.8 * w), batch)[0]
        before = parameter.detach().clone()
        parameter.grad = g
        torch_adam.step()
        torch.testing.assert_close(
            adam.direction(problem.point, batch).values, before - parameter.detach(), rtol=1e-6, atol=1e-9
        )
        for one in (ball, ahead, adam):
            one.on_frequent(step, problem.point, batch)
        torch.testing.assert_close(ball.velocity, v)
        torch.testing.assert_close(ahead.velocity, w)


def test_igt_is_the_mean_gradient_on_a_quadratic(make_problem) -> None:  # type: ignore[no-untyped-def]
    """Transport is exact for quadratics of equal curvature: v_t averages all batches at theta_t."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    x, y = (
        torch.randn(1, 3).double().expand(40, 3),
        torch.randn(40, 1).double(),
    )  # one Hessian for all batches
    from variance.data import TensorPopulation
    from variance.losses import half_squared_error

    population, objective, point = (
        TensorPopulation(x, y),
        Objective(model, half_squared_error),
        Point.of(model).copy(),
    )
    igt, batches = IGT(objective), []
    for step in range(6):
        batches.append(population.fetch(torch.arange(4) + 4 * step))
        igt.on_frequent(step, point, batches[-1])
        mean = torch.stack([objective.gradient(point, b)[0] for b in batches]).mean(0)
        torch.testing.assert_close(igt.velocity, mean)
        point = point.moved(-0.1 * igt.velocity)


def test_enumerating_all_batches_gives_the_svrg_mean_exactly(make_problem) -> None:  # type: ignore[no-untyped-def]
    problem = make_problem(n=6)
    svrg = SVRG(problem.objective)
    svrg.on_infrequent(
        0, problem.point.moved(torch.full_like(problem.point.flat(), 0.05)), problem.population
    )
    directions = torch.stack(
        [
            svrg.direction(problem.point, problem.population.fetch(torch.tensor(pair))).values
            for pair in itertools.permutations(range(6), 2)
        ]
    )
    torch.testing.assert_close(directions.mean(0), problem.gradients().mean(0), rtol=0, atol=1e-12)
    spread = float((directions - directions.mean(0)).square().sum(1).mean())
    assert svrg.exact(problem.point, problem.population, 2).avg_var * directions.shape[1] == pytest.approx(
        spread, rel=1e-9
    )


@pytest.mark.parametrize(
    "options", [{}, {"snapshot_fraction": 0.4}, {"clip": "snr", "clip_threshold": 0.5}, {"alpha": 0.5}]
)
def test_svrg_is_unbiased(options: dict[str, object], problem) -> None:  # type: ignore[no-untyped-def]
    """4 000 draws, 20 projections within 5 standard errors (failure probability below 2e-5).

    A partial snapshot is biased by construction: its mean is that of the subset; the test then uses that
    mean.
    """
    svrg = SVRG(problem.objective, **options)  # type: ignore[arg-type]
    prepare(svrg, problem, 1)
    target = problem.gradients().mean(0)
    if "snapshot_fraction" in options:
        old = problem.gradients(svrg.snapshot).mean(0)
        target = target - old + svrg.snapshot_mean
    generator = torch.Generator().manual_seed(1)
    g_now, g_old = problem.gradients(), problem.gradients(svrg.snapshot)
    rows = torch.randint(48, (4000, 6), generator=generator)
    mask = svrg.coefficient() * svrg._mask(svrg.snapshot_mean)
    draws = (g_now - mask * g_old)[rows].mean(1) + mask * svrg.snapshot_mean
    one = svrg.direction(problem.point, problem.population.fetch(rows[0])).values
    torch.testing.assert_close(draws[0], one, rtol=1e-9, atol=1e-12)
    projections = (draws - target) @ torch.randn(draws.shape[1], 20, dtype=torch.float64, generator=generator)
    assert bool((projections.mean(0).abs() <= 5 * projections.std(0) / np.sqrt(4000) + 1e-12).all())


def test_exact_variance_of_gc_is_the_stratified_variance(problem) -> None:  # type: ignore[no-untyped-def]
    """One draw of each cluster; other numbers of draws are enumerated in test_stratified_law.py."""
    gc = GC(problem.objective, BatchClustering(4, options=ClusteringOptions(chunk=8)))
    gc.on_infrequent(0, problem.point, problem.population)
    num = int((torch.bincount(gc.assignment) > 0).sum())
    found = gc.exact(problem.point, problem.population, num)
    expected = stratified_variance(problem.gradients(), gc.assignment)
    assert found.avg_var * len(problem.point.flat()) == pytest.approx(expected, rel=1e-9)
    plain = SGB(problem.objective).exact(problem.point, problem.population, 4)
    reference = exact(problem.gradients(), 4, replacement=False)
    assert plain.norm_var_coord == pytest.approx(reference.norm_var_coord, rel=1e-9)
    torch.testing.assert_close(found.mean, reference.mean)


def test_one_cluster_is_plain_sampling(problem) -> None:  # type: ignore[no-untyped-def]
    """With K = 1 every statistic of GC is that of SG-B, the noise scale in examples included."""
    gc = GC(problem.objective, BatchClustering(1), iterations=1)
    gc.on_infrequent(0, problem.point, problem.population)
    found = gc.exact(problem.point, problem.population, 6)
    expected = SGB(problem.objective).exact(problem.point, problem.population, 6)
    for name in ("trace_cov", "avg_var", "norm_var_coord", "norm_var_trace", "grad_sq", "noise_scale"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-10), name


def test_snapshot_average_is_the_mean_over_points(problem) -> None:  # type: ignore[no-untyped-def]
    average, batch = SnapshotAverage(problem.objective, count=1), problem.population.fetch(torch.arange(5))
    elsewhere = problem.point.moved(torch.full_like(problem.point.flat(), 0.1))
    for point in (problem.point, elsewhere):  # the first one is forgotten
        average.on_infrequent(0, point, problem.population)
    expected = (problem.gradients()[:5].mean(0) + problem.gradients(elsewhere)[:5].mean(0)) / 2
    torch.testing.assert_close(average.direction(problem.point, batch).values, expected)


def test_clamped_directions_stay_inside_and_have_no_closed_form(problem) -> None:  # type: ignore[no-untyped-def]
    gc = GC(problem.objective, BatchClustering(3), clamp=1e-3)
    gc.on_infrequent(0, problem.point, problem.population)
    direction = gc.direction(problem.point, problem.population.fetch(torch.arange(4))).values
    assert float(direction.abs().max()) == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="clamp has no exact variance"):
        gc.exact(problem.point, problem.population, 4)


def test_alpha_decays_to_zero(problem) -> None:  # type: ignore[no-untyped-def]
    svrg = SVRG(problem.objective, alpha=0.5, alpha_decay_steps=10)
    prepare(svrg, problem, 1)
    batch = problem.population.fetch(torch.arange(4))
    for step, expected in ((0, 0.5), (5, 0.25), (20, 0.0)):
        svrg.on_frequent(step, problem.point, batch)
        assert svrg.coefficient() == pytest.approx(expected)
    plain = problem.objective.gradient(problem.point, batch)[0]
    torch.testing.assert_close(svrg.direction(problem.point, batch).values, plain)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda o: SnapshotAverage(o, count=0), "count is 0"),
        (lambda o: GC(o, BatchClustering(2), average_points=0), "average_points is 0"),
        (lambda o: GC(o, BatchClustering(2), clamp=0.0), "clamp is 0.0"),
        (
            lambda o: SVRG(o, snapshot_fraction=0.0),
            "snapshot_fraction is 0.0; pass a number above 0",
        ),
        (lambda o: SVRG(o, clip="loss"), "allowed are mean, norm_var, snr"),
        (lambda o: HeavyBall(o, momentum=1.0), "momentum is 1.0; pass a number of at least 0, below 1"),
        (lambda o: Adam(o, betas=(0.9, 1.0)), "beta is 1.0"),
        (lambda o: KFAC(o, damping=0.0), "damping is 0.0; pass a number above 0"),
        (lambda o: NTK(o, damping=0.0), "damping is 0.0; pass a number above 0"),
        (lambda o: KFAC(o, convolution="full"), "convolution is 'full'; allowed are mean, expand, reduce"),
    ],
)
def test_bad_input(build, message: str, problem) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        build(problem.objective)


def test_a_changed_data_length_after_clustering_is_refused(problem) -> None:  # type: ignore[no-untyped-def]
    gc = GC(problem.objective, BatchClustering(3))
    gc.on_infrequent(0, problem.point, problem.population)
    with pytest.raises(
        ConfigError, match="48 examples were clustered but the data now hold 50; cluster again"
    ):
        gc.sampler(50, np.random.default_rng(0))


def test_estimators_without_a_closed_form_say_so(problem) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="Adam has no exact variance; measure it with mode='unbiased'"):
        Adam(problem.objective).exact(problem.point, problem.population, 4)


def test_ekfac_keeps_its_second_moments_in_a_new_basis(problem) -> None:  # type: ignore[no-untyped-def]
    """Renewed at the steps of the factors, too, EK-FAC is not K-FAC; sums are preserved."""
    plain, corrected = KFAC(problem.objective), EKFAC(problem.objective)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for step in range(4):
        batch = problem.population.fetch(torch.arange(12) + 12 * step)
        for estimator, generator in zip((plain, corrected), generators, strict=True):
            estimator.on_frequent(step, problem.point, batch, generator)
            before = {name: float(value.sum()) for name, value in estimator._spectra.items()}
            estimator.on_infrequent(step, problem.point, problem.population)
        for name, value in corrected._spectra.items():
            assert float(value.sum()) == pytest.approx(before[name], rel=1e-9)
    one, two = (estimator.direction(problem.point, batch).values for estimator in (plain, corrected))
    assert float((one - two).norm() / one.norm()) > 1e-3


def test_a_new_basis_of_ekfac_carries_the_diagonal_over(problem) -> None:  # type: ignore[no-untyped-def]
    """Second moments s in basis Q mean the covariance Q diag(s) Q^T; its diagonal in another basis is s'."""
    generator = torch.Generator().manual_seed(2)
    (qa, ra), (qg, rg) = (
        [torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
        for n in (3, 4)
    )
    s = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    estimator = EKFAC(problem.objective)
    estimator._bases["x"], estimator._spectra["x"] = (qa, qg), s
    found = estimator._spectrum("x", (ra, rg), torch.zeros(4, 3))
    old, new = torch.kron(qg, qa), torch.kron(rg, ra)
    expected = (new.T @ old @ torch.diag(s.flatten()) @ old.T @ new).diagonal().reshape(4, 3)
    torch.testing.assert_close(found, expected)


def test_kfac_runs_in_half_precision(make_problem) -> None:  # type: ignore[no-untyped-def]
    low, high = make_problem(dtype=torch.bfloat16), make_problem(dtype=torch.float64)
    high.model.load_state_dict(low.model.state_dict())
    high.population.inputs, high.population.targets = low.x.double(), low.y
    directions = []
    for one in (low, high):
        kfac = KFAC(one.objective, targets="given")
        batch = one.population.fetch(torch.arange(48))
        kfac.on_frequent(0, Point.of(one.model), batch)
        directions.append(kfac.direction(Point.of(one.model), batch).values)
    assert directions[0].dtype == torch.bfloat16
    error = (directions[0].double() - directions[1]).norm() / directions[1].norm()
    assert float(error) < 0.05


def test_factors_of_given_targets_are_those_of_the_objective() -> None:
    """G of the last layer is the mean of b b^T with b = outputs - targets, for a squared error."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).double(), torch.randn(20, 4).double(), torch.randn(20, 3).double()
    batch, point = Batch(x, y, torch.arange(20), torch.ones(20)), Point.of(model)
    kfac = KFAC(Objective(model, half_squared_error), targets="given", decay=0.0)
    kfac.on_frequent(0, point, batch)
    b = (model(x) - y).detach()
    torch.testing.assert_close(kfac.outputs[""], b.T @ b / 20)
    with pytest.raises(ConfigError, match="pass targets='given'"):
        KFAC(Objective(model, half_squared_error)).on_frequent(0, point, batch)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_state_stays_as_it_is(name: str, problem) -> None:  # type: ignore[no-untyped-def]
    """Neither the estimator it was taken from nor one that loads it moves it."""
    estimator, twin = make(problem.objective)[name], make(problem.objective)[name]
    prepare(estimator, problem)
    state = estimator.state_dict()
    kept = copy.deepcopy(state)
    twin.load_state_dict(state)
    for one in (estimator, twin):
        prepare(one, problem, steps=7)
    stored, expected = tree_leaves(state), tree_leaves(kept)
    assert len(stored) == len(expected)
    for value, other in zip(stored, expected, strict=True):
        is_tensor = isinstance(value, torch.Tensor)
        assert torch.equal(value, other) if is_tensor else value == other or value != value


def test_svrg_refuses_a_loss_whose_parts_do_not_add_up() -> None:
    # with class weights the mean direction was off by 59 % on sorted data, in silence
    torch.manual_seed(0)
    model, labels = nn.Linear(4, 2), (torch.arange(1200) > 700).long()
    svrg = SVRG(Objective(model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0]))))
    with pytest.raises(CoupledExamples, match="SVRG need one loss per example"):
        svrg.on_infrequent(0, Point.of(model), TensorPopulation(torch.randn(1200, 4), labels))
