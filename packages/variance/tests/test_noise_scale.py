"""The noise scale of a training loop's own micro-batches, against exact per-example moments."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from variance import measure_model, per_example
from variance.errors import ConfigError
from variance.noise_scale import ExampleMeter, NoiseMeter, NoiseScale
from variance.noise_scale.base import squared_norm


class Characters(nn.Module):
    """A character transformer of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 12)
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.table(x)).mean(1))


MODELS = {
    "linear": (lambda: nn.Linear(6, 3), lambda: torch.randn(96, 6)),
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), lambda: torch.randn(96, 6)),
    "cnn": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
        lambda: torch.randn(96, 2, 8),
    ),
    "norm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        lambda: torch.randn(96, 6),
    ),
    "characters": (Characters, lambda: torch.randint(11, (96, 5))),
}


def measured(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, population: int = 0, **options: Any
) -> NoiseScale:
    """Eight micro-batches of four a step, at fixed weights."""
    generator = torch.Generator().manual_seed(1)
    with NoiseMeter(model, 4, population=population, divided=True, **options) as meter:
        for _ in range(steps):
            model.zero_grad()
            rows = (
                torch.randperm(len(x), generator=generator)[:32]
                if population
                else torch.randint(len(x), (32,), generator=generator)
            )
            for part in rows.split(4):
                (F.cross_entropy(model(x[part]), y[part]) / 8).backward()
            meter.step()
        return meter.result()


@pytest.mark.parametrize("population", [0, 96], ids=["independent", "epochs"])
@pytest.mark.parametrize("name", MODELS)
def test_the_exact_value_is_within_three_standard_errors(name: str, population: int) -> None:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, x = make(), inputs()
    y = torch.randint(3, (96,))
    g = per_example.gradients(model, F.cross_entropy, x, y).double()
    mean = g.mean(0)
    trace, norm = float((g - mean).square().sum() / len(g)), float(mean.square().sum())
    found = measured(model, x, y, 60, population)
    half = (1 / found.low - 1 / found.high) / 2  # 1.98 standard errors of the inverse
    assert abs(norm / trace - 1 / found.noise_scale) <= 1.6 * half
    assert found.trace_cov == pytest.approx(trace, rel=0.15)
    assert set(found.by_parameter) == {key for key, _ in model.named_parameters()}
    assert "60 steps" in found.summary()


