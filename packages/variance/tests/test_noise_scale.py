"""The noise scale of a training loop's own micro-batches, against exact per-example moments."""

import copy
import os
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from variance import per_example
from variance.errors import ConfigError
from variance.noise_scale import NoiseMeter, NoiseScale


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
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, population: int = 0
) -> NoiseScale:
    """Eight micro-batches of four a step, at fixed weights."""
    generator = torch.Generator().manual_seed(1)
    with NoiseMeter(model, 4, population=population, divided=True) as meter:
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


def test_what_a_step_must_hold() -> None:
    model = nn.Linear(2, 1)
    meter = NoiseMeter(model, 4)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ConfigError, match="at least two micro-batches"):
        meter.step()
    with pytest.raises(ConfigError, match="needs at least 3"):
        meter.result()
    with pytest.raises(ConfigError, match="micro_batch_size is 0"):
        NoiseMeter(model, 0)


def rank(index: int, port: int, results: object) -> None:
    """One of two data-parallel processes; each sees half of every batch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=index, world_size=2)
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    x, y = torch.randn(96, 6), torch.randint(3, (96,))
    parallel = nn.parallel.DistributedDataParallel(model)
    meter = NoiseMeter(model, 4)
    for step in range(5):
        model.zero_grad()
        rows = torch.arange(8) + 8 * step
        part = rows[4 * index : 4 * index + 4]
        F.cross_entropy(parallel(x[part]), y[part]).backward()
        meter.step()
    if index == 0:
        results.put(meter.result().noise_scale)  # type: ignore[attr-defined]
    torch.distributed.destroy_process_group()


def test_ranks_are_micro_batches() -> None:
    """Two gloo processes give what one process with two micro-batches gives."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=rank, args=(i, port, results)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    x, y = torch.randn(96, 6), torch.randint(3, (96,))
    meter = NoiseMeter(model, 4)
    for step in range(5):
        model.zero_grad()
        for part in (torch.arange(8) + 8 * step).split(4):
            F.cross_entropy(model(x[part]), y[part]).backward()
        meter.step()
    assert results.get() == pytest.approx(meter.result().noise_scale, rel=1e-4)
