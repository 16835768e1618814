"""Statistics that know how draws were made: unbiased, with errors that are those of repetition."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from variance.data import TensorPopulation
from variance.errors import ConfigError
from variance.measurement import measure_model
from variance.sampling import UniformSampler
from variance.statistics import Design, RunningDraws, exact, unbiased

N, B = 12, 4


def population() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 0.7 + torch.randn(N, 3, generator=generator, dtype=torch.float64)


def draws(design: Design, num_draws: int, seed: int) -> torch.Tensor:
    """Batch means by the package's own samplers."""
    g = population()
    if design.kind == "batches":
        rows = [UniformSampler(N, (seed, i)).draw(B).indices for i in range(num_draws)]
    else:
        sampler = UniformSampler(N, seed, replacement=design.kind == "independent")
        rows = [sampler.draw(B).indices for _ in range(num_draws)]
    return torch.stack([g[indices].mean(0) for indices in rows])


DESIGNS = [
    (Design(), 4),
    (Design("batches", N), 4),
    (Design("epochs", N), 3),  # exactly one epoch
    (Design("epochs", N), 5),  # one epoch and two thirds
]


@pytest.mark.parametrize(("design", "num_draws"), DESIGNS, ids=lambda value: str(value))
def test_estimates_are_unbiased(design: Design, num_draws: int) -> None:
    """1 000 repetitions against exact moments, within 4.5 standard errors of their mean."""
    found = [
        unbiased(draws(design, num_draws, seed), B, design=design, standard_errors=False)
        for seed in range(1000)
    ]
    truth = exact(population(), B, replacement=design.kind == "independent")
    for name, expected in (("grad_norm_sq", truth.grad_norm_sq), ("avg_var", truth.avg_var)):
        if name == "avg_var" and num_draws == 5:
            continue  # one batch crosses the end of an epoch and is no plain batch
        values = np.array([getattr(one, name) for one in found])
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - expected) <= 4.5 * error + 1e-12 * expected, name


def test_draws_of_an_epoch_taken_as_independent_are_biased() -> None:
    """What the design is for: a whole epoch has no noise in its mean, and none may be subtracted."""
    one_epoch = draws(Design("epochs", N), 3, seed=0)
    norm = float(population().mean(0).square().sum())
    assert unbiased(one_epoch, B, design=Design("epochs", N)).grad_norm_sq == pytest.approx(norm, rel=1e-12)
    assert unbiased(one_epoch, B).grad_norm_sq < 0.98 * norm


@pytest.mark.parametrize("design", [Design(), Design("batches", N)], ids=str)
def test_standard_errors_are_the_spread_of_repetitions(design: Design) -> None:
    found = [unbiased(draws(design, 20, seed), B, design=design) for seed in range(250)]
    for name in ("avg_var", "grad_norm_sq"):
        spread = np.std([getattr(one, name) for one in found])
        claimed = np.sqrt(np.mean([one.standard_errors[name] ** 2 for one in found]))
        assert claimed == pytest.approx(spread, rel=0.2), name


def test_standard_errors_of_epochs_vanish_with_the_epoch() -> None:
    design = Design("epochs", N)
    assert unbiased(draws(design, 3, 0), B, design=design).standard_errors["grad_norm_sq"] == pytest.approx(
        0, abs=1e-12
    )


def test_impossible_designs() -> None:
    with pytest.raises(ConfigError, match="allowed are independent, batches, epochs"):
        Design("random", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="population is 0; pass a whole number of at least 2"):
        Design("epochs")


def test_sketched_errors_are_close_to_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.randn(*shape, generator=generator).double() for shape in ((12, 6), (6, 20_000)))
    values = 1.5 + few @ many  # gradients of a network vary in few directions
    whole = unbiased(values, 2)
    monkeypatch.setattr(RunningDraws, "SKETCH", 4096)
    sketched = unbiased(values, 2)
    assert sketched.grad_norm_sq == pytest.approx(whole.grad_norm_sq, rel=1e-12)
    for name in ("avg_var", "grad_norm_sq", "noise_scale"):
        assert sketched.standard_errors[name] == pytest.approx(whole.standard_errors[name], rel=0.15), name


