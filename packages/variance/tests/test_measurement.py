"""Measurement: global random states, agreement with exact values, one line in any loop."""

import math
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from variance.data import TensorPopulation
from variance.errors import ConfigError, CoupledExamples, UnsupportedLayer
from variance.estimators import SGB
from variance.measurement import Measurement, measure_model
from variance.objective import Objective, Point
from variance.randomness import preserved_randomness
from variance.statistics import RunningDraws
from variance.stream import DataStream


def test_preserved_randomness_restores_all_global_states() -> None:
    import random

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is the subject
    expected = (torch.rand(1), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with preserved_randomness():
        _ = torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
        torch.manual_seed(7)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 2}, "num_draws is 2; pass a whole number of at least 3"),
        ({"mode": "fast"}, "mode is 'fast'; allowed are unbiased, reference, exact"),
    ],
)
def test_bad_measurements(options: dict[str, object], message: str, problem) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        Measurement([SGB(problem.objective)], problem.stream(), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="distinct names"):
        Measurement([SGB(problem.objective), SGB(problem.objective)], problem.stream())


def test_measured_variance_agrees_with_the_exact_one(problem) -> None:  # type: ignore[no-untyped-def]
    """Unbiased mode against exact mode within 5 standard errors (batches without replacement)."""
    found = Measurement([SGB(problem.objective)], problem.stream(4), num_draws=300)(0, problem.point)
    from variance.statistics import exact

    truth = exact(problem.gradients(), 4, replacement=False).avg_var
    assert abs(found["SG-B[B=4]/avg_var"] - truth) <= 5 * found["SG-B[B=4]/avg_var_se"]