def test_the_loop_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    other = copy.deepcopy(model)
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    with NoiseMeter(model, 4) as meter:
        for one in (model, other):
            for part in (slice(0, 4), slice(4, 8)):
                F.cross_entropy(one(x[part]), y[part]).backward()
        meter.step()
    assert all(
        torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert not model.weight._backward_hooks


def test_steps_between_measured_ones_do_not_matter() -> None:
    torch.manual_seed(0)
    model = MODELS["mlp"][0]()
    x, y = torch.randn(12, 16, 6), torch.randint(3, (12, 16))

    def taken_in(chosen: list[int], **options: Any) -> dict[str, torch.Tensor]:
        with NoiseMeter(model, 4, **options) as meter:
            for step in chosen:
                model.zero_grad()
                size = 4 if step % 3 == 0 else 8  # not the meter's: a measured step would be left out
                for part in torch.arange(16).split(size):
                    F.cross_entropy(model(x[step, part]), y[step, part]).backward()
                meter.step()
            assert meter.num_skipped == 0
            return meter.state_dict()

    every, alone = taken_in(list(range(12)), every=3, norms_every=2), taken_in([0, 3, 6, 9], norms_every=2)
    assert every.keys() == alone.keys()
    assert len(every["traces"]) == 4
    assert len(every["other_norms"]) == 2
    for name in ("traces", "norms", "other_norms"):
        assert torch.equal(every[name], alone[name])


def test_a_loss_scale_that_changes_drops_out() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(64, 6), torch.randint(3, (64,))

    def measure(scales: list[float]) -> NoiseScale:
        with NoiseMeter(model, 4, norms_every=1) as meter:
            for scale in scales:
                model.zero_grad()
                for part in torch.arange(64).split(4):
                    (F.cross_entropy(model(x[part]), y[part]) * scale).backward()
                meter.step(loss_scale=scale)
            return meter.result()

    plain, scaled = measure([1.0] * 4), measure([1024.0, 2.0, 64.0, 1.0])
    assert plain.to_dict() == pytest.approx(scaled.to_dict(), rel=1e-5)


def of_norm(name: str, gradients: torch.Tensor, shapes: list[torch.Size]) -> torch.Tensor:
    """Norms of flat gradients by NumPy: sums of absolute or of singular values, over parameters."""
    pieces = gradients.split([shape.numel() for shape in shapes], 1)
    total = np.zeros(len(gradients))
    for piece, shape in zip(pieces, shapes, strict=True):
        matrices = piece.numpy().reshape(len(piece), shape[0], -1)
        if name == "l1":
            total += np.abs(matrices).sum((1, 2))
        else:
            total += np.linalg.svd(matrices, compute_uv=False).sum(1)
    return torch.from_numpy(total)


@pytest.mark.parametrize("population", [0, 96])
@pytest.mark.parametrize("name", MODELS)
def test_other_norms_are_those_of_per_example_gradients(name: str, population: int) -> None:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model, x, y = make(), inputs(), torch.randint(3, (96,))
    rows = []
    for i in range(96):
        found = torch.autograd.grad(
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters())
        )
        rows.append(torch.cat([g.flatten() for g in found]).double())
    g, shapes = torch.stack(rows), [p.shape for p in model.parameters()]
    generator = torch.Generator().manual_seed(2)
    draws = torch.stack(
        [
            torch.randperm(96, generator=generator)[:32]
            if population
            else torch.randint(96, (32,), generator=generator)
            for _ in range(4000)
        ]
    )
    means = g[draws].reshape(4000, 8, 4, -1).mean(2)
    correction = (population - 1) / population if population else 1.0
    measured_norms = measured(model, x, y, 60, population, norms_every=1).norms
    for norm in ("l1", "nuclear"):
        noise = of_norm(norm, means[:, 0] - means[:, 1], shapes) * (4 / 2 * correction) ** 0.5
        batch = of_norm(norm, means.mean(1), shapes)
        found = measured_norms[norm]
        for value, sample in ((found.noise_norm, noise), (found.batch_norm, batch)):
            error = float(sample.std()) * (1 / 60 + 1 / 4000) ** 0.5
            assert abs(value - float(sample.mean())) < 3 * error  # 20 comparisons at p = 0.0027 each
        shared = (1 / 32) * ((96 - 32) / 95 if population else 1)
        expected = float(batch.mean()) ** 2 - float(noise.mean()) ** 2 * shared
        assert found.mean_norm**2 == pytest.approx(found.batch_norm**2 - found.noise_norm**2 * shared)
        exact = float(of_norm(norm, g.mean(0, keepdim=True), shapes))
        assert found.batch_norm > exact - 3 * float(batch.std()) / 60**0.5  # an upper bound
        assert 0.8 * exact < max(expected, 0) ** 0.5 < 1.3 * exact  # the bias that the module states


@pytest.mark.filterwarnings("ignore:the noise of a step is below the rounding")
def test_norms_of_a_mean_without_noise_are_exact() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(1, 6).expand(8, 6)
    with NoiseMeter(model, 4, norms_every=1) as meter:
        for _ in range(3):
            model.zero_grad()
            for part in x.split(4):
                model(part).square().mean().backward()
            meter.step()
    gradients = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    found = meter.result().norms
    assert found["l1"].batch_norm == pytest.approx(2 * sum(float(g.abs().sum()) for g in gradients) / 2)
    assert found["nuclear"].batch_norm == pytest.approx(
        np.linalg.svd(gradients[0].numpy(), compute_uv=False).sum() + float(gradients[1].norm())
    )
    assert found["l1"].noise_norm == pytest.approx(0, abs=1e-6)


