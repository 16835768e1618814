"""Clustering against golden arrays, and its own laws: exact moves, forms of centres, online, splits."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from variance import per_example
from variance.errors import ConfigError, NonFiniteGradient, NotReady
from variance.gradient_clustering import (
    BatchClustering,
    Centres,
    ClusteringOptions,
    OnlineClustering,
    cluster,
    cluster_subset,
    exact_moves,
    exact_moves_gram,
    require_gram_fits,
)
from variance.gradient_clustering.centres import squared_distances, truncated_svd
from variance.gradient_clustering.initialisation import spread_out
from variance.per_example.capturing import capture
from variance.sampling import clustering_objective, stratified_variance

RTOL = 1e-9
CASES = {"gc_": ("none", None), "gc_w_": ("frozen", None), "gc_seq_": ("sequential", "gc_seq_batch")}


@pytest.mark.parametrize("prefix", CASES)
@pytest.mark.parametrize("given_as", ["indices", "centres"])
def test_golden(golden, prefix: str, given_as: str) -> None:  # type: ignore[no-untyped-def]
    weighting, chunk = CASES[prefix]
    x, y = golden.data
    init = golden.tensor("gc_init_samples")
    if given_as == "centres":
        init = Centres(golden.group("gc_init_Ci"), golden.group("gc_init_Co"))
    found = cluster(
        golden.model(),
        F.cross_entropy,
        x,
        y,
        4,
        init=init,
        weighting=weighting,
        iterations=5,
        options=ClusteringOptions(chunk=int(golden[chunk]) if chunk else 7, shuffle=False),
    )
    assert torch.equal(found.assignments, golden.tensor(prefix + "assign"))
    torch.testing.assert_close(found.distortions, golden.tensor(prefix + "distortion"), rtol=RTOL, atol=1e-12)
    for name, value in golden.group(prefix + "Ci").items():
        torch.testing.assert_close(found.centres.inputs[name], value, rtol=RTOL, atol=1e-14)
        torch.testing.assert_close(
            found.centres.outputs[name], golden.group(prefix + "Co")[name], rtol=RTOL, atol=1e-14
        )


@pytest.mark.parametrize("backend", ["materialised", "gram"])
def test_exact_golden(golden, backend: str) -> None:  # type: ignore[no-untyped-def]
    g, start = golden.tensor("per_sample_grads"), golden.tensor("gc_assign")[0]
    found = exact_moves(g, start, 3) if backend == "materialised" else exact_moves_gram(g @ g.T, start, 3)
    assert torch.equal(found.assignments, golden.tensor("exact_assign"))
    torch.testing.assert_close(found.objectives, golden.tensor("exact_objective"), rtol=RTOL, atol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 25), k=st.integers(1, 6))
def test_exact_moves_never_raise_the_objective(seed: int, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    start = torch.randint(k, (n,), generator=generator)
    found = exact_moves(g, start, 3, num_clusters=k)
    rounding = 1e-12 * n * float(g.square().sum())
    assert bool((found.objectives.diff() <= rounding).all())
    for ids, objective in zip(found.assignments, found.objectives, strict=True):
        assert float(objective) == pytest.approx(clustering_objective(g, ids), abs=rounding)
    assert torch.equal(exact_moves_gram(g @ g.T, start, 3, num_clusters=k).assignments, found.assignments)


def problem(n: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    return net, torch.randn(n, 1, 4, 4, dtype=torch.float64), torch.randint(3, (n,))


@pytest.mark.parametrize("form", ["product", "svd", "mean", "conv-mean"])
def test_distances_to_centres_equal_dense_distances(form: str) -> None:
    model, x, y = problem()
    options = ClusteringOptions(form=form, rank=2 if form == "svd" else 1)  # type: ignore[arg-type]
    fit = BatchClustering(3, options, seed=1)
    found = fit.fit(lambda i: capture(model, F.cross_entropy, x[i], y[i], weights_only=True), len(x), 2)
    passed = capture(model, F.cross_entropy, x, y, weights_only=True)
    expected = torch.zeros(len(x), 3, dtype=torch.float64)
    for name, layer in passed.layers.items():
        g = layer.kernels().flatten(1)  # type: ignore[attr-defined]
        expected += torch.cdist(g, found.centres.matrices(name).flatten(1)).square()
        members = torch.stack([g[found.assignment == k].mean(0) for k in range(3)])
        if form == "mean":
            torch.testing.assert_close(found.centres.matrices(name).flatten(1), members)
    torch.testing.assert_close(squared_distances(passed, found.centres, options), expected)


def test_the_bias_can_take_part() -> None:
    model, x, y = problem()
    found = cluster(
        model,
        F.cross_entropy,
        x,
        y,
        4,
        init=[0, 1, 2, 3],
        iterations=1,
        weighting="none",
        options=ClusteringOptions(include_bias=True),
    )
    g = per_example.gradients(model, F.cross_entropy, x, y)
    passed = capture(model, F.cross_entropy, x[:4], y[:4], weights_only=True)
    distances = squared_distances(
        passed,
        cluster(
            model,
            F.cross_entropy,
            x[:4],
            y[:4],
            4,
            init=[0, 1, 2, 3],
            weighting="none",
            iterations=1,
            options=ClusteringOptions(include_bias=True),
        ).centres,
        ClusteringOptions(include_bias=True),
    )
    assert found.centres.inputs["3"].shape == (4, 49)
    linear = slice(3 * 9 + 3, None)  # fully connected layers have one position, so their centres are exact
    torch.testing.assert_close(
        distances[0, 1] >= (g[0, linear] - g[1, linear]).square().sum(), torch.tensor(True)
    )


def test_truncated_svd_is_the_best_approximation() -> None:
    matrices = torch.randn(3, 4, 6, dtype=torch.float64)
    c, o = truncated_svd(matrices, 2)
    error = (torch.bmm(o.transpose(1, 2), c) - matrices).square().sum((1, 2))
    torch.testing.assert_close(error, torch.linalg.svdvals(matrices)[:, 2:].square().sum(1))


@pytest.mark.parametrize("compare", ["inputs", "outputs"])
def test_comparing_one_factor_only(compare: str) -> None:
    model, x, y = problem()
    twice = torch.cat([x, x]), torch.cat([y, y])
    found = cluster(
        model,
        F.cross_entropy,
        *twice,
        5,
        weighting="none",
        iterations=2,
        options=ClusteringOptions(compare=compare),
    )  # type: ignore[arg-type]
    assert torch.equal(found.assignment[:40], found.assignment[40:])


def test_whitening_makes_the_clustering_scale_free() -> None:
    model, x, y = problem()
    layers = ("3", "5")
    found = cluster(
        model, F.cross_entropy, x, y, 3, init=[0, 1, 2], options=ClusteringOptions(whiten=True, layers=layers)
    )

    def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1e-3 * F.cross_entropy(outputs, targets, reduction="none")

    assert torch.equal(
        cluster(
            model, scaled, x, y, 3, init=[0, 1, 2], options=ClusteringOptions(whiten=True, layers=layers)
        ).assignments,
        found.assignments,
    )


def test_compensated_summation_changes_rounding_only() -> None:
    model, x, y = problem()
    plain, kahan = (
        cluster(model, F.cross_entropy, x, y, 3, init=[0, 1, 2], options=ClusteringOptions(kahan=k, chunk=5))
        for k in (False, True)
    )
    assert torch.equal(plain.assignments, kahan.assignments)
    torch.testing.assert_close(plain.centres.inputs["3"], kahan.centres.inputs["3"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("init", ["data", "kmeans++", "uniform"])
def test_sequential_clustering_beats_uniform_sampling(init: str) -> None:
    model, x, y = problem(60)
    g = per_example.gradients(model, F.cross_entropy, x, y)
    found = cluster(
        model,
        F.cross_entropy,
        x,
        y,
        6,
        init=init,
        iterations=8,
        options=ClusteringOptions(chunk=4, shuffle=True),
    )  # type: ignore[arg-type]
    used = int((found.sizes > 0).sum())
    uniform = float((g - g.mean(0)).square().sum(1).mean()) / used
    assert stratified_variance(g, found.assignment) < uniform


def test_small_clusters_are_refilled_and_centres_stay_means() -> None:
    model, x, y = problem()
    x[1:3], y[1:3] = x[0], y[0]  # three equal first centres: two clusters stay empty
    found = cluster(
        model,
        F.cross_entropy,
        x,
        y,
        4,
        init=[0, 1, 2, 3],
        weighting="none",
        iterations=3,
        options=ClusteringOptions(min_size=3),
    )
    assert found.num_splits >= 1
    assert int(found.sizes.sum()) == 40
    passed = capture(model, F.cross_entropy, x, y, weights_only=True)
    for k in range(4):
        members = passed.layers["3"].input_means()[found.assignment == k]  # type: ignore[attr-defined]
        torch.testing.assert_close(
            found.centres.inputs["3"][k], members.mean(0) if len(members) else torch.zeros(48).double()
        )


def test_the_global_mean_is_a_pseudo_count() -> None:
    model, x, y = problem()
    found = cluster(
        model,
        F.cross_entropy,
        x,
        y,
        3,
        init=[0, 1, 2],
        iterations=1,
        options=ClusteringOptions(global_mean=2.5),
    )
    means = capture(model, F.cross_entropy, x, y, weights_only=True).layers["3"].input_means()  # type: ignore[attr-defined]
    for k in range(3):
        members = means[found.assignment == k]
        expected = (members.sum(0) + 2.5 * means.mean(0)) / (len(members) + 2.5)
        torch.testing.assert_close(found.centres.inputs["3"][k], expected)


def test_size_regularisation_leads_from_weighted_to_unweighted() -> None:
    model, x, y = problem()
    start: dict[str, object] = {"init": [0, 1, 2], "iterations": 3}
    every_four = ClusteringOptions(chunk=4)
    weighted, none = (
        cluster(model, F.cross_entropy, x, y, 3, weighting=w, options=every_four, **start)  # type: ignore[arg-type]
        for w in ("sequential", "none")
    )
    assert not torch.equal(weighted.assignments, none.assignments)
    regularised = cluster(
        model,
        F.cross_entropy,
        x,
        y,
        3,
        **start,
        options=ClusteringOptions(chunk=4, size_regularisation=1e12),
    )  # type: ignore[arg-type]
    assert torch.equal(regularised.assignments, none.assignments)


def test_examples_without_gradient_share_a_cluster() -> None:
    x, y = torch.zeros(6, 2).double(), torch.zeros(6, dtype=torch.long)
    x[0], x[1] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    found = cluster(
        nn.Linear(2, 2, bias=False).double(),
        F.cross_entropy,
        x,
        y,
        2,
        init=[0, 2],
        weighting="none",
        iterations=1,
    )
    assert found.assignment[2:].tolist() == [1] * 4


def test_spread_out_prefers_distant_points() -> None:
    points = torch.tensor([[0.0], [0.0], [10.0], [10.0], [20.0]])
    chosen = spread_out(points @ points.T, 3, torch_generator())
    assert sorted(points[chosen].flatten().tolist()) == [0.0, 10.0, 20.0]
    assert len(set(spread_out(torch.zeros(4, 4), 4, torch_generator()))) == 4


def torch_generator():  # type: ignore[no-untyped-def]
    import numpy as np

    return np.random.default_rng(0)


def test_online_clustering_follows_its_formula() -> None:
    model, x, y = problem()
    online = OnlineClustering(3, decay=0.9, reinit_every=100, seed=0)
    first = capture(model, F.cross_entropy, x[:20], y[:20], weights_only=True)
    online._start(first)
    before, sizes = {k: v.clone() for k, v in online.centres.inputs.items()}, online.sizes.clone()  # type: ignore[union-attr]
    ids = online.update(first)
    assert online.centres is not None
    counts = torch.bincount(ids, minlength=3).double()
    torch.testing.assert_close(online.sizes, 0.9 * sizes + 0.1 * counts)
    means = first.layers["3"].input_means()  # type: ignore[attr-defined]
    for k in range(3):
        expected = (0.9 * sizes[k] * before["3"][k] + 0.1 * means[ids == k].sum(0)) / online.sizes[k]
        torch.testing.assert_close(online.centres.inputs["3"][k], expected if counts[k] else before["3"][k])


@pytest.mark.parametrize("reinit", ["largest", "data"])
def test_online_clustering_reinitialises_and_resumes(reinit: str) -> None:
    model, x, y = problem()
    make = lambda: OnlineClustering(8, decay=0.5, min_size=0.06, reinit_every=2, reinit=reinit, seed=0)  # type: ignore[arg-type]  # noqa: E731
    batches = [
        capture(model, F.cross_entropy, x[i : i + 10], y[i : i + 10], weights_only=True)
        for i in (0, 10, 20, 30, 0, 10)
    ]
    one, two = make(), make()
    for batch in batches[:3]:
        one.update(batch)
    two.load_state_dict(one.state_dict())
    assert [one.update(b).tolist() for b in batches[3:]] == [two.update(b).tolist() for b in batches[3:]]
    assert one.num_reinits > 0
    assert torch.equal(one.sizes, two.sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clusters": 0}, "num_clusters is 0; pass a whole number"),
        ({"num_clusters": 41}, "num_clusters 41 exceeds the 40 examples"),
        ({"iterations": 0}, "iterations is 0"),
        ({"layers": ("9",)}, r"layers \('9',\) match nothing; weight layers are 0, 3, 5"),
        ({"init": "best"}, "init is 'best'; allowed are data, kmeans"),
        ({"init": [0, 99]}, r"init needs 2 different indices in 0..39"),
        ({"init": [5, 5]}, r"init needs 2 different indices in 0..39, got \[5, 5\]"),
        ({"weighting": "size"}, "allowed are none, sequential, frozen"),
        ({"rank": 2}, "ranks above 1 need form='svd'"),
        ({"chunk": 0}, "chunk is 0; pass a whole number"),
        ({"whiten": True, "form": "mean"}, "whiten needs form='product'"),
        ({"global_mean": -1.0}, "global_mean is -1.0; pass a number of at least 0"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    grouped = {field.name for field in fields(ClusteringOptions)}
    inside = {key: value for key, value in change.items() if key in grouped}
    others = {"num_clusters": 2} | {key: value for key, value in change.items() if key not in grouped}
    model, x, y = problem()
    with pytest.raises(ConfigError, match=message):
        cluster(model, F.cross_entropy, x, y, options=ClusteringOptions(**inside), **others)  # type: ignore[arg-type]


def test_a_model_without_weight_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable Linear or Conv layer"):
        cluster(nn.Sequential(nn.LayerNorm(3)), F.cross_entropy, torch.randn(4, 3), torch.zeros(4).long(), 2)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 inputs and 0 targets"):
        cluster(nn.Linear(3, 2), F.cross_entropy, torch.zeros(0, 3), torch.zeros(0).long(), 1)


def test_non_finite_examples_are_named_and_never_clustered() -> None:
    model, x, y = problem()
    x[17] = float("inf")
    with pytest.raises(NonFiniteGradient, match="examples"):
        cluster(model, F.cross_entropy, x, y, 2, init=[0, 1])
    with pytest.raises(NonFiniteGradient, match=r"\[1\]"):
        exact_moves(torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 0]), 1)


def test_the_gram_matrix_has_a_limit() -> None:
    with pytest.raises(ConfigError, match=r"N=100000 examples needs 40000000000 bytes.*random subset"):
        require_gram_fits(100_000, 2**31)


def test_online_assignment_before_any_batch_is_refused() -> None:
    model, x, y = problem()
    with pytest.raises(NotReady, match="seen no batch"):
        OnlineClustering(2).assign(capture(model, F.cross_entropy, x, y))


def test_the_order_of_the_data_does_not_decide_about_the_clusters() -> None:
    """Data sorted by class, as folders of images are: the variance is that of shuffled data."""
    torch.manual_seed(0)
    y = torch.arange(4).repeat_interleave(100)
    x = torch.eye(4)[y] * 2 + 0.3 * torch.randn(400, 4)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    g = per_example.gradients(model, F.cross_entropy, x, y)
    order = torch.randperm(400)
    by_class = cluster(model, F.cross_entropy, x, y, 8, iterations=5).assignment
    mixed = cluster(model, F.cross_entropy, x[order], y[order], 8, iterations=5).assignment
    ratio = stratified_variance(g, by_class) / stratified_variance(g[order], mixed)
    assert ratio < 1.5


@pytest.mark.parametrize("weighting", ["sequential", "frozen"])
def test_the_size_of_a_pass_decides_nothing(weighting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    x, y = torch.randn(300, 5, dtype=torch.float64), torch.randint(3, (300,))
    found = []
    for size in (1, 2048):
        monkeypatch.setattr("variance.gradient_clustering.batch.WIDE_PASS_EXAMPLES", size)
        options = ClusteringOptions(chunk=16)
        found.append(cluster(model, F.cross_entropy, x, y, 6, weighting=weighting, options=options))  # type: ignore[arg-type]
    assert torch.equal(found[0].assignments, found[1].assignments)
    torch.testing.assert_close(found[0].distortions, found[1].distortions, rtol=1e-10, atol=0)


class Own(nn.Module):
    """Takes keywords and returns its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor, shift: Tensor, labels: Tensor | None = None) -> Tensor:
        outputs = self.layer(x + shift)
        return outputs if labels is None else F.cross_entropy(outputs, labels, reduction="none")


def test_batches_of_any_form_are_clustered_alike() -> None:
    torch.manual_seed(0)
    model, x, shift, y = Own(), torch.randn(40, 5), torch.randn(40, 5), torch.randint(3, (40,))
    named = {"x": x, "shift": shift}
    for run in (cluster, lambda *of: cluster_subset(*of, subset_size=20)):
        expected = run(model.layer, F.cross_entropy, x + shift, y, 3)
        with torch.inference_mode():
            others = [
                run(model, F.cross_entropy, named, y, 3),
                run(model, F.cross_entropy, (x, shift), y, 3),
                run(model, lambda losses, _: losses, {**named, "labels": y}, None, 3),
            ]
        for found in others:
            assert torch.equal(*(getattr(one, "assignment", one) for one in (found, expected)))