def test_measure_model_is_a_line_in_any_loop(problem) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))
    before = torch.get_rng_state()
    found = measure_model(model, nn.CrossEntropyLoss(), problem.x.float(), problem.y, batch_size=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert found["noise_scale_se"] > 0


def test_reference_mode_is_the_definition_on_its_draws(problem) -> None:  # type: ignore[no-untyped-def]
    """Two sets of draws about the mean of the first; summation order only (rtol 1e-10)."""
    from variance.statistics import reference

    estimator = SGB(problem.objective)
    measurement = Measurement([estimator], problem.stream(4), num_draws=5, mode="reference")
    found = measurement(3, problem.point)
    a, b, c = (measurement.draws(3, problem.point, estimator, which) for which in ("a", "b", "bias"))
    expected = reference(a, b, c.mean(0))
    for ours, theirs in (("avg_var", "avg_var"), ("norm_var", "norm_var"), ("bias_vs_sg", "bias")):
        assert found[f"SG-B[B=4]/{ours}"] == pytest.approx(getattr(expected, theirs), rel=1e-10)


class Residual(nn.Module):
    """The basic block of a ResNet, with its operations in place."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        wide = width * stride
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(a, wide, 3, s, 1, bias=False), nn.BatchNorm2d(wide))
            for a, s in ((width, stride), (wide, 1))
        )
        self.skip = nn.Sequential(nn.Conv2d(width, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.second(torch.relu_(self.first(x)))
        out += self.skip(x)
        return torch.relu_(out)


def test_a_residual_network_in_evaluation_mode_is_measured_as_it_stands() -> None:
    """As `torchvision.models.resnet18` is built: batch norm by running statistics, operations in place."""
    torch.manual_seed(0)
    stem = (
        nn.Conv2d(3, 4, 7, 2, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    )
    model = nn.Sequential(
        *stem, Residual(4, 1), Residual(4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    model.double().eval()
    x, y = torch.randn(16, 3, 32, 32, dtype=torch.float64), torch.randint(5, (16,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_model(model, F.cross_entropy, x, y, batch_size=4, use="all")
    drawn = measure_model(model, F.cross_entropy, x, y, batch_size=4, num_draws=40)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    parameters = list(model.parameters())
    rows = [
        torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters) for i in range(16)
    ]
    g = torch.stack([torch.cat([value.flatten() for value in row]) for row in rows])
    exact = (g - g.mean(0)).square().sum(1).mean() / g.mean(0).square().sum()
    assert found["noise_scale"] == pytest.approx(float(exact), rel=1e-9)
    assert drawn["noise_scale_low"] < float(exact) < drawn["noise_scale_high"]


@pytest.mark.parametrize(("use", "vectors"), [("draws", 3.25), ("all", 5.0)])
def test_memory_is_that_of_a_few_parameter_vectors_and_sketches(use: Any, vectors: float) -> None:
    """Counted from the tensors alive after each operation; those of model and data are left out.

    A reduction in another precision counts as the copy that PyTorch makes of its argument.
    """
    layers = [layer for _ in range(4) for layer in (nn.Linear(500, 500), nn.Tanh())]
    model, x, y = nn.Sequential(*layers), torch.randn(8, 500), torch.randint(500, (8,))
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), x, y)}
    alive: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
    peak = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal alive, peak
            out = func(*args, **(kwargs or {}))
            for leaf in pytree.tree_leaves(out):
                if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in given:
                    storage = leaf.untyped_storage()
                    alive[storage.data_ptr()] = (weakref.ref(leaf), storage.nbytes())
            alive = {key: entry for key, entry in alive.items() if entry[0]() is not None}
            kind = (kwargs or {}).get("dtype")
            is_reduction = func.overloadpacket in (torch.ops.aten.sum, torch.ops.aten.linalg_vector_norm)
            is_copied = is_reduction and kind not in (None, args[0].dtype)
            copied = args[0].numel() * kind.itemsize if is_copied else 0
            peak = max(peak, copied + sum(size for _, size in alive.values()))
            return out

    with Count():
        measure_model(model, F.cross_entropy, x, y, batch_size=4, num_draws=3, use=use)
    parameters = sum(p.numel() for p in model.parameters())
    assert peak / 4 <= vectors * parameters + 6 * RunningDraws.SKETCH  # a quarter: one byte for each sign


def test_loaders_that_prefer_examples_are_refused_or_understood() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(40, 4), torch.randint(3, (40,))
    data = TensorDataset(x, y)

    def measure(loader: Any, **options: Any) -> float:
        return measure_model(model, nn.functional.cross_entropy, loader, num_draws=5, **options)["avg_var"]

    plain = measure(data, batch_size=8)
    assert measure(DataLoader(data, 8, shuffle=True)) == plain
    assert (
        measure(
            DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 8, drop_last=False)),
            batch_size=8,
        )
        == plain
    )
    assert measure(DataLoader(data, 8, sampler=DistributedSampler(data, num_replicas=2, rank=0))) == plain
    inside = measure(DataLoader(data, 8, sampler=SubsetRandomSampler(range(20))))
    assert inside == measure(TensorDataset(x[:20], y[:20]), batch_size=8)
    with pytest.raises(ConfigError, match="WeightedRandomSampler may draw some examples more often"):
        measure(DataLoader(data, 8, sampler=WeightedRandomSampler(torch.rand(40), 40)))
    with pytest.raises(ConfigError, match="list may draw some examples more often"):
        measure(DataLoader(data, batch_sampler=[[0, 1], [0, 2]]), batch_size=2)
    with pytest.raises(ConfigError, match="targets were given beside a DataLoader"):
        measure_model(model, nn.functional.cross_entropy, DataLoader(data, 8), y)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (nn.Dropout(0.5), ConfigError, "draws random numbers"),
        (nn.BatchNorm1d(4), UnsupportedLayer, "uses batch statistics"),
    ],
)
def test_all_examples_have_no_exact_answer_in_training_mode(
    layer: nn.Module, error: type[Exception], message: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 3))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    with pytest.raises(error, match=message):
        measure_model(model, nn.functional.cross_entropy, x, y, batch_size=4, use="all")
    measure_model(model.eval(), nn.functional.cross_entropy, x, y, batch_size=4, use="all")


class Heads(nn.Module):
    """A second output in training mode, as some image networks have, and a norm that reads its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
        self.first, self.second = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.norm(x).flatten(1)
        return (self.first(h), self.second(h)) if self.training else (self.first(h),)


@pytest.mark.filterwarnings("ignore::variance.errors.SlowPath")
@pytest.mark.parametrize("training", [True, False])
def test_all_examples_are_measured_in_the_mode_of_the_model(training: bool) -> None:
    torch.manual_seed(0)
    model, x, y = Heads().double().train(training), torch.randn(20, 2, 4).double(), torch.randint(3, (20,))

    def loss(outputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> torch.Tensor:
        return sum((F.cross_entropy(output, targets) for output in outputs), torch.zeros(()))

    found = measure_model(model, loss, x, y, batch_size=4, use="all")
    parameters = list(model.parameters())
    rows = [
        torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]), parameters, materialize_grads=True,
                            allow_unused=True)
        for i in range(20)
    ]  # fmt: skip
    g = torch.stack([torch.cat([value.flatten() for value in row]) for row in rows])
    exact = (g - g.mean(0)).square().sum(1).mean() / g.mean(0).square().sum()
    assert found["noise_scale"] == pytest.approx(float(exact), rel=1e-9)