def test_a_state_without_its_parts_is_refused_by_name():
    meter = NoiseMeter(nn.Linear(2, 1), micro_batch_size=2)
    state = meter.state_dict()
    del state["other_norms"]
    with pytest.raises(ConfigError, match="no 'other_norms'"):
        meter.load_state_dict(state)


def test_counts_are_part_of_the_state() -> None:
    """Steps 0, 3, 6, 9 are measured, with a stop or without."""

    def train(stop: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        meter = NoiseMeter(model, micro_batch_size=4, every=3)
        for step in range(12):
            if step == stop:
                state = meter.state_dict()
                meter.close()
                meter = NoiseMeter(model, micro_batch_size=4, every=3)
                meter.load_state_dict(state)
            model.zero_grad()
            for part in torch.randn(8, 4).split(4):
                model(part).square().mean().backward()
            meter.step()
        return meter.state_dict()["traces"]

    assert torch.equal(train(stop=5), train(stop=-1))


def test_a_state_goes_to_parameters_by_name_and_norms_are_those_of_the_last_steps() -> None:
    torch.manual_seed(0)
    layers = {"first": nn.Linear(6, 4), "second": nn.Linear(4, 3)}
    model = nn.ModuleDict(layers)

    def train(meter: NoiseMeter, steps: int) -> NoiseMeter:
        for _ in range(steps):
            model.zero_grad()
            for part in torch.randn(8, 6).split(4):
                model["second"](model["first"](part)).square().mean().backward()
            meter.step()
        return meter

    meter = train(NoiseMeter(model, micro_batch_size=4, norms_every=2), 12)
    other = nn.ModuleDict(dict(reversed(layers.items())))
    resumed = NoiseMeter(other, micro_batch_size=4)
    resumed.load_state_dict(meter.state_dict())
    found = resumed.result()
    assert found.by_parameter == meter.result().by_parameter
    assert found.norms["l1"].by_parameter == meter.result().norms["l1"].by_parameter
    meter.load_state_dict(NoiseMeter(model, micro_batch_size=4).state_dict())
    last = train(meter, 6).result()
    train(meter, 6)
    state = meter.state_dict()
    assert meter.result(6).norms["l1"].num_steps == last.norms["l1"].num_steps == 3
    assert meter.result(6).norms["l1"].noise_norm == pytest.approx(
        float(state["other_norms"][-3:, 0, 0].sum(1).mean())
    )


def by_hand(model: nn.Module, parts: list[torch.Tensor]) -> float:
    """Variance of one example, from the micro-batches' gradients in float64."""
    g = []
    for part in parts:
        found = torch.autograd.grad(
            model(part).square().mean(), [p for p in model.parameters() if p.requires_grad]
        )
        g.append(torch.cat([one.flatten() for one in found]).double())
    return len(parts[0]) * float(torch.stack(g).var(0).sum())


def test_what_hooks_make_of_a_gradient_is_what_is_measured() -> None:
    """Those added after the meter, too; and a model that is moved behind it keeps its meter."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    meter, parts = NoiseMeter(model, micro_batch_size=4), list(torch.randn(8, 6).double().split(4))
    model.double()
    for p in model.parameters():
        p.register_hook(lambda g: g.clamp(-0.05, 0.05))
    expected = by_hand(model, parts)
    for part in parts:
        model(part).square().mean().backward()
    meter.step()
    assert float(meter.state_dict()["traces"].sum()) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [NoiseMeter, ExampleMeter])
def test_a_gradient_left_from_an_earlier_step_does_not_count(kind: Any) -> None:
    """A layer that is frozen in mid-run keeps its last `.grad`, which its optimiser no longer clears."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), torch.randn(8, 6)
    size = 4 if kind is NoiseMeter else 8
    meter = kind(model, micro_batch_size=4) if kind is NoiseMeter else kind(model)
    for is_frozen in (False, True):
        model[0].requires_grad_(not is_frozen)
        model[1].zero_grad()
        for part in data.split(size):
            model(part).square().mean().backward()
        meter.step()
    state = meter.state_dict()
    assert state["norms"][1, :2].tolist() == [0, 0]
    assert float(state["traces"][1].sum()) == pytest.approx(
        by_hand(model, list(data.split(4 if kind is NoiseMeter else 1))), rel=1e-5
    )


@pytest.mark.parametrize("size", [3, 70_000])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_squared_norms_neither_overflow_nor_underflow(size: int, scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = (torch.randn(2, size) * scale).to(dtype)
    expected = float(np.square(values.double().numpy()).sum())
    assert float(squared_norm(values)) == pytest.approx(expected, rel=1e-5, abs=0)


@pytest.mark.parametrize(("kind", "offset"), [(torch.float32, 100.0), (torch.float64, 1e6)])
def test_noise_far_below_the_mean(kind: torch.dtype, offset: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, 4, bias=False, dtype=kind)
    meter, noise = NoiseMeter(model, micro_batch_size=4), torch.randn(2, 4, 300, dtype=kind)
    for part in noise + offset:
        model(part).sum(1).mean().backward()
    meter.step()
    expected = 16 * float((noise + offset).double().mean(1).var(0).sum())
    assert float(meter.state_dict()["traces"].sum()) == pytest.approx(expected, rel=0.05)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("kind", [NoiseMeter, ExampleMeter])
def test_a_compiled_model_is_not_compiled_anew_at_every_step(kind: Any) -> None:
    compiled = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph

    def train(wrap: Any) -> NoiseScale:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        meter = kind(model, micro_batch_size=4) if kind is NoiseMeter else kind(model)
        run = wrap(model)
        for _ in range(12):
            model.zero_grad()
            for part in torch.randn(8, 4).split(4 if kind is NoiseMeter else 8):
                run(part).square().mean().backward()
            meter.step()
        return meter.result()

    torch._dynamo.reset()
    found = train(lambda model: torch.compile(model, backend=backend))
    assert repr(found) == repr(train(lambda model: model))
    assert len(compiled) <= 4  # pieces between hooks


@pytest.mark.parametrize("kind", [NoiseMeter, ExampleMeter])
def test_copies_of_the_model_do_not_count(kind: Any) -> None:
    """As `measure_model` makes them, or a loop that keeps a teacher."""

    def train(copies: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model, data = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(5, 8, 4)
        meter = kind(model, micro_batch_size=4) if kind is NoiseMeter else kind(model)
        for x in data:
            model.zero_grad()
            for part in x.split(4 if kind is NoiseMeter else 8):
                model(part).square().mean().backward()
            if copies:
                copy.deepcopy(model)(x[:4]).sum().backward()
                measure_model(model, lambda out, _: out.square().mean(1), x, x, batch_size=8, num_draws=3)
            meter.step()
        return meter.state_dict()["traces"]

    assert torch.equal(train(copies=True), train(copies=False))


@pytest.mark.parametrize("kind", [NoiseMeter, ExampleMeter])
def test_a_model_with_a_meter_is_pickled_or_says_why_not(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    meter = NoiseMeter(model, 4) if kind is NoiseMeter else ExampleMeter(model)
    with pytest.raises(TypeError, match="with a meter attached cannot be pickled; close the meter first"):
        torch.save(model, io.BytesIO())
    torch.save(model.state_dict(), io.BytesIO())
    model(torch.ones(8, 3)).sum().backward()
    assert copy.deepcopy({"model": model, "meter": meter})["meter"] is meter  # a trainer that is copied
    meter.close()
    torch.save(model, io.BytesIO())
