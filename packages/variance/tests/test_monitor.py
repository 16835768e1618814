"""The monitor: bit-identical training, the right steps, removal of the hook, and a transformer."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from variance.errors import ConfigError
from variance.noise_scale import NoiseMeter
from variance.noise_scale.monitor import GradientMonitor


class Transformer(nn.Module):
    """Two layers of attention, LayerNorm and Embedding, one class per sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(tokens)).mean(1))


def train(model: nn.Module, x: Tensor, y: Tensor, monitor: GradientMonitor | None) -> Tensor:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with monitor.attached(optimizer) if monitor else nullcontext():
        for _ in range(12):
            rows = torch.randint(len(x), (8,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer.step()  # outside the block nothing is counted
    return weights


@pytest.mark.parametrize("kind", ["batch norm and dropout", "transformer"])
def test_training_is_bit_identical_with_and_without(kind: str) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        if kind == "transformer":
            return Transformer()
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))

    torch.manual_seed(3)
    x = torch.randint(11, (40, 5)) if kind == "transformer" else torch.randn(40, 5)
    y = torch.randint(3, (40,))
    watched = build()
    monitor = GradientMonitor(watched, nn.functional.cross_entropy, x, y, batch_size=8, every=5, num_draws=4)
    plain = build()
    before, after = train(plain, x, y, None), train(watched, x, y, monitor)
    assert torch.equal(before, after)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), watched.buffers(), strict=True))
    assert monitor.steps == [0, 5, 10]
    assert all(found["avg_var"] > 0 for found in monitor.history)


def test_bad_input() -> None:
    one = torch.zeros(1, 1)
    for every in (0, 2.5):  # every 2.5 steps was every fifth
        with pytest.raises(ConfigError, match=f"every is {every}; pass a whole number"):
            GradientMonitor(nn.Linear(1, 1), nn.functional.mse_loss, one, one, batch_size=1, every=every)
        with pytest.raises(ConfigError, match=f"every is {every}; pass a whole number"):
            NoiseMeter(nn.Linear(1, 1), 2, every=every)


def test_a_wrapper_of_an_optimiser_is_refused() -> None:
    """As accelerate's, which is an Optimizer by name and was never set up as one."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model, one = nn.Linear(1, 1), torch.zeros(4, 1)
    monitor = GradientMonitor(model, nn.functional.mse_loss, one, one, batch_size=2)
    with (
        pytest.raises(ConfigError, match="Wrapper, which only wraps another"),
        monitor.attached(Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))),
    ):
        pass