def test_a_model_that_cannot_be_copied_is_refused_in_one_line() -> None:
    model = nn.Linear(4, 3)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"cannot be copied \(cannot pickle.*\)\. Keep locks"):
        measure_model(model, F.cross_entropy, torch.randn(9, 4), torch.randint(3, (9,)), batch_size=2)


def test_a_batch_of_all_examples_tells_nothing_of_one(problem) -> None:  # type: ignore[no-untyped-def]
    with torch.inference_mode():
        found = Measurement([SGB(problem.objective)], problem.stream(48), num_draws=5)(0, problem.point)
    numbers = {name.partition("/")[2]: value for name, value in found.items()}
    assert numbers["avg_var"] < 1e-20
    assert math.isnan(numbers["noise_scale"])
    assert (numbers["noise_scale_low"], numbers["noise_scale_high"]) == (0, math.inf)
    mean = problem.gradients().mean(0)
    assert numbers["grad_norm_sq"] == pytest.approx(float(mean.square().sum()), rel=1e-9)


def test_lists_of_examples_are_data_sets_and_arrays_are_refused() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(40, 4), torch.randint(3, (40,))
    expected = measure_model(model, F.cross_entropy, x, y, batch_size=8, num_draws=5)["avg_var"]
    pairs = list(zip(x, y, strict=True))
    assert measure_model(model, F.cross_entropy, pairs, batch_size=8, num_draws=5)["avg_var"] == expected
    with pytest.raises(ConfigError, match="batches are made of tensors"):
        measure_model(model, F.cross_entropy, x.numpy(), y.numpy(), batch_size=8)


def test_class_weights_are_seen_in_sorted_data() -> None:
    """Within one class the weighted mean is a plain one; passes of neighbours would see one class each."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(1024, 4), torch.arange(1024) // 512
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 9.0, 2.0]))
    with pytest.raises(CoupledExamples, match="class weights"):
        measure_model(model, loss, x, y, batch_size=8, use="all")


def test_draws_of_an_estimator_keep_the_mode_of_the_model() -> None:
    """Dropout that is switched off stays so; then draws agree with the exact value."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double().eval()
    population = TensorPopulation(torch.randn(48, 5).double(), torch.randint(3, (48,)))
    stream, estimator = DataStream(population, 6), SGB(Objective(model, F.cross_entropy))
    exact, drawn = (
        Measurement([estimator], stream, num_draws=400, mode=mode)(0, Point.of(model))["SG-B[B=6]/avg_var"]
        for mode in ("exact", "unbiased")
    )
    assert drawn == pytest.approx(exact, rel=0.1)