def setting() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(500, 20), torch.randint(3, (500,))
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3)), x, y


def test_the_interval_of_the_readme_covers_the_exact_value() -> None:
    """The exact value by a loop of autograd; 19 of 20 seeds are expected, 17 allowed (probability 1e-2)."""
    model, x, y = setting()
    parameters = list(model.parameters())
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    g = torch.stack(
        [
            torch.cat([v.flatten() for v in torch.autograd.grad(one, parameters, retain_graph=True)])
            for one in losses
        ]
    ).double()
    mean = g.mean(0)
    truth = float((g - mean).square().sum() / len(g) / mean.square().sum())
    found = [
        measure_model(model, nn.functional.cross_entropy, x, y, batch_size=32, seed=seed)
        for seed in range(20)
    ]
    assert sum(one["noise_scale_low"] <= truth <= one["noise_scale_high"] for one in found) >= 17
    whole = measure_model(model, nn.functional.cross_entropy, x, y, batch_size=32, use="all")
    assert whole["noise_scale"] == pytest.approx(truth, rel=1e-4)
    assert "all examples" in repr(whole)


class Returning(nn.Module):
    """A model that returns its own loss, as transformers do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.inner(inputs)
        return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}


def test_every_form_of_data_gives_the_same_numbers() -> None:
    model, x, y = setting()
    plain = measure_model(model, nn.functional.cross_entropy, x, y, batch_size=32)
    pairs = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(pairs, batch_size=32, shuffle=True)
    keywords = [{"inputs": a, "labels": b} for a, b in zip(x, y, strict=True)]

    def own(outputs: dict[str, torch.Tensor], targets: None) -> torch.Tensor:
        return outputs["loss"]

    others = [
        measure_model(model, nn.functional.cross_entropy, pairs, batch_size=32),
        measure_model(model, nn.functional.cross_entropy, loader),
        measure_model(model, nn.functional.cross_entropy, TensorPopulation(x, y), batch_size=32),
        measure_model(model, nn.functional.cross_entropy, (x,), y, batch_size=32),
        measure_model(Returning(model), own, {"inputs": x, "labels": y}, batch_size=32),
        measure_model(
            Returning(model),
            own,
            torch.utils.data.DataLoader(keywords, batch_size=32),  # type: ignore[arg-type]
        ),
    ]
    for other in others:
        assert other.to_dict() == pytest.approx(plain.to_dict(), rel=1e-4)


def test_the_mode_of_the_model_decides() -> None:
    """In evaluation mode dropout is off and repeated batches agree."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    x, y = torch.ones(6, 4), torch.zeros(6).long()
    assert measure_model(model.eval(), nn.functional.cross_entropy, x, y, batch_size=2)["avg_var"] < 1e-12
    assert measure_model(model.train(), nn.functional.cross_entropy, x, y, batch_size=2)["avg_var"] > 1e-4
    assert model.training


@pytest.mark.parametrize("size", [1, 2, 3])
def test_factors_of_epochs_are_those_of_all_orders(size: int) -> None:
    """Four examples, three batches, all pairs of orders of as many epochs as that takes."""
    values = np.array([0.3, -1.0, 2.0, 0.7])
    orders = [values[list(order)] for order in itertools.permutations(range(4))]
    epochs = -(-3 * size // 4)
    streams = np.array([np.concatenate(some) for some in itertools.product(orders, repeat=epochs)])
    batches = streams[:, : 3 * size].reshape(-1, 3, size).mean(2)
    expected = (batches.var(0).mean() / values.var(), batches.mean(1).var() / values.var())
    assert Design("epochs", 4).factors(3, size) == pytest.approx(expected, rel=1e-10, abs=1e-12)
